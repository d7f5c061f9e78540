"""What the doctor makes of each thing that a provider, or what stands before it, may answer."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from stigmer.doctor import Check
from stigmer.doctor._hosted import ask
from stigmer.doctor._targets import Target

SENTINEL = "sk-sentinel-0123456789abcdef"
OPENAI_LIST = {"object": "list", "data": [{"id": "gpt-6.1-sol"}, {"id": "models/gemini-3.8-flash"}]}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def target(provider: str, url: str, *models: str, role: str = "run", key: str = SENTINEL) -> Target:
    dialect = "anthropic" if provider == "anthropic" else "openai"
    return Target(provider, provider, dialect, url, "env X", key, "env KEY" if key else "", models, role)


async def asked(one: Target) -> dict[str, Check]:
    found = await ask(one)
    return {check.id: check for check in found}


# --- how each is asked


@pytest.mark.parametrize(
    ("provider", "path", "name", "value"),
    [
        ("anthropic", "/v1/models?limit=1000", "x-api-key", SENTINEL),
        ("openai", "/models", "authorization", f"Bearer {SENTINEL}"),
        ("groq", "/models", "authorization", f"Bearer {SENTINEL}"),
        ("azure", "/models", "api-key", SENTINEL),
    ],
)
async def test_the_list_of_models_is_asked_for_with_the_key_in_its_header(
    web: Any, provider: str, path: str, name: str, value: str
) -> None:
    web.answers[path.partition("?")[0]] = (200, OPENAI_LIST)
    rows = await asked(target(provider, web.url))
    assert rows[f"provider.{provider}"].facts["outcome"] == "works"
    ((method, asked_path, headers),) = web.asked
    assert (method, asked_path, headers[name]) == ("GET", path, value)
    assert set(headers) <= {"host", "user-agent", name, "anthropic-version"}


async def test_without_a_key_none_is_sent(web: Any) -> None:
    web.answers["/models"] = (200, OPENAI_LIST)
    row = (await asked(target("vllm", web.url, key="")))["provider.vllm"]
    assert row.text.startswith(f"vllm: no key is needed at {web.url} (2 models, ")
    assert "authorization" not in web.asked[0][2]


# --- what it says


@pytest.mark.parametrize(
    ("status", "body", "outcome", "said", "hint", "check"),
    [
        (401, {"error": {"message": "Invalid key"}}, "key_refused", "answered 401: Invalid key", "the key is from env KEY", "fail"),
        (403, {"error": {"message": "No"}}, "forbidden", "answered 403: No", "the key is from env KEY", "fail"),
        (400, {"error": {"message": "API key not valid."}}, "key_refused", "API key not valid", "the key is from env KEY", "fail"),
        (404, {}, "no_list", "answered 404; it lists no models, so the key was not tried", "check the model's name", "warn"),
        (429, {}, "rate_limited", "answered 429", "wait a little", "warn"),
        (503, {}, "server_error", "answered 503", "the server failed; try again later", "fail"),
        (302, b"", "redirect", "answered 302 and wants to send us on", "redirects are never followed", "fail"),
        (200, b"<html>Sign in</html>", "protocol", "sent no JSON but", "check that the base URL", "fail"),
        (200, {"hello": 1}, "protocol", "answers, but not with a list of models", "check that the base URL", "fail"),
    ],
)  # fmt: skip
async def test_each_answer_has_its_word_and_its_hint(
    web: Any, status: int, body: Any, outcome: str, said: str, hint: str, check: str
) -> None:
    web.answers["/models"] = (status, body)
    row = (await asked(target("openai", web.url)))["provider.openai"]
    assert (row.facts["outcome"], row.status) == (outcome, check)
    assert said in row.text
    assert hint in row.hint
    assert SENTINEL not in f"{row.text} {row.hint} {row.facts}"
    assert len(web.asked) == 1


async def test_a_server_that_wants_a_key_and_got_none_says_so(web: Any) -> None:
    web.answers["/models"] = (401, {})
    row = (await asked(target("vllm", web.url, key="")))["provider.vllm"]
    assert row.hint == "that server wants a key: export STIGMER_LLM_API_KEY=… beside its address"


async def test_silence_is_a_time_out_of_its_own(web: Any) -> None:
    web.silent = True
    row = (await asked(target("openai", web.url)))["provider.openai"]
    assert row.facts["outcome"] == "timeout_first_token"
    assert "within 2.5 s" in row.text
    assert row.hint


async def test_a_port_that_nobody_listens_on_is_no_fault_of_a_server_that_nobody_uses() -> None:
    row = (await asked(target("lmstudio", "http://127.0.0.1:9/v1", role="other", key="")))[
        "provider.lmstudio"
    ]
    assert (row.status, row.facts["outcome"]) == ("skip", "refused")
    row = (await asked(target("lmstudio", "http://127.0.0.1:9/v1", key="")))["provider.lmstudio"]
    assert (row.status, row.hint) == ("fail", "start the server, or set base_url to where it runs")


async def test_a_name_that_is_not_known_has_its_own_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*asked: object, **options: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    row = (await asked(target("openai", "https://models.example/v1")))["provider.openai"]
    assert (row.facts["outcome"], row.text) == (
        "host",
        "the host name 'models.example' of openai is not known here",
    )


async def test_a_name_server_that_is_silent_costs_no_more_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()

    def silent(*asked: object, **options: object) -> NoReturn:
        over.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        row = (await asked(target("openai", "https://models.example/v1")))["provider.openai"]
    finally:
        over.set()
    assert row.facts["outcome"] == "timeout_connect"
    assert "the address of the name 'models.example' was not found within 2 s" in row.text


@pytest.fixture
def self_signed(certificate_for: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate_for("localhost", name="localhost"))
    return context


async def test_a_certificate_that_is_not_believed_has_its_own_word(self_signed: ssl.SSLContext) -> None:
    heard = b""

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += await reader.read(1000)
        writer.close()

    server = await asyncio.start_server(scene, "127.0.0.1", 0, ssl=self_signed)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
    row = (await asked(target("openai", url)))["provider.openai"]
    server.close()
    assert row.facts["outcome"] == "certificate"
    assert "is not trusted: it is self-signed" in row.text
    assert "SSL_CERT_FILE=" in row.hint
    assert "; it is for CN=localhost, signed by CN=localhost, valid from " in row.text
    assert row.facts["certificate"]["names"] == ["localhost"]
    assert heard == b""


async def test_a_proxy_that_refuses_has_its_own_word(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers["models.example:443"] = (407, {})
    monkeypatch.setenv("HTTPS_PROXY", web.url.replace("localhost", "127.0.0.1"))
    row = (await asked(target("openai", "https://models.example/v1")))["provider.openai"]
    assert row.facts["outcome"] == "proxy"
    assert "wants a user and password" in row.text
    assert web.paths == ["CONNECT models.example:443"]
    assert SENTINEL not in str(web.asked)


# --- the model


async def test_a_model_that_is_listed_is_there(web: Any) -> None:
    web.answers["/models"] = (200, OPENAI_LIST)
    rows = await asked(target("gemini", web.url, "gemini-3.8-flash"))
    assert rows["provider.gemini.model"].text == "gemini has the model 'gemini-3.8-flash'"


async def test_a_model_that_anthropic_does_not_list_is_asked_for_by_name(web: Any) -> None:
    web.answers["/v1/models"] = (200, {"data": [{"id": "claude-haiku-4-5-20251001"}]})
    web.answers["/v1/models/claude-haiku-4-5"] = (200, {"id": "claude-haiku-4-5-20251001"})
    rows = await asked(target("anthropic", web.url, "claude-haiku-4-5"))
    assert rows["provider.anthropic.model"].status == "ok"
    rows = await asked(target("anthropic", web.url, "claude-haiku-4.6"))
    row = rows["provider.anthropic.model"]
    assert (row.status, row.text) == ("fail", "anthropic has no model 'claude-haiku-4.6'")
    assert row.hint == "take one that it has, e.g. --model anthropic:claude-haiku-4-5-20251001"
    assert web.paths[-1] == "GET /v1/models/claude-haiku-4.6"


async def test_a_fallback_at_the_same_provider_does_not_decide(web: Any) -> None:
    web.answers["/models"] = (200, OPENAI_LIST)
    rows = await asked(target("vllm", web.url, "gpt-6.1-sol", "gone", key=""))
    first, second = rows["provider.vllm.model"], rows["provider.vllm.model.2"]
    assert (first.status, first.facts["role"]) == ("ok", "run")
    assert (second.status, second.facts["role"]) == ("warn", "fallback")


async def test_a_model_that_a_list_does_not_hold_is_no_more_than_a_word_where_lists_are_not_whole(
    web: Any,
) -> None:
    web.answers["/models"] = (200, OPENAI_LIST)
    row = (await asked(target("groq", web.url, "gpt-6.1-so")))["provider.groq.model"]
    assert (row.status, row.text) == ("warn", "groq does not list the model 'gpt-6.1-so'")
    assert row.hint == "take one that it has, e.g. --model groq:gpt-6.1-sol"


async def test_vllm_serves_what_it_lists_and_nothing_else(web: Any) -> None:
    web.answers["/models"] = (200, {"data": [{"id": "Qwen/Qwen3-8B"}]})
    row = (await asked(target("vllm", web.url, "Qwen/Qwen3-4B", key="")))["provider.vllm.model"]
    assert (row.status, row.facts["found"]) == ("fail", False)


async def test_a_model_that_has_ended_is_told_with_its_successor(web: Any) -> None:
    web.answers["/v1/models"] = (200, {"data": [{"id": "claude-sonnet-4-5-20250929"}]})
    rows = await asked(target("anthropic", web.url, "claude-sonnet-4-5-20250929"))
    row = rows["provider.anthropic.model"]
    assert row.status == "warn"
    assert row.text == "the model 'claude-sonnet-4-5-20250929' ended on 2026-11-30, by our table"
    assert row.hint.startswith("take its successor: --model anthropic:claude-sonnet-")


async def test_a_key_for_openrouter_is_tried_by_its_list_alone_at_other_addresses(web: Any) -> None:
    web.answers["/models"] = (200, OPENAI_LIST)
    rows = await asked(target("openrouter", web.url))
    assert rows["provider.openrouter"].facts["outcome"] == "works"
    assert web.paths == ["GET /models"]


# --- the clock


@pytest.fixture
def dated(web: Any) -> Callable[[int], None]:
    web.answers["/models"] = (200, OPENAI_LIST)
    return lambda seconds: web.headers.update(Date=email.utils.formatdate(time.time() + seconds, usegmt=True))


async def test_a_clock_that_is_off_is_told(web: Any, dated: Any) -> None:
    dated(-600)
    row = (await asked(target("openai", web.url)))["network.clock"]
    assert row.status == "warn"
    assert row.text.startswith("this machine's clock is 60")
    assert row.text.endswith(f" s ahead of that of {web.url}")
    assert row.hint == "set the clock right, e.g. timedatectl set-ntp true"
    dated(600)
    assert " s behind that of" in (await asked(target("openai", web.url)))["network.clock"].text
    dated(0)
    assert (await asked(target("openai", web.url)))["network.clock"].status == "ok"
