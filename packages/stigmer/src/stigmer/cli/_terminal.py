"""stdout for data, stderr for talk, and how both stay readable and harmless on one terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from functools import cache
from typing import TextIO

__all__ = ["StdoutClosed", "Terminal", "harmless", "person_here", "size_text", "terminal"]

_STYLES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but newline and tab, and what turns the reading direction."""
SPARSE_SECONDS = 10.0
"""How long it is quiet before a wait shows itself where no line can be updated."""


def harmless(text: str) -> str:
    """The text with every character that would steer a terminal shown as `\\x1b`; what is printed is what is there.

    >>> harmless("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _HARMFUL.sub(_shown, text.replace("\r\n", "\n"))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def size_text(count: int) -> str:
    """A number of bytes for people: `1.1 GB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


class StdoutClosed(Exception):
    """Nobody reads stdout any more. A class of our own, because click has its own mind about BrokenPipeError."""


class Terminal:
    """The two streams of a command. A status line is updated in place on a terminal and is told sparsely elsewhere."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self.out_is_terminal, self.err_is_terminal = out.isatty(), err.isatty()
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self.colour = self.err_is_terminal and not plain
        self.updates = self.err_is_terminal and os.environ.get("TERM") != "dumb"
        self._status = ""
        self._told_at = time.monotonic()
        self._mid_line = False
        self._asking = False

    def data(self, text: str, *, more: bool = False) -> None:
        """Writes to stdout, at once unless more follows. What a model said is harmless on a terminal and untouched elsewhere."""
        if not text:
            return
        self._wipe()
        self._write(harmless(text) if self.out_is_terminal else text, more=more)
        self._mid_line = self.out_is_terminal and not text.endswith("\n")

    def say(self, text: str) -> None:
        """Writes a line to stderr. The caller makes foreign text harmless."""
        self._wipe()
        self._end_line()
        print(text, file=self._err, flush=True)

    def status(self, text: str) -> None:
        """Shows what we wait for; "" takes it away."""
        if self.updates:
            self._wipe()
            if text and not self._mid_line:
                import shutil  # Not for `--help`.

                width = shutil.get_terminal_size().columns - 1
                self._err.write(self.paint(text[:width], "dim"))
                self._err.flush()
                self._status = text
            return
        now = time.monotonic()
        if text and now - self._told_at >= SPARSE_SECONDS:
            self._told_at = now
            print(text, file=self._err, flush=True)

    def ask(self, text: str) -> None:
        """Writes a question that the answer is typed behind; what was typed before it was seen is no answer."""
        self._wipe()
        self._end_line()
        if sys.stdin is not None and sys.stdin.isatty():
            import termios

            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        self._asking = True
        self._err.write(text)
        self._err.flush()

    def answered(self) -> None:
        """The person has pressed Enter: the next line begins where lines begin."""
        self._asking = False

    def paint(self, text: str, style: str) -> str:
        """The text in a style, where colour is welcome."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour else text

    def flush(self) -> None:
        """Leaves both streams in order; raises StdoutClosed where nobody reads stdout."""
        self._wipe()
        self._end_line()
        self._write("")

    def _write(self, text: str, *, more: bool = False) -> None:
        try:
            self._out.write(text)
            if not more:
                self._out.flush()
        except BrokenPipeError as error:
            raise StdoutClosed from error

    def _wipe(self) -> None:
        self._told_at = time.monotonic()
        if self._status:
            self._err.write("\r\x1b[K")
            self._err.flush()
            self._status = ""

    def _end_line(self) -> None:
        if self._mid_line:
            self._mid_line = False
            self._write("\n")
        if self._asking:
            self._asking = False
            print(file=self._err, flush=True)


def person_here() -> bool:
    """Whether somebody sits here who can read a question and type an answer."""
    return sys.stdin is not None and sys.stdin.isatty() and terminal().err_is_terminal


@cache
def terminal() -> Terminal:
    """This process's streams. What cannot be written in their encoding is replaced, never an error."""
    streams: list[TextIO] = []
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # Closed by the caller (`>&-`).
            stream = open(os.devnull, "w")  # noqa: SIM115  # For as long as the process lives.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
        streams.append(stream)
    return Terminal(*streams)
