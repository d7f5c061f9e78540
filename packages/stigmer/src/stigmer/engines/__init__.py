"""Engines: who drives accepted executions. One protocol; the server cannot tell which is behind it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Engine"]


class Engine(Protocol):
    """Runs accepted executions to their end."""

    async def start(self) -> None:
        """Takes back what a dead process left, and begins to work."""
        ...

    async def stop(self) -> None:
        """Stops working; what runs is handed back, to be resumed by the next engine."""
        ...

    def submit(self, id: str) -> None:
        """An accepted execution is to be run."""
        ...

    def wake(self, id: str) -> None:
        """Something that a waiting execution may have waited for has happened."""
        ...

    async def cancel(self, id: str, *, by: str) -> bool:
        """Ends an execution; returns when everything of it has stopped. False when it had finished before."""
        ...
