"""Who watches what: committed events and live ones reach watchers from here, in order.

Memory holds only what a watcher has not taken yet, and at most LIMIT bytes of it. One that falls behind loses its
queue and reads the store again from its place; live text it missed is told by the snapshot that follows.

What happens in one turn of the event loop is told together, and a watcher that was told something just now hears of
more PACE_SECONDS later: a message costs far more than the events in it. The first news, and the end, are told at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from stigmer.api import event_pb2 as pb

__all__ = ["Feed", "Watcher"]

LIMIT = 1 << 20
PACE_SECONDS = 0.05
"""The least time between two messages to one watcher: nobody sees the difference, and fast steps share a message."""


@dataclass(eq=False, slots=True)
class Watcher:
    """One reader's queue of (seq, body); seq 0 is a live event."""

    queue: deque[tuple[int, bytes]] = field(default_factory=deque)
    size: int = 0
    behind: bool = False
    """The queue overflowed: read the store, then go on."""
    stale: bool = False
    """Another server may have appended: look into the store too. What is queued is whole."""
    ended: bool = False
    """The execution has finished: nothing follows what is queued."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _timer: asyncio.TimerHandle | None = None
    """Tells of the news when it is time."""
    _taken: float = 0.0
    """When something was last taken, by the loop's clock."""

    def push(self, seq: int, body: bytes) -> None:
        if self.size + len(body) > LIMIT:
            self.behind = True
        if not self.behind:
            self.queue.append((seq, body))
            self.size += len(body)
        if self.ended or self.behind:
            self._news.set()
        elif self._timer is None:
            # Never in this very turn of the loop: what else it commits goes with it.
            self._timer = asyncio.get_running_loop().call_at(self._taken + PACE_SECONDS, self._news.set)

    def take(self) -> list[tuple[int, bytes]]:
        """Everything queued, and the queue is empty and whole again."""
        taken = list(self.queue)
        self.queue.clear()
        self.size, self.behind = 0, False
        self._news.clear()
        self.rest()
        if taken:
            self._taken = asyncio.get_running_loop().time()
        return taken

    def grown_elsewhere(self) -> None:
        """There may be more in the store than is pushed here."""
        self.stale = True
        self._news.set()

    async def news(self) -> None:
        """Waits until there is something to take."""
        await self._news.wait()

    def rest(self) -> None:
        """Tells of nothing until something new is pushed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(slots=True)
class _Partial:
    """What a reply has shown so far: kind ("text" or "thinking") -> the first delta and all pieces."""

    attempt: int
    try_: int
    pieces: dict[str, list[str]] = field(default_factory=dict)


class Feed:
    """The watchers of all executions, and the partial replies a late watcher must be shown."""

    def __init__(self) -> None:
        self._watchers: dict[int, set[Watcher]] = {}
        self.tap: Callable[[int, Sequence[tuple[int, pb.Event, bytes]]], None] | None = None
        """Hears of all that is committed here, of every execution."""
        self._partial: dict[int, dict[tuple[str, int], _Partial]] = {}

    def join(self, no: int) -> Watcher:
        watcher = Watcher()
        self._watchers.setdefault(no, set()).add(watcher)
        return watcher

    def leave(self, no: int, watcher: Watcher) -> None:
        watcher.rest()
        watchers = self._watchers.get(no, set())
        watchers.discard(watcher)
        if not watchers:
            self._watchers.pop(no, None)

    @property
    def watchers(self) -> int:
        return sum(len(watchers) for watchers in self._watchers.values())

    def stale(self, nos: Iterable[int] | None) -> None:
        """These executions, or all, may have grown elsewhere: their watchers read the store again."""
        for no in list(self._watchers) if nos is None else nos:
            for watcher in self._watchers.get(no, ()):
                watcher.grown_elsewhere()

    def publish(self, no: int, committed: Sequence[tuple[int, pb.Event, bytes]]) -> None:
        """Committed events, in order."""
        if self.tap is not None:
            self.tap(no, committed)
        for seq, event, body in committed:
            self._settle(no, event)
            for watcher in self._watchers.get(no, ()):
                watcher.ended = watcher.ended or event.HasField("finished")
                watcher.push(seq, body)

    def live(self, no: int, event: pb.Event) -> None:
        """An event that is shown and forgotten."""
        self._remember(no, event)
        watchers = self._watchers.get(no)
        if watchers:
            body = event.SerializeToString()
            for watcher in watchers:
                watcher.push(0, body)

    def partial(self, no: int) -> list[bytes]:
        """The text so far of every reply under way, as live events from offset 0."""
        events = []
        for (path, step), partial in self._partial.get(no, {}).items():
            for kind, pieces in partial.pieces.items():
                event = pb.Event(path=path)
                delta = event.text_delta if kind == "text_delta" else event.thinking_delta
                delta.step, delta.attempt, delta.text = step, partial.attempt, "".join(pieces)
                setattr(delta, "try", partial.try_)  # `try` is a word of Python's own.
                events.append(event.SerializeToString())
        return events

    def _remember(self, no: int, event: pb.Event) -> None:
        kind = event.WhichOneof("kind")
        if kind == "stream_reset":
            self._partial.get(no, {}).pop((event.path, event.stream_reset.step), None)
        elif kind in ("text_delta", "thinking_delta"):
            delta = getattr(event, kind)
            replies = self._partial.setdefault(no, {})
            partial = replies.get((event.path, delta.step))
            try_ = getattr(delta, "try")
            if partial is None or (partial.attempt, partial.try_) != (delta.attempt, try_):
                partial = replies[event.path, delta.step] = _Partial(delta.attempt, try_)
            partial.pieces.setdefault(kind, []).append(delta.text)

    def _settle(self, no: int, event: pb.Event) -> None:
        """A whole reply replaces its partial text; the end of an attempt drops all of it."""
        match event.WhichOneof("kind"):
            case "model_replied":
                self._partial.get(no, {}).pop((event.path, event.model_replied.step), None)
            case "attempt_ended" | "finished":
                self._partial.pop(no, None)
            case _:
                pass
