"""A server on TCP: what a request may say of addresses, and where the server's own key goes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from graphton.models import origin
from graphton.testing import FakeProviders
from stigmer.api import service_pb2 as api
from stigmer.client import RemoteError
from stigmer.config import allowed_hosts
from stigmer.errors import ConfigError

SERVERS_KEY = "sk-server-0123456789abcdefgh"


@pytest.fixture
async def at_tcp(idle: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts the server at a free port, with these variables in its environment; gives its address."""

    async def start(**environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        await idle.start(address=address)
        return address

    return start


def hostile(idle: Any, url: str) -> dict[str, api.CreateExecutionRequest]:
    """Requests that want the server to go where the caller says, or to take what only the user's own daemon takes."""
    ask = {"shell": {}, "flags": {}}
    model = "openai:gpt-4.1"
    project = api.ProjectFile(path="/x/.stigmer/config.yaml", text="llm: {model: qwen3:8b}", trusted=True)
    agent = api.Agent(name="a", llm=api.ExecutionConfig(model=model, base_url=url), trusted=True)
    config = api.ExecutionConfig
    return {
        "shell": idle.request(
            "Hi", workspace="", shell={"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "k"}, flags={}
        ),
        "project file": idle.request("Hi", workspace="", **ask, project_file=project),
        "agent": idle.request("Hi", workspace="", **ask, agent="a", agent_record=agent),
        "flag": idle.request("Hi", workspace="", shell={}, flags={"model": model, "base_url": url}),
        "flag under a false name": idle.request(
            "Hi", workspace="", shell={}, flags={"model": model, "openai_base_url": url}
        ),
        "key as a flag": idle.request("Hi", workspace="", shell={}, flags={"model": model, "api_key": "k"}),
        "execution config": idle.request(
            "Hi",
            workspace="",
            **ask,
            execution_config=config(provider="openai", model="gpt-4.1", base_url=url),
        ),
        "fallback": idle.request(
            "Hi",
            workspace="",
            shell={},
            flags={"provider": "ollama", "base_url": url},
            execution_config=config(model="gpt-4.1", provider="openai", fallbacks=["ollama:qwen3:8b"]),
        ),
    }


async def test_no_request_over_tcp_leads_the_server_to_an_address(
    idle: Any, at_tcp: Any, fake: FakeProviders
) -> None:
    address = await at_tcp(STIGMER_MODE="cloud", OPENAI_API_KEY=SERVERS_KEY)
    async with idle.client(address=address) as client:
        for what, request in hostile(idle, fake.openai_url).items():
            for call in (client.create, client.preview):
                with pytest.raises(RemoteError) as caught:
                    await call(request)
                assert caught.value.code in ("forbidden", "config"), what
                assert SERVERS_KEY not in str(caught.value)
        assert await client.list() == []
    assert not fake.requests


async def test_a_refused_address_says_who_may_allow_it_and_how(
    idle: Any, at_tcp: Any, fake: FakeProviders
) -> None:
    address = await at_tcp(STIGMER_MODE="cloud", OPENAI_API_KEY=SERVERS_KEY)
    request = hostile(idle, fake.openai_url)["execution config"]
    async with idle.client(address=address) as client:
        answer = await client.resolve(request)
        with pytest.raises(RemoteError) as caught:
            await client.create(request)
    (problem,) = answer.problems
    assert caught.value.problems == (problem,)
    assert f"base_url '{fake.openai_url}' from execution config is refused" in problem
    assert f"STIGMER_ALLOWED_HOSTS=openai@{origin(fake.openai_url)}" in problem


async def test_an_allowed_address_is_gone_to_with_the_servers_key_only_where_the_list_says_so(
    idle: Any, at_tcp: Any, fake: FakeProviders
) -> None:
    place = origin(fake.openai_url)
    address = await at_tcp(
        STIGMER_MODE="cloud",
        OPENAI_API_KEY=SERVERS_KEY,
        OPENAI_BASE_URL=fake.openai_url,  # The server itself has bound its key to this address.
        STIGMER_ALLOWED_HOSTS=f"openai@{place}+key, vllm@{place}",
    )
    with_key = api.ExecutionConfig(provider="openai", model="gpt-4.1", base_url=fake.openai_url)
    without = api.ExecutionConfig(provider="vllm", model="m", base_url=fake.openai_url)
    for _ in range(5):  # A model that nobody knows is tried out before its first turn.
        fake.reply("Hello.")
    async with idle.client(address=address) as client:
        for config in (with_key, without):
            request = idle.request("Hi", workspace="", shell={}, flags={}, execution_config=config)
            events = [event async for event in client.run(request)]
            assert events[-1].finished.text == "Hello.", events[-1]
    first, *others = fake.chats
    assert first.headers["authorization"] == f"Bearer {SERVERS_KEY}"
    assert others
    assert not any("authorization" in other.headers for other in others)


async def test_a_server_on_tcp_does_not_guess_its_mode(idle: Any, at_tcp: Any) -> None:
    address = await at_tcp()
    async with idle.client(address=address) as client:
        answer = await client.resolve(api.CreateExecutionRequest(task="Hi"))
    assert "mode is not set, and `stigmer serve` does not guess it" in answer.problems[0]


def test_the_allow_list_is_read_strictly_and_every_fault_told() -> None:
    text = " ollama@http://gpu.lan:11434 , openai@https://GW.example+key,"
    assert allowed_hosts({"STIGMER_ALLOWED_HOSTS": text}) == {
        ("ollama", "http://gpu.lan:11434"): False,
        ("openai", "https://gw.example:443"): True,
    }
    assert allowed_hosts(os.environ | {"STIGMER_ALLOWED_HOSTS": ""}) == {}
    bad = "gw.example,opnai@https://gw.example,openai@gw.example,openai@https://gw.example/v1,openai@https://u:pw@h"
    with pytest.raises(ConfigError) as caught:
        allowed_hosts({"STIGMER_ALLOWED_HOSTS": bad})
    assert len(caught.value.problems) == 5
    for part in ("is no provider", "did you mean 'openai'", "needs http://", "has a path", "user name"):
        assert part in str(caught.value)
    assert "u:pw" not in str(caught.value)
    assert "e.g. STIGMER_ALLOWED_HOSTS=ollama@" in str(caught.value)
