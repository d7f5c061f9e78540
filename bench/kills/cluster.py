"""The production shape under the kills: a control plane, two workers, Temporal, each killed and started again."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from production import Production

from kills.checks import Kill
from kills.load import Load
from kills.scenario import BESIDE
from kills.suite import FOLLOW, LIMIT, Database, House, Watcher, until

__all__ = ["AWAY_SECONDS", "WORKER_SECONDS", "Cluster", "late"]

WORKER_SECONDS, AWAY_SECONDS = 15.0, 5.0
"""A run goes on so soon after its worker died (Temporal waits 10 s for a heartbeat), or after another part came back."""


class Cluster(House):
    """A house whose runs are driven by workers."""

    slack_ms = 1000

    def __init__(self, folder: Path, *, seed: int, postgres: Database | None = None, load: int = 0) -> None:
        """With `load` so many small executions are under way all the time, beside the run under test."""
        super().__init__(folder, seed=seed, postgres=postgres)
        self.load: Load | None = None
        self._at_once = load
        self._shape: Production | None = None
        self._moments = random.Random(f"{seed} moments")
        self._lost: list[str] = []
        self._looks: list[asyncio.Task[None]] = []

    @property
    def shape(self) -> Production:
        assert self._shape is not None
        return self._shape

    async def open(self) -> None:
        await super().open()
        self._shape = Production(self.folder, environment=self.environment, workers=2)
        await asyncio.to_thread(self.shape.start)
        self.load = Load(self.home, self.work, self.environment, at_once=self._at_once)
        self.load.start()

    async def close(self) -> None:
        if self.load is not None:
            await self.load.stop()
            self._lost += self.load.lost
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)
        if self._shape is not None:
            await asyncio.to_thread(self.shape.stop)
        await super().close()

    def lost(self) -> list[str]:
        lost, self._lost = self._lost, []
        return lost

    async def command(self, *words: str) -> asyncio.subprocess.Process:
        return await self._started(FOLLOW, *words)

    async def _kill_worker(self, kill: Kill, watcher: Watcher) -> bool:
        """The worker that has the run. Another one is started at once, as a cluster would."""
        await until(lambda: watcher.ended or bool(self._driver(watcher)), LIMIT)
        name = self._driver(watcher)
        if watcher.ended or not name:
            return False
        kill.what, kill.at = f"{name} {watcher.driver}", time.time()
        await asyncio.to_thread(self.shape.kill, name)
        self.shape.launch(name)
        self._look_into(kill, watcher, WORKER_SECONDS)
        return True

    def _driver(self, watcher: Watcher) -> str:
        return next((name for name in self.shape.workers if self.shape.pid(name) == watcher.driver), "")

    async def _kill_serve(self, kill: Kill, watcher: Watcher) -> bool:
        return await self._away(kill, "serve")

    async def _kill_temporal(self, kill: Kill, watcher: Watcher) -> bool:
        """Another execution is accepted meanwhile: it begins when Temporal is back."""
        kill.what, kill.at = "temporal", time.time()
        await asyncio.to_thread(self.shape.kill, "temporal")
        beside = Watcher(await self.command("run", "--json", BESIDE), [])
        await beside.shown("created", after=0)
        await self._back(kill, "temporal")
        self._look_into(kill, beside, AWAY_SECONDS)
        await beside.shown("attempt_started", after=0)
        kill.resumed = time.time()
        if (code := await beside.end()) != 0:
            self._lost.append(
                f"{beside.execution}, accepted while Temporal was away: {code} {beside.talk[-500:]}"
            )
        return True

    def _look_into(self, kill: Kill, watcher: Watcher, limit: float) -> None:
        """Writes down what Temporal says of the execution, should it not go on in time: afterwards nobody can tell."""

        async def look() -> None:
            await asyncio.sleep(limit + 1)
            if kill.resumed is None and not watcher.ended:
                await asyncio.to_thread(self._write_down, kill.what, watcher.execution)

        self._looks.append(asyncio.create_task(look(), name=f"look into {kill.what}"))

    def _write_down(self, what: str, execution: str) -> None:
        with open(self.folder / f"late-{time.time():.0f}.log", "w") as out:
            print(time.strftime("%H:%M:%S"), what, execution, flush=True, file=out)
            for words in (
                ["workflow", "describe", "--workflow-id", execution],
                ["workflow", "show", "--workflow-id", execution],
                ["task-queue", "describe", "--task-queue", "stigmer"],
            ):
                asked = [self.shape.program(), *words, "--address", self.shape.temporal]
                with suppress(subprocess.TimeoutExpired):
                    subprocess.run(asked, stdout=out, stderr=out, timeout=20, check=False)

    async def _away(self, kill: Kill, name: str) -> bool:
        kill.what, kill.at = f"{name} {self.shape.pid(name)}", time.time()
        await asyncio.to_thread(self.shape.kill, name)
        await self._back(kill, name)
        return True

    async def _back(self, kill: Kill, name: str) -> None:
        await asyncio.sleep(self._moments.uniform(0.0, 0.5))
        self.shape.launch(name)
        await asyncio.to_thread(self.shape.wait, name)
        kill.revived = time.time()


def late(kills: list[Kill]) -> list[str]:
    """The runs that did not go on as soon as they should. A busy machine is slow without being wrong.

    What else was killed before a run could go on sets its time back; and a worker among that has its own patience.
    """
    found = []
    for kill in kills:
        since = kill.at if kill.kind == "worker" else kill.revived
        if not kill.resumed or not since:
            continue
        end = kill.resumed
        beside = [other for other in kills if other.at < end and (other.resumed or end) > kill.at]
        begun = max([since, *(other.at for other in beside if other.at > kill.at)])
        limit = WORKER_SECONDS if any(one.kind == "worker" for one in beside) else AWAY_SECONDS
        if end - begun > limit:
            found.append(f"{kill.what}: {end - begun:.1f} s, {limit:g} at most")
    return found
