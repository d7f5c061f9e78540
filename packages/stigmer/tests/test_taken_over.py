"""A server that is killed while another one shares its PostgreSQL database: the other one takes its runs over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from stigmer.api import event_pb2 as pb
from stigmer.daemon import ensure_running, stop
from stigmer.home import Home
from stigmer.store._dialect import query

LIMIT = 90.0


@pytest.fixture
def pair(stigmer: Any, fake: Any, postgres: Any, short_folder: Any) -> Iterator[tuple[Any, Any, str]]:
    """Two homes, as on two machines, and the address of their database."""
    url = postgres.database()
    # The key is in both servers' environments; a key that only a shell had dies with its server.
    stigmer.environment |= {**fake.environment, "STIGMER_DATABASE_URL": url}
    home = Home(short_folder / "home2")
    other = type(stigmer)(home, stigmer.folder, {**stigmer.environment, "STIGMER_HOME": str(home.path)})
    yield stigmer, other, url
    stop(home)


def test_a_killed_servers_run_goes_on_at_another_one(pair: Any, fake: Any, postgres: Any) -> None:
    one, other, url = pair
    fake.script(
        {"calls": [{"name": "list_files", "arguments": {}}]},
        {"calls": [{"name": "run_command", "arguments": {"command": "echo line >> out.txt; sleep 613"}}]},
        {"text": "I do not know whether it was written."},
    )

    def records() -> list[pb.Event]:
        text = query("replay").replace(":first", str(1 << 24)).replace(":end", str(2 << 24))
        rows = postgres.run(text, on=url.rpartition("/")[2])
        return [pb.Event.FromString(body) for (body,) in rows]

    def until(kind: str) -> list[pb.Event]:
        deadline = time.monotonic() + LIMIT
        while True:
            found = records()
            if kind in [record.WhichOneof("kind") for record in found]:
                return found
            assert time.monotonic() < deadline, f"waited for {kind} in vain"
            time.sleep(0.02)

    assert other("up").returncode == 0
    assert one("run", "--yes", "--detach", "Write a line.").returncode == 0
    started = next(r.process_started for r in until("process_started") if r.HasField("process_started"))
    deadline = time.monotonic() + LIMIT
    while not (one.folder / "out.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(ensure_running(one.home).pid, signal.SIGKILL)
    before = records()

    after = until("finished")
    assert [r.SerializeToString() for r in after[: len(before)]] == [r.SerializeToString() for r in before]
    assert [r.seq for r in after] == list(range(1, len(after) + 1))
    assert [r.attempt_ended.outcome for r in after if r.HasField("attempt_ended")] == ["lost", "done"]
    assert len({r.attempt_started.worker for r in after if r.HasField("attempt_started")}) == 2
    assert after[-1].finished.outcome == "completed"
    replied = [r.model_replied.step for r in after if r.HasField("model_replied")]
    assert replied == [1, 2, 3], "no completed model call is asked again"
    assert [r.tool_outcome_unknown.call for r in after if r.HasField("tool_outcome_unknown")] == ["2.0"]
    assert (one.folder / "out.txt").read_text() == "line\n"
    assert not psutil.pid_exists(started.pid) or psutil.Process(started.pid).status() == psutil.STATUS_ZOMBIE
    (line,) = [line for line in other("list", "execution").stdout.splitlines() if "exec_" in line]
    assert "completed" in line
