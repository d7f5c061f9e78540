"""Process groups ended by number and start time, on systems that have no /proc."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress

import psutil

__all__ = ["end_groups"]

_SLACK = 2.0
"""Seconds by which two readings of a start time may differ."""


def end_groups(groups: Mapping[int, float]) -> list[int]:
    """Kills these groups, leader and start time, as far as they are still the same; gives the leaders of those found."""
    return [pid for pid, begun in groups.items() if _end(pid, begun)]


def _end(pid: int, start_time: float) -> bool:
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
