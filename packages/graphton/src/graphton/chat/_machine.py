"""What this machine has to spare for a model: memory and processor cores, within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cores", "free_memory", "slots_worth"]

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_MEMINFO = Path("/proc/meminfo")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Where control groups of version 2 and of version 1 say what a container may use, and what it does."""


def free_memory(*, cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Bytes that a new process may use without pushing others out; half of all memory where nobody tells."""
    free = _available(meminfo)
    left = _left_in_container(cgroup)
    return free if left is None else min(free, left)


def cores(*, cgroup: Path = _CGROUP, cpus: Path = _CPUS) -> int:
    """Threads worth starting: the cores that we may use, each once although it may run two threads of the system."""
    usable = _usable()
    return max(1, min(_physical(usable, cpus), _quota(cgroup) or len(usable)))


def _usable() -> list[int]:
    """The numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _physical(usable: list[int], cpus: Path) -> int:
    """Cores behind these processors. Where the system does not tell, every other one above four is taken for a twin."""
    siblings = {_read(cpus / f"cpu{number}" / "topology" / "thread_siblings_list") for number in usable}
    if None not in siblings:
        return len(siblings)
    return len(usable) if len(usable) <= 4 else max(4, len(usable) // 2)


def _quota(cgroup: Path) -> int | None:
    """Whole cores that a container may use up, by either kind of control group; None where nothing limits it."""
    said = (_read(cgroup / "cpu.max") or "").split()
    if len(said) != 2:
        said = [_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    quota, period = (word.strip() for word in said)
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return None
    return max(1, int(quota) // int(period))


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
    for limit, used, stat in _LIMITS:
        most, now = (_read(cgroup / name) or "" for name in (limit, used))
        if most.strip().isdigit() and now.strip().isdigit():
            return max(0, int(most) - int(now) + _page_cache(cgroup / stat))
    return None


def _page_cache(stat: Path) -> int:
    lines = [line.split() for line in (_read(stat) or "").splitlines()]
    known = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    kinds = ("inactive_file", "active_file")
    return sum(known.get(f"total_{kind}", known.get(kind, 0)) for kind in kinds)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None  # not this kind of machine
