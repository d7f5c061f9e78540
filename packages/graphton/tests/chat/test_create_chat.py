"""Model strings become chats, and a key goes only where its provider lives."""

from __future__ import annotations

import subprocess
import sys

import graphton.chat
import pytest
from graphton.chat import Request, create_chat, parse_model_string
from graphton.errors import GraphtonError, ModelNameError, SettingError
from graphton.messages import UserMessage
from graphton.models import PROVIDERS, ModelRef, ModelSettings

ASK = Request("", [UserMessage("hello")])
SENTINEL = "sk-sentinel-0123456789"
OPENAI_LIKE = [name for name, row in PROVIDERS.items() if row.dialect == "openai" and name != "llamacpp"]


@pytest.fixture(autouse=True)
def every_key_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in PROVIDERS.values():
        if row.key_variable:
            monkeypatch.setenv(row.key_variable, f"{SENTINEL}-{row.name}")


@pytest.mark.parametrize(
    ("text", "name", "ref"),
    [
        ("anthropic:claude-haiku-5.5", "AnthropicChat", "anthropic:claude-haiku-5-5"),
        ("claude-haiku-5.5", "AnthropicChat", "anthropic:claude-haiku-5-5"),
        ("openai/gpt-4.1", "ResponsesChat", "openai:gpt-4.1"),
        ("gpt-6-luna", "ResponsesChat", "openai:gpt-6-luna"),
        ("ollama:qwen2.5-coder:7b", "OllamaChat", "ollama:qwen2.5-coder:7b"),
        ("qwen2.5-coder:7b", "OllamaChat", "ollama:qwen2.5-coder:7b"),
        ("llamacpp:qwen2.5-coder:1.5b", "LlamaCppChat", "llamacpp:qwen2.5-coder:1.5b"),
    ],
)
def test_a_model_string_chooses_the_dialect(text: str, name: str, ref: str) -> None:
    chat = parse_model_string(text)
    assert (type(chat).__name__, str(chat.ref)) == (name, ref)


@pytest.mark.parametrize("provider", [name for name in OPENAI_LIKE if name != "openai"])
def test_every_compatible_provider_speaks_the_openai_dialect(provider: str) -> None:
    row = PROVIDERS[provider]
    base_url = row.base_url or "https://mine.example/v1"
    chat = create_chat(ModelRef(provider, "some-model"), ModelSettings(base_url=base_url))
    assert type(chat).__name__ == "OpenAIChat"
    assert chat.preview(ASK).url == f"{base_url.rstrip('/')}/chat/completions"


def test_llamacpp_with_an_address_is_any_compatible_host() -> None:
    chat = parse_model_string("llamacpp:mine", base_url="http://127.0.0.1:8080/v1")
    assert type(chat).__name__ == "OpenAIChat"


@pytest.mark.parametrize("base_url", [None, "https://api.openai.com/v1", "https://API.openai.com:443/v1/"])
def test_openai_is_asked_by_the_responses_api_at_its_own_origin(base_url: str | None) -> None:
    chat = create_chat("openai:gpt-6-luna", ModelSettings(base_url=base_url))
    assert type(chat).__name__ == "ResponsesChat"
    assert (
        chat.preview(ASK).url.lower()
        == f"{base_url or 'https://api.openai.com/v1'}".lower().rstrip("/") + "/responses"
    )


@pytest.mark.parametrize(
    "base_url",
    [
        "http://api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com.other.example/v1",
        "http://127.0.0.1:1/v1",
    ],
)
def test_openai_at_any_other_origin_is_asked_by_chat_completions(base_url: str) -> None:
    chat = create_chat("openai:gpt-6-luna", ModelSettings(base_url=base_url))
    assert type(chat).__name__ == "OpenAIChat"


@pytest.mark.parametrize(
    ("model", "dialect", "base_url", "name"),
    [
        ("openai:gpt-6-luna", "chat", None, "OpenAIChat"),
        ("openai:gpt-6-luna", "responses", "http://127.0.0.1:1/v1", "ResponsesChat"),
        ("azure:mine", "responses", "https://mine.example/openai/v1", "ResponsesChat"),
        ("vllm:some-model", "responses", None, "ResponsesChat"),
        ("ollama:qwen2.5-coder:7b", "openai", "http://127.0.0.1:1/v1", "OpenAIChat"),
    ],
)
def test_a_dialect_can_be_said(model: str, dialect: str, base_url: str | None, name: str) -> None:
    chat = create_chat(model, ModelSettings(dialect=dialect, base_url=base_url))
    assert type(chat).__name__ == name


def test_settings_are_keywords() -> None:
    chat = parse_model_string("anthropic:claude-haiku-4.5", max_tokens=99, temperature=0.5)
    assert (chat.settings.max_tokens, chat.settings.temperature) == (99, 0.5)


# --- keys


def headers(chat: graphton.chat.Chat) -> str:
    return str(chat.preview(ASK).headers).lower()


@pytest.mark.parametrize("provider", [name for name, row in PROVIDERS.items() if row.key_variable])
def test_no_key_is_taken_from_the_environment(provider: str) -> None:
    base_url = PROVIDERS[provider].base_url or "https://mine.example/v1"
    for chat in (
        parse_model_string(f"{provider}:some-model", base_url=base_url),
        create_chat(f"{provider}:some-model", ModelSettings(base_url=base_url)),
    ):
        assert chat.settings.api_key is None
        assert "***" not in headers(chat)


def test_a_key_that_is_given_goes_where_it_is_told_and_is_shown_nowhere() -> None:
    chat = parse_model_string(
        "anthropic:claude-haiku-5.5", api_key=SENTINEL, base_url="https://other.example"
    )
    assert chat.settings.api_key == SENTINEL
    assert "***" in headers(chat)
    assert SENTINEL not in headers(chat) + repr(chat.settings)


# --- what cannot be


@pytest.mark.parametrize(
    ("text", "settings", "kind", "problem"),
    [
        ("nobody-knows-me", {}, ModelNameError, "model 'nobody-knows-me' names no provider that we know"),
        ("anthropic:", {}, ModelNameError, "names provider 'anthropic' but no model"),
        ("azure:mine", {}, SettingError, "provider 'azure' has no address of its own"),
        ("openai:gpt-4.1", {"dialect": "soap"}, SettingError, "dialect 'soap' is not one that we speak"),
        ("openai:gpt-4.1", {"base_url": "https://a.example:x/v1"}, SettingError, "openai is no address"),
        ("openai:gpt-4.1", {"temprature": 1}, SettingError, "unexpected keyword argument 'temprature'"),
    ],
)
def test_what_cannot_be_is_said_with_a_hint(
    text: str, settings: dict[str, object], kind: type[GraphtonError], problem: str
) -> None:
    with pytest.raises(kind) as caught:
        parse_model_string(text, **settings)
    assert problem in caught.value.message
    assert caught.value.hint


# --- imports


def test_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, graphton.chat; from graphton.chat import create_chat, parse_model_string; "
        "print([m for m in ('aiohttp', 'orjson', 'asyncio', 'ssl', 'xllamacpp', 'graphton.chat._http') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=True
    )
    assert done.stdout == "[]\n"


def test_what_it_exports_is_there() -> None:
    assert [n for n in graphton.chat.__all__ if not hasattr(graphton.chat, n)] == []
    with pytest.raises(AttributeError, match="no attribute 'GopherChat'"):
        graphton.chat.GopherChat  # noqa: B018  # the access is the test
