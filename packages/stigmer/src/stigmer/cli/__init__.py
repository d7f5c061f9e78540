"""The command line. Nothing is imported before a command is known: `stigmer --help` answers in a blink."""

from __future__ import annotations

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    from stigmer.cli._main import main as run

    return run(arguments)
