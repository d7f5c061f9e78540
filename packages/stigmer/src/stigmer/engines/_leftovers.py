"""Processes that a dead daemon's tools left behind: ended before anything about their calls is decided."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping

from graphton.journal import key_of
from graphton.toolsets._ending import Seen, end, end_marked, running

from stigmer.api import event_pb2 as pb

__all__ = ["end_leftovers"]

_SLACK = 2.0
"""Seconds by which two readings of a start time may differ; pids are not reused that fast with one and the same."""
_Call = tuple[str, str]


def end_leftovers(execution: str, records: Iterable[pb.Event]) -> list[int]:
    """Kills what calls of this execution that never finished have left; gives the pids of what was still there.

    By the mark that a command's processes bear, wherever they have gone; and by process group, where they bear none. A
    pid alone proves nothing: a process counts as ours only if its start time is the recorded one, and a group whose
    leader is gone only by members that are not older than the leader was.
    """
    started: dict[_Call, list[pb.ProcessStarted]] = {}
    keys: dict[_Call, str] = {}
    for record in records:
        match record.WhichOneof("kind"):
            case "tool_dispatched":
                call = record.tool_dispatched.call
                key = record.tool_dispatched.idempotency_key or key_of(execution, record.path, call)
                keys[record.path, call] = key
            case "process_started":
                process = record.process_started
                started.setdefault((record.path, process.call), []).append(process)
            case "tool_finished":
                for calls in (started, keys):
                    calls.pop((record.path, record.tool_finished.call), None)
            case _:
                pass
    if not keys and not started:
        return []
    groups = {process.pid: process.start_time for processes in started.values() for process in processes}
    groups = {pid: begun for pid, begun in groups.items() if pid > 1 and pid != os.getpid()}
    if sys.platform != "linux":
        from stigmer.engines._groups import end_groups  # psutil is needed only where there is no /proc.

        return end_groups(groups)
    marked = end_marked(keys.values())
    return sorted({*marked, *end(lambda: _members(groups))})


def _members(groups: Mapping[int, float]) -> dict[int, int]:
    """The processes of these groups, pid and birth, with what their leaders have started."""
    if not groups:
        return {}
    boot, ticks = _boot_time(), os.sysconf("SC_CLK_TCK")
    there = {seen.pid: (seen, boot + seen.born / ticks) for seen in running()}
    found: dict[int, int] = {}
    for pid, begun in groups.items():
        leader = there.get(pid)
        if leader is not None and abs(leader[1] - begun) > _SLACK:
            continue  # Somebody else's process by now.
        for seen, born in there.values():
            if seen.group == pid and born >= begun - _SLACK:
                found[seen.pid] = seen.born
        if leader is not None:
            found[pid] = leader[0].born
            _add_children(pid, there, found)
    return found


def _add_children(pid: int, there: Mapping[int, tuple[Seen, float]], found: dict[int, int]) -> None:
    for seen, _ in there.values():
        if seen.parent == pid and seen.pid not in found:
            found[seen.pid] = seen.born
            _add_children(seen.pid, there, found)


def _boot_time() -> float:
    """Seconds since the epoch, as the kernel counts them now: it moves with the clock."""
    with open("/proc/stat", "rb") as file:
        return next((float(line.split()[1]) for line in file if line.startswith(b"btime")), 0.0)
