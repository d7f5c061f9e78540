"""Whether the server has something to do: calls that are being answered, and when the last one ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Activity"]


class Activity:
    """Counts calls; `idle_for` is how long there has been none."""

    def __init__(self) -> None:
        self._calls = 0
        self._last = time.monotonic()

    @contextmanager
    def call(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._last = time.monotonic()

    def touch(self) -> None:
        self._last = time.monotonic()

    @property
    def idle_for(self) -> float:
        return 0.0 if self._calls else time.monotonic() - self._last
