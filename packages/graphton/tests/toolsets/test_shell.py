"""A command says what it did, sees no key, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphton.errors import JournalError, SettingError
from graphton.tools import Effect, Tool, ToolContext, ToolOutput
from graphton.toolsets import default_tools
from graphton.toolsets._ending import end_marked

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")


@pytest.fixture
def run_command(folder: Path) -> Tool:
    return next(one for one in default_tools(folder) if one.name == "run_command")


async def run(tool: Tool, command: str, **more: Any) -> ToolOutput:
    result = await tool.run({"command": command} | more, ToolContext("0.0", "", "test::0.0"))
    assert isinstance(result, ToolOutput)
    return result


def body(result: ToolOutput) -> str:
    """The output without the line about the exit."""
    return result.text.partition("\n")[2]


# --- what it says ----------------------------------------------------------------------------------------------


async def test_output_and_exit_code_are_told(run_command: Tool, folder: Path) -> None:
    result = await run(run_command, "pwd; echo out; echo err >&2")
    assert result.text.startswith("exit code 0, ")
    assert result.text.endswith(f" seconds\n{folder}\nout\nerr")
    assert not result.is_error
    failed = await run(run_command, "echo no; exit 3")
    assert failed.text.startswith("exit code 3, ")
    assert failed.is_error
    assert (await run(run_command, "kill -SEGV $$")).text.startswith("ended by signal SIGSEGV after ")
    assert "not found" in (await run(run_command, "no-such-program")).text
    assert body(await run(run_command, "true")) == "(no output)"


async def test_the_input_is_empty_and_bytes_that_are_no_text_do_not_hurt(run_command: Tool) -> None:
    assert body(await run(run_command, "cat; printf 'caf\\351'")) == "caf\ufffd"
    assert body(await run(run_command, "yes | head -n 1")) == "y"  # SIGPIPE ends it, as in a terminal


async def test_a_long_output_keeps_its_beginning_and_its_end(run_command: Tool) -> None:
    text = body(await run(run_command, "echo START; yes | head -c 3000000; echo END"))
    assert text.startswith("START\ny\n")
    assert text.endswith("y\nEND")
    assert "bytes left out of 3000010) ..." in text
    assert len(text) < 17_000


async def test_a_long_command_reaches_the_shell_whole(run_command: Tool) -> None:
    assert body(await run(run_command, f"echo {'x' * 90_000} | wc -c")).strip() == "90001"


async def test_what_cannot_be_run_says_why(call: Any) -> None:
    assert await call("run_command", command=" ") == "error: command is empty"
    assert "command is longer than 100000 bytes or holds a zero byte; write a script file" in await call(
        "run_command", command="x" * 100_001
    )
    for seconds in (0, -1, 3601):
        assert await call("run_command", command="true", timeout_seconds=seconds) == (
            f"error: timeout_seconds {seconds} is not between 1 and 3600"
        )


def test_it_asks_and_is_a_write(run_command: Tool) -> None:
    assert (run_command.asks, run_command.effect) == (True, Effect.WRITE)


async def test_the_process_is_reported_with_its_start_time(run_command: Tool) -> None:
    started: list[tuple[int, float]] = []
    context = ToolContext("0.0", "", "", started=lambda pid, start_time: started.append((pid, start_time)))
    before = time.time()
    result = await run_command.run({"command": "echo $$; ps -o pgid= -p $$"}, context)
    assert isinstance(result, ToolOutput)
    ((pid, start_time),) = started
    assert body(result).split() == [str(pid), str(pid)]  # it leads its own process group
    assert before - 5 < start_time < time.time() + 5


async def test_progress_shows_the_last_line(run_command: Tool) -> None:
    seen = asyncio.Event()
    context = ToolContext("0.0", "", "", progress=lambda text: seen.set() if text == "working" else None)
    command = "i=0; while [ $i -lt 300 ]; do echo working; sleep 0.1; i=$((i+1)); done"
    work = asyncio.ensure_future(run_command.run({"command": command}, context))
    await asyncio.wait_for(seen.wait(), 60)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


# --- what it sees ----------------------------------------------------------------------------------------------


async def test_a_command_sees_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "ANTHROPIC_API_KEY",
        "OPENAI_API_KEY",
        "STIGMER_LLM_API_KEY",
        "STIGMER_HOME",
        "AWS_SECRET",
        "PYTHONPATH",
    )
    for name in names:
        monkeypatch.setenv(name, "sentinel-5d1c")
    monkeypatch.setenv("LC_TIME", "C")
    tool = next(
        one for one in default_tools(folder, environment={"STAGE": "test"}) if one.name == "run_command"
    )
    result = await run(tool, "env; cat /proc/$PPID/environ 2>/dev/null; cat /proc/$PPID/cmdline 2>/dev/null")
    assert "sentinel" not in result.text
    seen = dict(line.split("=", 1) for line in body(result).split("\n") if "=" in line)
    assert {"PATH", "LC_TIME", "STAGE"} <= set(seen)
    assert not set(names) & set(seen)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "stigmer_home", "STIGMER_SERVER"])
def test_a_key_cannot_be_given_by_hand_either(folder: Path, name: str) -> None:
    with pytest.raises(SettingError, match=f"variable '{name}' is never given to commands\nhint: "):
        default_tools(folder, environment={name: "x"})


async def test_no_descriptor_of_ours_is_passed_on(run_command: Tool) -> None:
    ours = os.open(__file__, os.O_RDONLY)
    try:
        os.set_inheritable(ours, True)
        assert set(body(await run(run_command, "ls /dev/fd")).split()) <= {
            "0",
            "1",
            "2",
            "3",
        }  # 3 is of ls itself
    finally:
        os.close(ours)


# --- what it leaves behind -------------------------------------------------------------------------------------

FAMILY = """
sh -c 'echo $$ > {pids}; exec sleep 600' &
(setsid nohup sh -c 'sleep 600 & echo $! $$ > {pids}; wait' >/dev/null 2>&1 &)
{last}
"""
"""A child in the background; a daemon that left session and parent, with a child of its own."""


class Family:
    """The processes of a command, known by descriptor, so that a reused number is not taken for them."""

    def __init__(self, folder: Path) -> None:
        self.pids, self.fds = folder / "pids", list[int]()
        os.mkfifo(self.pids)
        # Open at both ends and never blocking: one that is not born is a failed test, and no thread that waits for ever.
        self.pipe = os.open(self.pids, os.O_RDWR | os.O_NONBLOCK)

    def command(self, last: str = "sleep 600") -> str:
        return FAMILY.format(pids=self.pids, last=last)

    async def born(self) -> None:
        """Wait until three processes have said their numbers."""
        await asyncio.to_thread(self.meet, time.monotonic() + 60)

    def meet(self, end: float) -> None:
        while len(self.fds) < 3:
            told, _, _ = select.select([self.pipe], [], [], max(0.0, end - time.monotonic()))
            assert told, "they were not born in time"
            self.fds += [os.pidfd_open(int(pid)) for pid in os.read(self.pipe, 4096).split()]

    def alive(self, seconds: float = 0) -> int:
        """How many are left after at most so many seconds."""
        end, left = time.monotonic() + seconds, list(self.fds)
        while left:
            ended, _, _ = select.select(left, [], [], max(0.0, end - time.monotonic()))
            if not ended:
                break
            left = [fd for fd in left if fd not in ended]
        return len(left)


@pytest.fixture
def family(folder: Path) -> Iterator[Family]:
    family = Family(folder)
    yield family
    for fd in family.fds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
    os.close(family.pipe)


@linux
async def test_nothing_is_left_when_the_command_ends(run_command: Tool, family: Family) -> None:
    work = asyncio.ensure_future(run(run_command, family.command("cat go; echo done"), timeout_seconds=60))
    os.mkfifo(family.pids.with_name("go"))
    await family.born()
    assert family.alive() == 3
    await asyncio.to_thread(family.pids.with_name("go").write_text, "go\n")
    result = await work
    assert family.alive() == 0
    assert body(result).split("\n")[0] == "(processes that the command left running were ended)"
    assert not result.is_error


@linux
async def test_nothing_is_left_after_a_timeout(run_command: Tool, family: Family) -> None:
    work = asyncio.ensure_future(
        run(run_command, family.command("trap '' TERM; sleep 600"), timeout_seconds=5)
    )
    await family.born()
    result = await work
    assert family.alive() == 0
    assert result.text.startswith(
        "stopped: still running after 5 seconds (timeout_seconds can be up to 3600)"
    )
    assert result.is_error


@linux
async def test_cancelling_returns_when_nothing_is_left(run_command: Tool, family: Family) -> None:
    work = asyncio.ensure_future(run(run_command, family.command(), timeout_seconds=600))
    await family.born()
    assert family.alive() == 3
    work.cancel()
    await asyncio.sleep(0)
    work.cancel()  # an impatient second time must not leave anything either
    with pytest.raises(asyncio.CancelledError):
        await work
    assert family.alive() == 0


@linux
@pytest.mark.parametrize("teller", ["started", "progress"])
async def test_a_journal_that_refuses_ends_the_command(
    run_command: Tool, family: Family, teller: str
) -> None:
    def refuse(*_: object) -> None:
        raise JournalError("another attempt owns the execution")

    context = ToolContext("0.0", "", "", **{teller: refuse})  # type: ignore[arg-type]  # one of two fields
    command = family.command("while :; do echo x; sleep 0.1; done")
    with pytest.raises(JournalError, match="another attempt owns"):
        await asyncio.wait_for(run_command.run({"command": f"exec 3<>{family.pids}; {command}"}, context), 60)
    assert str(family.pids) not in await asyncio.to_thread(processes)


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@linux
async def test_a_fork_storm_is_ended(run_command: Tool) -> None:
    result = await run(run_command, "while :; do sleep 5 & sleep 0.01; done", timeout_seconds=2)
    assert result.text.startswith("stopped: still running after 2 seconds")
    assert "could not be ended" not in result.text


PARENT = """
import asyncio, sys
from graphton.tools import ToolContext
from graphton.toolsets import default_tools
from graphton.toolsets._ending import end_marked
tool = next(one for one in default_tools(sys.argv[1]) if one.name == "run_command")
asyncio.run(tool.run({"command": sys.argv[2], "timeout_seconds": 600}, ToolContext("0.0", "", "")))
"""


@linux
def test_nothing_is_left_when_the_parent_is_killed(folder: Path, family: Family) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(folder), family.command()]) as parent:
        family.meet(time.monotonic() + 60)
        assert family.alive() == 3
        family.fds += [os.pidfd_open(pid) for pid in children_of(parent.pid)]
        assert len(family.fds) == 4
        parent.send_signal(signal.SIGKILL)
    assert family.alive(60) == 0


def children_of(parent: int) -> list[int]:
    """The direct children of a process: of ours, the guard."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


@linux
@pytest.mark.parametrize("which", [["second"], ["first"], ["first", "second"]], ids="-".join)
async def test_whoever_kills_a_guard_leaves_nothing_of_its_command(
    run_command: Tool, family: Family, which: list[str]
) -> None:
    """One of the two ends everything; where both are killed in one instant the call's mark finds it."""
    work = asyncio.ensure_future(run(run_command, family.command(), timeout_seconds=600))
    await family.born()
    (first,) = children_of(os.getpid())
    (second,) = children_of(first)
    victims = [{"first": first, "second": second}[name] for name in which]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in victims:
            os.kill(pid, number)
    with pytest.raises(
        Exception, match="the command's guard process was killed; whether the command did its"
    ):
        await work
    assert await asyncio.to_thread(family.alive, 60) == 0
    assert children_of(os.getpid()) == []


@linux
async def test_a_command_that_empties_its_environment_outlives_no_guard(
    run_command: Tool, folder: Path, family: Family
) -> None:
    born = family.pids.with_name("born")
    child = f"env -i setsid sh -c 'echo $$ $$ $$ > {family.pids}; : > {born}; exec sleep 600'"
    hidden = f"{child} & until [ -e {born} ]; do sleep 0.02; done; kill -9 $PPID; sleep 600"
    work = asyncio.ensure_future(run(run_command, hidden, timeout_seconds=600))
    await family.born()
    with pytest.raises(Exception, match="the command's guard process was killed"):
        await work
    assert await asyncio.to_thread(family.alive, 60) == 0


@linux
async def test_a_guard_told_to_end_ends_its_command(run_command: Tool, family: Family) -> None:
    work = asyncio.ensure_future(run(run_command, family.command(), timeout_seconds=600))
    await family.born()
    (guard,) = children_of(os.getpid())
    os.kill(guard, signal.SIGTERM)
    result = await work
    assert result.text.startswith("ended by signal SIGKILL")
    assert family.alive() == 0


@linux
def test_only_what_bears_the_mark_of_a_call_is_ended() -> None:
    """As the next daemon finds what a dead one's call left: by its key."""
    environments = [{"GRAPHTON_CALL": said} for said in ("exec_1::1.0 a", "exec_1::1.01 b", "xexec_1::1.0 c")]
    environments.append({"OTHER": "GRAPHTON_CALL=exec_1::1.0 a"})
    processes = [subprocess.Popen(["/bin/sleep", "600"], env=one) for one in environments]
    try:
        assert end_marked({"exec_1::1.0", "exec_2::1.0"}) == [processes[0].pid]
        assert processes[0].wait(60) == -signal.SIGKILL
        assert [one.poll() for one in processes[1:]] == [None, None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def test_several_commands_run_at_once(run_command: Tool) -> None:
    results = await asyncio.gather(*(run(run_command, f"echo {number}") for number in range(8)))
    assert [body(result) for result in results] == [str(number) for number in range(8)]


def test_the_guard_needs_no_package_and_imports_little() -> None:
    guard = Path(sys.modules[default_tools.__module__].__file__ or "").with_name("_guard.py")
    code = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('guard', {str(guard)!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout)
    assert not {"asyncio", "subprocess", "typing", "socket", "graphton"} & set(loaded)
