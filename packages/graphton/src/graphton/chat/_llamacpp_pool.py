"""The llama.cpp servers of this process: children that serve one model file each, shared by all chats of a loop.

A child is started by the first call that needs it, stopped when nobody has used it for a while, and started again
by the next call if it died. Its whole life is one task, which ends with the event loop and takes the child along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from graphton._child import Child, start, stop
from graphton.catalog import models_dir
from graphton.chat import _json
from graphton.chat._http import HEADERS, Limits, fetch
from graphton.chat._llamacpp_file import ModelFile, Room
from graphton.chat._llamacpp_slots import Slots
from graphton.chat._llamacpp_trouble import cannot_serve
from graphton.chat._machine import cores, free_memory
from graphton.chat.base import WaitChunk
from graphton.errors import ProviderError

__all__ = ["LOOK_EVERY", "Pool", "Server", "close_all", "pool", "served", "wait_until_loaded"]

IDLE_SECONDS = 600.0
BATCH = 256
"""Prompt tokens between two reports of progress; a few seconds on a laptop. 512 would be 5 % quicker."""
LOOK_EVERY = 0.25
"""Seconds between two looks at how far something is."""
_MODULE = "graphton.chat._llamacpp_serve"
_PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
"""Threads that wait for each other sleep instead of spinning. Measured with 0.5b on two cores that others used, too:
116 ms for a token instead of 2,191; spinning threads keep the one they wait for from its core."""
_ASK_ITSELF = Limits(connect=5, first_token=60, idle=60)


@dataclass(eq=False)
class Server:
    """One child, from the call that starts it to its end."""

    file: ModelFile
    room: Room
    """What it was started with."""
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    url: str = ""
    window: int = 0
    """The window of each slot: what was promised, and from `ready` on what the server says itself."""
    template: str = ""
    """The chat template in use, known when it is ready."""
    child: Child | None = None
    note: str = ""
    """What it has to say of how it runs."""
    why: str = ""
    """Why it ended or could not start."""
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    """When the last call ended, or it was started."""
    speed: float = 0.0
    """Prompt tokens a second, as measured last; 0 before the first measure."""
    reading: int = 0
    """Calls whose prompts are being read, or wait for that."""
    alive: float = field(default_factory=time.monotonic)
    """When it last said something, to whatever call."""
    pending: int = 0
    """Prompt tokens that calls have asked it to read and that it may not have read yet."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it serves, and when it never will."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    slots: Slots = field(init=False)

    def __post_init__(self) -> None:
        self.window = self.room.window
        self.slots = Slots(self.room.slots)

    @property
    def name(self) -> str:
        return self.file.path.name

    @property
    def pid(self) -> int:
        return self.child.pid if self.child else 0

    @property
    def idle(self) -> bool:
        """Whether no call and no run would miss it."""
        return not self.users and not self.slots.held

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While this lasts the child is not idle."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.used = time.monotonic()
            self.released.set()


class Pool:
    """The servers of one event loop."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self.idle_seconds = idle_seconds
        self._servers: list[Server] = []
        self._opening = asyncio.Lock()

    def serving(self, path: Path, window: int) -> Server | None:
        """The server of this file whose window is the smallest that holds `window`; None where there is none.

        One that llama.cpp gave less than it was started for counts as what it was started for: another would get no more.
        """
        fit = [s for s in self._alive(path) if max(s.window, s.room.window) >= window]
        return min(fit, key=lambda server: server.window, default=None)

    def latest(self, path: Path) -> Server | None:
        """The server of this file that was used last."""
        return max(self._alive(path), key=lambda server: server.used, default=None)

    def _alive(self, path: Path) -> list[Server]:
        return [s for s in self._servers if s.file.path == path and not s.over.is_set()]

    async def server(self, file: ModelFile, window: int, choose: Callable[[int], Room]) -> Server:
        """A server of this file for prompts of up to `window` tokens, started if there is none.

        `choose` says how, by the memory that is free. One that runs is never made smaller, and never ended while a call
        or a run needs it. Calls at the same time get the same one.
        """
        async with self._opening:
            if found := self.serving(file.path, window):
                return found
            room = choose(self.free())
            if found := self.serving(file.path, room.window):
                return found  # Less than was wanted, and memory allows no more.
            await self._make_room(file.memory(room.window * room.slots))
            server = Server(file, room)
            self._servers.append(server)
            server.task = asyncio.create_task(self._live(server), name=f"llama.cpp {server.name}")
            return server

    def leave(self, holder: object) -> None:
        """The run of this chat has ended."""
        for server in self._servers:
            server.slots.leave(holder)

    def served(self) -> list[tuple[str, int]]:
        """Model file names and process ids of the children that are there now."""
        return [(server.name, server.pid) for server in self._servers if server.child]

    async def close(self) -> None:
        """End every child; returns when they are gone."""
        await self._end(self._servers)
        self._servers.clear()

    def free(self) -> int:
        """Bytes that a new server could have."""
        return free_memory() + self._given_back()

    def _given_back(self) -> int:
        """What ending the idle children would free."""
        return sum(_own_memory(server.pid) for server in self._servers if server.idle)

    async def _make_room(self, needed: int) -> None:
        """End idle children, as far as a new one needs their memory."""
        for server in [one for one in self._servers if one.idle]:
            if free_memory() >= needed:
                return
            await self._end([server])

    async def _end(self, servers: list[Server]) -> None:
        tasks = [server.task for server in servers if server.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
            if server in self._servers:
                self._servers.remove(server)
            server.ready.set()

    async def _load(self, server: Server, child: Child) -> None:
        async with contextlib.aclosing(child.lines()) as lines:
            async for said in lines:
                server.url, server.why = said.get("url", ""), said.get("error", "")
                server.note = said.get("note", "")
                break
        if server.url:
            try:
                await _verify(server)
            except ProviderError as error:
                server.url, server.why = "", f"does not say what it was started with: {error.message}"
            else:
                server.ready.set()

    async def _until_idle(self, server: Server, child: Child) -> None:
        """Wait until the child dies, or nobody has used it for a while."""
        death = asyncio.create_task(child.process.wait())
        try:
            while not death.done():
                server.released.clear()
                used = asyncio.create_task(server.released.wait())
                limit = None if server.users else self.idle_seconds
                try:
                    done, _ = await asyncio.wait(
                        {death, used}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    used.cancel()
                if not done and not server.users:
                    return
        finally:
            death.cancel()


async def _verify(server: Server) -> None:
    """Ask the server itself what window each of its slots has: that is the truth from here on."""
    headers = {**HEADERS, "authorization": f"Bearer {server.api_key}"}
    answer = await fetch(
        f"{server.url}/props",
        headers=headers,
        provider="llamacpp",
        limits=_ASK_ITSELF,
        secrets=(server.api_key,),
        method="GET",
    )
    try:
        said = _json.loads(answer)
        server.window = int(said["default_generation_settings"]["n_ctx"])
        server.template = said.get("chat_template") or ""
    except (LookupError, TypeError, ValueError) as error:
        raise ProviderError(f"no context window in what it says of itself: {answer[:300]!r}") from error


def _config(server: Server) -> dict[str, object]:
    return {
        "model": str(server.file.path),
        "key": server.api_key,
        "window": server.room.window,
        "slots": server.room.slots,
        "cache_mib": server.room.cache >> 20,
        "threads": cores(),
        "batch": BATCH,
        "log": _log_file(server.file.path),
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


async def wait_until_loaded(server: Server) -> AsyncGenerator[WaitChunk]:
    """Tell how loading goes, until the server is ready; raises what went wrong. It takes as long as it takes."""
    in_memory = server.file.size * 3 // 2  # the mapped file, and what of it is copied in another order
    while not server.ready.is_set():
        done = min(_resident(server.pid), in_memory)
        yield WaitChunk("load", done, in_memory, "bytes", f"loading {server.name}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY):
                await server.ready.wait()
    if not server.url:
        raise cannot_serve(server.file, server.room, server.why or "ended without a word", free_memory())


def _resident(pid: int) -> int:
    """How much of the model is in memory by now. 0 where the system does not tell."""
    return _statm(pid)[0]


def _own_memory(pid: int) -> int:
    """What the system gets back when this process ends: not the mapped file, which others may use, too."""
    resident, shared = _statm(pid)
    return resident - shared


def _statm(pid: int) -> tuple[int, int]:
    """Resident and shared bytes of a process."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, shared * page


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
