"""What holds for all layers: the highest that speaks wins, every value has a source, no key leaves its home."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from graphton.models import PROVIDERS, ModelRef, ModelSettings, lookup, origin
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stigmer.config import (
    SETTINGS,
    Known,
    Layer,
    LLMConfig,
    layer_from_agent,
    layer_from_environment,
    layer_from_execution,
    layer_from_file,
    layer_from_flags,
    layer_from_secrets,
    resolve,
)
from stigmer.errors import ConfigError

DAY = date(2026, 11, 25)
PROVIDER = st.sampled_from(
    ["anthropic", "openai", "ollama", "llamacpp", "groq", "lmstudio", "azure", "antropic", ""]
)
MODEL = st.sampled_from(
    [
        "claude-sonnet-4.5",
        "anthropic:claude-haiku-4.5",
        "anthropic/claude-sonnet-5.5",
        "gpt-4.1",
        "openai:gpt-6-luna",
        "qwen3:8b",
        "mistral",
        "my-finetune",
        "groq:openai/gpt-oss-120b",
        "ollama:",
        "",
    ]
)
URL = st.sampled_from(
    [
        "https://gw.example/v1",
        "http://gpu.lan:11434",
        "https://api.openai.com/v1",
        "https://api.anthropic.com",
        "http://api.openai.com/v1",
        "nonsense",
        "",
    ]
)
TOKENS = st.sampled_from(["100", "4096", "8k", "-1", ""])
TEMPERATURE = st.sampled_from(["0", "0.5", "1.5", "99", ""])
MODE = st.sampled_from(["local", "cloud", "Cloud", "clould", ""])
FALLBACKS = st.sampled_from(["qwen3:8b", "openai:gpt-4.1,claude-haiku-4.5", "my-finetune", ""])

PLAIN = {
    "STIGMER_LLM_PROVIDER": PROVIDER,
    "STIGMER_LLM_MODEL": MODEL,
    "STIGMER_LLM_MAX_TOKENS": TOKENS,
    "STIGMER_LLM_TEMPERATURE": TEMPERATURE,
    "MODE": MODE,
    "STIGMER_LLM_FALLBACKS": FALLBACKS,
}
ADDRESSES = {
    "STIGMER_LLM_BASE_URL": URL,
    "OPENAI_BASE_URL": URL,
    "ANTHROPIC_BASE_URL": URL,
    "OLLAMA_HOST": st.sampled_from(["0.0.0.0", "gpu.lan:1", ""]),
}
OLLAMA_HOSTS = {"0.0.0.0": "http://127.0.0.1:11434", "gpu.lan:1": "http://gpu.lan:1"}
KEY_VARIABLES = (
    "STIGMER_LLM_API_KEY",
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "GROQ_API_KEY",
    "AZURE_OPENAI_API_KEY",
)


def sentinel(kind: str, variable: str) -> str:
    return f"sentinel-{kind}-{variable.lower().replace('_', '-')}-of-forty-signs"


def some(**pools: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=pools)


def environments(kind: str) -> st.SearchStrategy[dict[str, str]]:
    keys = {name: st.just(sentinel(kind, name)) for name in KEY_VARIABLES}
    return some(**PLAIN, **ADDRESSES, **keys)


FLAGS = some(provider=PROVIDER, model=MODEL, base_url=URL, max_tokens=TOKENS, temperature=TEMPERATURE)
EXECUTION = some(
    provider=PROVIDER,
    model=MODEL,
    max_tokens=st.integers(-1, 9000),
    temperature=st.sampled_from([0.0, 0.5, 9.0]),
)
AGENT = some(provider=PROVIDER, model=MODEL, max_tokens=st.integers(-1, 9000), local=some(model=MODEL))
FILE = some(
    provider=PROVIDER,
    model=MODEL,
    base_url=URL,
    max_tokens=st.integers(-1, 9000),
    api_key=st.just(sentinel("file", "key")),
)
PROJECT = some(provider=PROVIDER, model=MODEL, max_tokens=st.integers(-1, 9000))


def user_file(keys: dict[str, Any]) -> Layer:
    text = "llm:\n" + "".join(f"  {name}: {json.dumps(value)}\n" for name, value in keys.items())
    return layer_from_file("/home/ann/.stigmer/config.yaml", text if keys else "", home="/home/ann")


def project_file(keys: dict[str, Any]) -> Layer:
    text = "llm:\n" + "".join(f"  {name}: {json.dumps(value)}\n" for name, value in keys.items())
    return layer_from_file("/p/.stigmer/config.yaml", text if keys else "", "project_file")


# Highest first.
STACK = st.tuples(
    FLAGS.map(layer_from_flags),
    EXECUTION.map(layer_from_execution),
    AGENT.map(lambda llm: layer_from_agent(llm, "helper@1")),
    environments("shell").map(lambda env: layer_from_environment(env, "shell")),
    FLAGS.map(lambda flags: layer_from_flags(flags, "process_flag")),
    environments("process").map(layer_from_environment),
    some(OPENAI_API_KEY=st.just(sentinel("secret", "OPENAI_API_KEY"))).map(layer_from_secrets),
    PROJECT.map(project_file),
    FILE.map(user_file),
)
# A stack in which only a few layers speak finds more of what happens between two of them.
SPARSE = st.tuples(STACK, st.sets(st.integers(0, 8), min_size=1, max_size=3)).map(
    lambda pair: tuple(layer for index, layer in enumerate(pair[0]) if index in pair[1])
)
LAYERS = st.one_of(SPARSE, STACK)
many = settings(max_examples=150, deadline=None)


def resolved(layers: tuple[Layer, ...], now: date | datetime = DAY) -> tuple[LLMConfig, str]:
    """What could be resolved, and the text of the error if there was one."""
    try:
        return resolve(layers, Known(ollama=True), now), ""
    except ConfigError as error:
        failed = error
    assert failed.config is not None
    return failed.config, str(failed)


@many
@given(LAYERS)
def test_resolving_is_pure_and_the_order_of_layers_is_of_no_account(layers: tuple[Layer, ...]) -> None:
    before = repr(layers)
    first = resolved(layers)
    assert first == resolved(tuple(reversed(layers)))
    assert repr(layers) == before


@many
@given(LAYERS)
def test_every_value_has_a_source(layers: tuple[Layer, ...]) -> None:
    config, _ = resolved(layers)
    assert set(config.values) == set(SETTINGS) - {"api_key_env"}
    for name, value in config.values.items():
        assert value.source, name
        assert all(shadow.source for shadow in value.shadowed)
    json.dumps(config.to_json())


@many
@given(LAYERS)
def test_the_highest_layer_that_speaks_wins(layers: tuple[Layer, ...]) -> None:
    config, _ = resolved(layers)
    for name in ("max_tokens", "temperature", "mode", "fallbacks"):
        speakers = [layer.said[name].source for layer in layers if name in layer.said]
        if speakers:
            assert config.values[name].source == speakers[0]
            assert [shadow.source for shadow in config.values[name].shadowed] == speakers[1:]
        else:
            assert config.values[name].source.startswith("default")
    assert config.ref.provider in PROVIDERS


@many
@given(LAYERS, st.integers(1, 8))
def test_adding_a_lower_layer_never_changes_a_winner(layers: tuple[Layer, ...], cut: int) -> None:
    upper, _ = resolved(layers[:cut])
    whole, _ = resolved(layers)
    assume(upper.mode == whole.mode)  # A mode that only a lower layer says chooses an agent's map.
    for name in ("provider", "model", "max_tokens", "temperature", "mode", "fallbacks"):
        if "default" not in upper.values[name].source:
            assert whole.values[name].value == upper.values[name].value, name
            assert whole.values[name].source == upper.values[name].source, name


def origins_beside(layer: Layer, provider: str, *, generic: bool) -> set[str]:
    """The origins that stand in the same layer as a key, by a plain reading of it."""
    found = set()
    own = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}.get(provider, "")
    urls = [layer.variables.get(own)]
    says_provider = layer.said.get("provider")
    if (
        generic
        or layer.kind == "user_file"
        or (says_provider and says_provider.raw == provider)
        or "model" in layer.said
    ):
        said = layer.said.get("base_url")
        urls.append(str(said.raw) if said else None)
    if provider == "ollama":
        urls.append(OLLAMA_HOSTS.get(layer.variables.get("OLLAMA_HOST", "")))
    for url in urls:
        if url and "://" in url:
            found.add(origin(url))
    return found


def is_at_home(layers: tuple[Layer, ...], ref: ModelRef, sent: ModelSettings) -> bool:
    """Whether the key that is sent stands with, or belongs to, the place that it is sent to."""
    if sent.api_key is None:
        return True
    row = PROVIDERS[ref.provider]
    place = origin(sent.base_url or "")
    for layer in layers:
        if layer.variables.get(row.key_variable) == sent.api_key and row.key_variable:
            return place in row.origins or place in origins_beside(layer, ref.provider, generic=False)
        for name in ("STIGMER_LLM_API_KEY", "api_key"):
            said = layer.said.get("api_key")
            held = layer.variables.get(name) or (said.raw if said else None)
            if held == sent.api_key:
                beside = origins_beside(layer, ref.provider, generic=True)
                if layer.kind in ("shell", "environment"):
                    alone, _ = resolved((layer,))
                    if alone.ref.provider != ref.provider:
                        return False
                return place in (beside or row.origins)
    return False


@many
@given(LAYERS)
def test_no_key_goes_to_a_provider_or_a_place_that_it_is_not_bound_to(layers: tuple[Layer, ...]) -> None:
    config, _ = resolved(layers)
    assert is_at_home(layers, config.ref, config.settings), config.explain()
    for fallback in config.fallbacks:
        assert is_at_home(layers, fallback.ref, fallback.settings), config.explain()


@many
@given(LAYERS)
def test_no_output_shows_a_key(layers: tuple[Layer, ...]) -> None:
    config, error = resolved(layers)
    outputs: list[Callable[[], str]] = [
        config.explain,
        lambda: json.dumps(config.to_json()),
        lambda: repr(config),
        lambda: repr(layers),
        lambda: error,
    ]
    for output in outputs:
        assert "sentinel-" not in output()


@many
@given(LAYERS, st.integers(0, 800))
def test_a_default_model_is_never_dead(layers: tuple[Layer, ...], days: int) -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=days)
    config, _ = resolved(layers, now)
    if "default for provider" in config.values["model"].source:
        retires = lookup(config.ref).retires
        assert retires is None or retires > now.date()


ODD = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "http://[",
            "http://a:b:c",
            "https://x:99999",
            "://",
            "http://\u2100.com",
            "a/b:c:d/e:f",
            ":",
            "/",
            "1e400",
        ]
    ),
)
VARIABLES = sorted(
    {name for row in SETTINGS.values() for name in row.variables} | {"OLLAMA_HOST", "OPENAI_BASE_URL"}
)


@many
@given(
    st.dictionaries(st.sampled_from(VARIABLES), ODD),
    st.dictionaries(st.sampled_from(["model", "base_url"]), ODD),
)
def test_whatever_stands_in_a_variable_or_a_flag_ends_in_a_value_or_a_problem(
    env: dict[str, str], flags: dict[str, str]
) -> None:
    config, error = resolved((layer_from_environment(env), layer_from_flags(flags)))
    assert bool(error) is bool(config.problems)
    config.explain()


@many
@given(
    st.one_of(
        st.text(max_size=60),
        st.binary(max_size=60),
        st.text("llm:\n \t{}[]&*!|>'\"#%@-?,moder12", max_size=60),
    )
)
def test_whatever_stands_in_a_file_ends_in_a_layer_or_one_line(text: str | bytes) -> None:
    layer = layer_from_file("/home/ann/.stigmer/config.yaml", text, home="/home/ann")
    assert all("\n" not in problem for problem in layer.problems)
    resolved((layer,))
