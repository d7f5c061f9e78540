"""Waiting for Ollama, which says nothing while it loads a model or reads a prompt: time so far against an estimate."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from graphton.chat.base import WaitChunk

__all__ = ["Speed", "answering", "loading", "reading", "ticks"]

MEASURED = 3
"""Of so many last prompts the slowest counts: a prompt that the server knew unbeknown to us was read too fast."""
FEWEST_TOKENS = 32
"""A shorter prompt says nothing of the speed."""


async def ticks(task: asyncio.Future[Any], tick: Callable[[float], WaitChunk]) -> AsyncGenerator[WaitChunk]:
    """What `tick` says of the seconds so far, until the task is done. Leaving early cancels it, and waits for its end."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        for due in _moments():
            done, _ = await asyncio.wait({task}, timeout=max(0.0, begun + due - loop.time()))
            if done:
                return
            yield tick(loop.time() - begun)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # Seen: who leaves early does not ask for it.


def _moments() -> Iterator[float]:
    """Every second at first, later every few: a program that reads events need not drown in them."""
    due = 0.0
    while True:
        due += 1.0 if due < 10 else 2.0 if due < 60 else 5.0
        yield due


class Speed:
    """How fast a model of a server reads prompts, and what it has read last: the beginning of that is known to it."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=MEASURED)
        self._known: Sequence[bytes] = ()

    def fresh(self, parts: Sequence[bytes]) -> float:
        """The share of a prompt that the server has not read before, between 0 and 1."""
        whole = sum(map(len, parts))
        known = 0
        for part, before in zip(parts, self._known, strict=False):
            if part != before:
                break
            known += len(part)
        return 1 - known / whole if whole else 1.0

    def seconds(self, tokens: float) -> float | None:
        """How long it will read so many tokens; None: nothing was measured yet."""
        return tokens / min(self._rates) if self._rates else None

    def read(self, parts: Sequence[bytes], tokens: int, seconds: float) -> None:
        """It has read this prompt of so many tokens in so many seconds."""
        fresh = tokens * self.fresh(parts)
        self._known = parts
        if fresh >= FEWEST_TOKENS and seconds > 0:
            self._rates.append(fresh / seconds)


def answering(base_url: str) -> Callable[[float], WaitChunk]:
    """What there is to say while a server does not say what it is."""

    def tick(elapsed: float) -> WaitChunk:
        text = f"the Ollama at {base_url} has not answered yet, {elapsed:.0f} s so far"
        return WaitChunk("server", round(elapsed, 1), 0.0, "s", text)

    return tick


def loading(model: str, detail: str) -> Callable[[float], WaitChunk]:
    """What there is to say while a model is loaded, which takes as long as it takes."""

    def tick(elapsed: float) -> WaitChunk:
        return WaitChunk("load", round(elapsed, 1), 0.0, "s", f"{model}{detail}, {elapsed:.0f} s so far")

    return tick


def reading(tokens: float, estimate: float | None) -> Callable[[float], WaitChunk]:
    """What there is to say while a prompt is read: a share of the estimate, as long as that may be right."""

    def tick(elapsed: float) -> WaitChunk:
        said = f"about {tokens:,.0f} tokens"
        if estimate is not None and elapsed < estimate:
            return WaitChunk(
                "prompt", round(elapsed, 1), estimate, "s", f"{said}, estimated from the last ones"
            )
        # Where nearly all is known already and it takes long all the same, another call is answered first.
        late = f", estimated were {estimate:.0f} s" if estimate is not None and estimate >= 1 else ""
        return WaitChunk("prompt", round(elapsed, 1), 0.0, "s", f"{said}, {elapsed:.0f} s so far{late}")

    return tick
