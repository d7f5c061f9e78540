"""Finds and ends what is left of commands: processes by number and birth, and by a mark in their environment."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["MARK", "Seen", "end", "end_marked", "look", "mark", "running"]

MARK = "GRAPHTON_CALL"
"""The variable by which a command's processes are known whatever they do: see `mark`."""
_LINUX = sys.platform == "linux"
_SWEEP_SECONDS = 5.0
"""How long killed processes may take to go."""


@dataclass(slots=True)
class Seen:
    """A process as /proc tells of it. `born` counts clock ticks since boot: with the pid it names one process for good."""

    pid: int
    parent: int
    group: int
    born: int
    ended: bool
    """Only its parent has not taken notice yet."""


def running() -> Iterator[Seen]:
    """All processes that there are (Linux; elsewhere none)."""
    for name in os.listdir("/proc") if _LINUX else ():
        if name.isdigit() and (seen := look(int(name))) is not None and not seen.ended:
            yield seen


def look(pid: int) -> Seen | None:
    """This process; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is a name that may hold anything.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Seen(pid, int(fields[1]), int(fields[2]), int(fields[19]), fields[0] in (b"Z", b"X"))


def mark(key: str) -> str:
    """The mark of one start of the call with this idempotency key. Programs that use graphton may have the same keys."""
    return f"{key} {secrets.token_hex(8)}"


def end_marked(marks: Collection[str]) -> list[int]:
    """Ends every process of this user that was started under one of these marks, or for one of these keys; gives their pids.

    Linux only. A process that was started with another environment is not found, nor one whose environment is shut to us.
    """
    if not marks:
        return []
    wanted = re.compile(b"|".join(re.escape(f"\0{MARK}={one}".encode()) + rb"(?=[ \0])" for one in marks))
    return end(lambda: {seen.pid: seen.born for seen in running() if _bears(seen, wanted)})


def _bears(seen: Seen, wanted: re.Pattern[bytes]) -> bool:
    folder = f"/proc/{seen.pid}"
    try:
        if seen.pid == os.getpid() or os.stat(folder).st_uid != os.geteuid():
            return False
        with open(f"{folder}/environ", "rb") as file:
            return wanted.search(b"\0" + file.read() + b"\0") is not None
    except OSError:  # It has ended meanwhile, or is shut to us.
        return False


def end(found: Callable[[], Mapping[int, int]]) -> list[int]:
    """Kills the processes that `found` gives, pid and birth, until it finds none; gives the pids of all of them.

    Stopping all before killing any keeps a process from starting new ones as fast as we end them.
    """
    seen: set[int] = set()
    deadline = time.monotonic() + _SWEEP_SECONDS
    while (family := dict(found())) and time.monotonic() < deadline:
        for _ in range(100):
            fresh = {pid: born for pid, born in family.items() if pid not in seen}
            if not fresh:
                break
            with _held(fresh) as held:
                _send(held, signal.SIGSTOP)
            seen |= fresh.keys()
            family |= found()
        with _held(family) as held:
            _send(held, signal.SIGKILL)
            _gone(held, deadline)
    return sorted(seen)


@contextlib.contextmanager
def _held(family: Mapping[int, int]) -> Iterator[list[int]]:
    """Descriptors of these processes, as far as they are still the same: a number alone may be another one's by now."""
    held: list[int] = []
    try:
        for pid, born in family.items():
            with contextlib.suppress(OSError):
                held.append(os.pidfd_open(pid))
                now = look(pid)
                if now is None or now.born != born:
                    os.close(held.pop())
        yield held
    finally:
        for fd in held:
            os.close(fd)


def _send(held: Collection[int], number: signal.Signals) -> None:
    for fd in held:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(fd, number)


def _gone(held: Collection[int], deadline: float) -> None:
    """Until these have ended; whoever has to bury them may take longer."""
    poller, left = select.poll(), set(held)
    for fd in left:
        poller.register(fd, select.POLLIN)
    while left and (patience := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(patience * 1000):
            poller.unregister(fd)
            left.discard(fd)
