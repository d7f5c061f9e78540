"""llama.cpp's child killed while a real model talks: the call is made again, the run ends, no child is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from stigmer.daemon import find

from kills.suite import House, Watcher, house

__all__ = ["local"]

TASK = "Count from 1 to 30, one number a line."
AGENT = """\
apiVersion: stigmer/v1
kind: Agent
metadata: {name: plain}
spec: {instructions: Do what you are asked., tools: []}
"""
CHILD = "graphton.chat._llamacpp_serve"


async def local(folder: Path, *, model: Path, kills: int, seed: int) -> tuple[int, list[str]]:
    """One run on the model file, its server killed so often in the middle of a reply: how many hit, what was wrong."""
    chance = random.Random(seed)
    hits: set[int] = set()
    async with house(folder, seed=seed) as home:
        (home.work / "plain.yaml").write_text(AGENT)
        flags = (
            "--provider",
            "llamacpp",
            "--model",
            str(model),
            "--max-tokens",
            "150",
            "--agent",
            "./plain.yaml",
        )
        watcher = Watcher(await home.command("run", "--json", *flags, TASK), [])
        for _ in range(kills):
            await watcher.shown("text_delta", after=watcher.seen["text_delta"])
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            for pid in () if watcher.ended else _servers(home):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hits.add(pid)
        code = await watcher.end()
        servers = hits | set(_servers(home))
    left = [f"{pid} {CHILD}" for pid in servers if psutil.pid_exists(pid)] + home.left_of_all()
    return len(hits), [*_faults(watcher, code, len(hits)), *(f"left over at the end: {one}" for one in left)]


def _servers(home: House) -> list[int]:
    """The daemon's llama.cpp servers."""
    found = find(home.home)
    children = psutil.Process(found.pid).children() if found is not None else []
    return [process.pid for process in children if CHILD in process.cmdline()]


def _faults(watcher: Watcher, code: int | None, hits: int) -> Iterator[str]:
    events = watcher.stored
    ends = [event["outcome"] for event in events if event["type"] == "finished"]
    if (code, ends) != (0, ["completed"]):
        yield f"it did not come to its one good end: exit code {code}, {ends}, {watcher.talk.strip()[-500:]}"
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        yield "the watcher saw a gap or a double"
    replies = Counter(event["step"] for event in events if event["type"] == "model_replied")
    yield from (f"step {step} has {n} replies" for step, n in replies.items() if n > 1)
    retries = sum(event["type"] == "retrying" for event in events)
    if retries != hits:
        yield f"{hits} kills and {retries} new tries"
