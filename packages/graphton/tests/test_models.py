"""Providers and models: names, limits, lives and prices, and what is assumed of a model that nobody knows."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from datetime import date, datetime

import pytest
from graphton.errors import ModelNameError, SettingError
from graphton.messages import Usage
from graphton.models import (
    PROVIDERS,
    ModelRef,
    ModelSettings,
    Timeouts,
    api_id,
    cost,
    find_provider,
    known_models,
    lookup,
    origin,
    tool_mode,
    with_defaults,
)

DAY = date(2026, 11, 25)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("anthropic:claude-haiku-4.5", "anthropic:claude-haiku-4-5-20251001"),
        ("anthropic/claude-opus-4.5", "anthropic:claude-opus-4-5-20251101"),
        ("Anthropic:Claude-Haiku-4.5", "anthropic:claude-haiku-4-5-20251001"),
        ("claude-sonnet-4.5", "anthropic:claude-sonnet-4-5-20250929"),
        ("claude-sonnet-4-5", "anthropic:claude-sonnet-4-5"),
        ("claude-of-next-year", "anthropic:claude-of-next-year"),
        ("gpt-4.1", "openai:gpt-4.1"),
        ("chatgpt-4o-latest", "openai:chatgpt-4o-latest"),
        ("o3-mini", "openai:o3-mini"),
        ("o1", "openai:o1"),
        ("ft:gpt-4.1:acme::a1", "openai:ft:gpt-4.1:acme::a1"),
        ("qwen2.5-coder:7b", "ollama:qwen2.5-coder:7b"),
        ("ollama:qwen2.5-coder:7b", "ollama:qwen2.5-coder:7b"),
        ("ollama/qwen3:8b", "ollama:qwen3:8b"),
        ("hf.co/a/b:Q4_K_M", "ollama:hf.co/a/b:Q4_K_M"),
        ("mistral", "ollama:mistral"),
        ("mistral:7b", "ollama:mistral:7b"),
        ("gpt-oss", "ollama:gpt-oss"),
        ("gpt-oss:20b", "ollama:gpt-oss:20b"),
        ("mistral-api:mistral-small-latest", "mistral-api:mistral-small-latest"),
        ("openrouter/anthropic/claude-sonnet-5.5", "openrouter:anthropic/claude-sonnet-5.5"),
        ("openrouter:meta-llama/llama-4:free", "openrouter:meta-llama/llama-4:free"),
        (" ollama:phi4 \r\n", "ollama:phi4"),
    ],
)
def test_a_model_string_names_provider_and_model(text: str, ref: str) -> None:
    assert str(ModelRef.parse(text, today=DAY)) == ref


@pytest.mark.parametrize(
    ("text", "provider", "ref"),
    [
        ("anthropic/claude-sonnet-5.5", "openrouter", "openrouter:anthropic/claude-sonnet-5.5"),
        ("claude-sonnet-4.5", "openai", "openai:claude-sonnet-4.5"),
        ("openai:gpt-4.1", "OpenAI", "openai:gpt-4.1"),
        ("my-finetune", "vllm", "vllm:my-finetune"),
        ("qwen2.5-coder:1.5b", "llamacpp", "llamacpp:qwen2.5-coder:1.5b"),
    ],
)
def test_beside_a_provider_a_slash_is_part_of_the_id(text: str, provider: str, ref: str) -> None:
    assert str(ModelRef.parse(text, provider, today=DAY)) == ref


@pytest.mark.parametrize(
    ("text", "provider", "parts"),
    [
        ("ollama:", None, ["'ollama:'", "'ollama'", "ollama:qwen2.5-coder:7b"]),
        ("anthropic/", None, ["'anthropic/'", "anthropic/claude-sonnet-4.5"]),
        ("", None, ["''", "qwen2.5-coder:7b"]),
        ("claud-sonnet-4.5", None, ["'claud-sonnet-4.5'", "'claude-sonnet-4.5'", "ollama:claud-sonnet-4.5"]),
        ("antropic:claude-haiku-4.5", None, ["'antropic:claude-haiku-4.5'", "'anthropic:claude-haiku-4.5'"]),
        ("anthropic:claude-haiku-4.5", "openai", ["'anthropic'", "'openai'"]),
        ("gpt-4.1", "antropic", ["'antropic'", "'anthropic'"]),
        ("gpt-oss-20b", None, ["'gpt-oss-20b'"]),
    ],
)
def test_a_name_that_means_nothing_says_what_to_write(
    text: str, provider: str | None, parts: list[str]
) -> None:
    with pytest.raises(ModelNameError) as caught:
        ModelRef.parse(text, provider, today=DAY)
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_provider_lists_the_known_ones() -> None:
    with pytest.raises(ModelNameError) as caught:
        find_provider("google")
    assert "'google'" in str(caught.value)
    assert ", ".join(PROVIDERS) in str(caught.value)


# -- lives


def test_a_friendly_name_becomes_its_successor_on_the_day_of_its_end() -> None:
    before, on = date(2026, 11, 29), date(2026, 11, 30)
    assert ModelRef.parse("claude-sonnet-4.5", today=before).model == "claude-sonnet-4-5-20250929"
    assert ModelRef.parse("claude-sonnet-4.5", today=on).model == "claude-sonnet-5-5"
    assert ModelRef.parse("claude-sonnet-4-5-20250929", today=on).model == "claude-sonnet-4-5-20250929"
    assert api_id("anthropic", "claude-sonnet-4.5", today=on) == ("claude-sonnet-5-5", "claude-sonnet-5.5")


def test_every_default_lives_or_has_a_living_successor() -> None:
    for row in PROVIDERS.values():
        for day in (DAY, date(2027, 2, 1), date(2030, 1, 1)):
            model = lookup(
                ModelRef(row.name, api_id(row.name, row.default_model, today=day, default=True)[0])
            )
            assert model.retires is None or model.retires > day


def test_every_successor_is_in_the_table() -> None:
    for model in known_models():
        if model.successor:
            name = api_id(model.provider, model.successor, today=date.min)[0]
            assert not lookup(ModelRef(model.provider, name)).assumed, model


def test_ends_of_anthropic_models_are_those_of_the_installed_sdk() -> None:
    from anthropic._data import DEPRECATED_MODELS  # Its own list; the package has no public one.

    theirs = {
        name: datetime.strptime(re.sub(r"(\d)(st|nd|rd|th)", r"\1", day), "%B %d, %Y").date()
        for name, day in DEPRECATED_MODELS.items()
    }
    ours = {
        model.id: model.retires for model in known_models() if model.provider == "anthropic" and model.retires
    }
    assert ours == theirs


def test_ends_of_openai_models_are_those_of_the_installed_sdk() -> None:
    import openai.types.shared.chat_model as listed

    theirs = {}
    for entry in re.split(r"\n- ", inspect.getsource(listed)):
        found = re.search(r"shutdown\s+date:\s+(\d{4}-\d\d-\d\d)", entry)
        if found:
            theirs |= dict.fromkeys(re.findall(r'"([^"]+)"', entry), date.fromisoformat(found[1]))
    assert theirs["o3"] == date(2026, 12, 11)  # We read the text rightly.
    for model in known_models():
        if model.provider == "openai":
            assert model.retires == theirs.get(model.id), model.id


def test_every_model_of_the_table_is_known_to_its_makers_sdk() -> None:
    from typing import get_args

    from anthropic.types.model_param import ModelParam
    from openai.types.shared.chat_model import ChatModel

    theirs = {"anthropic": set(get_args(get_args(ModelParam)[0])), "openai": set(get_args(ChatModel))}
    for model in known_models():
        if model.provider in theirs:
            assert model.id in theirs[model.provider]


# -- what a model takes


def test_sampling_and_thinking_are_said_per_model() -> None:
    old, new = lookup(ModelRef.parse("claude-haiku-4.5")), lookup(ModelRef.parse("claude-sonnet-5.5"))
    assert (old.sampling, old.thinking) == (True, "budget")
    assert (new.sampling, new.thinking, new.thinking_off) == (False, "adaptive", "between_tools")
    reasoning, plain = lookup(ModelRef("openai", "gpt-6.1-sol")), lookup(ModelRef("openai", "gpt-4.1"))
    assert (reasoning.sampling, reasoning.thinking, reasoning.dialect) == (False, "effort", "responses")
    assert (plain.sampling, plain.thinking, plain.dialect) == (True, "none", "")
    assert reasoning.tokens_field == plain.tokens_field == "max_completion_tokens"
    assert lookup(ModelRef("groq", "openai/gpt-oss-120b")).tokens_field == "max_tokens"
    assert lookup(ModelRef("ollama", "qwen3:8b")).thinking == "think"


@pytest.mark.parametrize(
    ("ref", "mode"),
    [
        (ModelRef("ollama", "qwen2.5-coder:7b"), "envelope"),
        (ModelRef("ollama", "qwen2.5-coder"), "envelope"),
        (ModelRef("llamacpp", "qwen2.5-coder:0.5b"), "envelope"),
        (ModelRef("ollama", "hf.co/Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M"), "envelope"),
        (ModelRef("llamacpp", "/models/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"), "envelope"),
        (ModelRef("ollama", "qwen3:8b"), "native"),
        (ModelRef("ollama", "qwen3-coder:30b"), "native"),
        (ModelRef("ollama", "gemma3:4b"), "envelope"),
        (ModelRef("ollama", "never-heard-of:1b"), "recovery"),
        (ModelRef("llamacpp", "never-heard-of"), "recovery"),
        (ModelRef("lmstudio", "qwen2.5-coder-7b-instruct"), "recovery"),
        (ModelRef("vllm", "anything"), "recovery"),
        (ModelRef("anthropic", "claude-haiku-4-5"), "native"),
        (ModelRef("openai", "never-heard-of"), "native"),
        (ModelRef("openrouter", "a/b"), "native"),
    ],
)
def test_each_model_gets_the_best_proven_way_to_use_tools(ref: ModelRef, mode: str) -> None:
    assert tool_mode(ref) == mode


def test_an_unknown_model_is_allowed_and_says_that_its_row_is_assumed() -> None:
    claude = lookup(ModelRef("anthropic", "claude-omega-9"))
    assert (claude.assumed, claude.context_window, claude.max_output) == (True, 200_000, None)
    assert (claude.sampling, claude.thinking, claude.price_input) == (False, "adaptive", None)
    old = lookup(ModelRef("anthropic", "claude-3-5-haiku-latest"))
    assert (old.assumed, old.sampling, old.thinking) == (True, True, "budget")
    gpt = lookup(ModelRef("openai", "gpt-7"))
    assert (gpt.assumed, gpt.sampling, gpt.thinking, gpt.dialect) == (True, False, "effort", "responses")
    other = lookup(ModelRef("openrouter", "vendor/model"))
    assert (other.assumed, other.context_window, other.sampling) == (True, 128_000, True)
    local = lookup(ModelRef("ollama", "never-heard-of"))
    assert (local.assumed, local.context_window, local.thinking) == (True, None, "think")


def test_a_finetune_is_like_its_base_but_for_the_price() -> None:
    base, tuned = lookup(ModelRef("openai", "gpt-4.1")), lookup(ModelRef("openai", "ft:gpt-4.1:acme::a1"))
    assert (tuned.max_output, tuned.sampling, tuned.retires) == (base.max_output, base.sampling, base.retires)
    assert (tuned.price_input, tuned.assumed) == (None, True)


def test_azure_serves_openais_models_by_chat_completions() -> None:
    row = lookup(ModelRef("azure", "gpt-6.1-sol"))
    assert (row.dialect, row.thinking, row.tokens_field) == ("", "effort", "max_completion_tokens")


# -- defaults


def test_defaults_are_the_providers_columns() -> None:
    local = with_defaults(ModelRef("ollama", "qwen3:8b"), ModelSettings())
    assert (local.max_tokens, local.temperature, local.context_window) == (8192, 0.0, None)
    assert (local.base_url, local.timeouts) == ("http://localhost:11434", Timeouts(5, 600, 120))
    hosted = with_defaults(ModelRef.parse("claude-haiku-4.5"), ModelSettings())
    assert (hosted.max_tokens, hosted.temperature, hosted.context_window) == (20_000, None, 200_000)
    assert (hosted.base_url, hosted.timeouts) == ("https://api.anthropic.com", Timeouts(10, 120, 60))
    studio = with_defaults(ModelRef("lmstudio", "x"), ModelSettings())
    assert (studio.max_tokens, studio.temperature) == (8192, None)


def test_what_somebody_set_stays() -> None:
    said = ModelSettings(
        max_tokens=5, temperature=0.9, context_window=7, base_url="http://x", timeouts=Timeouts(idle=1)
    )
    found = with_defaults(ModelRef("ollama", "qwen3:8b"), said)
    assert (found.max_tokens, found.temperature, found.context_window, found.base_url) == (
        5,
        0.9,
        7,
        "http://x",
    )
    assert found.timeouts == Timeouts(5, 600, 1)


def test_a_default_above_the_models_limit_is_lowered_and_a_said_value_is_an_error() -> None:
    ref = ModelRef("openai", "gpt-4o")
    assert with_defaults(ref, ModelSettings()).max_tokens == 16_384
    with pytest.raises(SettingError) as caught:
        with_defaults(ref, ModelSettings(max_tokens=20_000))
    assert "20000" in str(caught.value)
    assert "gpt-4o" in str(caught.value)
    assert "16384" in str(caught.value)


def test_a_key_never_shows_in_the_settings_text() -> None:
    assert "sentinel" not in repr(ModelSettings(api_key="sentinel"))


# -- places and prices


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com:443"),
        ("HTTPS://API.OpenAI.com:443", "https://api.openai.com:443"),
        ("http://localhost:11434", "http://localhost:11434"),
        ("http://localhost", "http://localhost:80"),
        ("http://[::1]:5/v1", "http://[::1]:5"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, place: str) -> None:
    assert origin(url) == place


def test_only_https_places_are_a_providers_own() -> None:
    assert PROVIDERS["openai"].origins == ("https://api.openai.com:443",)
    assert PROVIDERS["ollama"].origins == PROVIDERS["vllm"].origins == PROVIDERS["azure"].origins == ()
    for row in PROVIDERS.values():
        assert row.local or row.name == "azure" or row.origins


def test_hosted_providers_need_a_key_and_local_ones_do_not() -> None:
    for row in PROVIDERS.values():
        assert row.needs_key is bool(row.key_variable) is not row.local


def test_cost_counts_fresh_cached_written_and_long_prompts() -> None:
    haiku = ModelRef.parse("claude-haiku-4.5")
    assert cost(haiku, Usage(input_tokens=1_000_000, output_tokens=1_000_000)) == pytest.approx(6.0)
    assert cost(haiku, Usage(input_tokens=1_000_000, cached_tokens=1_000_000)) == pytest.approx(0.1)
    assert cost(haiku, Usage(input_tokens=1_000_000, cache_write_tokens=1_000_000)) == pytest.approx(1.25)
    sonnet = ModelRef("anthropic", "claude-sonnet-4-5")
    assert cost(sonnet, Usage(input_tokens=100_000)) == pytest.approx(0.3)
    assert cost(sonnet, Usage(input_tokens=300_000)) == pytest.approx(1.8)
    assert cost(ModelRef("openai", "gpt-4-turbo"), Usage(1_000_000, 0, 1_000_000)) == pytest.approx(10.0)


def test_a_local_model_costs_nothing_and_an_unknown_price_is_none() -> None:
    usage = Usage(input_tokens=1000, output_tokens=1000)
    assert cost(ModelRef("ollama", "qwen3:8b"), usage) == 0.0
    assert cost(ModelRef("llamacpp", "anything"), usage) == 0.0
    assert cost(ModelRef("openai", "gpt-7"), usage) is None
    assert cost(ModelRef("openrouter", "a/b"), usage) is None


def test_importing_the_tables_loads_nothing_heavy() -> None:
    script = (
        "import sys, graphton.models\n"
        "heavy = {'aiohttp', 'asyncio', 'orjson', 'ssl', 'difflib', 'json'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
