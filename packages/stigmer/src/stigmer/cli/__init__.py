"""The command line. Nothing is imported before a command is known: `stigmer --help` answers in a blink."""

from __future__ import annotations

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    try:
        import gc
        import signal
    except KeyboardInterrupt:
        return 130
    # Collecting what was just imported costs a command a twentieth of its time and frees nothing.
    gc.set_threshold(50_000)
    catches = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if catches:  # While there is nothing yet to cancel, Ctrl-C ends us at once and without a trace.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stigmer.cli._main import main as run

    if catches:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(arguments)
