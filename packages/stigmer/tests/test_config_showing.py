"""What a resolved configuration shows, what it sends, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from graphton.models import ModelRef
from stigmer.config import (
    SETTINGS,
    Known,
    Layer,
    LLMConfig,
    clock,
    layer_from_agent,
    layer_from_environment,
    layer_from_execution,
    layer_from_file,
    layer_from_flags,
    layer_from_secrets,
    llm_variables,
    mask,
    resolve,
)
from stigmer.errors import ConfigError

DAY = date(2026, 11, 25)
KEY = "sk-ant-0123456789abcdef-wxyz"
CLOUD = layer_from_environment({"MODE": "cloud", "ANTHROPIC_API_KEY": KEY})


class Asked:
    """Facts that remember what was asked."""

    def __init__(self) -> None:
        self.questions: list[str] = []

    def ollama_up(self, base_url: str) -> bool:
        self.questions.append(base_url)
        return False

    def free_memory(self) -> int:
        self.questions.append("memory")
        return 8 << 30

    def installed(self, base_url: str) -> None:
        self.questions.append(f"models at {base_url}")


def resolved(*layers: Layer) -> LLMConfig:
    return resolve(layers, Known(ollama=True), DAY)


def test_facts_are_asked_only_when_the_answer_matters() -> None:
    facts = Asked()
    resolve([CLOUD], facts, DAY)
    resolve([layer_from_flags({"model": "qwen3:8b"})], facts, DAY)
    resolve([layer_from_environment({"OLLAMA_HOST": "gpu.lan", "STIGMER_LLM_MODEL": "phi4"})], facts, DAY)
    assert facts.questions == []
    resolve([layer_from_environment({"OLLAMA_HOST": "gpu.lan"})], facts, DAY)
    assert facts.questions == ["models at http://gpu.lan:11434"]
    facts.questions.clear()
    resolve([], facts, DAY)
    assert facts.questions == ["http://localhost:11434", "memory"]
    facts.questions.clear()
    resolve([layer_from_flags({"provider": "llamacpp", "model": "qwen2.5-coder:0.5b"})], facts, DAY)
    assert facts.questions == []


def test_json_has_value_source_and_what_is_hidden() -> None:
    config = resolved(
        CLOUD, layer_from_flags({"max_tokens": "100"}), layer_from_file("/f", "llm: {max_tokens: 7}")
    )
    shown = config.to_json()
    assert set(shown) == {"settings", "notices", "problems"}
    assert shown["settings"]["max_tokens"] == {
        "value": 100,
        "source": "flag --max-tokens",
        "shadowed": [{"value": 7, "source": "file /f:1"}],
    }
    assert shown["settings"]["model"]["id"] == config.ref.model == "claude-sonnet-4-5-20250929"
    assert shown["settings"]["api_key"]["value"] == "***wxyz"


def test_the_table_for_people_names_every_setting_once() -> None:
    lines = resolved(CLOUD, layer_from_flags({"temperature": "0.5"})).explain().splitlines()
    assert [line.split()[0] for line in lines] == [name for name in SETTINGS if name != "api_key_env"]
    assert any("claude-sonnet-4.5 (claude-sonnet-4-5-20250929)" in line for line in lines)


def test_the_key_is_in_the_settings_and_in_nothing_that_is_shown() -> None:
    config = resolved(CLOUD)
    assert config.settings.api_key == KEY
    for text in (repr(config), str(config.to_json()), config.explain(), repr(CLOUD), repr(config.settings)):
        assert KEY not in text


@pytest.mark.parametrize(
    ("key", "shown"), [("short", "***"), ("x" * 19, "***"), ("y" * 16 + "abcd", "***abcd")]
)
def test_a_short_key_shows_nothing_of_itself(key: str, shown: str) -> None:
    assert mask(key) == shown


def test_what_a_model_does_not_take_is_not_sent() -> None:
    config = resolved(CLOUD, layer_from_flags({"model": "claude-sonnet-5.5", "temperature": "0.5"}))
    assert config.values["temperature"].value == 0.5
    assert config.settings.temperature is None


def test_temperature_is_not_sent_while_the_model_thinks() -> None:
    config = resolved(CLOUD, layer_from_flags({"temperature": "0.5", "thinking": "high"}))
    assert (config.settings.temperature, config.settings.thinking) == (None, "high")
    assert any("while it thinks" in notice for notice in config.notices)
    config = resolved(CLOUD, layer_from_flags({"temperature": "0.5", "thinking": "off"}))
    assert (config.settings.temperature, config.settings.thinking) == (0.5, "off")


def test_all_settings_arrive_in_what_is_sent() -> None:
    flags = {
        "model": "qwen3:8b",
        "base_url": "http://gpu.lan:11434",
        "max_tokens": "100",
        "temperature": "0.3",
        "context_window": "4096",
        "thinking": "low",
    }
    environment = {
        "STIGMER_LLM_CONNECT_TIMEOUT": "1",
        "STIGMER_LLM_FIRST_TOKEN_TIMEOUT": "2",
        "STIGMER_LLM_IDLE_TIMEOUT": "3",
    }
    config = resolved(layer_from_flags(flags), layer_from_environment(environment))
    assert config.ref == ModelRef("ollama", "qwen3:8b")
    sent = config.settings
    assert (sent.base_url, sent.max_tokens, sent.temperature) == ("http://gpu.lan:11434", 100, 0.3)
    assert (sent.context_window, sent.thinking) == (4096, "low")
    assert (sent.timeouts.connect, sent.timeouts.first_token, sent.timeouts.idle) == (1, 2, 3)


def test_a_fallback_has_its_own_address_key_and_limits() -> None:
    environment = {
        "MODE": "cloud",
        "ANTHROPIC_API_KEY": KEY,
        "OPENAI_API_KEY": "sk-openai",
        "OPENAI_BASE_URL": "https://gw.example/v1",
        "STIGMER_LLM_FALLBACKS": "openai:gpt-4o, qwen3:8b, claude-haiku-4.5",
    }
    first, second, third = resolved(layer_from_environment(environment)).fallbacks
    assert (first.ref, first.settings.api_key) == (ModelRef("openai", "gpt-4o"), "sk-openai")
    assert (first.settings.base_url, first.settings.max_tokens) == ("https://gw.example/v1", 16_384)
    assert (second.ref.provider, second.settings.api_key) == ("ollama", None)
    assert (second.settings.base_url, second.settings.temperature) == ("http://localhost:11434", 0.0)
    assert (third.ref.model, third.settings.api_key) == ("claude-haiku-4-5-20251001", KEY)


def test_a_number_that_somebody_said_holds_for_fallbacks_up_to_their_limit() -> None:
    layer = layer_from_environment(
        {
            "MODE": "cloud",
            "ANTHROPIC_API_KEY": KEY,
            "STIGMER_LLM_MAX_TOKENS": "30000",
            "STIGMER_LLM_FALLBACKS": "ollama:qwen3:8b,openai:gpt-4o",
            "OPENAI_API_KEY": "k",
        }
    )
    local, hosted = resolved(layer).fallbacks
    assert (local.settings.max_tokens, hosted.settings.max_tokens) == (30_000, 16_384)


def test_stored_secrets_stand_between_the_environment_and_the_file() -> None:
    stored = layer_from_secrets({"ANTHROPIC_API_KEY": "sk-stored-0123456789-ssss"})
    file = layer_from_file("/f", "llm: {provider: anthropic, api_key: sk-file-0123456789-ffff}")
    assert resolved(CLOUD, stored, file).settings.api_key == KEY
    without = layer_from_environment({"MODE": "cloud"})
    config = resolved(without, stored, file)
    assert config.settings.api_key == "sk-stored-0123456789-ssss"
    assert config.values["api_key"].source == "secret ANTHROPIC_API_KEY"


def test_a_files_key_may_be_a_stored_secret_and_goes_to_the_files_address_only() -> None:
    stored = layer_from_secrets({"GATEWAY_KEY": "sk-gateway-0123456789-gggg"})
    text = "llm: {provider: openai, base_url: 'https://gw.example/v1', api_key_env: GATEWAY_KEY, model: x}"
    config = resolved(stored, layer_from_file("/f", text))
    assert config.settings.api_key == "sk-gateway-0123456789-gggg"
    assert config.values["api_key"].source == "secret GATEWAY_KEY, named by file /f:1"
    with pytest.raises(ConfigError, match="stigmer secret set GATEWAY_KEY"):
        resolved(layer_from_file("/f", text))


def test_a_missing_key_names_the_process_and_how_to_keep_one() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(layer_from_environment({"MODE": "cloud"}))
    for part in (
        "the daemon's environment",
        "export ANTHROPIC_API_KEY=",
        "stigmer secret set ANTHROPIC_API_KEY",
    ):
        assert part in str(caught.value)


# -- over TCP


OWN = layer_from_environment(
    {"MODE": "cloud", "STIGMER_LLM_PROVIDER": "openai", "OPENAI_API_KEY": "sk-server"}
)
GATEWAY = "https://gw.example/v1"
ALLOWED = ("openai", "https://gw.example:443")


@pytest.mark.parametrize(
    "layer", [layer_from_flags({"base_url": GATEWAY}), layer_from_execution({"base_url": GATEWAY})]
)
def test_a_request_over_tcp_names_no_address_without_the_servers_leave(layer: Layer) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([OWN, layer.over_tcp()], Known(ollama=True), DAY, where="serve")
    assert "refused" in str(caught.value)
    assert GATEWAY in str(caught.value)


def test_the_allow_list_says_whether_the_servers_key_goes_there() -> None:
    bound = layer_from_environment(
        {"MODE": "cloud", "STIGMER_LLM_PROVIDER": "openai", "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": GATEWAY}
    )
    request = layer_from_flags({"base_url": GATEWAY}).over_tcp()
    config = resolve([bound, request], Known(ollama=True), DAY, where="serve", allowed={ALLOWED: True})
    assert (config.settings.base_url, config.settings.api_key) == (GATEWAY, "k")
    with pytest.raises(ConfigError) as caught:
        resolve([bound, request], Known(ollama=True), DAY, where="serve", allowed={ALLOWED: False})
    assert "needs a key" in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        layer_from_environment({"ANTHROPIC_API_KEY": "k"}, "shell"),
        layer_from_file("/p/.stigmer/config.yaml", "llm: {model: x}", "project_file"),
        layer_from_file("/f", "llm: {base_url: 'http://evil.example'}"),
    ],
)
def test_other_layers_are_not_taken_over_tcp_whatever_they_are_called(layer: Layer) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([CLOUD, layer.over_tcp()], Known(ollama=True), DAY)
    assert "not taken over TCP" in str(caught.value)
    assert "evil" not in str(caught.value)


# -- what arrives


def test_the_shell_layer_takes_only_what_the_cascade_reads() -> None:
    environment = {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "no",
        "ANTHROPIC_API_KEY": "a",
        "OLLAMA_HOST": "b",
        "MODE": "c",
        "STIGMER_LLM_MODLE": "d",
        "TEAM_KEY": "e",
    }
    assert set(llm_variables(environment)) == {
        "ANTHROPIC_API_KEY",
        "OLLAMA_HOST",
        "MODE",
        "STIGMER_LLM_MODLE",
    }
    assert "TEAM_KEY" in llm_variables(environment, "TEAM_KEY")


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        (layer_from_flags({"modle": "x"}), ["'modle'", "'model'"]),
        (layer_from_execution({"modle": "x"}), ["'modle'", "execution config", "'model'"]),
        (layer_from_execution({"api_key": "sk-secret"}), ["'api_key'", "execution config", "environment"]),
        (layer_from_agent({"tempreature": 1}, "a@1"), ["'tempreature'", "agent a@1", "'temperature'"]),
        (layer_from_agent({"local": {"base_url": "x"}}, "a@1"), ["'base_url'", "agent a@1, local:"]),
        (layer_from_agent({"local": "qwen3:8b"}, "a@1"), ["'local'", "no map", "qwen3:8b"]),
        (layer_from_execution({"max_tokens": 0}), ["max_tokens 0", "execution config"]),
        (layer_from_flags({"model": " "}), ["model ''", "flag --model"]),
    ],
)
def test_a_fault_in_a_layer_names_the_layer(layer: Layer, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(CLOUD, layer)
    for part in parts:
        assert part in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_all_problems_come_together_with_what_could_be_resolved() -> None:
    bad = layer_from_environment(
        {
            "MODE": "cloud",
            "STIGMER_LLM_MAX_TOKENS": "8k",
            "STIGMER_LLM_TEMPERATURE": "99",
            "STIGMER_LLM_THINKING": "x",
        }
    )
    with pytest.raises(ConfigError) as caught:
        resolved(bad)
    error = caught.value
    assert len(error.problems) == 4  # The key is missing too.
    assert str(error).startswith("4 problems with the configuration:\n- ")
    assert error.exit_code == 2
    assert error.config is not None
    assert error.config.to_json()["problems"] == list(error.problems)
    assert error.config.values["provider"].value == "anthropic"


# -- the clock


def test_the_clock_can_be_set_and_is_utc() -> None:
    assert clock({"STIGMER_NOW": "2026-12-15"}) == datetime(2026, 12, 15, tzinfo=UTC)
    assert clock({"STIGMER_NOW": "2026-12-15T08:00:00Z"}) == datetime(2026, 12, 15, 8, tzinfo=UTC)
    assert clock({}).tzinfo is UTC
    with pytest.raises(ConfigError) as caught:
        clock({"STIGMER_NOW": "tomorrow"})
    assert "'tomorrow'" in str(caught.value)


def test_a_model_ends_at_midnight_utc() -> None:
    before = datetime.fromisoformat("2026-11-29T23:59:59+00:00")
    east = datetime.fromisoformat("2026-11-30T01:00:00+02:00")  # Still the 29th in UTC.
    after = datetime.fromisoformat("2026-11-30T00:00:00+00:00")
    models = [
        resolve([CLOUD], Known(ollama=True), now).values["model"].value for now in (before, east, after)
    ]
    assert models == ["claude-sonnet-4.5", "claude-sonnet-4.5", "claude-sonnet-5.5"]


def test_importing_the_cascade_loads_nothing_heavy() -> None:
    script = (
        "import sys, stigmer.config\n"
        "heavy = {'aiohttp', 'grpc', 'ruamel', 'asyncio', 'click', 'google'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}), 'graphton.loop' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[] False"


def test_a_fallbacks_address_needs_the_servers_leave_too() -> None:
    server = layer_from_environment(
        {"MODE": "cloud", "ANTHROPIC_API_KEY": KEY, "STIGMER_LLM_PROVIDER": "anthropic"}
    )
    request = layer_from_flags({"provider": "ollama", "base_url": "http://169.254.169.254"}).over_tcp()
    asked = layer_from_execution({"model": "claude-haiku-4.5", "fallbacks": ("ollama:qwen3:8b",)}).over_tcp()
    with pytest.raises(ConfigError) as caught:
        resolve([server, request, asked], Known(ollama=True), DAY, where="serve")
    assert "'http://169.254.169.254' from flag --base-url is refused" in str(caught.value)


def test_a_fallback_with_a_bad_address_never_goes_elsewhere() -> None:
    layer = layer_from_environment(
        {
            "MODE": "cloud",
            "ANTHROPIC_API_KEY": KEY,
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": "gw.example",
            "STIGMER_LLM_FALLBACKS": "openai:gpt-4o",
        }
    )
    with pytest.raises(ConfigError) as caught:
        resolved(layer)
    assert "fallback 'gpt-4o'" in str(caught.value)
    assert "'gw.example' from env OPENAI_BASE_URL needs http://" in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        layer_from_flags({"provider": "openai"}, "process_flag"),
        layer_from_environment({"STIGMER_LLM_PROVIDER": "openai"}),
        layer_from_environment({"STIGMER_LLM_MODEL": "gpt-4.1"}, "shell"),
        layer_from_file("/f", "llm: {provider: openai}"),
    ],
)
def test_an_agent_may_use_the_provider_that_the_user_has_named_in_mode_local(said: Layer) -> None:
    local = layer_from_environment({"MODE": "local", "OPENAI_API_KEY": "k"}, "shell")
    both = replace(local, said={**local.said, **said.said}) if said.kind == "shell" else local
    layers = [both] if said.kind == "shell" else [local, said]
    agent = layer_from_agent({"model": "gpt-4o", "fallbacks": ["openai:gpt-6-luna"]}, "a@1")
    config = resolved(*layers, agent)
    assert (str(config.ref), len(config.fallbacks)) == ("openai:gpt-4o", 1)


def test_the_users_strongest_word_keeps_an_agent_at_home() -> None:
    layers = [
        layer_from_environment({"MODE": "local", "OPENAI_API_KEY": "k", "STIGMER_LLM_PROVIDER": "ollama"}),
        layer_from_file("/f", "llm: {provider: openai}"),
    ]
    with pytest.raises(ConfigError) as caught:
        resolved(*layers, layer_from_agent({"model": "gpt-4o"}, "a@1"))
    assert "is outside this machine, and the mode is local" in str(caught.value)


def test_a_key_that_cannot_be_used_is_told_once_and_not_called_missing() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(layer_from_environment({"MODE": "cloud", "ANTHROPIC_API_KEY": "two words"}))
    (problem,) = caught.value.problems
    assert problem.startswith("api_key from env ANTHROPIC_API_KEY holds a blank")
    assert "two words" not in problem
