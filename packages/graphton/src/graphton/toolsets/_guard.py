"""Runs one shell command and leaves nothing of it behind. Started by `toolsets/shell.py` as `python -I -S _guard.py`.

A process of its own, because only a parent process can adopt and end what a command leaves running, and because it
must outlive a daemon that is killed. On Linux there are two of it, one the parent of the other: whichever of them is
killed, the other one ends the command with all that it left. Standard library only, few imports: it starts with every
command.

stdin    "<timeout> <bytes>\\n" and the command; then nothing. Its end means: the parent is gone, or wants an end.
stdout   the output of the command (stdout and stderr together)
stderr   "started <pid> <start time>\\n", at the end "ended <why> <exit code> <killed> <left> <seconds>\\n"
         why: done | timeout | parent | killed (the guard itself). The exit code is that of `sh`, negative for a signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SWEEP_SECONDS = 10
"""How long a killed process may take to go: only the kernel, or another user's process, can hold us up."""
_STOP_SECONDS = 15
"""How long the second guard may take to end everything; then it has been stopped from outside."""


def main() -> None:
    """Start the command, wait for its end, the parent's end or the time limit, and end what is left."""
    stopping: list[int] = []
    wake = _wake_up(stopping)
    libc = _become_guard()
    timeout, command = _read_command()
    began = time.monotonic()
    if libc is not None:
        second = os.fork()
        if second:
            _watch(second, wake, stopping, began)
            return
        wake = _become_second(libc, stopping)
    child = _start(command, libc)
    _tell(f"started {child} {_start_time(child):.2f}")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the output ends with the last process of the command

    why, code = "done", None
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(wake, select.POLLIN)
    while code is None and why == "done":
        left = began + timeout - time.monotonic()
        ready = [fd for fd, _ in poller.poll(max(0.0, left) * 1000)]
        if wake in ready:
            _drain(wake)
        code = _reap(child)
        if stopping or (0 in ready and _hung_up()):
            why = "parent"
        elif code is None and time.monotonic() >= began + timeout:
            why = "timeout"

    killed, left_over, late = _end_all(child, wake) if _LINUX else _end_group(child)
    if code is None:
        code = late
    seconds = time.monotonic() - began
    _tell(f"ended {why} {'-' if code is None else code} {killed} {left_over} {seconds:.2f}")


def _wake_up(stopping: list[int]) -> int:
    """The end of a pipe that can be read whenever a signal has come: of a child, or to stop."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopping.append(number))
    return wake


def _watch(second: int, wake: int, stopping: list[int], began: float) -> None:
    """Wait for the guard that works. If it is killed, its orphans are ours: end them, and say so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    poller = select.poll()
    poller.register(0, 0)  # Its end only: what is to be read is for the other one.
    poller.register(wake, select.POLLIN)
    limit: float | None = None
    while (code := _reap(second)) is None:
        left = None if limit is None else (limit - time.monotonic()) * 1000
        ready = [fd for fd, _ in poller.poll(left if left is None else max(0.0, left))]
        _drain(wake)
        if limit is None and (stopping or 0 in ready):
            poller.unregister(0)
            limit = time.monotonic() + _STOP_SECONDS
            _signal(second, signal.SIGTERM)
        elif limit is not None and time.monotonic() >= limit:
            _signal(second, signal.SIGKILL)
    if code != 0:
        killed, left_over, _ = _end_all(second, wake)
        _tell(f"ended killed - {killed} {left_over} {time.monotonic() - began:.2f}")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _become_second(libc: object, stopping: list[int]) -> int:
    """The guard that works: nothing that is sent to the first one's group reaches it, and it hears of its death."""
    os.setsid()
    wake = _wake_up(stopping)
    first = os.getppid()
    _adopt(libc)
    if os.getppid() != first:
        stopping.append(signal.SIGTERM)  # It died before we could be told.
    return wake


def _adopt(libc: object) -> None:
    """Orphans of the command become ours, and our parent's death is told to us."""
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # type: ignore[attr-defined]  # a ctypes library
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # type: ignore[attr-defined]


def _become_guard() -> object:
    """On Linux we adopt orphans."""
    if not _LINUX:
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    _adopt(libc)
    return libc


def _read_command() -> tuple[float, bytes]:
    head = b""
    while not head.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            os._exit(0)  # the parent has gone before it said anything
        head += piece
    timeout, size = head.split()
    command = b""
    while len(command) < int(size):
        piece = os.read(0, int(size) - len(command))
        if not piece:
            os._exit(0)
        command += piece
    return float(timeout), command


def _start(command: bytes, libc: object) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # type: ignore[attr-defined]  # a ctypes library
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(1, 2)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would hand that down
        os.execv("/bin/sh", [b"sh", b"-c", command])
    except OSError as error:
        os.write(1, f"sh could not be started: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # a dead parent hears nothing, and the work goes on
        os.write(2, line.encode() + b"\n")


def _hung_up() -> bool:
    try:
        return not os.read(0, 4096)
    except OSError:
        return True


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 4096):
            pass


def _reap(child: int) -> int | None:
    """Take in every ended process; the exit code of `child` if it was among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
    return code


def _end_all(child: int, wake: int) -> tuple[int, int, int | None]:
    """Kill every descendant until none is left: (killed, left over, exit code of `child` if it ended here).

    Stopping all before killing any keeps a process from starting new ones as fast as we end them.
    """
    seen: set[int] = set()
    code = None
    poller = select.poll()
    poller.register(wake, select.POLLIN)
    deadline = time.monotonic() + _SWEEP_SECONDS
    while True:
        ended = _reap(child)
        code = ended if code is None else code
        family = _descendants()
        if not family or time.monotonic() > deadline:
            return len(seen), len(family), code
        for _ in range(100):
            fresh = {
                pid: born for pid, born in _descendants().items() if pid not in family or pid not in seen
            }
            fresh = {pid: born for pid, born in fresh.items() if pid not in seen}
            if not fresh:
                break
            _send(fresh, signal.SIGSTOP)
            seen.update(fresh)
        _send(_descendants(), signal.SIGKILL)
        poller.poll(10)
        _drain(wake)


def _descendants() -> dict[int, bytes]:
    """Our children, their children and so on, with their start times."""
    born: dict[int, bytes] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            born[int(name)] = fields[19]
            children.setdefault(int(fields[1]), []).append(int(name))
    family: dict[int, bytes] = {}
    waiting = [os.getpid()]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            family[pid] = born[pid]
            waiting.append(pid)
    return family


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the third on; the second is a name that may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _send(family: dict[int, bytes], number: signal.Signals) -> None:
    for pid, born in family.items():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            fd = os.pidfd_open(pid)
            try:
                # The descriptor holds on to the process; a number alone may be another process by now.
                fields = _stat(pid)
                if fields and fields[19] == born:
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)


def _end_group(child: int) -> tuple[int, int, int | None]:
    """Where orphans cannot be adopted: the command's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    try:
        return 0, 0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        return 0, 0, None


def _start_time(pid: int) -> float:
    """Seconds since the epoch, as the kernel knows it; now, where it does not say."""
    fields = _stat(pid) if _LINUX else []
    if not fields:
        return time.time()
    with open("/proc/stat", "rb") as file:
        boot = next((float(line.split()[1]) for line in file if line.startswith(b"btime")), 0.0)
    return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
