"""Every case of cascade-cases.yaml, and our own, through the one resolver."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from stigmer.config import (
    Installed,
    Known,
    Layer,
    LLMConfig,
    layer_from_agent,
    layer_from_environment,
    layer_from_execution,
    layer_from_file,
    layer_from_flags,
    resolve,
)
from stigmer.errors import ConfigError

CASES = yaml.safe_load(Path(__file__).with_name("cascade-cases.yaml").read_text())
OURS = yaml.safe_load(Path(__file__).with_name("cascade-cases-ours.yaml").read_text())


def file_text(keys: dict[str, Any]) -> str:
    keys = dict(keys)
    top = {"mode": keys.pop("mode")} if "mode" in keys else {}
    return yaml.safe_dump({**top, "llm": keys}, sort_keys=False)


def layers_of(case: dict[str, Any]) -> list[Layer]:
    layers = [layer_from_environment(case.get("env", {}))]
    if "flag" in case:
        layers.append(layer_from_flags(case["flag"]))
    if "execution" in case:
        layers.append(layer_from_execution(case["execution"]))
    if "agent" in case:
        layers.append(layer_from_agent(case["agent"], "helper@1"))
    if "shell" in case:
        layers.append(layer_from_environment(case["shell"], "shell"))
    if "process_flag" in case:
        layers.append(layer_from_flags(case["process_flag"], "process_flag"))
    if "project_file" in case:
        layers.append(
            layer_from_file("/p/.stigmer/config.yaml", file_text(case["project_file"]), "project_file")
        )
    if "user_file" in case:
        layers.append(
            layer_from_file("/home/ann/.stigmer/config.yaml", file_text(case["user_file"]), home="/home/ann")
        )
    return layers


def resolve_case(case: dict[str, Any]) -> LLMConfig:
    models = [Installed(**row) for row in case["installed"]] if "installed" in case else None
    facts = Known(case.get("ollama_up", False), case.get("free_memory", 8 << 30), models)
    return resolve(
        layers_of(case), facts, case.get("now", date(2026, 11, 25)), where=case.get("where", "local")
    )


def value_of(config: LLMConfig, name: str) -> Any:
    if name == "id":
        return config.ref.model
    return config.to_json()["settings"][name]["value"]


@pytest.mark.parametrize("case", CASES + OURS, ids=lambda case: case["name"].replace(" ", "-"))
def test_cascade_case(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(ConfigError) as caught:
            resolve_case(case)
        for part in case["error"]:
            assert part.lower() in str(caught.value).lower()
        for part in case.get("not_error", ()):
            assert part.lower() not in str(caught.value).lower()
        return
    config = resolve_case(case)
    for name, wanted in case.get("expect", {}).items():
        assert value_of(config, name) == wanted, config.explain()
    for name, unwanted in case.get("not_expect", {}).items():
        assert value_of(config, name) != unwanted, config.explain()
    for name, part in case.get("source", {}).items():
        assert part in config.values[name].source, config.explain()
    for part in case.get("notice", ()):
        assert any(part.lower() in notice.lower() for notice in config.notices), config.notices
    for part in case.get("no_notice", ()):
        assert not any(part.lower() in notice.lower() for notice in config.notices), config.notices
