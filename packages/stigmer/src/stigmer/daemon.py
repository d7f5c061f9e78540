"""The user's own server, from outside: found, started, replaced, stopped.

`python -m stigmer.daemon --home DIR` is the process (_daemon_process.py). It says that it is ready through a pipe, and
holds `daemon.lock` as long as it lives, so that a home has one daemon and whatever a killed one left behind (socket,
token, address, lock file) does no harm.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stigmer import __version__
from stigmer.errors import StigmerError
from stigmer.home import LOG_LIMIT, Address, Home

__all__ = ["DaemonError", "ensure_running", "find", "start", "stop"]

START_LIMIT = 30.0
"""Seconds that a daemon has to become ready, and an old one to end."""

Say = Callable[[str], None]


class DaemonError(StigmerError):
    """The daemon could not be started, replaced or stopped."""

    code = "daemon"


class _Killed(DaemonError):
    """A signal ended the daemon before it was ready."""


def find(home: Home) -> Address | None:
    """The daemon that serves this home just now, or None. Asks the socket, not the files that may be left over."""
    try:
        said = json.loads(home.address.read_text())
        token = home.token.read_text().strip()
        target, version, pid = str(said["address"]), str(said["version"]), int(said["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Not there, or half of a file that nobody of ours writes: no daemon that we can talk to.
    return (
        Address(target, token, version, pid, bool(said.get("stays")), str(said.get("engine", "embedded")))
        if _answers(target.removeprefix("unix:"))
        else None
    )


def ensure_running(
    home: Home,
    *,
    say: Say = lambda text: None,
    meanwhile: Callable[[], object] = lambda: None,
    limit: float = START_LIMIT,
) -> Address:
    """The daemon of this home, started where none runs. Two callers at once start one.

    A daemon of another version is replaced when it has nothing to do, else used, and `say` hears of it. `meanwhile`
    is called while the new process starts; the commands import gRPC there.
    """
    home.create()
    found = find(home)
    if found is not None and found.version == __version__:
        return found
    return start(home, say=say, meanwhile=meanwhile, limit=limit)


def start(
    home: Home,
    *,
    stays: bool = False,
    flags: Mapping[str, str] | None = None,
    engine: str = "",
    say: Say = lambda text: None,
    meanwhile: Callable[[], object] = lambda: None,
    limit: float = START_LIMIT,
) -> Address:
    """Starts the daemon unless a fitting one runs already. `stays`, `flags` and `engine` are those of `stigmer up`.

    An idle daemon of another version, or one that does not stay or has not these flags or this engine, makes way for a
    new one. Without `engine` any engine fits, and a new daemon gets the embedded one.
    """
    home.create()
    with _held(home.start_lock, limit, busy="another command is starting the daemon"):
        found = find(home)  # The command that we waited for may have started it.
        fits = found is not None and not flags and found.stays >= stays and engine in ("", found.engine)
        if found is not None and not _made_way(home, found, fits=fits, say=say):
            return found
        given = dict(flags or {})
        try:
            return _spawn(home, stays=stays, flags=given, engine=engine, meanwhile=meanwhile, limit=limit)
        except _Killed:  # By somebody from outside; that says nothing about the next try.
            return _spawn(home, stays=stays, flags=given, engine=engine, meanwhile=meanwhile, limit=limit)


def stop(home: Home, *, limit: float = START_LIMIT) -> bool:
    """Ends the daemon and waits until it has ended; False when none ran. One that does not answer is killed."""
    found = find(home)
    asked = False
    if found is not None:
        with suppress(DaemonError):  # It does not answer: the signals below need no answer.
            asked = _shutdown(found, if_idle=False)
    pid = _holder(home)
    if pid is None:
        return found is not None
    for sign, patience in ((None if asked else signal.SIGTERM, limit), (signal.SIGKILL, 5.0)):
        if sign is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        with suppress(TimeoutError):
            os.close(_locked(home.lock, patience))
            return True
    raise DaemonError(f"the daemon (pid {pid}) does not end", hint=f"kill -9 {pid}")


def last_words(home: Home, *, since: int = 0, lines: int = 8) -> str:
    """The end of the daemon's log, from byte `since` on."""
    try:
        with home.log.open("rb") as log:
            log.seek(since)
            tail = log.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    for mark in ("error: ", "Traceback "):
        told = [i for i, line in enumerate(tail) if line.startswith(mark)]
        if told:
            return "\n".join(tail[told[-1] :] if mark == "error: " else tail[-1:])
    return "\n".join(tail[-lines:])


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(2.0)
        try:
            knock.connect(path)
        except OSError:
            return False
    return True


def _made_way(home: Home, found: Address, *, fits: bool, say: Say) -> bool:
    """Whether the running daemon has ended, because it was another than we want and had nothing to do."""
    if found.version == __version__ and fits:
        return False
    try:
        idle = _shutdown(found, if_idle=True)
    except DaemonError:
        idle = stop(home)  # It holds the home and answers nobody.
    if found.version == __version__:
        if not idle:
            raise DaemonError(
                f"the daemon (pid {found.pid}) is busy, so it cannot be started anew to stay or with other flags",
                hint="stigmer up, when its runs have ended; or stigmer down first",
            )
        return True
    if idle:
        say(f"replaced the daemon of version {found.version} by {__version__}")
    else:
        say(
            f"the daemon (pid {found.pid}) is of version {found.version}, this is {__version__}; it is busy, so it is "
            "used as it is, and replaced by the next command that finds it idle"
        )
    return idle


def _shutdown(found: Address, *, if_idle: bool) -> bool:
    """Asks the daemon to end; False when it has work and was asked only `if_idle`."""
    import grpc

    from stigmer.api import service_pb2 as pb
    from stigmer.api import service_pb2_grpc
    from stigmer.client import OPTIONS, credentials

    rpc: Any = service_pb2_grpc  # The generated stubs carry no types.

    with grpc.insecure_channel(found.target, options=OPTIONS) as channel:
        try:
            rpc.SystemServiceStub(channel).Shutdown(
                pb.ShutdownRequest(if_idle=if_idle), timeout=5.0, metadata=credentials(found)
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                return False
            raise DaemonError(f"the daemon (pid {found.pid}) does not answer: {error.details()}") from error
    return True


_started: list[subprocess.Popen[bytes]] = []
"""The daemons that this process started: kept, so that Popen does not complain that they outlive us."""


def _spawn(
    home: Home,
    *,
    stays: bool,
    flags: dict[str, str],
    engine: str,
    meanwhile: Callable[[], object],
    limit: float,
) -> Address:
    deadline = time.monotonic() + limit
    with suppress(FileNotFoundError):
        if home.log.stat().st_size > LOG_LIMIT:
            home.log.rename(home.log.with_suffix(".log.1"))
    log = os.open(home.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    since = os.fstat(log).st_size
    hears, tells = os.pipe()
    command = [
        sys.executable,
        "-P",
        "-m",
        "stigmer.daemon",
        "--home",
        str(home.path),
        "--ready-fd",
        str(tells),
    ]
    command += ["--stays"] if stays else []
    command += ["--engine", engine] if engine else []
    environment = dict(os.environ)
    if named := environment.get(
        "STIGMER_CONFIG", ""
    ).strip():  # It is not relative to where the daemon works.
        environment["STIGMER_CONFIG"] = os.path.abspath(os.path.expanduser(named))
    command += ["--flags", json.dumps(flags)] if flags else []
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(tells,),
            start_new_session=True,
            env=environment,
            cwd="/",  # Holds no folder of the user; with -P nothing in it is imported either.
        )
        _started.append(process)
    finally:
        os.close(tells)
        os.close(log)
    try:
        meanwhile()
        return _ready(home, process, hears, since=since, deadline=deadline)
    finally:
        os.close(hears)


def _ready(
    home: Home, process: subprocess.Popen[bytes], hears: int, *, since: int, deadline: float
) -> Address:
    """Waits for the daemon's word, or for its end, or for the deadline."""
    told, _, _ = select.select([hears], [], [], max(0.0, deadline - time.monotonic()))
    word = os.read(hears, 16) if told else b""
    if word and (found := find(home)) is not None:
        return found
    ended = bool(told) and not word
    if not ended:
        process.kill()
    status = process.wait()
    words = last_words(home, since=since)
    if not ended:
        holder = _holder(home)
        why = f" Another daemon (pid {holder}) holds {home.lock}." if holder is not None else ""
        raise DaemonError(
            f"the daemon was not ready in time.{why}" + (f" Its last words: {words}" if words else ""),
            hint=f"stigmer down, then try again; its log is {home.log}",
        )
    if words.startswith("error: "):
        message, _, hint = words.removeprefix("error: ").partition("\nhint: ")
        error = DaemonError(f"the daemon did not start: {message}", hint=hint or f"its log is {home.log}")
        error.exit_code = max(status, error.exit_code)  # 2: the cure is another setting.
        raise error
    raise (_Killed if status < 0 else DaemonError)(
        f"the daemon ended while it started (status {status}): {words or 'it said nothing'}",
        hint=f"its log is {home.log}",
    )


# ---- locks ----------------------------------------------------------------------------------------------------------


def _locked(path: Path, limit: float) -> int:
    """Takes the lock and gives its descriptor; TimeoutError after `limit` seconds. The kernel frees a dead holder's."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    except BlockingIOError:
        pass
    guard, taken, late = threading.Lock(), threading.Event(), threading.Event()

    def wait() -> None:  # flock has no time limit of its own.
        fcntl.flock(fd, fcntl.LOCK_EX)
        with guard:
            taken.set()
            if late.is_set():
                os.close(fd)

    threading.Thread(target=wait, daemon=True, name=f"waits for {path.name}").start()
    taken.wait(limit)
    with guard:
        if taken.is_set():
            return fd
        late.set()
    raise TimeoutError(str(path))


@contextmanager
def _held(path: Path, limit: float, *, busy: str) -> Iterator[None]:
    try:
        fd = _locked(path, limit)
    except TimeoutError:
        raise DaemonError(
            f"{busy} and does not get done ({path} is held)", hint="end that command, or: stigmer down"
        ) from None
    try:
        yield
    finally:
        os.close(fd)


def _holder(home: Home) -> int | None:
    """The pid of the daemon that holds the home's lock; None when none does."""
    try:
        fd = os.open(home.lock, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, IsADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return int(os.read(fd, 32) or b"0") or None
    finally:
        os.close(fd)


if __name__ == "__main__":
    from stigmer._daemon_process import main

    sys.exit(main())
