"""What a run and its server go by beside the settings of a model: approval rules, `on_unknown`, retention, with sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stigmer.config._layers import Layer
from stigmer.config._retention import retention, variable_of
from stigmer.errors import ConfigError

__all__ = ["Beside", "beside"]


class Beside(NamedTuple):
    """Rules in the order of their files; by name the value of each other thing, None where nobody said, and its source."""

    rules: tuple[Mapping[str, Any], ...]
    values: Mapping[str, tuple[object, str]]


def beside(layers: Sequence[Layer], *, environment: Mapping[str, str], user_file: str) -> Beside:
    """What the files of these layers and this process's environment say; what is wrong there stands with the layers."""
    file = next((layer for layer in layers if layer.kind == "user_file"), Layer("user_file"))
    source = f"file {user_file}"
    values: dict[str, tuple[object, str]] = {
        "on_unknown": (file.on_unknown, source)
        if file.on_unknown
        else (None, "default: ask a person, else tell")
    }
    try:
        over = retention(environment)
    except ConfigError:
        over = retention({})
    for name in ("days", "keep"):
        if (said := getattr(over, name)) is not None:
            values[f"retention.{name}"] = said, f"env {variable_of(name)}"
        elif (said := getattr(file.retention, name)) is not None:
            values[f"retention.{name}"] = said, source
        else:
            values[f"retention.{name}"] = None, "default: everything is kept"
    return Beside(tuple(rule for layer in layers for rule in layer.rules), values)
