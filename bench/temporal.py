"""What the engine on Temporal costs, beside plain activities (one a model call or tool) on the same Temporal server.

    scripts/bench temporal [--short] [--minutes N] [--store sqlite|postgres|both] [--peers] [--json]

Real parts, each a process: Temporal's dev server, the model server (FakeProviders), a control plane and a worker for each
database, a worker for the yardsticks (bench/plain_activities.py). A step is a model call without latency and a file of 1 KB
that is read. CPU is that of whole processes, kernel included. Prints medians over the rounds, each figure beside its
aim; `--minutes` begins another round until so many are over. With `--peers` the yardsticks do the long run and the many
at once, too, which takes minutes. Exit code 1 when an execution was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from growth import cpu
from kills.places import postgres
from plain_activities import QUEUE, WORKFLOW
from production import Missing, Production
from stigmer.api.event_pb2 import Budget
from stigmer.client import Client, CreateExecutionRequest
from stigmer.daemon import find
from temporalio.client import Client as Temporal
from temporalio.client import WorkflowFailureError

HERE = Path(__file__).parent
KEY = "sk-bench-0000000000000000"
FILES = 20
LIMIT = 900.0
PATIENCE = 120.0
"""Seconds for many of the yardsticks at once; what has not ended then counts as lost."""
Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is done in a round."""

    steps: int = 20
    runs: int = 5
    """Short executions, one after the other."""
    long: int = 400
    at_once: int = 200
    """Executions of WAITS model calls that take a second each."""
    queued: int = 1000


SHORT = Size(runs=2, long=60, at_once=20, queued=40)
WAITS = 5


# The model server


async def serve_model(log: Path) -> None:
    """It reads a file for each step that a task names, and notes each request: whose, which step, when."""
    from graphton.testing import Call, FakeProviders, FakeRequest, Reply

    notes = os.open(log, os.O_WRONLY | os.O_APPEND)
    fake = FakeProviders(strict=False)

    def answer(request: FakeRequest) -> Reply | None:
        found = re.search(r"run=(\S+) steps=(\d+) wait=(\S+);", request.last_user_text)
        if found is None:
            return None
        run, steps, wait = found[1], int(found[2]), float(found[3])
        done = request.body.count(b'"tool_call_id"')
        os.write(notes, f"{run} {done} {request.time}\n".encode())
        fake.requests.clear()
        if done >= steps:
            return Reply(text="All of them are read.", first_token_delay=wait)
        return Reply(calls=(Call("read_file", {"path": f"{done % FILES}.txt"}),), first_token_delay=wait)

    fake.rule(answer)
    await fake.start()
    print(fake.url, flush=True)
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Task:
    """What the model server is told through the task's text."""

    run: str
    steps: int
    wait: float = 0.0

    def __str__(self) -> str:
        return f"run={self.run} steps={self.steps} wait={self.wait};"


class Model:
    """The model server's process and its notes."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "asked"
        self._log.touch()
        words = [sys.executable, str(HERE / "temporal.py"), "--model", str(self._log)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def asked(self) -> dict[str, list[float]]:
        """When each run's requests came."""
        found: dict[str, list[float]] = defaultdict(list)
        for line in self._log.read_text().splitlines():
            run, _, at = line.split()
            found[run].append(float(at))
        return found

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


# What is measured


class System(Protocol):
    """One way to run agents on Temporal."""

    name: str

    def pids(self) -> dict[str, int]:
        """Its own processes: `worker`, and `server` where it has one."""
        ...

    async def run(self, task: Task) -> str:
        """Runs it to its end, watching; its workflow's id. Raises Failed."""
        ...

    async def run_all(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Submits them together; when each that ended well had ended, by its run."""
        ...


class Failed(Exception):
    """A run did not come to its good end."""


class Ours:
    """A control plane and a worker on one database."""

    def __init__(
        self, name: str, folder: Path, *, temporal: str, model: str, work: Path, database: str = ""
    ) -> None:
        self.name, self._work, self._database = name, work, database
        folder.mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        environment = {**kept, "HOME": str(folder), "STIGMER_HOME": str(folder / "home")}
        environment |= {"STIGMER_LLM_MODEL": "openai:gpt-4.1", "STIGMER_LLM_DIALECT": "chat"}
        environment |= {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{model}/v1", "STIGMER_TASK_QUEUE": name}
        environment |= {"STIGMER_DATABASE_URL": database} if database else {}
        self._shape = Production(folder, environment=environment, temporal=temporal)
        self._shape.start()
        address = find(self._shape.home)
        assert address is not None
        self._client = Client(address)

    async def close(self) -> None:
        async with self._client:
            pass
        await asyncio.to_thread(self._shape.stop)

    def pids(self) -> dict[str, int]:
        return {"worker": self._shape.pid("worker-1"), "server": self._shape.pid("serve")}

    def _request(self, task: Task) -> CreateExecutionRequest:
        return CreateExecutionRequest(
            task=str(task), workspace=str(self._work), approve_all=True, budget=Budget(steps=task.steps + 1)
        )

    async def run(self, task: Task) -> str:
        outcome, execution = "", ""
        events = self._client.run(self._request(task))
        async for event in events:
            if event.HasField("finished"):
                outcome = event.finished.outcome
        execution = events.execution
        if outcome != "completed":
            raise Failed(f"{execution} ended as {outcome!r}")
        return execution

    async def run_all(self, tasks: Sequence[Task]) -> dict[str, float]:
        places = asyncio.Semaphore(50)

        async def create(task: Task) -> str:
            async with places:
                return (await self._client.create(self._request(task))).execution.id

        ids = await asyncio.gather(*map(create, tasks))
        deadline = time.monotonic() + LIMIT
        while self._rows("SELECT id FROM executions WHERE finished_ms IS NULL LIMIT 1"):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        ended = self._rows("SELECT id, finished_ms FROM executions WHERE state = 'completed'")
        when = {id: at / 1000 for id, at in ended}
        return {task.run: when[id] for task, id in zip(tasks, ids, strict=True) if id in when}

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        if self._database:
            import psycopg

            with psycopg.connect(self._database) as db:
                return db.execute(query.encode()).fetchall()
        with sqlite3.connect(f"file:{self._shape.home.database}?mode=ro", uri=True, timeout=30) as file:
            found = file.execute(query).fetchall()
        file.close()
        return found


class Plain:
    """The yardstick, of one kind."""

    def __init__(self, kind: str, *, client: Temporal, worker: int) -> None:
        self.name = f"plain {kind}"
        self._kind, self._client, self._worker = kind, client, worker

    def pids(self) -> dict[str, int]:
        return {"worker": self._worker}

    async def run(self, task: Task) -> str:
        id = f"{self._kind}-{task.run}"
        try:
            await self._client.execute_workflow(
                WORKFLOW, args=[str(task), self._kind], id=id, task_queue=QUEUE
            )
        except WorkflowFailureError as error:
            raise Failed(f"{id}: {error.cause}") from error
        return id

    async def run_all(self, tasks: Sequence[Task]) -> dict[str, float]:
        ended: dict[str, float] = {}

        async def run(task: Task) -> None:
            await self.run(task)
            ended[task.run] = time.time()

        running = [asyncio.create_task(run(task)) for task in tasks]
        _, late = await asyncio.wait(running, timeout=PATIENCE)
        for task in late:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return dict(ended)


class Bench:
    """One round after the other, over all systems."""

    def __init__(self, temporal: Production, client: Temporal, model: Model, size: Size) -> None:
        self._temporal, self._client, self._model, self.size = temporal, client, model, size
        self._number = 0

    def _task(self, steps: int, *, wait: float = 0.0) -> Task:
        self._number += 1
        return Task(f"{os.getpid()}-{self._number}", steps, wait)

    @contextmanager
    def _spent(self, system: System, steps: int, figures: Figures, prefix: str = "") -> Iterator[None]:
        """CPU milliseconds per step of all who work, while the block runs."""
        pids = {**system.pids(), "temporal": self._temporal.pid("temporal")}
        before = {name: cpu(pid) for name, pid in pids.items()}
        yield
        for name, pid in pids.items():
            figures[f"{prefix}{name} CPU/step"] = (cpu(pid) - before[name]) * 1000 / steps

    async def short(self, system: System) -> Figures:
        """A few executions one after the other, watched."""
        figures: Figures = {}
        size = self.size
        walls: list[float] = []
        workflow = ""
        with self._spent(system, size.runs * (size.steps + 1), figures):
            for _ in range(size.runs):
                began = time.perf_counter()
                workflow = await system.run(self._task(size.steps))
                walls.append((time.perf_counter() - began) * 1000 / (size.steps + 1))
        figures["wall/step"] = statistics.median(walls)
        figures["history events"] = (await self._closed(workflow)).history_length
        return figures

    async def long(self, system: System) -> Figures:
        """One execution of many steps."""
        figures: Figures = {}
        task = self._task(self.size.long)
        began = time.perf_counter()
        with self._spent(system, self.size.long + 1, figures, "long: "):
            try:
                workflow = await asyncio.wait_for(system.run(task), LIMIT)
            except (Failed, TimeoutError):
                figures["long: ended by the server at step"] = len(self._model.asked()[task.run])
                return figures
        figures["long: wall/step"] = (time.perf_counter() - began) * 1000 / (self.size.long + 1)
        about = await self._closed(workflow)
        figures["long: history events"] = about.history_length
        figures["long: history kB"] = about.raw_description.workflow_execution_info.history_size_bytes / 1000
        return figures

    async def at_once(self, system: System) -> Figures:
        """Many executions whose model takes a second: each against the time that its model takes."""
        tasks = [self._task(WAITS, wait=1.0) for _ in range(self.size.at_once)]
        figures: Figures = {}
        submitted = time.time()
        with self._spent(system, len(tasks) * (WAITS + 1), figures, "at once: "):
            ended = await system.run_all(tasks)
        asked, ideal = self._model.asked(), WAITS + 1.0
        took = [(at - asked[run][0]) / ideal for run, at in ended.items()]
        figures["at once: lost"] = len(tasks) - len(ended)
        figures["at once: worker's largest RSS, MB"] = _largest(system.pids()["worker"])
        if took:
            figures["at once: worst, from its first request"] = max(took)
            figures["at once: median, from its first request"] = statistics.median(took)
            figures["at once: from submission"] = (max(ended.values()) - submitted) / ideal
        return figures

    async def queued(self, system: System) -> Figures:
        """More executions than a worker takes at once."""
        tasks = [self._task(1) for _ in range(self.size.queued)]
        figures: Figures = {}
        began = time.time()
        with self._spent(system, len(tasks) * 2, figures, "queued: "):
            ended = await system.run_all(tasks)
        figures["queued: lost"] = len(tasks) - len(ended)
        if ended:
            figures["queued: seconds"] = max(ended.values()) - began
        return figures

    async def _closed(self, workflow: str) -> Any:
        """What Temporal says of a workflow that ends in this moment: an execution has finished a little before it."""
        handle = self._client.get_workflow_handle(workflow)
        await handle.result()
        return await handle.describe()


AIMS = {
    "wall/step": "10 at most",
    "worker CPU/step": "4 at most",
    "history events": "15 at most",
    "long: history events": "15 at most",
    "at once: worst, from its first request": "1.4 at most",
    "at once: from submission": "3 at most",
    "at once: lost": "0",
    "queued: lost": "0",
}


async def measure(folder: Path, given: argparse.Namespace) -> tuple[dict[str, list[Figures]], list[float]]:
    """The figures of all rounds by system, and the load at each round's end."""
    size = SHORT if given.short else Size()
    work = folder / "work"
    work.mkdir()
    for number in range(FILES):
        (work / f"{number}.txt").write_text(f"{number:04} " + "x" * 994 + "\n")
    rounds: dict[str, list[Figures]] = defaultdict(list)
    loads: list[float] = []
    async with systems(folder, work, given.store) as (bench, ours, plain):
        bench.size = size
        for system in (*ours, *plain):
            await system.run(bench._task(2))  # What is loaded once is not measured.
        end = time.monotonic() + given.minutes * 60
        while True:
            for system in (*ours, *plain):
                figures: Figures = {}
                all_of_it = system in ours or given.peers
                parts = [bench.short]
                parts += [bench.long, bench.at_once] if all_of_it else []
                parts += [bench.queued] if system in ours else []
                for part in parts:
                    began = time.monotonic()
                    figures |= await part(system)
                    took = time.monotonic() - began
                    print(f"{system.name}: {part.__name__}, {took:.0f} s", flush=True, file=sys.stderr)
                rounds[system.name].append(figures)
            loads.append(os.getloadavg()[0])
            if time.monotonic() >= end:
                return rounds, loads


@asynccontextmanager
async def systems(
    folder: Path, work: Path, store: str
) -> AsyncIterator[tuple[Bench, Sequence[System], Sequence[System]]]:
    """Everything that there is, started, and ended in the end."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "STIGMER_HOME": str(folder / "none")}
    shape = Production(folder, environment=environment)
    ours: list[Ours] = []
    with ExitStack() as left:
        left.callback(shape.stop)
        shape.launch("temporal")
        shape.wait("temporal")
        model = Model(folder)
        left.callback(model.stop)
        databases = {}
        if store != "postgres":
            databases["ours, SQLite"] = ""
        if store != "sqlite":
            databases["ours, Postgres"] = left.enter_context(postgres()).database()
        client = await _connected(shape.temporal)
        worker = _plain_worker(left, temporal=shape.temporal, model=model.url, work=work)
        try:
            for number, (name, database) in enumerate(databases.items()):
                place = folder / f"ours{number}"
                ours.append(
                    Ours(name, place, temporal=shape.temporal, model=model.url, work=work, database=database)
                )
            plain = [Plain(kind, client=client, worker=worker) for kind in ("remote", "local")]
            yield Bench(shape, client, model, Size()), ours, plain
        finally:
            for one in ours:
                await one.close()


def _largest(pid: int) -> float:
    """The most memory that a process has had so far, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def _plain_worker(left: ExitStack, **given: object) -> int:
    """The process of the yardsticks' worker, which polls."""
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "plain_activities.py"), *words], stdout=subprocess.PIPE, text=True
    )
    left.callback(_end, process)
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


async def _connected(address: str) -> Temporal:
    """A client; the server listens a moment before it serves."""
    for _ in range(100):
        try:
            return await Temporal.connect(address)
        except RuntimeError:
            await asyncio.sleep(0.1)
    raise Missing("Temporal does not answer")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def table(rounds: dict[str, list[Figures]]) -> str:
    """The medians, a line for each figure."""
    names = list(dict.fromkeys(name for found in rounds.values() for one in found for name in one))
    lines = [f"{'':42}" + "".join(f"{system:>16}" for system in rounds) + "   aim of ours"]
    for name in names:
        cells = [[one[name] for one in found if name in one] for found in rounds.values()]
        told = "".join(f"{statistics.median(cell):16.2f}" if cell else f"{'-':>16}" for cell in cells)
        lines.append(f"{name:42}{told}   {AIMS.get(name, '')}".rstrip())
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench temporal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="a small round, about a minute")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="rounds until so many are over; at least one"
    )
    parser.add_argument("--store", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--peers", action="store_true", help="the yardsticks do everything")
    parser.add_argument("--json", action="store_true", help="every round's figures, for programs")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model:
        asyncio.run(serve_model(given.model))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that nothing is left running.
    try:
        with tempfile.TemporaryDirectory(prefix="stg-") as folder:
            rounds, loads = asyncio.run(measure(Path(folder), given))
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps({"load": loads, "cores": os.cpu_count(), "rounds": rounds}))
    else:
        told = ", ".join(f"{load:.1f}" for load in loads)
        print(f"{len(loads)} rounds; load at their ends {told} on {os.cpu_count()} cores\n\n{table(rounds)}")
    lost = sum(
        figures.get(f"{part}: lost", 0)
        for found in rounds.values()
        for figures in found
        for part in ("at once", "queued")
    )
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
