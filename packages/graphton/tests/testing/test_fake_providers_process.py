"""`python -m graphton.testing` is the same server for tests of other processes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

Start = Callable[[dict[str, Any]], Awaitable[str]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the process with a script and returns its URL."""
    started: list[asyncio.subprocess.Process] = []

    async def run(script: dict[str, Any]) -> str:
        path = tmp_path / "script.json"
        path.write_text(json.dumps(script))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "graphton.testing", "--port", "0", "--script", str(path)),
            stdout=asyncio.subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        return line.decode().strip()

    yield run
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_it_prints_its_url_serves_the_script_and_shows_what_it_saw(start: Start) -> None:
    url = await start(
        {
            "replies": [
                {"calls": [{"name": "read_file", "arguments": {"path": "a.txt"}}]},
                {"status": 529, "retry_after": 2},
                {"text": "hello"},
            ],
            "rules": [{"match": "(?i)weather", "reply": {"text": "Rain."}}],
        }
    )
    assert url.startswith("http://127.0.0.1:")

    async with aiohttp.ClientSession() as session:

        async def ask(text: str) -> tuple[int, Any]:
            request = {"model": "m", "stream": False, "messages": [{"role": "user", "content": text}]}
            async with session.post(f"{url}/api/chat", json=request) as response:
                return response.status, await response.json()

        status, first = await ask("read a.txt")
        assert status == 200
        assert first["message"]["tool_calls"][0]["function"]["arguments"] == {"path": "a.txt"}
        assert (await ask("again"))[0] == 529
        assert (await ask("What is the weather?"))[1]["message"]["content"] == "Rain."
        assert (await ask("and now"))[1]["message"]["content"] == "hello"
        async with session.post(f"{url}/_script", json={"replies": [{"text": "more"}]}) as response:
            assert await response.json() == {"pending": 1}
        assert (await ask("one more"))[1]["message"]["content"] == "more"
        async with session.get(f"{url}/_requests") as response:
            seen = await response.json()
    assert [r["last_user_text"] for r in seen][:2] == ["read a.txt", "again"]
    assert seen[0]["path"] == "/api/chat"
    assert seen[0]["json"]["model"] == "m"
    assert json.loads(seen[0]["body"])["messages"][0]["content"] == "read a.txt"


async def test_a_script_that_cannot_be_used_ends_the_process_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text('{"replys": []}')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "graphton.testing", "--script", str(path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert "fake providers: the script has an unknown key 'replys'" in said.decode()
    assert "Traceback" not in said.decode()
