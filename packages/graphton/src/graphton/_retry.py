"""How often and how long a failed model call is tried again, and what one call's failure means for all others."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from graphton.errors import ProviderError
from graphton.models import ModelRef, ModelSettings, origin

__all__ = ["PACE", "Pace", "Retry"]

REST_SECONDS = 60.0
"""How long other runs leave a model alone that a fallback had to take over from."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The one owner of retries.

    The wait doubles from `base` to `cap` seconds, jittered down to a half; a Retry-After of the server is kept to
    when it is at most `patience` seconds, else the call fails at once and says how long the server asked for.
    """

    tries: int = 6
    base: float = 0.5
    cap: float = 30.0
    patience: float = 300.0
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def wait(self, failed: int, error: ProviderError) -> float | None:
        """Seconds until the next try after `failed` tries, or None when it is time to give up."""
        if not error.retryable or failed >= self.tries:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.patience else None
        return min(self.cap, self.base * 2.0 ** (failed - 1)) * (0.5 + self.jitter() / 2)


class Pace:
    """What every run and child of a process keeps to.

    A provider that tells one call to slow down (429) means the key, so all calls with that key at that address wait.
    A model whose retries were used up rests for a while: runs that have a fallback begin with it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[tuple[str, str, str], float] = {}
        self._resting: dict[tuple[ModelRef, str], float] = {}

    def slow(self, ref: ModelRef, settings: ModelSettings, seconds: float) -> None:
        """No call with this key at this address begins within so many seconds."""
        if settings.api_key:
            lane = (ref.provider, origin(settings.base_url or ""), settings.api_key)
            self._held[lane] = max(self._held.get(lane, 0.0), self._clock() + seconds)

    def held(self, ref: ModelRef, settings: ModelSettings) -> float:
        """Seconds that a call must still wait; 0 where it may begin."""
        lane = (ref.provider, origin(settings.base_url or ""), settings.api_key or "")
        left = self._held.get(lane, 0.0) - self._clock()
        if left <= 0.01:  # Sleep wakes a little early at times.
            self._held.pop(lane, None)
            return 0.0
        return left

    def rest(self, ref: ModelRef, settings: ModelSettings) -> None:
        """The model has failed for good just now. One without an address is no server that others share."""
        if settings.base_url:
            self._resting[ref, settings.base_url] = self._clock() + REST_SECONDS

    def resting(self, ref: ModelRef, settings: ModelSettings) -> float:
        """Seconds that the model still rests; 0 where it may be asked."""
        place = (ref, settings.base_url or "")
        left = self._resting.get(place, 0.0) - self._clock()
        if left <= 0:
            self._resting.pop(place, None)
            return 0.0
        return left


PACE = Pace()
"""The pace of this process."""
