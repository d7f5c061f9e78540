"""Processes that a dead daemon's tools left behind: ended before anything about their calls is decided."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress

import psutil

from stigmer.api import event_pb2 as pb

__all__ = ["end_leftovers"]

_SLACK = 2.0
"""Seconds by which two readings of a start time may differ; pids are not reused that fast with one and the same."""


def end_leftovers(records: Iterable[pb.Event]) -> list[int]:
    """Kills the groups of processes whose calls never finished; gives the pids that were still there.

    A pid alone proves nothing: a process counts as ours only if its start time is the recorded one, and a group whose
    leader is gone only by members that are not older than the leader was.
    """
    started: dict[tuple[str, str], list[pb.ProcessStarted]] = {}
    for record in records:
        match record.WhichOneof("kind"):
            case "process_started":
                process = record.process_started
                started.setdefault((record.path, process.call), []).append(process)
            case "tool_finished":
                started.pop((record.path, record.tool_finished.call), None)
            case _:
                pass
    return [p.pid for processes in started.values() for p in processes if _end(p.pid, p.start_time)]


def _end(pid: int, start_time: float) -> bool:
    if pid <= 1 or pid == os.getpid():
        return False
    members = [p for p in psutil.process_iter() if _group(p.pid) == pid]
    leader = next((p for p in members if p.pid == pid), None) or _process(pid)
    begun = _begun(leader) if leader is not None else None
    if begun is not None and abs(begun - start_time) > _SLACK:
        return False  # Somebody else's process by now.
    ours = [p for p in members if (_begun(p) or 0.0) >= start_time - _SLACK]
    if leader is not None and begun is not None and leader not in ours:
        ours += [leader, *_children(leader)]
    for process in ours:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(ours, timeout=5.0)
    return bool(ours)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _begun(process: psutil.Process) -> float | None:
    """When it was started; None when it ended while we looked: a dead daemon's tools end by themselves meanwhile."""
    try:
        return process.create_time()
    except psutil.Error:
        return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []
