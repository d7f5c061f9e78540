"""The text of an envelope's reply, decoded while it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["ReplyText"]

_HEX = re.compile(r"[0-9a-fA-F]{4}")
_PAIR = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u([dD]([c-fC-F][0-9a-fA-F]?)?)?)?)?")
"""The first half of a pair, and the second not there or only begun."""
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class ReplyText:
    """Decodes the text of `{"tool": "reply", "arguments": {"text": "…"}}` while it is written, however it is cut into pieces.

    `feed` returns what became readable with this piece; anything but a reply yields nothing. Half a surrogate
    pair becomes U+FFFD, as when the whole text is parsed.
    """

    def __init__(self, name: str = "reply") -> None:
        self.found = False
        """Whether the reply's text has begun."""
        self._head = re.compile(
            rf'\s*\{{\s*"tool"\s*:\s*"{re.escape(name)}"\s*,\s*"arguments"\s*:\s*\{{\s*"text"\s*:\s*"'
        )
        self._ended = False
        self._rest = ""
        """What cannot be decided yet: the head before the text, or the beginning of an escape."""

    def feed(self, piece: str) -> str:
        """The text that `piece` adds to the reply."""
        if self._ended:
            return ""
        self._rest += piece
        if not self.found:
            head = self._head.match(self._rest)
            if head is None:
                return ""
            self.found, self._rest = True, self._rest[head.end() :]
        return "".join(self._decoded())

    def _decoded(self) -> Iterator[str]:
        """Take from the rest what is whole: plain text up to an escape, then the escape, and again."""
        while self._rest and not self._ended:
            plain = re.match(r'[^"\\]*', self._rest)
            at = plain.end() if plain else 0
            if at:
                yield self._rest[:at]
                self._rest = self._rest[at:]
            elif self._rest[0] == '"':
                self._ended = True
            else:
                text, length = _escape(self._rest)
                if not length:
                    return
                yield text
                self._rest = self._rest[length:]


def _escape(text: str) -> tuple[str, int]:
    """The character of the escape that a text begins with, and the escape's length; 0 while it is not whole."""
    if len(text) < 2 or (text[1] == "u" and len(text) < 6):
        return "", 0
    if text[1] != "u":
        return _ESCAPES.get(text[1], text[1]), 2
    if (pair := _PAIR.match(text)) is not None:
        high, low = (int(half, 16) for half in pair.groups())
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)), 12
    if _HALF.fullmatch(text):
        return "", 0
    code = int(text[2:6], 16) if _HEX.fullmatch(text[2:6]) else 0xFFFD
    return ("\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)), 6
