"""The slots of a llama.cpp server: so many calls run at a time, and each conversation finds what was read of it before.

llama.cpp would choose by the longest common beginning. All runs of one agent begin alike, so a second run would take the
slot of the first, which reads its conversation again at its next step. Here a conversation is known by its beginning
*and* its first message. What loses its slot is kept by the server as long as its cache has room, and comes back from there.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["Slot", "Slots", "Talk"]


@dataclass(frozen=True, slots=True)
class Talk:
    """Which conversation a call belongs to."""

    beginning: bytes
    """Names the system text and the tools."""
    first: bytes = b""
    """Names the first message; empty where only the beginning is read, for whoever comes with it."""


@dataclass(eq=False, slots=True)
class Slot:
    """One place in the server that reads and writes for one call at a time."""

    id: int
    talk: Talk | None = None
    """Whose words were read last."""
    busy: bool = False
    read: tuple[float, float] = (0, 0)
    """How many tokens of the prompt are read, and how many there are, while its beginning is read ahead."""
    used: int = 0
    """Counts upwards: the slot with the smallest number has been idle the longest."""
    keeper: weakref.ref[object] | None = None

    @property
    def holder(self) -> object | None:
        """The chat whose run goes on there; None when that has ended, or the chat is thrown away."""
        return self.keeper() if self.keeper else None


@dataclass(eq=False)
class Slots:
    """The slots of one server. Calls that find none free wait in the order in which they came."""

    count: int
    _all: list[Slot] = field(init=False)
    _room: asyncio.Semaphore = field(init=False)
    _freed: asyncio.Event = field(init=False)
    _turns: int = 0

    def __post_init__(self) -> None:
        self._all = [Slot(number) for number in range(self.count)]
        self._room = asyncio.Semaphore(self.count)
        self._freed = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether a run goes on in one of them."""
        return any(slot.holder is not None for slot in self._all)

    @property
    def busy(self) -> bool:
        """Whether a call runs in one of them."""
        return any(slot.busy for slot in self._all)

    def knows(self, talk: Talk) -> bool:
        """Whether the beginning of this conversation has been read."""
        return any(slot.talk is not None and slot.talk.beginning == talk.beginning for slot in self._all)

    def must_wait(self, talk: Talk) -> bool:
        """Whether a call of this conversation cannot begin at once."""
        return self._room.locked() or self.being_read(talk) is not None

    @asynccontextmanager
    async def turn(self, talk: Talk, holder: object) -> AsyncIterator[Slot]:
        """A slot for one call: the one that knows most of the conversation, of those that nobody else goes on with."""
        while (reads := self.being_read(talk)) is not None:
            await self.freed(reads)
        async with self._room:
            slot = self._choose(talk, holder)
            self._turns += 1
            slot.busy, slot.talk, slot.used, slot.keeper = True, talk, self._turns, weakref.ref(holder)
            try:
                yield slot
            finally:
                slot.busy = False
                self._freed.set()

    def leave(self, holder: object) -> None:
        """The run of this chat has ended: others may have its slots."""
        for slot in self._all:
            if slot.holder is holder:
                slot.keeper = None

    def being_read(self, talk: Talk) -> Slot | None:
        """The slot where the beginning of this conversation is read just now, for whoever comes with it."""
        if not talk.first:
            return None
        ahead = Talk(talk.beginning)
        return next((slot for slot in self._all if slot.busy and slot.talk == ahead), None)

    async def freed(self, slot: Slot) -> None:
        """Returns when its call has ended."""
        while slot.busy:
            self._freed.clear()
            await self._freed.wait()

    def _choose(self, talk: Talk, holder: object) -> Slot:
        free = [slot for slot in self._all if not slot.busy]
        return max(free, key=lambda slot: _worth(slot, talk, holder))


def _worth(slot: Slot, talk: Talk, holder: object) -> tuple[int, int]:
    """How good it is to take this slot: first by what it knows, then by how long nobody has used it."""
    if slot.talk is None:
        return 2, -slot.id
    if slot.talk == talk and talk.first:
        return 4, slot.used
    if slot.talk.beginning == talk.beginning and slot.holder in (None, holder):
        return 3, slot.used
    return int(slot.holder is None), -slot.used
