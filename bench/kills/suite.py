"""Runs agents under the real command and daemon, kills what is around them at random moments, and gathers what was seen."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
from stigmer.daemon import find, stop
from stigmer.home import Home

from kills.checks import Evidence, Kill, faults
from kills.scenario import AGENT, FACTS, Who

__all__ = ["Database", "House", "Report", "draw", "suite", "until"]

HERE = Path(__file__).parent
FOLLOW = str(HERE / "follow.py")
LIMIT = 120.0
"""Seconds for one run to come to its end: far more than it takes, for busy machines."""
KEY = "sk-kills-0123456789abcdef"
KINDS: Mapping[str, Mapping[str, int]] = {
    "sqlite": {"daemon": 8, "left": 3, "start": 2, "tool": 4, "provider": 4},
    "postgres": {"daemon": 3, "left": 1, "tool": 2, "provider": 3, "postgres": 6},
    "disk": {"disk": 3, "daemon": 1},
    "cluster": {"worker": 4, "serve": 3, "temporal": 3, "tool": 1, "provider": 2},
    "cluster-postgres": {"worker": 4, "serve": 3, "temporal": 3, "postgres": 3, "tool": 1, "provider": 2},
}
"""What is killed, each as often as its weight says.

`left`: the daemon, while a command works that would go on for ever. `start`: the daemon, and the next one as it starts.
"""
KILLS, FAR = 5, 70
"""Kills of one run, each at most so many stored events after the one before; a run has about 350."""
ENOUGH = 3
"""So many runs with faults, and the suite ends: more of them say nothing new."""
REFUSED = "refused a write"
"""What the daemon's log says when the database could not write."""
BREAKS = 3
"""A watcher takes so many ends of its daemon within a minute, and gives up at the next."""


class Database(Protocol):
    """A PostgreSQL server of one's own."""

    def database(self) -> str: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...


@dataclass
class Report:
    """What a whole suite showed."""

    runs: list[Evidence] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> list[Kill]:
        return [kill for run in self.runs for kill in run.kills if kill.hit]


def draw(chance: random.Random, kinds: Mapping[str, int], count: int) -> list[Kill]:
    """The kills of one run."""
    drawn: list[Kill] = []
    breaks = 0
    while len(drawn) < count:
        kind = chance.choices(list(kinds), list(kinds.values()))[0]
        cost = {"daemon": 1, "left": 1, "start": 2, "serve": 1}.get(kind, 0)
        if breaks + cost <= BREAKS:
            breaks += cost
            drawn.append(Kill(kind, after=chance.randint(0, FAR), delay=chance.uniform(0.0, 0.03)))
    return drawn


async def suite(
    folder: Path,
    *,
    points: int,
    seed: int,
    plan: str = "sqlite",
    postgres: Database | None = None,
    told: Callable[[Evidence, list[str]], None] = lambda seen, wrong: None,
    place: Callable[..., House] | None = None,
    minutes: float = 0.0,
) -> Report:
    """Run after run until `points` kills have hit and `minutes` are over; `told` hears of each run.

    The same seed draws the same kills.

    `plan` is a row of KINDS: "postgres" needs such a server, "disk" a home (`folder`/home) on a small disk, "cluster"
    a `place` that has such parts.
    """
    report = Report()
    chance = random.Random(seed)
    kinds = KINDS[plan]
    broken, end = 0, time.monotonic() + 60 * minutes
    async with house(folder, seed=seed, postgres=postgres, place=place) as home:
        while (more := points - len(report.kills)) > 0 or time.monotonic() < end:
            kills = draw(chance, kinds, min(KILLS, more) if more > 0 else KILLS)
            seen = await home.run(len(report.runs) + 1, kills)
            wrong = faults(seen)
            report.runs.append(seen)
            report.faults += [f"run {seen.run}: {fault}" for fault in wrong]
            told(seen, wrong)
            broken += bool(wrong)
            if broken == ENOUGH:
                break
    report.faults += [f"lost: {execution}" for execution in home.lost()]
    report.faults += [f"left over at the end: {process}" for process in home.left_of_all()]
    return report


@asynccontextmanager
async def house(
    folder: Path, *, seed: int, postgres: Database | None = None, place: Callable[..., House] | None = None
) -> AsyncIterator[House]:
    """A home with all that stands around it, for as long as the block lasts."""
    home = (place or House)(folder, seed=seed, postgres=postgres)
    try:
        await home.open()
        yield home
    finally:
        await home.close()


class House:
    """One home, its workspace, its model server and its witnesses."""

    slack_ms = 0
    """How far the clocks of its processes may be apart."""

    def __init__(self, folder: Path, *, seed: int, postgres: Database | None = None) -> None:
        self.folder, self.seed, self.postgres = folder, seed, postgres
        self.home = Home(folder / "home")
        self.work = folder / "work"
        self.posts: Counter[str] = Counter()
        self._log = folder / "asked"
        self._port = 0
        self._is_ready = False
        self._chance = random.Random(f"{seed} victims")
        kept = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ}
        self.environment |= {"HOME": str(folder), "STIGMER_HOME": str(self.home.path), "TERM": "dumb"}

    async def open(self) -> None:
        self.work.mkdir(parents=True)
        (self.work / "lead.yaml").write_text(AGENT)
        for fact in ("fact.txt", *FACTS):
            (self.work / fact).write_text("Whales sleep upright.\n")
        shutil.copy(HERE / "witness.py", self.work)
        self._log.touch()
        self._server = await asyncio.start_server(self._posted, "127.0.0.1", 0)
        self._spare = self._provider_process()
        self._start_provider()
        self.environment |= {
            "STIGMER_LLM_MODEL": "openai:test-model",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self._port}/v1",
            "OPENAI_API_KEY": KEY,
        }
        if self.postgres is not None:
            self.environment["STIGMER_DATABASE_URL"] = self.postgres.database()

    async def close(self) -> None:
        await asyncio.to_thread(stop, self.home)
        for process in (self._provider, self._spare):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()
        self._server.close()
        await self._server.wait_closed()

    # What stands around it

    async def _posted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The HTTP witness: counts effects by their idempotency key."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            key = next(line.partition(": ")[2] for line in head.splitlines() if line.startswith("Idem"))
            self.posts[key] += 1
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
            await writer.drain()
        writer.close()

    def _start_provider(self) -> None:
        """Returns when it listens; the second time at the same port as before.

        Its process is ready by then: on a busy machine a new one would take longer than runs ask for it.
        """
        self._ready()
        self._provider, self._spare = self._spare, self._provider_process()
        assert self._provider.stdin is not None
        assert self._provider.stdout is not None
        with self._provider.stdin as told, self._provider.stdout as said:
            told.write(f"{self._port}\n")
            told.flush()
            url = said.readline().strip()
        self._port = int(url.rpartition(":")[2])

    def _ready(self) -> None:
        """Until the next model server waits for nothing but its port."""
        assert self._spare.stdout is not None
        if not self._is_ready:
            self._is_ready = self._spare.stdout.readline() == "ready\n"

    def _provider_process(self) -> subprocess.Popen[str]:
        self._is_ready = False
        witness = self._server.sockets[0].getsockname()[1]
        given = {"seed": self.seed, "witness": witness, "log": self._log}
        path = str(HERE.parent), os.environ.get("PYTHONPATH")
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return subprocess.Popen(
            [sys.executable, "-m", "kills.provider", *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _asked(self, run: int) -> Iterator[tuple[str, int, int]]:
        for line in self._log.read_text().splitlines():
            number, path, step, at = line.split()
            if int(number) == run:
                yield path.removeprefix("-"), int(step), int(at)

    def _effects(self, run: int) -> tuple[Counter[str], dict[str, int]]:
        lines, beats = self.work / "lines", self.work / "beats"
        mine = f"{run}:"
        written = Counter(
            k for k in (lines.read_text().split() if lines.exists() else ()) if k.startswith(mine)
        )
        last: dict[str, int] = {}
        for line in beats.read_text().splitlines() if beats.exists() else ():
            key, _, at = line.partition(" ")
            if key.startswith(mine):
                last[key] = max(int(at), last.get(key, 0))
        return written, last

    def _processes(self) -> dict[int, str]:
        """Everything that works in the workspace, but for the commands of this suite."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                if process.cwd() == str(self.work) and not {"stigmer", FOLLOW} & set(words):
                    found[process.pid] = f"{process.pid} {' '.join(words)[:200]}"
        return found

    def left_of_all(self) -> list[str]:
        """What still runs when everything has been told to end."""
        return [
            f"{p.pid} {' '.join(p.info['cmdline'])[:200]}"
            for p in psutil.process_iter(["cmdline"])
            if any(str(self.folder) in word for word in p.info["cmdline"] or ())
        ] + list(self._processes().values())

    def _integrity(self) -> str:
        if self.postgres is not None or not self.home.database.exists():
            return ""  # PostgreSQL's recovery looks for itself.
        db = sqlite3.connect(f"file:{self.home.database}?mode=ro", uri=True, timeout=30)
        try:
            ((said,),) = db.execute("PRAGMA integrity_check(1)").fetchall()
        finally:
            db.close()
        return "" if said == "ok" else str(said)

    # One run

    async def run(self, number: int, kills: list[Kill]) -> Evidence:
        """One run with its kills: all that was seen of it."""
        command = await self.command("run", "--agent", "./lead.yaml", "--yes", "--json", Who(number, "").task)
        watcher = Watcher(command, kills)
        damage: list[str] = []
        for kill in kills:
            await watcher.grown(kill.after)
            await asyncio.sleep(kill.delay)
            if watcher.ended or not await getattr(self, f"_kill_{kill.kind}")(kill, watcher):
                break
            damage += filter(None, [self._integrity()])
        code = await watcher.end()
        fetched: list[dict[str, Any]] = []
        if watcher.execution:
            attach = Watcher(await self.command("attach", "--json", watcher.execution), [])
            await attach.end()
            fetched = attach.stored
        left = await self._gone()
        lines, beats = self._effects(number)
        posts = Counter({key: n for key, n in self.posts.items() if key.startswith(f"{number}:")})
        return Evidence(
            run=number,
            code=code,
            talk=watcher.talk,
            watched=watcher.stored,
            fetched=fetched,
            asked=list(self._asked(number)),
            lines=lines,
            posts=posts,
            beats=beats,
            folder=self.work,
            kills=kills,
            left=left,
            damage=damage,
            lost=self.lost(),
            slack_ms=self.slack_ms,
        )

    def lost(self) -> list[str]:
        """Other executions that did not come to their good end since this was asked last."""
        return []

    async def command(self, *words: str) -> asyncio.subprocess.Process:
        """The real command, started in the workspace."""
        return await self._started("-m", "stigmer", *words)

    async def _started(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.work,
            env=self.environment,
            limit=1 << 26,
        )

    async def _gone(self) -> list[str]:
        """What of the run's processes is still there, a moment after its end."""
        with suppress(TimeoutError):
            await until(lambda: not self._processes(), 3.0)
        return list(self._processes().values())

    # Kills: each says whether it hit.

    async def _daemon(self, watcher: Watcher) -> int:
        """The pid of the daemon that serves; 0 when the run ended before there was one."""
        await until(lambda: watcher.ended or find(self.home) is not None, LIMIT)
        found = find(self.home)
        return 0 if found is None or watcher.ended else found.pid

    async def _kill_daemon(self, kill: Kill, watcher: Watcher) -> bool:
        pid = await self._daemon(watcher)
        return bool(pid) and await self._strike(kill, pid, f"daemon {pid}")

    async def _kill_left(self, kill: Kill, watcher: Watcher) -> bool:
        """The daemon; the command goes on until the next daemon ends it, or is seen to have not."""
        hold = self.work / "hold"
        hold.touch()
        try:
            await until(lambda: watcher.ended or self._beating(), LIMIT)
            known = watcher.seen["tool_outcome_unknown"]
            if watcher.ended or not await self._kill_daemon(kill, watcher):
                return False
            await watcher.shown("tool_outcome_unknown", after=known)
            await asyncio.sleep(0.1)
        finally:
            hold.unlink()
        return True

    def _beating(self) -> bool:
        return any(" beat " in what for what in self._processes().values())

    async def _kill_start(self, kill: Kill, watcher: Watcher) -> bool:
        if not await self._kill_daemon(kill, watcher):
            return False
        first = int(kill.what.split()[1])
        await until(lambda: self._holder() not in (0, first), LIMIT)
        await asyncio.sleep(self._chance.uniform(0.0, 0.4))
        pid = self._holder()
        return await self._strike(kill, pid, f"{kill.what}, then {pid} as it started")

    def _holder(self) -> int:
        """The daemon that has the home's lock, ready or not."""
        with suppress(OSError, ValueError, psutil.Error):
            pid = int(self.home.lock.read_text())
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return pid
        return 0

    async def _kill_tool(self, kill: Kill, watcher: Watcher) -> bool:
        """Some process of a running command: its guard, its shell or what that started."""
        await until(lambda: watcher.ended or bool(self._processes()), LIMIT)
        running = sorted(self._processes().items())
        if watcher.ended or not running:
            return False
        pid, what = self._chance.choice(running)
        return await self._strike(kill, pid, what)

    async def _kill_provider(self, kill: Kill, watcher: Watcher) -> bool:
        """In the middle of a stream: the beginning of a reply has just been shown. Its successor is ready before."""
        await asyncio.to_thread(self._ready)
        await watcher.shown("text_delta", after=watcher.seen["text_delta"])
        if watcher.ended:
            return False
        hit = await self._strike(kill, self._provider.pid, f"provider {self._provider.pid}")
        self._provider.wait()
        await asyncio.sleep(self._chance.uniform(0.0, 0.5))
        await asyncio.to_thread(self._start_provider)
        return hit

    async def _kill_postgres(self, kill: Kill, watcher: Watcher) -> bool:
        assert self.postgres is not None
        kill.what, kill.at = "postgres", time.time()
        await asyncio.to_thread(self.postgres.kill)
        await asyncio.sleep(self._chance.uniform(0.0, 0.5))
        await asyncio.to_thread(self.postgres.start)
        kill.revived = time.time()
        return True

    async def _kill_disk(self, kill: Kill, watcher: Watcher) -> bool:
        """The disk of the home fills up, until a write has been refused, and has room again a while later."""
        log = self.home.log
        refused = log.read_text().count(REFUSED)
        fill = self.home.path / "fill"
        kill.what, kill.at = "disk", time.time()
        _fill(fill)
        await until(lambda: watcher.ended or log.read_text().count(REFUSED) > refused, LIMIT)
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        fill.unlink()
        return True

    async def _strike(self, kill: Kill, pid: int, what: str) -> bool:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return True  # It has just ended by itself: no hit, and no reason to stop.
        kill.what, kill.at = what, time.time()
        await until(lambda: _dead(pid), LIMIT)
        return True


class Watcher:
    """Reads what a command with --json prints; tells when the daemon that was killed has a successor at work."""

    def __init__(self, command: asyncio.subprocess.Process, kills: list[Kill]) -> None:
        self._command, self._kills = command, kills
        self.stored: list[dict[str, Any]] = []
        self.ended = False
        self.execution = ""
        self.talk = ""
        self.driver = 0
        """The process that drives the run: its last attempt's."""
        self.seen: Counter[str] = Counter()
        """How many events of each kind have come, live ones among them."""
        self._news = asyncio.Condition()
        self._reading = asyncio.gather(self._read(), self._listen())

    async def _read(self) -> None:
        assert self._command.stdout is not None
        async for line in self._command.stdout:
            event = json.loads(line)
            if "execution" not in event:  # It is refused or has failed: one object says why.
                self.talk += line.decode()
                continue
            kind, self.execution = event["type"], event["execution"]
            self.seen[kind] += 1
            if event["seq"]:
                self.stored.append(event)
                self._back()
            if kind == "attempt_started":
                self.driver = int(event["worker"].rpartition(":")[2])
                self._resumed(self.driver)
            async with self._news:
                self.ended = kind == "finished" and not event["path"]
                self._news.notify_all()
        async with self._news:
            self.ended = True
            self._news.notify_all()

    def _back(self) -> None:
        """An event came: the run goes on after a part that was away had come back."""
        for kill in self._kills:
            if kill.kind in ("serve", "postgres") and kill.revived and kill.resumed is None:
                kill.resumed = time.time()

    def _resumed(self, pid: int) -> None:
        for kill in self._kills:
            if kill.kind == "worker" and kill.hit and kill.resumed is None:
                kill.resumed = time.time()
            if kill.kind in ("daemon", "left", "start") and kill.hit and kill.resumed is None:
                with suppress(OSError):
                    kill.resumed = time.time()
                    kill.revived = kill.resumed - _age(pid)

    async def _listen(self) -> None:
        assert self._command.stderr is not None
        said = await self._command.stderr.read()
        self.talk += said.decode(errors="replace")

    async def grown(self, more: int) -> None:
        """Until so many more stored events have come, or the end."""
        known = len(self.stored)
        await self._wait(lambda: self.ended or len(self.stored) >= known + more)

    async def shown(self, kind: str, *, after: int) -> None:
        """Until more than `after` events of a kind have come, or the end."""
        await self._wait(lambda: self.ended or self.seen[kind] > after)

    async def _wait(self, wanted: Callable[[], bool]) -> None:
        """In vain means that nothing comes any more: then the run's end will not come either, and that is told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LIMIT), self._news:
                await self._news.wait_for(wanted)

    async def end(self) -> int | None:
        """The command's exit code; None when it had to be killed."""
        late = False
        try:
            await asyncio.wait_for(asyncio.shield(self._reading), LIMIT)
        except TimeoutError:
            late = True
            self._command.kill()
            await self._reading
        code = await self._command.wait()
        return None if late else code


def _fill(path: Path) -> None:
    """Writes a file until not one more byte has room."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 8, 1):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass


async def until(wanted: Callable[[], bool], limit: float) -> None:
    async with asyncio.timeout(limit):
        while not wanted():  # noqa: ASYNC110  (it asks the system: processes, sockets, files)
            await asyncio.sleep(0.005)


def _age(pid: int) -> float:
    """Seconds since a process was started, to a hundredth (psutil knows the time of boot to a second only)."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
