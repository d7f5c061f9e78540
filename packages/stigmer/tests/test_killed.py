"""A daemon that is killed at any moment: the next one takes its runs back, nothing is lost, asked or done twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from typing import Any

import psutil
import pytest
from stigmer.api import event_pb2 as pb
from stigmer.daemon import ensure_running, find
from stigmer.home import Home
from stigmer.store._sqlite import query

LIMIT = 60.0
RESULTS = 6
"""Steps of the agent below before it answers."""


def records(home: Home) -> list[pb.Event]:
    """All events of the one execution, read beside a living daemon."""
    db = sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)
    try:
        rows = db.execute(query("replay"), {"first": 1 << 24, "end": 2 << 24}).fetchall()
    finally:
        db.close()
    return [pb.Event.FromString(body) for (body,) in rows]


def wait_until(wanted: Any, what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not wanted():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.005)


def kinds(home: Home) -> list[str]:
    return [str(record.WhichOneof("kind")) for record in records(home)]


@pytest.mark.parametrize(
    ("moment", "count"),
    [("model_requested", 1), ("model_replied", 2), ("tool_dispatched", 3), ("tool_finished", 4)],
)
def test_a_killed_daemon_loses_nothing_and_repeats_nothing(
    stigmer: Any, fake: Any, moment: str, count: int
) -> None:
    fake.script(
        *[
            {"calls": [{"name": "run_command", "arguments": {"command": f"sleep 0.05; echo {n} >> out.txt"}}]}
            for n in range(RESULTS)
        ],
        {"text": "All done."},
        # The call that was under way when the daemon was killed is asked again.
        {"text": "All done."},
    )
    home = stigmer.home
    assert stigmer("run", "--yes", "--detach", "Write lines.").returncode == 0
    wait_until(lambda: kinds(home).count(moment) >= count, f"{count} {moment}")
    address = ensure_running(home)
    os.kill(address.pid, signal.SIGKILL)
    wait_until(lambda: gone(address.pid), "the daemon's end")
    before = records(home)

    (listed,) = [line for line in stigmer("list", "execution").stdout.split() if line.startswith("exec_")]
    stigmer("attach", listed)
    wait_until(lambda: "finished" in kinds(home), "the end")

    after = records(home)
    assert [r.SerializeToString() for r in after[: len(before)]] == [r.SerializeToString() for r in before]
    assert [r.attempt_ended.outcome for r in after if r.HasField("attempt_ended")] == ["lost", "done"]
    nothing_is_lost_or_doubled(after, (stigmer.folder / "out.txt").read_text().split("\n")[:-1])


def nothing_is_lost_or_doubled(after: list[pb.Event], lines: list[str]) -> None:
    """What holds of every finished execution of lines written by commands, however often its daemon was killed."""
    assert after[-1].finished.outcome == "completed"
    assert [r.seq for r in after] == list(range(1, len(after) + 1))
    lost = [r.attempt_ended.outcome for r in after if r.HasField("attempt_ended")].count("lost")
    replied = [r.model_replied.step for r in after if r.HasField("model_replied")]
    assert replied == list(range(1, len(replied) + 1)), "each step has one reply"
    asked = [r.model_requested for r in after if r.HasField("model_requested")]
    assert len(asked) - len(replied) <= lost, "only a call that was under way is asked again"
    dispatched = [r.tool_dispatched.call for r in after if r.HasField("tool_dispatched")]
    assert len(dispatched) == len(set(dispatched)), "no call is dispatched twice"
    done = {r.tool_finished.call: r.tool_finished for r in after if r.HasField("tool_finished")}
    assert set(done) == set(dispatched)
    good = [call for call, result in done.items() if not result.is_error]
    unknown = [r for r in after if r.HasField("tool_outcome_unknown")]
    assert len(dispatched) - len(good) == len(unknown), "a lost result is told as unknown, never guessed"
    assert len(lines) == len(set(lines)), "no effect twice"
    assert len(good) <= len(lines) <= len(dispatched)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_daemon_killed_again_and_again_with_parallel_tools(stigmer: Any, fake: Any, seed: int) -> None:
    moments = random.Random(seed)
    steps = [
        [{"name": "run_command", "arguments": {"command": f"echo {n}.{m} >> out.txt"}} for m in range(3)]
        for n in range(8)
    ]
    fake.script(*[{"calls": calls} for calls in steps], *[{"text": "All done."}] * 8)
    home = stigmer.home
    assert stigmer("run", "--yes", "--detach", "Write lines.").returncode == 0
    for _ in range(3):
        address = find(home)
        assert address is not None
        known = len(records(home))
        more = moments.randint(1, 15)
        wait_until(lambda: len(records(home)) >= known + more or "finished" in kinds(home), "progress")  # noqa: B023
        os.kill(address.pid, signal.SIGKILL)
        wait_until(lambda: gone(address.pid), "the daemon's end")  # noqa: B023
        assert stigmer("list", "execution").returncode == 0
    wait_until(lambda: "finished" in kinds(home), "the end")
    nothing_is_lost_or_doubled(records(home), (stigmer.folder / "out.txt").read_text().split())


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_of_a_killed_daemon_is_ended(stigmer: Any, fake: Any) -> None:
    fake.script(
        {"calls": [{"name": "run_command", "arguments": {"command": "sleep 612"}}]}, {"text": "Ended."}
    )
    home = stigmer.home
    assert stigmer("run", "--yes", "--detach", "Sleep.").returncode == 0
    wait_until(lambda: "process_started" in kinds(home), "the command")
    started = next(r.process_started for r in records(home) if r.HasField("process_started"))
    os.kill(ensure_running(home).pid, signal.SIGKILL)
    stigmer("list", "execution")
    wait_until(lambda: "finished" in kinds(home), "the end")
    assert gone(started.pid)
    sleeping = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "612"]]
    assert not sleeping


def test_a_waiting_run_survives_a_kill(stigmer: Any, fake: Any) -> None:
    fake.script(
        {"calls": [{"name": "run_command", "arguments": {"command": "echo line >> out.txt"}}]},
        {"text": "Done."},
    )
    home = stigmer.home
    assert stigmer("run", "--detach", "Write.").returncode == 0
    wait_until(lambda: "attempt_ended" in kinds(home), "the question")
    os.kill(ensure_running(home).pid, signal.SIGKILL)
    (id,) = [line for line in stigmer("list", "execution").stdout.split() if line.startswith("exec_")]
    done = stigmer("approve", id, "1.0")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: "finished" in kinds(home), "the end")
    assert (stigmer.folder / "out.txt").read_text() == "line\n"
    assert len(fake.requests) == 2
