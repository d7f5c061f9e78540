"""What this machine has to spare for a model: memory and processor cores, within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cores", "free_memory", "slots_worth"]

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory(*, cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Bytes that a new process may use without pushing others out; half of all memory where nobody tells."""
    free = _available(meminfo)
    left = _left_in_container(cgroup)
    return free if left is None else min(free, left)


def cores(*, cgroup: Path = _CGROUP) -> int:
    """Threads worth starting: the cores that we may use. Above four, every other one is a hyper-thread, as a rule."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = (_read(cgroup / "cpu.max") or "max").split()
    if quota[0].isdigit() and len(quota) == 2:
        usable = min(usable, max(1, int(quota[0]) // int(quota[1])))
    return usable if usable <= 4 else max(4, usable // 2)


def slots_worth() -> int:
    """Calls of one model that are worth running at a time: on few cores more of them only make each other slow."""
    return 2 if cores() < 8 else 4


def _available(meminfo: Path) -> int:
    for line in (_read(meminfo) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_container(cgroup: Path) -> int | None:
    """What the control group still allows; the page cache in it is given back when memory is short."""
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if not limit or not used or not limit.strip().isdigit():
        return None
    cache = 0
    for line in (_read(cgroup / "memory.stat") or "").splitlines():
        if line.startswith(("inactive_file ", "active_file ")):
            cache += int(line.split()[1])
    return max(0, int(limit) - int(used) + cache)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None  # not this kind of machine
