"""scripts/bench kills: kills at random moments, a line for each run and a table of what came of them.

    scripts/bench kills [--points N] [--seed S] [--store sqlite|postgres] [--shape daemon|production]
        [--minutes N] [--load N] [--keep FOLDER]

The same seed draws the same runs and kills; the exact moment is the machine's. With the daemon on SQLite a full disk (as
root) and llama.cpp's child (with STIGMER_TEST_GGUF) follow. `production` is Temporal, a control plane and two workers, and
it alone takes --minutes (at least so long), --load (so many small executions beside the run all the time) and --keep (where
the logs of all parts go, with what Temporal said of a run that went on late).
Exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from production import Missing as NotHere

from kills.checks import Evidence, Kill
from kills.cluster import Cluster, late
from kills.local import local
from kills.places import Missing, postgres, small_disk
from kills.suite import suite


def told(seen: Evidence, wrong: list[str]) -> None:
    """A line for each run, as it ends."""
    kills = " ".join(f"{kill.kind}+{kill.after}" for kill in seen.kills if kill.hit)
    print(
        f"run {seen.run}: {len(seen.fetched)} events, kills: {kills}: {'; '.join(wrong) or 'ok'}", flush=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--shape", choices=("daemon", "production"), default="daemon")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    begun = time.monotonic()
    try:
        if given.shape == "production":
            found = asyncio.run(_cluster(given))
        else:
            found = asyncio.run(_all(given.points, given.seed, given.store))
    except (Missing, NotHere) as missing:
        print(missing, file=sys.stderr)
        return 2
    print(
        f"\n{time.monotonic() - begun:.0f} s, seed {given.seed}, {given.shape}, {given.store}, load {os.getloadavg()[0]:.0f}: "
        f"{len(found)} broken promises"
    )
    for fault in found:
        print(fault)
    return 1 if found else 0


async def _all(points: int, seed: int, store: str) -> list[str]:
    with _folder() as folder:
        if store == "postgres":
            with postgres() as server:
                return await _suite(folder, points, seed, plan="postgres", postgres=server)
        found = await _suite(folder, points, seed, plan="sqlite")
    with _folder() as folder:
        try:
            with small_disk(folder / "home"):
                print("\na full disk")
                found += await _suite(folder, -(-points // 20), seed, plan="disk")
        except Missing as missing:
            print(f"\nno full disk: {missing}")
    return found + await _local(seed)


async def _cluster(given: argparse.Namespace) -> list[str]:
    """The production shape. What went on later than it should is told, and breaks no promise on a busy machine."""
    made: list[Cluster] = []

    def place(folder: Path, **more: Any) -> Cluster:
        made.append(Cluster(folder, load=given.load, **more))
        return made[-1]

    with _folder() as folder, ExitStack() as left:
        server = left.enter_context(postgres()) if given.store == "postgres" else None
        plan = "cluster-postgres" if server else "cluster"
        report = await suite(
            folder,
            points=given.points,
            seed=given.seed,
            told=told,
            plan=plan,
            postgres=server,
            place=place,
            minutes=given.minutes,
        )
        if given.keep is not None:
            given.keep.mkdir(parents=True, exist_ok=True)
            for log in [*folder.glob("*.log"), *folder.glob("home/*.log")]:
                shutil.copy(log, given.keep)
    _table(report.kills, report.runs)
    for cluster in made:
        if cluster.load is not None:
            print(
                f"{cluster.load.completed} executions beside the runs completed, {len(cluster.load.lost)} did not"
            )
    for one in late(report.kills):
        print(f"later than promised: {one}")
    return report.faults


async def _suite(folder: Path, points: int, seed: int, **given: object) -> list[str]:
    report = await suite(folder, points=points, seed=seed, told=told, **given)  # type: ignore[arg-type]  # passed on
    _table(report.kills, report.runs)
    return report.faults


async def _local(seed: int) -> list[str]:
    named = os.environ.get("STIGMER_TEST_GGUF")
    if not named:
        print("\nno kill of llama.cpp: name a small model file in STIGMER_TEST_GGUF")
        return []
    with _folder() as folder:
        hits, wrong = await local(folder, model=Path(named), kills=2, seed=seed)
    print(f"\nllama.cpp's child, in the middle of a reply: {hits} kills: {'; '.join(wrong) or 'ok'}")
    return wrong


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        yield Path(folder)


def _table(kills: Sequence[Kill], runs: Sequence[Evidence]) -> None:
    print(
        f"\n{'killed':<10}{'times':>6}   it goes on, seconds: after the kill | after its daemon's start, or the part's return"
    )
    for kind, times in sorted(Counter(kill.kind for kill in kills).items()):
        after = [k.resumed - k.at for k in kills if k.kind == kind and k.resumed]
        since = [k.resumed - k.revived for k in kills if k.kind == kind and k.resumed and k.revived]
        print(f"{kind:<10}{times:>6}   {_spread(after)} | {_spread(since)}")
    events = Counter(event["type"] for run in runs for event in run.fetched)
    print(
        f"{len(runs)} runs, {events['model_replied']} model calls answered ({sum(len(r.asked) for r in runs)} asked), "
        f"{events['tool_dispatched']} tool calls ({events['tool_outcome_unknown']} with an unknown outcome), "
        f"{sum(sum(r.lines.values()) + sum(r.posts.values()) for r in runs)} effects seen by the witnesses"
    )


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"median {statistics.median(seconds):.2f}, longest {max(seconds):.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
