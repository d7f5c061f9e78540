"""The llama.cpp servers of this process: one child for each model file and window, shared by all chats of a loop.

A child is started by the first call that needs it, stopped when nobody has used it for a while, and started again
by the next call if it died. Its whole life is one task, which ends with the event loop and takes the child along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from graphton._child import Child, start, stop
from graphton.catalog import models_dir
from graphton.chat._machine import cores
from graphton.chat.base import WaitChunk
from graphton.errors import ProviderError

__all__ = ["Key", "Pool", "Server", "close_all", "pool", "served"]

IDLE_SECONDS = 600.0
PARALLEL = 2
"""Slots: one call runs at a time, but a sub-agent's prompt does not push its parent's out of the cache at once."""
BATCH = 256
"""Prompt tokens between two reports of progress; a few seconds on a laptop. 512 would be 5 % quicker."""
_LOOK_EVERY = 0.25
_MODULE = "graphton.chat._llamacpp_serve"
_PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
"""Threads that wait for each other sleep instead of spinning. Measured with 0.5b on two cores that others used, too:
116 ms for a token instead of 2,191; spinning threads keep the one they wait for from its core."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a child is started for."""

    path: Path
    window: int


@dataclass(eq=False)
class Server:
    """One child, from the call that starts it to its end."""

    key: Key
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    url: str = ""
    child: Child | None = None
    why: str = ""
    """Why it ended or could not start."""
    users: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Calls run one after the other: together two long prompts can overflow the shared window, and both fail."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it serves, and when it never will."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.child.pid if self.child else 0

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While this lasts the child is not idle."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.released.set()


class Pool:
    """The servers of one event loop."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self.idle_seconds = idle_seconds
        self._servers: dict[Key, Server] = {}

    def server(self, key: Key) -> Server:
        """The server for `key`, started if it does not run. Calls at the same time get the same one."""
        server = self._servers.get(key)
        if server is None or server.over.is_set():
            server = self._servers[key] = Server(key)
            server.task = asyncio.create_task(self._live(server), name=f"llama.cpp {key.path.name}")
        return server

    def widest(self, path: Path) -> int:
        """The largest window that this file is served with now; 0 when it is not served."""
        return max((s.key.window for s in self._servers.values() if s.key.path == path), default=0)

    def served(self) -> list[tuple[str, int]]:
        """Model file names and process ids of the children that are there now."""
        return [(s.key.path.name, s.pid) for s in self._servers.values() if s.child]

    async def close(self) -> None:
        """End every child; returns when they are gone."""
        tasks = [server.task for server in self._servers.values() if server.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._servers.clear()

    async def _live(self, server: Server) -> None:
        try:
            server.child = await start(_MODULE, _config(server), extra_environment=_PATIENT_THREADS)
            await self._load(server, server.child)
            if server.url:
                await self._until_idle(server, server.child)
        except OSError as error:
            server.why = f"cannot be started ({error.strerror or error})"
        finally:
            # From `over` on, the next call starts another child: nothing is awaited before it is set.
            if server.child:
                server.why = server.why or server.child.ended
            server.over.set()
            if server.child:
                await stop(server.child)
                server.why = server.why or server.child.ended
            if self._servers.get(server.key) is server:
                del self._servers[server.key]
            server.ready.set()

    async def _load(self, server: Server, child: Child) -> None:
        async with contextlib.aclosing(child.lines()) as lines:
            async for said in lines:
                server.url, server.why = said.get("url", ""), said.get("error", "")
                break
        if server.url:
            server.ready.set()

    async def _until_idle(self, server: Server, child: Child) -> None:
        """Wait until the child dies, or nobody has used it for a while."""
        death = asyncio.create_task(child.process.wait())
        try:
            while not death.done():
                server.released.clear()
                used = asyncio.create_task(server.released.wait())
                limit = None if server.users else self.idle_seconds
                done, _ = await asyncio.wait(
                    {death, used}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
                )
                used.cancel()
                if not done and not server.users:
                    return
        finally:
            death.cancel()


def _config(server: Server) -> dict[str, object]:
    return {
        "model": str(server.key.path),
        "key": server.api_key,
        "n_ctx": server.key.window,
        "threads": cores(),
        "parallel": PARALLEL,
        "batch": BATCH,
        "log": _log_file(server.key.path),
    }


def _log_file(model: Path) -> str:
    """Where llama.cpp's own words go: beside the models, or nowhere if that cannot be written."""
    folder = models_dir() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (file := folder / f"llamacpp-{model.stem}.log").touch()
    except OSError:
        return os.devnull
    return str(file)


async def wait_until_loaded(server: Server, size: int, seconds: float) -> AsyncGenerator[WaitChunk]:
    """Tell how loading goes, until the server is ready; raises what went wrong."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    in_memory = size * 3 // 2  # the mapped file, and what of it is copied in another order
    while not server.ready.is_set():
        done = min(_resident(server.pid), in_memory)
        yield WaitChunk("load", done, in_memory, "bytes", f"loading {server.key.path.name}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY):
                await server.ready.wait()
        if loop.time() > deadline:
            raise _failed(server, f"has not loaded within {seconds:g} s", "a smaller model loads faster")
    if not server.url:
        raise _failed(server, server.why or "ended without a word")


def _failed(server: Server, why: str, hint: str = "") -> ProviderError:
    if not hint and "No module named 'xllamacpp'" in why:
        hint = "install llama.cpp with: pip install 'graphton[llamacpp]'"
    return ProviderError(
        f"llama.cpp cannot serve {str(server.key.path)!r} with a window of {server.key.window}: {why}",
        hint=hint or "check that the file is a whole GGUF model, and that there is memory for it",
        provider="llamacpp",
    )


def _resident(pid: int) -> int:
    """How much of the model is in memory by now. 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


# ---- one pool for each event loop ----------------------------------------------------------------------------------

_pools: dict[asyncio.AbstractEventLoop, Pool] = {}


def pool() -> Pool:
    """The running loop's pool."""
    loop = asyncio.get_running_loop()
    for ended in [known for known in _pools if known.is_closed()]:
        del _pools[ended]
    return _pools.setdefault(loop, Pool())


async def close_all() -> None:
    """End every llama.cpp process of the running loop, and wait until they are gone."""
    await pool().close()


def served() -> list[tuple[str, int]]:
    """(model file, process id) of every llama.cpp process of the running loop."""
    return pool().served()
