"""Child processes that can be no orphans: they end when told, and when their parent ends, however it ends.

The parent keeps the writing end of the child's standard input open and the child reads it; when the parent dies, even
by SIGKILL, the kernel closes the pipe and the child sees its end. On Linux the kernel also kills the child at once
(a parent-death signal), which covers a child that is busy inside foreign code.

Parent: `start`, `Child.lines`, `stop`. Child: `bind_to_parent` first, then `wait_for_parent_to_end` in its main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Child", "bind_to_parent", "start", "stop", "wait_for_parent_to_end"]

ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
    "CUDA_VISIBLE_DEVICES",
)
"""What a child inherits of our environment. Keys and tokens of others are none of its business."""


# ---- the parent's side ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Child:
    """A running child; its standard output speaks JSON, one object a line."""

    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> str:
        """How it ended, for people; empty while it runs."""
        code = self.process.returncode
        if code is None:
            return ""
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"

    async def lines(self) -> AsyncGenerator[dict[str, Any]]:
        """What it says, until it closes its output. What is no JSON object is not for us."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict):
                    yield said


async def start(
    module: str, config: Mapping[str, Any], *, extra_environment: Mapping[str, str] | None = None
) -> Child:
    """Start `python -m module` in its own session and give it `config` as the first line of its standard input."""
    inherited = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the current folder may be anybody's: nothing is imported from there
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=1 << 20,  # of one line
        start_new_session=True,
        env={**inherited, **(extra_environment or {})},
    )
    assert process.stdin is not None
    child = Child(process)
    try:
        process.stdin.write(json.dumps({**config, "parent": os.getpid()}).encode() + b"\n")
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it is dead already; its exit code tells
    except BaseException:
        await stop(child, grace=0)
        raise
    return child


async def stop(child: Child, grace: float = 2.0) -> None:
    """Close the pipe, which is the polite way; after `grace` seconds kill it and its group. Returns when it is gone.

    Cancelling this kills the child at once, and it is still gone when the cancellation arrives at the caller.
    """
    process = child.process
    if process.stdin is not None:
        process.stdin.close()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session is its own, so is its group
        await _without_interruption(_buried(process))


async def _buried(process: asyncio.subprocess.Process) -> None:
    await process.wait()
    if process.stdout is not None:
        await process.stdout.read()  # up to its end, so that the pipe is closed, too


async def _without_interruption(work: Coroutine[Any, Any, None]) -> None:
    """Await to the end what is sure to end soon; a cancellation meanwhile is passed on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


# ---- the child's side ----------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG = 1


def bind_to_parent() -> dict[str, Any]:
    """Read the configuration; from here on this process does not outlive its parent. Call it before anything slow."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent to understand
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Unbuffered, byte by byte: nothing may be left in a buffer that later readers of the descriptor do not see.
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            os._exit(0)
        line += piece
    config: dict[str, Any] = json.loads(line)
    if sys.platform == "linux" and os.getppid() != config["parent"]:
        os._exit(0)  # the parent died before the signal was set
    return config


def wait_for_parent_to_end() -> None:
    """Block until the parent closes our standard input or dies."""
    with contextlib.suppress(OSError):  # a reset is an end, too
        while os.read(0, 4096):
            pass
