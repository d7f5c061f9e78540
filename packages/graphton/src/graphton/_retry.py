"""How often and how long a failed model call is tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from graphton.errors import ProviderError

__all__ = ["Retry"]


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
