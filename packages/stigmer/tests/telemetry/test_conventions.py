"""The names of the conventions are those that OpenTelemetry's own package lists; no other file writes one."""

from __future__ import annotations

import re
from pathlib import Path

import graphton
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from stigmer.telemetry import _conventions

SOURCES = (Path(_conventions.__file__).parents[1], Path(graphton.__file__).parent)


def test_every_name_is_one_of_the_conventions() -> None:
    ours = {v for v in vars(_conventions).values() if isinstance(v, str) and v.startswith("gen_ai.")}
    theirs = {
        v
        for module in (gen_ai_attributes, gen_ai_metrics)
        for v in vars(module).values()
        if isinstance(v, str)
    }
    assert len(ours) > 20
    assert ours <= theirs


def test_the_providers_names_are_those_of_the_conventions() -> None:
    theirs = {value.value for value in gen_ai_attributes.GenAiProviderNameValues}
    assert set(_conventions._PROVIDERS.values()) <= theirs
    assert {_conventions.provider(name) for name in ("anthropic", "openai", "groq")} <= theirs


def test_names_of_the_conventions_stand_in_one_file() -> None:
    written = [
        path.name
        for source in SOURCES
        for path in source.rglob("*.py")
        if path.name != "_conventions.py" and re.search(r"\"gen_ai[._]", path.read_text("utf-8"))
    ]
    assert written == []
