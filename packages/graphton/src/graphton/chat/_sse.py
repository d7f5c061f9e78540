"""Server-sent events from bytes that may be split anywhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from graphton.chat._http import MAX_LINE, Reply

__all__ = ["SSEParser", "ServerSentEvent", "events"]


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event; `name` is empty where the stream gives none."""

    name: str
    data: bytes


class SSEParser:
    """Feed it bytes as they come, get whole events back. An event without its closing blank line never happened."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""
        self._after_cr = False
        self._at_start = True

    @property
    def held(self) -> int:
        """Bytes of an event that is not whole yet, so that the caller can refuse an endless one."""
        return self._size + len(self._rest)

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that `chunk` completes."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]  # the second half of a CRLF that was split
            self._after_cr = False
        if not chunk:
            return []
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        else:
            self._after_cr = False
        found: list[ServerSentEvent] = []
        if not (self._rest or self._data or self._name):
            chunk = self._plain(chunk, found)
        first, *more = chunk.split(b"\n")
        self._rest += first
        for following in more:
            event = self._line(bytes(self._rest))
            self._rest[:] = following
            if event is not None:
                found.append(event)
        return found

    def _plain(self, chunk: bytes, found: list[ServerSentEvent]) -> bytes:
        """Takes the events that are one line of data and a blank one from the beginning: nearly all are. What is left of it."""
        start = 0
        while chunk.startswith(b"data: ", start):
            end = chunk.find(b"\n", start)
            if end < 0 or not chunk.startswith(b"\n\n", end):
                break
            found.append(ServerSentEvent("", chunk[start + 6 : end]))
            start = end + 2
        self._at_start = self._at_start and not start
        return chunk[start:]

    def _line(self, line: bytes) -> ServerSentEvent | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        return None  # comments (":…"), ids, retry times and fields of the future say nothing to us

    def _dispatch(self) -> ServerSentEvent | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], "", 0
        return ServerSentEvent(name, b"\n".join(data)) if data else None


async def events(reply: Reply) -> AsyncGenerator[ServerSentEvent]:
    """The events of a reply; one longer than MAX_LINE is a ProtocolError."""
    parser = SSEParser()
    while data := await reply.read():
        for event in parser.feed(data):
            reply.began()
            yield event
        if parser.held > MAX_LINE:
            raise reply.peer.protocol(f"more than {MAX_LINE} bytes in one event")
