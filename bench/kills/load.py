"""Executions beside the run under test, so many at once, while everything around them is killed: none may be lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from stigmer.client import Client, CreateExecutionRequest
from stigmer.config import llm_variables
from stigmer.daemon import find
from stigmer.errors import StigmerError
from stigmer.home import Address, Home

from kills.scenario import BESIDE

__all__ = ["Load"]

LIMIT = 120.0
PAUSE = 0.5


class Load:
    """Keeps `at_once` small executions going; each is accepted once, whatever breaks while it is asked for."""

    def __init__(self, home: Home, work: Path, environment: Mapping[str, str], *, at_once: int) -> None:
        self._home, self._work, self._shell = home, work, llm_variables(environment)
        self._at_once = at_once
        self._ends = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.completed = 0
        self.lost: list[str] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(), name=f"load {n}") for n in range(self._at_once)]

    async def stop(self) -> None:
        """Begins nothing new; what is under way has LIMIT seconds to end well."""
        self._ends.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=LIMIT)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            self.lost += [f"an execution beside it has not ended: {task.get_name()}" for task in late]

    def _there(self) -> Address:
        found = find(self._home)
        if found is None:
            raise StigmerError("the control plane is away")
        return found

    async def _keep(self) -> None:
        while not self._ends.is_set():
            request = CreateExecutionRequest(
                task=BESIDE, workspace=str(self._work), workspace_named=True, shell=self._shell
            )
            request.idempotency_key = os.urandom(16).hex()
            outcome = await self._ended(request)
            if outcome == "completed":
                self.completed += 1
            else:
                self.lost.append(f"an execution beside it ended as {outcome!r}")

    async def _ended(self, request: CreateExecutionRequest) -> str:
        """How it ended. The same request is given again after a break: it is the same execution."""
        while True:
            try:
                async with Client(self._there()) as client:
                    execution = (await client.create(request)).execution.id
                    async for event in client.watch(execution):
                        if event.HasField("finished"):
                            return event.finished.outcome
            except StigmerError:  # The server is away.
                await asyncio.sleep(PAUSE)
