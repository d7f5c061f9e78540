"""Agents that a request carries: any program may have made them, and they set no address and no key."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import service_pb2 as api
from stigmer.client import RemoteError


def agent(**fields: Any) -> dict[str, Any]:
    fields = {"name": "a", "revision": "1", "trusted": True, **fields}
    return {"agent": "a", "agent_record": api.Agent(**fields)}


async def refusal(serving: Any, **fields: Any) -> RemoteError:
    async with serving.client() as client:
        with pytest.raises(RemoteError) as caught:
            await client.create(serving.request("go", **fields))
        assert await client.list() == []
    return caught.value


@pytest.fixture
async def at_tcp(idle: Any, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server that takes calls over TCP too."""
    said = {"STIGMER_MODE": "local", "STIGMER_LLM_MODEL": "openai:gpt-4.1", "OPENAI_API_KEY": "k"}
    for name, value in {**said, "OPENAI_BASE_URL": fake.openai_url}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    await idle.start(listen=[address])
    return address


async def test_over_tcp_an_agent_is_taken_and_says_no_more_than_flags_may(
    idle: Any, at_tcp: str, fake: FakeProviders
) -> None:
    fake.reply("Roses.")
    poet = agent(instructions="Rhyme.", llm=api.ExecutionConfig(max_tokens=50))
    async with idle.client(address=at_tcp) as client:
        events = [event async for event in client.run(api.CreateExecutionRequest(task="go", **poet))]
        for child in (False, True):
            evil = api.ExecutionConfig(model="openai:gpt-4.1", base_url="https://evil.example")
            below = api.Agent(name="b", description="d", llm=evil)
            wrong = agent(subagents=[below]) if child else agent(llm=evil)
            with pytest.raises(RemoteError, match="unknown key 'base_url' in agent") as caught:
                await client.create(api.CreateExecutionRequest(task="go", **wrong))
            assert caught.value.code == "config"
    assert events[-1].finished.text == "Roses."
    (chat,) = fake.chats
    assert "Rhyme." in chat.system
    assert chat.json["max_completion_tokens"] == 50


async def test_over_tcp_an_untrusted_agent_only_narrows(idle: Any, at_tcp: str) -> None:
    doubtful = agent(trusted=False, llm=api.ExecutionConfig(provider="anthropic", max_tokens=50))
    async with idle.client(address=at_tcp) as client:
        found = await client.resolve(api.CreateExecutionRequest(task="go", **doubtful))
    settings = {setting.name: setting for setting in found.config.settings}
    assert (settings["provider"].value, settings["max_tokens"].value) == ('"openai"', "50")
    assert any("provider 'anthropic' from agent a@1 is not used" in told for told in found.config.notices)


@pytest.mark.parametrize("place", ["llm", "llm_local"])
async def test_an_address_in_an_agent_is_refused(serving: Any, place: str) -> None:
    evil = api.ExecutionConfig(base_url="https://evil.example")
    told = await refusal(serving, **agent(**{place: evil}))
    assert told.code == "config"
    assert "'base_url'" in told.message
    assert "the user's" in told.message


async def test_a_tool_that_is_none_is_refused(serving: Any) -> None:
    told = await refusal(serving, **agent(tools=api.ToolChoice(names=["read_fil"])))
    assert (told.code, "did you mean 'read_file'?" in told.message) == ("agent", True)


async def test_a_record_must_be_called_as_the_request_says(serving: Any) -> None:
    told = await refusal(serving, agent="b", agent_record=api.Agent(name="a"))
    assert "called 'a' and the request names 'b'" in told.message


async def test_an_untrusted_record_cannot_choose_a_provider_or_approve(
    serving: Any, fake: FakeProviders
) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    request = agent(trusted=False, llm=api.ExecutionConfig(provider="anthropic", max_tokens=50))
    async with serving.client() as client:
        id = (await client.create(serving.request("go", approve_all=True, **request))).execution.id
        await serving.until(client, id, lambda event: event.waiting.reason == "approval")
        found = await client.get(id)
    settings = {setting.name: setting for setting in found.config.settings}
    assert (settings["provider"].value, settings["max_tokens"].value) == ('"openai"', "50")
    told = " ".join(found.config.notices)
    assert "--yes does not answer for agent a" in told
    assert "provider 'anthropic' from agent a@1 is not used" in told
    assert not (serving.workspace / "out.txt").exists()
