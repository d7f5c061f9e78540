"""PreloadModel: a local model is ready when the first message comes; providers that are paid hear nothing of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders, tiny_gguf
from stigmer.api import service_pb2 as api
from stigmer.client import Client, credentials

DEADLINE = 60.0


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    return "llamacpp:" + tiny_gguf(tmp_path / "small.gguf", {">": "yes", "yes": "</s>"})


def request(serving: Any, model: str, task: str = "") -> api.CreateExecutionRequest:
    agent = api.Agent(name="plain", instructions="Be brief. " * 50, tools=api.ToolChoice(), trusted=True)
    return api.CreateExecutionRequest(
        task=task, agent="plain", agent_record=agent, flags={"model": model}, workspace=str(serving.workspace)
    )


def frames(client: Client, asked: api.CreateExecutionRequest) -> Any:
    return client._models.PreloadModel(asked, metadata=credentials(client.address))


async def test_a_local_model_is_loaded_and_its_prompts_beginning_read(serving: Any, model: str) -> None:
    async with serving.client() as client, asyncio.timeout(DEADLINE):
        call = frames(client, request(serving, model))
        said = []
        async for frame in call:
            said.append(frame.what)
            if frame.what == "ready":
                break
        assert said[0] == "load"
        assert "prompt" in said
        assert [one.model for one in (await client.status()).models] == ["small.gguf"]
        events = [event async for event in client.run(request(serving, model, "hello"))]
        call.cancel()
    finished = events[-1].finished
    assert (finished.outcome, finished.text) == ("completed", "yes")
    assert finished.usage.cached_tokens >= 500
    assert not [event for event in events if event.progress.what == "load"]


async def test_nothing_is_recorded_of_it(serving: Any, model: str) -> None:
    async with serving.client() as client, asyncio.timeout(DEADLINE):
        async with client.preloading(request(serving, model)):
            await until_served(client)
        assert await client.list() == []


async def until_served(client: Client) -> None:
    while not (await client.status()).models:  # noqa: ASYNC110 (nobody tells when another process is there)
        await asyncio.sleep(0.05)


async def test_a_paid_provider_is_asked_for_nothing(serving: Any, fake: FakeProviders) -> None:
    async with serving.client() as client, asyncio.timeout(DEADLINE):
        call = frames(client, serving.request("", flags={"model": "openai:gpt-4.1"}))
        assert [frame.what async for frame in call] == ["none"]
    assert fake.requests == []
