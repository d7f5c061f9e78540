"""What a long run costs: bytes and CPU per step around steps 10, 100, 200 and 400, and walking over its whole record.

    .venv/bin/python bench/growth.py [--steps 400]

One run of the real command under its real daemon: each step reads one file of 1 KB. Beside it a loop over raw httpx does
the same work in the same moment against the same model server: a list of messages that is sent whole, a streamed reply,
a file that is read, nothing kept. CPU is that of the whole process, kernel included, read when a step's request arrives at the
model server; ours is the daemon's and that of the client that watches (`stigmer run --json`). Prints each figure beside
its target.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HALF = 25
"""CPU per step is the mean over so many steps before and after the one that is named: several share a message to the client."""
KEY = "sk-bench-0000000000000000"
ROUNDS = 7
"""Times that the record is walked; the median counts."""


# The model server: it counts the results and asks for the next file


async def serve(steps: int) -> None:
    """Chat completions, streamed. Its first line of output is its address, then comes one for each request: whose, and the step."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        done = body.count(b'"tool_call_id"')
        print(*request.headers["User-Agent"].split("/")[:1], done + 1, flush=True)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(reply(done, last=done >= steps))
        await response.write_eof()
        return response

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def reply(done: int, *, last: bool) -> bytes:
    """One streamed reply: a few words and a call, or the answer."""
    words = ["All", " of", " them", " are", " read."] if last else ["I", " read", " the", " next", " file."]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": word} for word in words]
    if not last:
        arguments = json.dumps({"path": f"{done}.txt"})
        function = {"name": "read_file", "arguments": arguments}
        call: dict[str, Any] = {
            "index": 0,
            "id": f"call_{done:016}",
            "type": "function",
            "function": function,
        }
        deltas.append({"tool_calls": [call]})
    chunks: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    chunks.append({"index": 0, "delta": {}, "finish_reason": "stop" if last else "tool_calls"})
    about: dict[str, Any] = {
        "id": f"chatcmpl-{done}",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "gpt-4.1",
    }
    lines = [json.dumps(about | {"choices": [chunk]}) for chunk in chunks]
    usage = {"prompt_tokens": 500 + 300 * done, "completion_tokens": 20, "total_tokens": 520 + 300 * done}
    lines += [json.dumps(about | {"choices": [], "usage": usage}), "[DONE]"]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


# The yardstick


def raw(url: str, folder: Path) -> None:
    """The plain loop that one would write over httpx."""
    import httpx

    tool = {"name": "read_file", "description": "Reads a file.", "parameters": {"type": "object"}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Read all files."}]
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        while True:
            body = {"model": "gpt-4.1", "messages": messages, "stream": True,
                    "tools": [{"type": "function", "function": tool}]}  # fmt: skip
            text = ""
            calls: list[dict[str, Any]] = []
            with client.stream("POST", "/v1/chat/completions", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("content") or ""
                        calls += choice["delta"].get("tool_calls") or []
            messages.append({"role": "assistant", "content": text, "tool_calls": calls})
            for call in calls:
                name = json.loads(call["function"]["arguments"])["path"]
                content = (folder / name).read_text()
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
            if not calls:
                return


# Measuring


def cpu(pid: int) -> float:
    """CPU seconds of a process so far, all its threads, from its own clock (Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


Marks = dict[int, float]
"""By step: the CPU seconds that a process had used when the step's request came."""


def watched(server: subprocess.Popen[str], asking: dict[str, list[int]]) -> dict[int, Marks]:
    """The marks of processes, by pid, as the requests come in; `asking` says whose requests count for which."""
    marks: dict[int, Marks] = defaultdict(dict)

    def read() -> None:
        for line in lines(server):
            who, step = line.split()
            for pid in asking.get(who, ()):
                with suppress(OSError):  # It has ended.
                    marks[pid][int(step)] = cpu(pid)

    threading.Thread(target=read, daemon=True).start()
    return marks


def around(marks: Marks, step: int) -> float:
    """Milliseconds of CPU per step, of the steps around this one that there are."""
    first = max(min(marks), step - HALF)
    last = min(max(marks), step + HALF)
    return (marks[last] - marks[first]) / (last - first) * 1000


@contextmanager
def process(*words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process for as long as the block lasts, its output a pipe."""
    started = subprocess.Popen(list(words), stdout=subprocess.PIPE, text=True, **more)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def lines(started: subprocess.Popen[str]) -> Iterator[str]:
    assert started.stdout is not None
    return iter(started.stdout)


def ours(
    environment: dict[str, str], folder: Path, steps: int, asking: dict[str, list[int]]
) -> tuple[int, int]:
    """Runs the whole of it; the pids of the daemon and of the client."""
    from stigmer.daemon import find
    from stigmer.home import Home

    stigmer(environment, folder, "up")
    found = find(Home(Path(environment["STIGMER_HOME"])))
    assert found is not None
    outcome, asked = "no end", 0
    command = ("run", "--json", "--max-steps", str(steps + 1), "Read all files.")
    with process(sys.executable, "-m", "stigmer", *command, env=environment, cwd=folder) as client:
        asking["graphton"] = [found.pid, client.pid]
        for line in lines(client):
            event = json.loads(line)
            asked += event["type"] == "model_requested"
            if event["type"] == "finished":
                outcome = event["outcome"]
    if outcome != "completed" or asked != steps + 1:
        raise SystemExit(f"the run did not go its way: {outcome} after {asked} steps; see stigmer logs")
    return found.pid, client.pid


def stigmer(environment: dict[str, str], folder: Path, *words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "stigmer", *words],
        env=environment,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def size(database: Path) -> int:
    """Bytes of the database and its WAL as they lie there."""
    return sum(file.stat().st_size for file in database.parent.glob(database.name + "*"))


def checkpointed(database: Path) -> int:
    """Bytes of the database once its WAL is written back."""
    with sqlite3.connect(database) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return database.stat().st_size


async def replay(database: Path, home: Path) -> tuple[float, float, float]:
    """Milliseconds to read the record, to enter it, and to walk the loop over it: CPU, for others use this machine too; medians."""
    from stigmer.api import event_pb2 as pb
    from stigmer.api.service_pb2 import CreateExecutionRequest
    from stigmer.journal import StoreJournal
    from stigmer.runner import agent_for, recorded_chat
    from stigmer.store import Store

    took: list[tuple[float, float, float]] = []
    store = await Store.open(database)
    (row,) = await store.page(organisation="default", limit=1)
    for _ in range(ROUNDS):
        began = time.process_time()
        records = await store.replay(row.no)
        read = time.process_time()
        journal = StoreJournal(store, no=row.no, execution=row.id, epoch=row.epoch, records=records)
        entered = time.process_time()
        config: pb.ConfigResolved = next(r.config_resolved for r in records if r.HasField("config_resolved"))
        request = CreateExecutionRequest.FromString(row.request)
        agent = agent_for(recorded_chat(config.models[0], KEY), request, closed=(home,))
        made = time.process_time()
        result = await agent.run(request.task, journal=journal)
        walked = time.process_time()
        await agent.close()
        assert result.outcome == "completed"
        took.append((read - began, entered - read, walked - made))
    await store.close()
    first, second, third = (statistics.median(column) * 1000 for column in zip(*took, strict=True))
    return first, second, third


def measure(folder: Path, steps: int) -> None:
    work = folder / "work"
    work.mkdir()
    for number in range(steps):
        (work / f"{number}.txt").write_text(f"{number:04} " + "x" * 994 + "\n")
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    here = [sys.executable, str(Path(__file__))]
    home = folder / "home"
    database = home / "stigmer.db"
    with process(*here, "--serve", "--steps", str(steps)) as server:
        url = next(lines(server)).strip()
        environment = {**kept, "HOME": str(folder), "STIGMER_HOME": str(home), "OPENAI_API_KEY": KEY}
        environment |= {"OPENAI_BASE_URL": url + "/v1", "STIGMER_LLM_MODEL": "openai:gpt-4.1"}
        environment |= {"STIGMER_LLM_DIALECT": "chat"}
        stigmer(environment, work, "up")
        empty = checkpointed(database)
        try:
            asking: dict[str, list[int]] = {}
            marks = watched(server, asking)
            with process(*here, "--raw", url, str(work)) as loop:
                asking["python-httpx"] = [loop.pid]
                daemon, client = ours(environment, work, steps, asking)
                live = size(database)  # Before the daemon, which has nothing to do now, empties the WAL.
                loop.wait()
        finally:
            stigmer(environment, work, "down")
    whole = checkpointed(database)
    print(f"{steps} steps with results of 1 KB; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"{'CPU per step, ms':34} {'daemon':>8} {'client':>8} {'httpx':>8} {'ratio':>8}   target")
    for step in (step for step in (10, 100, 200, 400) if step <= steps):
        serving, watching, yours = (around(marks[pid], step) for pid in (daemon, client, loop.pid))
        ratio = (serving + watching) / yours
        target = "0.6 at most" if step == 400 else ""
        name = f"around step {step}"
        print(f"{name:34} {serving:8.2f} {watching:8.2f} {yours:8.2f} {ratio:8.2f}   {target}")
    read, entered, walked = asyncio.run(replay(database, home))
    print(f"\n{'':34} {'measured':>8}   target")
    rows = [
        ("database, checkpointed, MB", f"{whole / 1e6:.2f}", "0.8 at most"),
        ("database with its WAL, live, MB", f"{live / 1e6:.2f}", "1.5 at most"),
        ("bytes per added step", f"{(whole - empty) / steps:.0f}", "1600 at most"),
        ("replay, ms of CPU", f"{read + entered + walked:.1f}", "40 at most"),
        ("  reading, entering, walking", f"{read:.1f} + {entered:.1f} + {walked:.1f}", ""),
    ]
    for name, value, target in rows:
        print(f"{name:34} {value:>8}   {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--raw", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.steps))
    elif given.raw:
        raw(given.raw[0], Path(given.raw[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="stigmer-bench-") as folder:
            measure(Path(folder), given.steps)


if __name__ == "__main__":
    main()
