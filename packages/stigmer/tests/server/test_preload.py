"""PreloadModel: a local model is ready when the first message comes; providers that are paid hear nothing of it."""

from __future__ import annotations

import asyncio
import os
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


async def test_an_ollama_loads_the_window_that_the_run_will_have(serving: Any, fake: FakeProviders) -> None:
    shell = {"OLLAMA_HOST": fake.ollama_url}
    asked = {"flags": {"model": "ollama:qwen2.5-coder:7b"}, "shell": shell}
    async with serving.client() as client, asyncio.timeout(DEADLINE):
        call = frames(client, serving.request("", **asked))
        async for frame in call:
            if frame.what == "ready":
                break
        call.cancel()
    loads = [one.json for one in fake.requests if one.path == "/api/chat"]
    assert [one["messages"] for one in loads] == [[]]
    fake.reply("Hi.")
    await serving.run("Hello", **asked)
    first = [one.json for one in fake.requests if one.path == "/api/chat"][1]
    assert first["messages"]
    assert first["options"]["num_ctx"] == loads[0]["options"]["num_ctx"]
    assert first["keep_alive"] == loads[0]["keep_alive"]


async def test_what_goes_wrong_is_told_by_the_first_run_and_hurts_nothing_before(
    serving: Any, model: str
) -> None:
    os.truncate(model.removeprefix("llamacpp:"), 400_000)
    async with (
        serving.client() as client,
        asyncio.timeout(DEADLINE),
        client.preloading(request(serving, model)),
    ):
        events = [event async for event in client.run(request(serving, model, "hello"))]
    assert events[-1].finished.outcome == "failed"
    assert "the file is damaged or incomplete" in events[-1].finished.error.message
