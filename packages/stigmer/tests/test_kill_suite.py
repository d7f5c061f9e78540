"""The short form of the kill suite (bench/kills, docs/kills.md): its seeds are fixed, its moments are the machine's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[3] / "bench"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def run_suite(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.syspath_prepend(str(BENCH))
    from kills.suite import suite

    return suite


async def test_nothing_is_lost_and_nothing_done_twice_at_fifteen_random_kills(
    run_suite, short_folder
) -> None:
    report = await run_suite(short_folder, points=15, seed=7)
    assert report.faults == []
    assert len(report.kills) == 15
    assert {"daemon", "left", "tool", "provider"} <= {kill.kind for kill in report.kills}


async def test_nothing_is_lost_and_nothing_done_twice_when_postgresql_is_killed_too(
    run_suite, short_folder, postgres
) -> None:
    report = await run_suite(short_folder, points=5, seed=6, plan="postgres", postgres=postgres)
    assert report.faults == []
    assert {"postgres", "daemon"} <= {kill.kind for kill in report.kills}


async def test_nothing_is_lost_and_nothing_done_twice_when_the_disk_is_full(run_suite, short_folder) -> None:
    from kills.places import Missing, small_disk

    try:
        with small_disk(short_folder / "home"):
            report = await run_suite(short_folder, points=1, seed=1, plan="disk")
    except Missing as missing:
        pytest.skip(str(missing))
    assert report.faults == []
    assert [kill.kind for kill in report.kills] == ["disk"]


async def test_nothing_is_lost_and_nothing_done_twice_when_the_parts_of_production_are_killed(
    run_suite, short_folder
) -> None:
    from kills.cluster import Cluster
    from production import Missing, Production

    try:
        Production.program()
    except Missing as missing:
        pytest.skip(str(missing))
    report = await run_suite(short_folder, points=4, seed=2, plan="cluster", place=Cluster)
    assert report.faults == []
    assert {"worker", "serve", "temporal"} <= {kill.kind for kill in report.kills}


HOUR = datetime(2026, 11, 25, 1, tzinfo=UTC)
KEY = "1::1.0"
COMMAND = {"call": "1.0", "name": "run_command", "arguments": {"command": "echo >> lines"}, "effect": "write"}
RESULT = {"call": "1.0", "result": "", "is_error": False}
RECORD = [
    ("model_replied", {"step": 1}),
    ("tool_dispatched", COMMAND),
    ("process_started", {"call": "1.0", "pid": 9}),
    ("tool_finished", RESULT),
    ("finished", {"outcome": "completed", "text": "All done."}),
]
"""A run in which all went well."""


def events(*kinds: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One event each second, as `attach --json` prints them."""
    return [
        {"seq": n, "type": kind, "path": "", "time": (HOUR + timedelta(seconds=n)).isoformat(), **fields}
        for n, (kind, fields) in enumerate(kinds, 1)
    ]


def second(n: int) -> int:
    return round((HOUR + timedelta(seconds=n)).timestamp() * 1000)


def recorded(*kinds: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"watched": events(*kinds), "fetched": events(*kinds)}


UNKNOWN = ("tool_outcome_unknown", {"call": "1.0"})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"code": 1, "talk": "error: gone"}, "`stigmer run` gave 1: error: gone"),
        ({"lines": {KEY: 2}}, f"{KEY} was written to the file 2 times"),
        ({"lines": {}}, f"{KEY} answered well and was never written"),
        ({"posts": {KEY: 2}}, f"{KEY} was sent to the server 2 times"),
        ({"lines": {KEY: 1, "1::9.0": 1}}, "1::9.0 was written to the file, and no record says so"),
        (
            {"asked": [("", 1, second(0)), ("", 1, second(9))]},
            "a completed model call was asked again: ('', 1)",
        ),
        ({"watched": events(*RECORD)[1:]}, "`stigmer run` saw a gap or a double: event 2 in place 1"),
        (recorded(*RECORD[:-1]), "it did not come to its one good end"),
        (recorded(*RECORD[:2], RECORD[1], *RECORD[2:]), "('', '1.0') is dispatched 2 times"),
        (recorded(*RECORD[:3], RECORD[2], *RECORD[3:]), "a write was started 2 times: ('', '1.0')"),
        (recorded(*RECORD[:3], *RECORD[4:]), "calls without an answer: [('', '1.0')]"),
        (
            {**recorded(*RECORD[:3], UNKNOWN, *RECORD[3:]), "beats": {KEY: second(5)}},
            f"a left-over process still worked when its call's outcome was decided: {KEY}",
        ),
        ({"left": ["9 sleep"]}, "left over: 9 sleep"),
        ({"damage": ["row 3 missing"]}, "the database is damaged: row 3 missing"),
    ],
)
def test_each_broken_promise_is_seen(run_suite, tmp_path, changed: dict[str, Any], told: str) -> None:
    """A suite that cannot fail proves nothing."""
    from kills.checks import Evidence, faults

    whole: dict[str, Any] = {"run": 1, "code": 0, "talk": "", "asked": [("", 1, second(0))], "beats": {}}
    whole |= {"lines": {KEY: 1}, "posts": {}, "folder": tmp_path, **recorded(*RECORD), **changed}
    whole |= {name: Counter(whole[name]) for name in ("lines", "posts")}
    found = faults(Evidence(**whole))
    assert (not found) if not told else any(told in fault for fault in found), found
