"""What a dead daemon's commands left behind is found and ended, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from stigmer.api import event_pb2 as pb
from stigmer.engines._leftovers import end_leftovers

RUN = "exec_01"
KEY = f"{RUN}::1.0"
Start = Callable[..., subprocess.Popen[bytes]]

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a process's environment")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that goes on for ever, in a group of its own, or that of `group`."""
    started: list[subprocess.Popen[bytes]] = []

    def sleep(*, mark: str = "", group: int = 0) -> subprocess.Popen[bytes]:
        env = {"PATH": "/bin:/usr/bin"} | ({"GRAPHTON_CALL": mark} if mark else {})
        started.append(subprocess.Popen(["sleep", "600"], env=env, process_group=group))
        return started[-1]

    yield sleep
    for process in started:
        process.kill()
        process.wait()


def dispatched(key: str = "", *, call: str = "1.0") -> pb.Event:
    return pb.Event(tool_dispatched=pb.ToolDispatched(call=call, name="run_command", idempotency_key=key))


def recorded(process: subprocess.Popen[bytes], *, call: str = "1.0", seconds: float = 0.0) -> pb.Event:
    begun = psutil.Process(process.pid).create_time() + seconds
    return pb.Event(process_started=pb.ProcessStarted(call=call, pid=process.pid, start_time=begun))


def test_the_group_of_a_call_that_never_finished_is_ended(start: Start) -> None:
    leader = start()
    member = start(group=leader.pid)
    other = start()
    ended = end_leftovers(RUN, [dispatched(), recorded(leader)])
    assert set(ended) == {leader.pid, member.pid}
    assert other.poll() is None


def test_the_group_is_ended_when_its_leader_is_gone_already(start: Start) -> None:
    leader = start()
    member = start(group=leader.pid)
    record = recorded(leader)
    leader.kill()
    leader.wait()
    assert end_leftovers(RUN, [dispatched(), record]) == [member.pid]


@linux
def test_what_left_the_group_is_found_by_its_mark_and_although_the_clock_was_set(start: Start) -> None:
    """The kernel's start times move with the clock; the mark does not."""
    leader, away = start(mark=f"{KEY} 1f"), start(mark=f"{KEY} 1f")
    assert set(end_leftovers(RUN, [dispatched(), recorded(leader, seconds=-3600)])) == {leader.pid, away.pid}


@linux
def test_a_call_that_a_retry_took_over_keeps_its_mark(start: Start) -> None:
    process = start(mark="exec_00::1.0 1f")
    assert end_leftovers(RUN, [dispatched("exec_00::1.0")]) == [process.pid]


@linux
def test_a_command_is_ended_of_which_nothing_but_its_dispatch_was_recorded(start: Start) -> None:
    process = start(mark=f"{KEY} 1f")
    assert end_leftovers(RUN, [dispatched()]) == [process.pid]


def test_a_number_that_is_another_process_by_now_is_spared(start: Start) -> None:
    other = start(mark="exec_02::1.0 1f")
    assert end_leftovers(RUN, [dispatched(), recorded(other, seconds=-60)]) == []
    assert other.poll() is None


def test_what_a_finished_call_is_said_to_have_started_is_spared(start: Start) -> None:
    process = start(mark=f"{KEY} 1f")
    finished = pb.Event(tool_finished=pb.ToolFinished(call="1.0", name="run_command"))
    assert end_leftovers(RUN, [dispatched(), recorded(process), finished]) == []
    assert process.poll() is None


@linux
def test_a_dead_process_that_nobody_buries_holds_nothing_up(start: Start) -> None:
    """In a container without an init process the killed ones stay zombies."""
    leader = start()
    begun = time.monotonic()
    assert end_leftovers(RUN, [dispatched(), recorded(leader)]) == [leader.pid]
    assert psutil.Process(leader.pid).status() == psutil.STATUS_ZOMBIE
    assert end_leftovers(RUN, [dispatched(), recorded(leader)]) == []
    assert time.monotonic() - begun < 60
