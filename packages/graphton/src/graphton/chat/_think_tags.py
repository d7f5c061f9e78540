"""Thinking that a server leaves in the text, between <think> tags at its beginning, told from the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from graphton.chat.base import TextChunk, ThinkingChunk
from graphton.messages import Block, Text, Thinking

__all__ = ["ThinkTags", "blocks_of", "told_apart"]

_OPEN, _CLOSE = "<think>", "</think>"
_ONLY_CLOSED = re.compile(r"^[ \t]*</think>|</think>[ \t]*$", re.MULTILINE)


class ThinkTags:
    """Feed it the text of one reply as it comes; a reply that does not begin with the tag passes unchanged."""

    def __init__(self) -> None:
        self._held = ""
        self._step = self._before

    def feed(self, text: str) -> Iterator[TextChunk | ThinkingChunk]:
        """What can be told of the text so far."""
        if self._step == self._after:  # Nothing is held back any more: the usual case.
            yield from (TextChunk(text),) if text else ()
            return
        self._held += text
        yield from self._step()

    def end(self) -> Iterator[TextChunk | ThinkingChunk]:
        """What was held back in case a tag would come."""
        if self._held:
            yield ThinkingChunk(self._held) if self._step == self._inside else TextChunk(self._held)
            self._held = ""

    def _before(self) -> Iterator[TextChunk | ThinkingChunk]:
        start = self._held.lstrip()
        if start.startswith(_OPEN):
            self._held, self._step = start[len(_OPEN) :], self._opening
            yield from self._opening()
        elif not _OPEN.startswith(start):
            self._step = self._after
            yield from self._after()

    def _opening(self) -> Iterator[TextChunk | ThinkingChunk]:
        self._held = self._held.lstrip("\n")
        if self._held:
            self._step = self._inside
            yield from self._inside()

    def _inside(self) -> Iterator[TextChunk | ThinkingChunk]:
        thought, found, rest = self._held.partition(_CLOSE)
        if found:
            self._held, self._step = rest, self._between
            if thought.rstrip("\n"):
                yield ThinkingChunk(thought.rstrip("\n"))
            yield from self._between()
            return
        # The end may be the beginning of the closing tag, after blank lines that belong to it.
        keep = next((n for n in range(len(_CLOSE) - 1, 0, -1) if thought.endswith(_CLOSE[:n])), 0)
        certain = thought[: len(thought) - keep].rstrip("\n")
        self._held = thought[len(certain) :]
        if certain:
            yield ThinkingChunk(certain)

    def _between(self) -> Iterator[TextChunk | ThinkingChunk]:
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._after
            yield from self._after()

    def _after(self) -> Iterator[TextChunk | ThinkingChunk]:
        text, self._held = self._held, ""
        if text:
            yield TextChunk(text)


def told_apart(text: str) -> tuple[str, str]:
    """The thoughts before a closing tag that was never opened, and the text behind it.

    Templates of some models open the tag themselves, in the prompt, and a server that does not know it leaves the rest in
    the text. While it came nobody could know: only the whole reply is told apart.
    """
    closed = _ONLY_CLOSED.search(text)
    if closed is None or _OPEN in text or text[: closed.start()].count("```") % 2 or text.strip() == _CLOSE:
        return "", text  # Of the tag one can also speak: in a sentence, in a block of code.
    return text[: closed.start()].strip("\n"), text[closed.end() :].lstrip()


def blocks_of(thoughts: str, text: str, provider: str) -> list[Block]:
    """What a whole reply thought and said."""
    if not thoughts:
        thoughts, text = told_apart(text)
    blocks: list[Block] = [Thinking(thoughts, provider)] if thoughts else []
    return [*blocks, Text(text)] if text else blocks
