"""Liveness and readiness: ready means that work can really be taken."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest
from stigmer.errors import StigmerError
from stigmer.health import health_at


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def asked(address: str, path: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as reply:
        return reply.status, await reply.json()


async def test_a_server_that_can_take_work_is_ready(idle: Any) -> None:
    address = free_address()
    await idle.start(http=address)
    status, said = await asked(address, "/readyz")
    assert status == 200
    assert said["ready"] is True
    assert said["checks"] == {"started": "ok", "store": "ok", "engine": "ok"}
    assert (await asked(address, "/livez"))[0] == 200


async def test_a_server_whose_temporal_is_away_lives_and_is_not_ready(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", free_address())
    address = free_address()
    await idle.start(http=address, engine="temporal")
    status, said = await asked(address, "/readyz")
    assert status == 503
    assert said["ready"] is False
    assert said["checks"]["engine"] != "ok"
    assert said["checks"]["store"] == "ok"
    assert (await asked(address, "/livez"))[0] == 200


async def test_a_check_that_does_not_answer_is_not_waited_for() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def broken() -> None:
        raise StigmerError("the disk is full")

    address = free_address()
    async with health_at(address, {"never": never, "broken": broken}):
        status, said = await asked(address, "/readyz")
    assert status == 503
    assert said["checks"] == {"never": "no answer within 2 s", "broken": "the disk is full"}


async def test_an_address_that_is_taken_is_said() -> None:
    address = free_address()
    async with health_at(address, {}):
        with pytest.raises(StigmerError, match=f"nobody can listen at '{address}'"):
            async with health_at(address, {}):
                pass
