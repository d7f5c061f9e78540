"""Trust: by content, never for more than was looked at; and what an untrusted layer may say."""

from __future__ import annotations

import os
import stat
from datetime import date
from pathlib import Path

import pytest
from stigmer.config import (
    Known,
    Layer,
    LLMConfig,
    layer_from_agent,
    layer_from_environment,
    layer_from_file,
    layer_from_flags,
    resolve,
)
from stigmer.home import Home
from stigmer.trust import Trust, TrustError, contents_of, folder_of, narrowed, without_widening

TODAY = date(2026, 11, 25)
CLOUD = layer_from_environment({"MODE": "cloud", "ANTHROPIC_API_KEY": "sk-ant-1", "OPENAI_API_KEY": "sk-o-1"})
LOCAL = layer_from_environment({})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / ".stigmer" / "agents").mkdir(parents=True)
    (folder / ".stigmer" / "config.yaml").write_text("llm: {model: qwen3:8b}\n")
    (folder / ".stigmer" / "agents" / "a.yaml").write_text("kind: Agent\n")
    return folder


def project(text: str) -> Layer:
    return layer_from_file("/p/.stigmer/config.yaml", text, "project_file")


def with_doubt(doubtful: Layer, *layers: Layer) -> LLMConfig:
    """What these layers come to with one in doubt."""
    facts = Known(ollama=True)
    otherwise = resolve(layers, facts, TODAY)
    return resolve(without_widening(layers, [doubtful], otherwise), facts, TODAY)


# -- whose word it is


def test_trust_is_for_the_content_that_was_looked_at(folder: Path, tmp_path: Path) -> None:
    trust = Trust(Home(tmp_path / "home"))
    before = contents_of(folder)
    assert sorted(before.files) == [".stigmer/agents/a.yaml", ".stigmer/config.yaml"]
    assert not trust.trusts(before)
    trust.decide(before, trusted=True)
    assert trust.trusts(contents_of(folder))
    assert stat.S_IMODE(trust.path.stat().st_mode) == 0o600
    for change in (
        lambda: (folder / ".stigmer" / "config.yaml").write_text("llm: {provider: openai}\n"),
        lambda: (folder / ".stigmer" / "agents" / "a.yaml").write_text("kind: agent\n"),
        lambda: (folder / ".stigmer" / "agents" / "b.yaml").write_text(""),
        lambda: (folder / ".stigmer" / "agents" / "a.yaml").unlink(),
    ):
        trust.decide(contents_of(folder), trusted=True)
        change()
        assert not trust.trusts(contents_of(folder))


def test_the_content_of_one_file_does_not_pass_for_another(folder: Path) -> None:
    before = contents_of(folder).digest
    first, second = folder / ".stigmer" / "config.yaml", folder / ".stigmer" / "agents" / "a.yaml"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert contents_of(folder).digest != before


def test_a_refusal_is_remembered_and_can_be_forgotten(folder: Path, tmp_path: Path) -> None:
    trust = Trust(Home(tmp_path / "home"))
    contents = contents_of(folder)
    trust.decide(contents, trusted=False)
    assert not trust.trusts(contents)
    (said,) = trust.decisions()
    assert (said.folder, said.trusted) == (folder.resolve(), False)
    assert trust.remove(folder)
    assert not trust.remove(folder)
    assert trust.decisions() == []


def test_another_name_for_the_folder_is_the_same_folder(folder: Path, tmp_path: Path) -> None:
    trust = Trust(Home(tmp_path / "home"))
    trust.decide(contents_of(folder), trusted=True)
    (tmp_path / "link").symlink_to(folder)
    assert trust.trusts(contents_of(tmp_path / "link"))


def test_the_same_content_elsewhere_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    trust = Trust(Home(tmp_path / "home"))
    trust.decide(contents_of(folder), trusted=True)
    other = tmp_path / "other"
    os.rename(folder, other)
    assert not trust.trusts(contents_of(other))


def test_what_comes_with_a_folder_is_known_by_its_place(folder: Path, tmp_path: Path) -> None:
    assert folder_of(folder / ".stigmer" / "config.yaml") == folder
    assert folder_of(folder / ".stigmer" / "agents" / "a.yaml") == folder
    assert folder_of(folder / "agent.yaml") is None
    (tmp_path / "link.yaml").symlink_to(folder / ".stigmer" / "agents" / "a.yaml")
    assert folder_of(tmp_path / "link.yaml") == folder.resolve()


def test_a_broken_list_trusts_nobody_and_is_told(folder: Path, tmp_path: Path) -> None:
    trust = Trust(Home(tmp_path / "home").create())
    for text in ("{", "[]", '{"folders": {"/x": 3}}', '{"folders": {"/x": {}}}'):
        trust.path.write_text(text)
        with pytest.raises(TrustError, match="cannot be read") as caught:
            trust.trusts(contents_of(folder))
        assert "stigmer trust DIR" in str(caught.value)


# -- what it may say


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        ("llm: {provider: openai}", ["provider 'openai'"]),
        ("llm: {model: claude-opus-4.5}", ["model 'claude-opus-4.5'"]),
        ("llm: {model: 'openai:gpt-4o'}", ["model 'openai:gpt-4o'"]),
        ("llm: {model: something-unknown}", ["model 'something-unknown'"]),
        ("llm: {provider: openrouter, model: x/y}", ["provider 'openrouter'", "model 'x/y'"]),
        ("llm: {max_tokens: 20001}", ["max_tokens 20001"]),
        ("llm: {provider: openai, max_tokens: 100000}", ["provider 'openai'", "max_tokens 100000"]),
    ],
)
def test_an_untrusted_file_cannot_widen(text: str, unused: list[str]) -> None:
    config = with_doubt(project(text), CLOUD)
    plain = resolve([CLOUD], Known(ollama=True), TODAY)
    assert (config.ref, config.settings) == (plain.ref, plain.settings)
    for part in unused:
        (notice,) = (one for one in config.notices if part in one)
        assert "is not used" in notice
        assert "stigmer trust" in notice
        assert "file .stigmer/config.yaml:1" in notice


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("llm: {max_tokens: 500}", "max_tokens", 500),
        ("llm: {context_window: 50000}", "context_window", 50_000),
        ("llm: {provider: ollama}", "provider", "ollama"),
        ("llm: {model: 'qwen3:8b'}", "model", "qwen3:8b"),
        ("llm: {model: 'qwen3:8b'}", "provider", "ollama"),
    ],
)
def test_an_untrusted_file_may_narrow(text: str, name: str, value: object) -> None:
    config = with_doubt(project(text), CLOUD)
    assert config.values[name].value == value
    assert "file .stigmer/config.yaml:1" in config.values[name].source


@pytest.mark.parametrize("model", ["gpt-oss:120b-cloud", "glm-4.6:cloud"])
def test_a_local_name_that_leaves_the_machine_is_outside(model: str) -> None:
    config = with_doubt(project(f"llm: {{provider: ollama, model: '{model}'}}"), LOCAL)
    assert config.ref.model != model
    assert "outside this machine" in " ".join(config.notices)
    agent = layer_from_agent({"fallbacks": [f"ollama:{model}"]}, "a@1")
    assert with_doubt(agent, LOCAL).fallbacks == ()


def test_in_mode_local_an_untrusted_provider_is_left_out_and_a_trusted_one_must_be_said() -> None:
    text = "llm: {provider: openai, model: gpt-4o}"
    config = with_doubt(project(text), LOCAL)
    assert config.ref.provider == "ollama"


def test_an_untrusted_agent_is_held_to_the_map_of_its_mode() -> None:
    llm = {
        "temperature": 0.1,
        "local": {"model": "qwen3:8b"},
        "cloud": {"model": "claude-opus-4.5", "max_tokens": 100, "thinking": "high"},
    }
    agent = layer_from_agent(llm, "a@1")
    cloud = with_doubt(agent, CLOUD)
    assert cloud.values["model"].source.startswith("default")
    assert cloud.values["max_tokens"].value == 100
    assert cloud.values["temperature"].value == 0.1
    assert cloud.values["thinking"].value is None
    local = with_doubt(agent, LOCAL)
    assert (local.values["model"].value, local.values["temperature"].value) == ("qwen3:8b", 0.1)


def test_an_untrusted_agents_fallbacks_must_all_be_local() -> None:
    mixed = layer_from_agent({"fallbacks": ["qwen3:8b", "openai:gpt-4o"]}, "a@1")
    config = with_doubt(mixed, CLOUD)
    assert config.fallbacks == ()
    assert "fallbacks qwen3:8b, openai:gpt-4o from agent a@1 is not used" in " ".join(config.notices)
    local = with_doubt(layer_from_agent({"fallbacks": ["qwen3:8b"]}, "a@1"), CLOUD)
    assert [fallback.ref.provider for fallback in local.fallbacks] == ["ollama"]


def test_lower_is_measured_by_what_the_user_set() -> None:
    flags = layer_from_flags({"max_tokens": "300"})
    said = narrowed(project("llm: {max_tokens: 400}"), resolve([flags, CLOUD], Known(ollama=True), TODAY))
    assert said.said == {}
    assert "it is above 300" in said.notices[0]


def test_what_is_wrong_in_an_untrusted_file_is_still_told() -> None:
    plain = resolve([LOCAL], Known(ollama=True), TODAY)
    for text in ("llm: {max_tokens: 8k}", "llm: {base_url: 'http://x'}", "llm: {provider: antropic}"):
        layer = narrowed(project(text), plain)
        assert layer.problems or layer.said
