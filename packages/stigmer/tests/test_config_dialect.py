"""`dialect`: how a host of OpenAI's kind is asked, from the setting to the request that goes out."""

from __future__ import annotations

from datetime import date

import pytest
from graphton.chat.base import Request
from stigmer.api import event_pb2 as pb
from stigmer.config import (
    Known,
    Layer,
    LLMConfig,
    Value,
    layer_from_agent,
    layer_from_environment,
    layer_from_file,
    layer_from_flags,
    resolve,
)
from stigmer.errors import ConfigError
from stigmer.runner import recorded_chat

DAY = date(2026, 11, 25)
OPENAI = {"STIGMER_LLM_PROVIDER": "openai", "OPENAI_API_KEY": "sk-0123456789abcdef0123"}
ELSEWHERE = {**OPENAI, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}


def resolved(*layers: Layer) -> LLMConfig:
    return resolve(layers, Known(ollama=True), DAY)


def env(**variables: str) -> Layer:
    return layer_from_environment(variables)


@pytest.mark.parametrize(
    ("variables", "dialect"),
    [
        (OPENAI, "responses"),
        ({**OPENAI, "OPENAI_BASE_URL": "https://api.openai.com/v1/"}, "responses"),
        (ELSEWHERE, "chat"),
        ({"STIGMER_LLM_PROVIDER": "vllm"}, "chat"),
        ({"STIGMER_LLM_PROVIDER": "groq", "GROQ_API_KEY": "gsk-0123456789"}, "chat"),
    ],
)
def test_openais_own_host_is_asked_by_responses_and_others_by_chat_completions(
    variables: dict[str, str], dialect: str
) -> None:
    config = resolved(env(**variables))
    provider = variables["STIGMER_LLM_PROVIDER"]
    assert config.values["dialect"] == Value(dialect, f"default for provider {provider}")
    assert config.settings.dialect == dialect


def test_the_environment_beats_the_file_and_both_say_so() -> None:
    file = layer_from_file("/f", "llm:\n  dialect: responses\n")
    assert resolved(env(**ELSEWHERE), file).values["dialect"] == Value("responses", "file /f:2")
    config = resolved(env(**OPENAI, STIGMER_LLM_DIALECT="Chat"), file)
    assert config.settings.dialect == "chat"
    assert config.values["dialect"].source == "env STIGMER_LLM_DIALECT"
    assert [(hidden.value, hidden.source) for hidden in config.values["dialect"].shadowed] == [
        ("responses", "file /f:2")
    ]


def test_a_provider_with_one_way_only_keeps_to_it_and_says_so() -> None:
    for name, key in (
        ("ollama", {}),
        ("anthropic", {"ANTHROPIC_API_KEY": "sk-ant-0123456789"}),
        ("llamacpp", {}),
    ):
        config = resolved(env(STIGMER_LLM_PROVIDER=name, STIGMER_LLM_DIALECT="chat", **key))
        assert config.settings.dialect is None
        assert (
            f"dialect 'chat' from env STIGMER_LLM_DIALECT is not used: {name} is asked in one way only"
            in config.notices
        )


def test_a_fallback_is_asked_as_said_only_at_the_same_provider() -> None:
    variables = {**OPENAI, "GROQ_API_KEY": "gsk-0123456789", "STIGMER_LLM_DIALECT": "chat"}
    config = resolved(env(**variables, STIGMER_LLM_FALLBACKS="openai:gpt-6-luna,groq:openai/gpt-oss-20b"))
    assert [f.settings.dialect for f in config.fallbacks] == ["chat", None]


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (
            env(**OPENAI, STIGMER_LLM_DIALECT="respones"),
            "dialect 'respones' from env STIGMER_LLM_DIALECT is none of chat, responses: did you mean 'responses'?",
        ),
        (
            layer_from_flags({"dialect": "chat"}),
            "'dialect' cannot be given by flag: set STIGMER_LLM_DIALECT, or llm.dialect in a file",
        ),
        (
            layer_from_file("/p", "llm: {dialect: chat}", kind="project_file"),
            "'dialect' in file .stigmer/config.yaml, line 1 may not stand in a project's file: set it in the "
            "environment or in ~/.stigmer/config.yaml",
        ),
        (layer_from_agent({"dialect": "chat"}, "bot@1"), "unknown key 'dialect' in agent bot@1"),
    ],
)
def test_what_cannot_be_is_said(layer: Layer, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(layer)
    assert any(problem in one for one in caught.value.problems)


@pytest.mark.parametrize(
    ("dialect", "base_url", "path"),
    [
        ("responses", "http://127.0.0.1:9/v1", "/responses"),
        ("chat", "https://api.openai.com/v1", "/chat/completions"),
        (None, "https://api.openai.com/v1", "/responses"),
        (None, "http://127.0.0.1:9/v1", "/chat/completions"),
    ],
)
def test_a_recorded_model_is_asked_as_recorded(dialect: str | None, base_url: str, path: str) -> None:
    record = pb.ResolvedModel(provider="openai", model="gpt-6-luna", base_url=base_url, dialect=dialect)
    assert recorded_chat(record, None).preview(Request("", [])).url == base_url + path
