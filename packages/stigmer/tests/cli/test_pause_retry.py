"""pause, resume, cancel and retry through the real command and daemon, kill -9 in the middle."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from stigmer.daemon import find

LIMIT = 60.0


def command(text: str) -> dict[str, Any]:
    return {"calls": [{"name": "run_command", "arguments": {"command": text}}]}


HOLDS = "touch began; until [ -e go ]; do sleep 0.02; done; echo line >> out.txt"
"""Runs until somebody makes the file `go`."""


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def began(stigmer, *more: str) -> str:
    """A run whose first command holds it."""
    id = stigmer("run", "--yes", "--detach", "go", *more).stdout.strip()
    stigmer.wait_for((stigmer.folder / "began").exists, "the command")
    return id


def state(stigmer, id: str) -> dict[str, Any]:
    return json.loads(stigmer("get", "execution", id, "--json").stdout)


def kill_the_daemon(stigmer) -> None:
    daemon = find(stigmer.home)
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    left = [psutil.Process(daemon.pid)] if psutil.pid_exists(daemon.pid) else []
    psutil.wait_procs(left, timeout=LIMIT)


def lines(folder: Path) -> int:
    return (folder / "out.txt").read_text().count("line\n") if (folder / "out.txt").exists() else 0


# --- pause and resume -----------------------------------------------------------------------------------------


def test_a_paused_run_lets_its_tools_end_starts_nothing_and_goes_on_after_a_restart(stigmer, fake) -> None:
    fake.script(command(HOLDS), {"text": "done"})
    id = began(stigmer)
    pausing = stigmer.start("pause", id)
    stigmer.wait_for(lambda: state(stigmer, id)["last_seq"] > 8, "the request to pause")
    assert pausing.poll() is None
    (stigmer.folder / "go").touch()
    _, told = pausing.communicate(timeout=LIMIT)
    assert pausing.returncode == 0, told
    assert f"{id}: paused. To let it go on: stigmer resume {id}" in told
    assert lines(stigmer.folder) == 1
    assert (state(stigmer, id)["state"], state(stigmer, id)["waits_for"]) == ("waiting", "pause")
    attached = stigmer("attach", id)
    assert attached.returncode == 4
    assert f"the run is paused; to let it go on: stigmer resume {id}" in attached.stderr
    assert stigmer("pause", id).returncode == 0  # Twice is no harm.
    kill_the_daemon(stigmer)
    assert state(stigmer, id)["waits_for"] == "pause"
    assert len(fake.requests) == 1
    resumed = stigmer("resume", id)
    assert (resumed.returncode, resumed.stderr) == (0, f"{id} goes on. To see it: stigmer attach {id}\n")
    events = stigmer.events("attach", id)
    assert (events[-1]["outcome"], events[-1]["text"]) == ("completed", "done")
    assert len(of(events, "pause_requested")) == 1
    assert [e["reason"] for e in of(events, "waiting")] == ["pause"]
    assert "@" in of(events, "resumed")[0]["by"]
    assert lines(stigmer.folder) == 1
    assert len(fake.requests) == 2
    over = stigmer("pause", id)
    assert (over.returncode, over.stderr) == (0, f"{id} had finished already: completed\n")
    late = stigmer("resume", id)
    assert late.returncode == 1
    assert f"execution {id} has ended: completed" in late.stderr


def test_resume_and_approve_give_the_key_of_their_shell_to_a_run_that_lost_it(stigmer, fake) -> None:
    """It was in the memory of a daemon that is gone; another shell has none."""
    fake.script(command("echo line >> out.txt"), command("echo line >> out.txt"), {"text": "done"})
    id = stigmer("run", "--detach", "go").stdout.strip()
    stigmer.wait_for(lambda: state(stigmer, id)["waits_for"] == "approval", "the first question")
    kill_the_daemon(stigmer)
    bare = {"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": "sk-ant-sentinel-0123456789"}
    assert stigmer("approve", id, "1.0", **bare).returncode == 0
    stigmer.wait_for(lambda: state(stigmer, id)["waits_for"] == "key", "the missing key")
    attached = stigmer("attach", id, **bare)
    assert attached.returncode == 4
    assert f"the run waits for its API key; from a shell that has it: stigmer resume {id}" in attached.stderr
    refused = stigmer("resume", id, **bare)
    assert refused.returncode == 1
    assert (
        f"error: execution {id} waits for its key of openai at {fake.url}/v1, and this shell has none"
        in refused.stderr
    )
    assert f"hint: stigmer resume {id} from a shell that has it; or stigmer secret set NAME" in refused.stderr
    assert stigmer("resume", id).returncode == 0
    stigmer.wait_for(lambda: state(stigmer, id)["waits_for"] == "approval", "the second question")
    kill_the_daemon(stigmer)
    assert stigmer("approve", id, "2.0").returncode == 0
    events = stigmer.events("attach", id)
    assert (events[-1]["outcome"], events[-1]["text"]) == ("completed", "done")
    assert [e["reason"] for e in of(events, "waiting")] == ["approval", "key", "approval"]
    assert stigmer.environment["OPENAI_API_KEY"] not in json.dumps(events)
    assert lines(stigmer.folder) == 2


def test_a_daemon_killed_in_the_middle_of_a_pause_leaves_the_run_paused(stigmer, fake) -> None:
    fake.script(command("touch began; sleep 600"), {"text": "done"})
    id = began(stigmer)
    pausing = stigmer.start("pause", id)
    stigmer.wait_for(lambda: state(stigmer, id)["last_seq"] > 8, "the request to pause")
    kill_the_daemon(stigmer)
    _, told = pausing.communicate(timeout=LIMIT)
    assert "paused" in told
    assert state(stigmer, id)["waits_for"] == "pause"
    assert len(fake.requests) == 1
    stigmer("resume", id)
    events = stigmer.events("attach", id)
    assert events[-1]["outcome"] == "completed"
    assert [e["call"] for e in of(events, "tool_outcome_unknown")] == ["1.0"]


def test_a_run_that_waits_for_an_answer_can_be_paused_decided_and_resumed(stigmer, fake) -> None:
    fake.script(command("echo line >> out.txt"), {"text": "done"})
    id = stigmer.events("run", "go")[0]["execution"]
    assert stigmer("pause", id).returncode == 0
    assert state(stigmer, id)["waits_for"] == "pause"
    assert [row["call"] for row in state(stigmer, id)["approvals"]] == ["1.0"]
    decided = stigmer("approve", id, "1.0")
    assert decided.returncode == 0
    assert f"it is paused; to let it go on: stigmer resume {id}" in decided.stderr
    assert lines(stigmer.folder) == 0
    assert stigmer("resume", id).returncode == 0
    assert stigmer.events("attach", id)[-1]["text"] == "done"
    assert lines(stigmer.folder) == 1


def test_what_is_not_paused_cannot_be_resumed_and_what_is_paused_can_be_cancelled(stigmer, fake) -> None:
    fake.script(command("echo line >> out.txt"), {"text": "done"})
    id = stigmer.events("run", "go")[0]["execution"]
    wrong = stigmer("resume", id)
    assert wrong.returncode == 1
    assert f"execution {id} is not paused: it is waiting" in wrong.stderr
    stigmer("pause", id)
    assert stigmer("cancel", id).stderr == f"{id}: cancelled\n"
    events = stigmer.events("attach", id)
    assert [e["decision"] for e in of(events, "approval_decided")] == ["cancelled"]
    assert stigmer("approve", id, "1.0").returncode == 1
    assert stigmer("approvals").stdout == ""
    assert lines(stigmer.folder) == 0


# --- cancel ---------------------------------------------------------------------------------------------------

TREE = """\
apiVersion: stigmer/v1
kind: Agent
metadata: {name: lead}
spec:
  instructions: You lead.
  tools: [run_command]
  subagents:
  - {name: worker, description: Works., instructions: You work., tools: [run_command]}
"""


def test_cancel_stops_tools_and_sub_agents_and_nothing_is_written_afterwards(stigmer, fake) -> None:
    (stigmer.folder / "lead.yaml").write_text(TREE)
    writes = "while true; do echo line >> {}.txt; sleep 0.01; done"
    calls = [{"name": "task", "arguments": {"agent": "worker", "task": f"STEPS=1 {n}"}} for n in "ab"]
    own = {"name": "run_command", "arguments": {"command": writes.format("lead")}}
    fake.script(
        {"calls": [*calls, own]},
        {"text": "done"},
        rules=[
            {"steps": "run_command", "arguments": {"command": writes.format("worker")}, "answer": "worked"}
        ],
    )
    id = stigmer("run", "--agent", "./lead.yaml", "--yes", "--detach", "go").stdout.strip()
    files = [stigmer.folder / f"{name}.txt" for name in ("lead", "worker")]
    stigmer.wait_for(lambda: all(file.exists() for file in files), "both commands")
    stigmer.wait_for(lambda: len(fake.requests) == 3, "both sub-agents")
    done = stigmer("cancel", id)
    assert (done.returncode, done.stderr) == (0, f"{id}: cancelled\n")
    sizes = [file.stat().st_size for file in files]
    asked = len(fake.requests)
    events = stigmer.events("attach", id)  # A command's time: what still ran would have written.
    assert events[-1]["outcome"] == "cancelled"
    assert [file.stat().st_size for file in files] == sizes
    assert len(fake.requests) == asked


# --- retry ----------------------------------------------------------------------------------------------------


def test_a_retry_begins_with_what_the_failed_run_has_recorded(stigmer, fake) -> None:
    refused = {"status": 400, "error": "no such thing"}
    fake.script(command("echo line >> out.txt"), command("echo line >> out.txt"), refused)
    failed = stigmer.events("run", "--yes", "go")
    assert failed[-1]["outcome"] == "failed"
    first = failed[0]["execution"]
    fake.script({"text": "done"})
    again = stigmer("retry", first, "--model", "openai:other-model", "--max-tokens", "77")
    assert (again.returncode, again.stdout) == (0, "done\n"), again.stderr
    assert f"goes on from {first}" in again.stderr
    assert "other-model" in again.stderr
    assert "> run_command" not in again.stderr  # What is not done again is not shown again.
    assert lines(stigmer.folder) == 2
    assert len(fake.requests) == 4
    last = json.loads(fake.requests[-1]["body"])
    assert last["model"] == "other-model"
    assert 77 in last.values()
    assert [message["role"] for message in last["messages"]].count("tool") == 2
    newest = stigmer("list", "executions").stdout.split()[0]
    events = stigmer.events("attach", newest)
    assert (events[0]["retry_of"], events[0]["parent"], events[0]["task"]) == (first, first, "go")
    assert [e["seq"] for e in events if e["seq"]] == list(range(1, len([e for e in events if e["seq"]]) + 1))
    assert [e["attempt"] for e in of(events, "attempt_started")] == [1]
    assert len(of(events, "tool_finished")) == 2
    page = stigmer("get", "execution", newest)
    assert f"retry of   {first}" in page.stdout
    assert state(stigmer, newest)["retry_of"] == first


@pytest.mark.parametrize("times", [1, 2])
def test_a_retry_of_a_stopped_run_takes_limits_anew_and_counts_what_was_used(
    stigmer, fake, times: int
) -> None:
    fake.script(*[command(f"echo line >> out.txt # {n}") for n in range(2 * times)], {"text": "done"})
    stopped = stigmer.events("run", "--yes", "--max-steps", "2", "go")
    assert stopped[-1]["outcome"] == "budget_exceeded"
    if times == 2:
        stopped = stigmer.events("retry", stopped[0]["execution"], "--max-steps", "4")
        assert stopped[-1]["outcome"] == "budget_exceeded"
    events = stigmer.events("retry", stopped[0]["execution"])
    assert (events[-1]["outcome"], events[-1]["text"]) == ("completed", "done")
    assert lines(stigmer.folder) == 2 * times
    assert len(fake.requests) == 2 * times + 1


def test_a_retry_of_a_cancelled_run_asks_again_what_nobody_answered(stigmer, fake) -> None:
    fake.script(command("echo line >> out.txt"), {"text": "done"})
    id = stigmer.events("run", "go")[0]["execution"]
    stigmer("cancel", id)
    again = stigmer.events("retry", id)
    assert again[-1]["reason"] == "approval" or of(again, "waiting")[-1]["reason"] == "approval"
    new = again[0]["execution"]
    assert stigmer("approve", new, "1.0").returncode == 0
    assert stigmer.events("attach", new)[-1]["text"] == "done"
    assert lines(stigmer.folder) == 1
    assert len(fake.requests) == 2


def test_a_retry_of_a_run_that_failed_by_its_last_reply_asks_for_that_one_again(stigmer, fake) -> None:
    fake.script(command("echo line >> out.txt"), *[{"text": ""}] * 3, {"text": "done"})
    failed = stigmer.events("run", "--yes", "go")
    assert failed[-1]["error"]["code"] == "empty"
    events = stigmer.events("retry", failed[0]["execution"])
    assert events[-1]["text"] == "done"
    assert lines(stigmer.folder) == 1
    assert len(fake.requests) == 5


def test_only_what_came_to_nothing_can_be_retried(stigmer, fake) -> None:
    fake.script({"text": "done"}, command("true"))
    done = stigmer.events("run", "go")[0]["execution"]
    refused = stigmer("retry", done)
    assert refused.returncode == 1
    assert f"execution {done} has completed: there is nothing to retry" in refused.stderr
    waits = stigmer.events("run", "go")[0]["execution"]
    refused = stigmer("retry", waits)
    assert refused.returncode == 1
    assert f"execution {waits} is waiting: only one that has ended can be retried" in refused.stderr
    unknown = stigmer("retry", "exec_nope")
    assert unknown.returncode == 1
    assert "'exec_nope'" in unknown.stderr


def test_a_run_that_a_limit_stopped_says_how_to_go_on_and_shows_its_limits(stigmer, fake) -> None:
    fake.script(command("true"), {"text": "done"})
    stopped = stigmer("run", "--yes", "--max-steps", "1", "go")
    assert stopped.returncode == 5
    id = stigmer("list", "executions").stdout.split()[0]
    assert f"stigmer retry {id} --max-steps …" in stopped.stderr
    assert "limits     1 steps, 7200 seconds" in stigmer("get", "execution", id).stdout
    assert state(stigmer, id)["limits"]["steps"] == 1
    assert stigmer("retry", id, "--detach").stdout.startswith("exec_")


def test_a_retry_survives_a_killed_daemon_and_runs_no_finished_call_again(stigmer, fake) -> None:
    fake.script(command("echo line >> out.txt"), {"status": 400, "error": "no"})
    first = stigmer.events("run", "--yes", "go")[0]["execution"]
    fake.script(command(HOLDS), {"text": "done"})
    id = stigmer("retry", first, "--detach").stdout.strip()
    stigmer.wait_for((stigmer.folder / "began").exists, "the command")
    kill_the_daemon(stigmer)
    events = stigmer.events("attach", id)
    assert (events[-1]["outcome"], events[-1]["text"]) == ("completed", "done")
    assert [e["call"] for e in of(events, "tool_outcome_unknown")] == ["2.0"]
    assert [e["attempt"] for e in of(events, "attempt_started")] == [1, 2]
    assert lines(stigmer.folder) == 1
    assert len(fake.requests) == 4
