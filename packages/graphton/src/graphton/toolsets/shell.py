"""The shell tool: one command in the workspace, of which nothing is left when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphton.errors import SettingError, ToolError
from graphton.tools import Effect, Tool, ToolContext, ToolOutput, tool
from graphton.toolsets._ending import MARK, end_marked, mark
from graphton.toolsets._workspace import Workspace

__all__ = ["shell_tool"]

DEFAULT_TIMEOUT = 120
MAX_TIMEOUT = 3600
MAX_COMMAND = 100_000
"""Bytes; Linux takes 128 KiB in one argument."""
HEAD = TAIL = 8_000
"""Bytes of the output that are kept from its beginning and its end."""
BACKSTOP = 20.0
"""Seconds that the guard gets to end everything, before it is killed itself."""

PASSED = {"PATH", "HOME", "LANG", "LANGUAGE", "TERM", "TMPDIR", "TZ", "USER", "LOGNAME", "SHELL", "NO_COLOR"}
"""The variables a command gets, with all LC_*. A list of what is allowed: keys have many names."""

_GUARD = Path(__file__).with_name("_guard.py")


def shell_tool(workspace: Workspace, *, environment: Mapping[str, str] | None = None) -> Tool:
    """`run_command` for a workspace. `environment`: variables given by hand, besides the allowed ones of ours."""
    for name in environment or {}:
        if name.upper().endswith("_API_KEY") or name.upper().startswith("STIGMER_"):
            raise SettingError(
                f"variable {name!r} is never given to commands",
                hint="a provider's key belongs to the model client; give a command a key of its own name",
            )
    extra = dict(environment or {})

    @tool(effect=Effect.WRITE, asks=True)
    async def run_command(
        command: str, ctx: ToolContext, timeout_seconds: int = DEFAULT_TIMEOUT
    ) -> ToolOutput:
        """Run a shell command in the workspace."""
        if not command.strip():
            raise ToolError("command is empty")
        if "\0" in command or len(command.encode(errors="surrogatepass")) > MAX_COMMAND:
            raise ToolError(
                f"command is longer than {MAX_COMMAND} bytes or holds a zero byte; write a script file and run it"
            )
        if not 1 <= timeout_seconds <= MAX_TIMEOUT:
            raise ToolError(f"timeout_seconds {timeout_seconds} is not between 1 and {MAX_TIMEOUT}")
        environment = _environment() | extra | {MARK: mark(ctx.idempotency_key)}
        return await _run(workspace, command, timeout_seconds, environment, ctx)

    del run_command.parameters["properties"]["timeout_seconds"][
        "default"
    ]  # saves tokens; the text below says it
    return run_command


def _environment() -> dict[str, str]:
    """What a command may see of our own environment."""
    passed = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith("LC_")}
    return {"PATH": os.defpath} | passed


@dataclass
class _Output:
    """The beginning and the end of a stream, and how long it was."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    size: int = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = HEAD - len(self.head)
        self.head += data[:room] if room > 0 else b""
        self.tail += data[max(room, 0) :]
        if len(self.tail) > 16 * TAIL:
            del self.tail[:-TAIL]

    @property
    def text(self) -> str:
        left_out = self.size - len(self.head) - TAIL
        if left_out <= 0:
            return bytes(self.head + self.tail).decode(errors="replace")
        head, tail = self.head.decode(errors="replace"), self.tail[-TAIL:].decode(errors="replace")
        return f"{head}\n... ({left_out} bytes left out of {self.size}) ...\n{tail}"


@dataclass
class _Report:
    """What the guard told about the command."""

    pid: int = 0
    why: str = ""
    code: int | None = None
    killed: int = 0
    left: int = 0
    seconds: float = 0.0

    def hear(self, line: str, ctx: ToolContext) -> None:
        match line.split():
            case ["started", pid, start_time]:
                self.pid = int(pid)
                ctx.started(self.pid, float(start_time))
            case ["ended", why, code, killed, left, seconds]:
                self.why, self.code = why, None if code == "-" else int(code)
                self.killed, self.left, self.seconds = int(killed), int(left), float(seconds)
            case _:
                raise RuntimeError(f"the guard of a command said {line!r}")


async def _run(
    workspace: Workspace, command: str, limit: int, environment: dict[str, str], ctx: ToolContext
) -> ToolOutput:
    script = command.encode(errors="surrogatepass")
    try:
        guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_GUARD)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=workspace.root,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"no command can be started in {str(workspace.root)!r}: {error.strerror}") from error
    output, report = _Output(), _Report()
    marked = environment[MARK]
    work = asyncio.ensure_future(_follow(guard, marked, output, report, ctx))
    assert guard.stdin is not None
    try:
        guard.stdin.write(b"%d %d\n%b" % (limit, len(script), script))
        await asyncio.wait(
            {work}, timeout=limit + 2 * BACKSTOP
        )  # the guard keeps the limit; this is for its death
    finally:
        # Its end of file is the order to end everything. Whatever happens here, we leave when all have stopped.
        guard.stdin.close()
        await _ended(work, guard, marked, report)
    if report.why in ("", "killed") or guard.returncode != 0:
        raise ToolError("the command's guard process was killed; whether the command did its work is unknown")
    return _result(output, report, limit)


async def _follow(
    guard: asyncio.subprocess.Process, marked: str, output: _Output, report: _Report, ctx: ToolContext
) -> None:
    """Listen until the guard has ended. An error of those we tell about the command ends it, and is raised after."""
    assert guard.stdin is not None
    assert guard.stdout is not None
    assert guard.stderr is not None
    stop = guard.stdin.close
    reading = asyncio.ensure_future(_collect(guard.stdout, output, ctx))
    reading.add_done_callback(lambda done: None if _went_well(done) else stop())
    errors: list[Exception] = []
    while line := await guard.stderr.readline():
        try:
            report.hear(line.decode().strip(), ctx)
        except Exception as error:
            errors.append(error)
            stop()
    if not report.why:
        await _kill(guard, marked, report)  # it was killed before it could end the command
    # The guard is gone, and so is everything that wrote, but for what it was not allowed to end.
    await asyncio.wait({reading, asyncio.ensure_future(guard.wait())}, timeout=1 if report.left else 10)
    if not reading.done():
        reading.cancel()
        guard._transport.close()  # type: ignore[attr-defined]  # the public class has no way to close its pipes
    await asyncio.wait({reading})
    if errors:
        raise errors[0]
    if not reading.cancelled():
        reading.result()


def _went_well(done: asyncio.Future[None]) -> bool:
    return not done.cancelled() and done.exception() is None


async def _collect(stream: asyncio.StreamReader, output: _Output, ctx: ToolContext) -> None:
    shown = time.monotonic()
    while data := await stream.read(65536):
        output.add(data)
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            ctx.progress(data.decode(errors="replace").strip().rpartition("\n")[2][:120])


async def _ended(
    work: asyncio.Future[None], guard: asyncio.subprocess.Process, marked: str, report: _Report
) -> None:
    """Wait until nothing of the command runs any more, whoever cancels us meanwhile."""
    cancelled = False
    deadline = time.monotonic() + BACKSTOP
    while not work.done():
        try:
            await asyncio.wait({work}, timeout=max(1.0, deadline - time.monotonic()))
        except asyncio.CancelledError:
            cancelled = True
        if time.monotonic() >= deadline:
            await _kill(guard, marked, report)
    if cancelled:
        raise asyncio.CancelledError
    work.result()


async def _kill(guard: asyncio.subprocess.Process, marked: str, report: _Report) -> None:
    """Both guards were stopped or killed from outside: end them, the command's group, and whatever bears its mark."""
    with contextlib.suppress(ProcessLookupError):
        guard.kill()
    if report.pid and not report.why:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(report.pid, signal.SIGKILL)
    await _to_the_end(asyncio.to_thread(end_marked, {marked}))


async def _to_the_end(work: Coroutine[Any, Any, object]) -> None:
    """Await what is sure to end soon; a cancellation meanwhile is passed on afterwards."""
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


def _result(output: _Output, report: _Report, timeout: int) -> ToolOutput:
    lines = []
    if report.why == "timeout":
        lines.append(
            f"stopped: still running after {timeout} seconds (timeout_seconds can be up to {MAX_TIMEOUT})"
        )
    elif report.code is not None and report.code < 0:
        lines.append(f"ended by signal {_signal_name(-report.code)} after {report.seconds:.1f} seconds")
    else:
        lines.append(f"exit code {report.code}, {report.seconds:.1f} seconds")
    if report.why == "done" and report.killed:
        lines.append("(processes that the command left running were ended)")
    if report.left:
        lines.append(f"({report.left} processes could not be ended: they belong to another user)")
    lines.append(output.text.rstrip("\n") if output.size else "(no output)")
    return ToolOutput("\n".join(lines), is_error=report.code != 0 or report.why != "done")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
