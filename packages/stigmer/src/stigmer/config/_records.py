"""What goes into the cascade beside the layers, and what comes out: facts, values with sources, the configuration.

Small records are NamedTuples: making a frozen dataclass costs a millisecond at import, and this is on every run's way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from graphton.models import ModelRef, ModelSettings

from stigmer.config._installed import Installed
from stigmer.errors import ConfigError

__all__ = ["GB", "Facts", "Fallback", "Known", "LLMConfig", "Shadow", "Value", "clock"]

GB = 1_000_000_000


class Facts(Protocol):
    """What a caller can measure. Each is asked only when the answer matters, and answers in under a second."""

    def ollama_up(self, base_url: str) -> bool:
        """Whether an Ollama answers there."""
        ...

    def free_memory(self) -> int:
        """Bytes that a model could use."""
        ...

    def installed(self, base_url: str) -> Sequence[Installed] | None:
        """What the Ollama there has; None where nobody can tell."""
        ...


class Known(NamedTuple):
    """Facts that are known already."""

    ollama: bool
    memory: int = 8 * GB
    models: Sequence[Installed] | None = None

    def ollama_up(self, base_url: str) -> bool:
        return self.ollama

    def free_memory(self) -> int:
        return self.memory

    def installed(self, base_url: str) -> Sequence[Installed] | None:
        return self.models


class Shadow(NamedTuple):
    """A value that a stronger layer hides."""

    value: object
    source: str


class Value(NamedTuple):
    """What a setting came to, and why. A secret is already masked here."""

    value: object
    source: str
    shadowed: tuple[Shadow, ...] = ()


class Fallback(NamedTuple):
    """A model that takes over, with its own address and key."""

    ref: ModelRef
    settings: ModelSettings


@dataclass(frozen=True, slots=True)
class LLMConfig:
    """The resolved configuration of one run: the model, its settings, and the source of every value."""

    mode: str
    ref: ModelRef
    """With the id that goes to the provider; `values["model"]` is the name that people use."""
    settings: ModelSettings
    """What goes out: defaults filled in, what the model does not take left out, the key among it (never shown)."""
    fallbacks: tuple[Fallback, ...]
    values: Mapping[str, Value]
    notices: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form of `config show --json`; secrets are masked."""
        settings: dict[str, object] = {}
        for name, value in self.values.items():
            row: dict[str, object] = {"value": _jsonable(value.value), "source": value.source}
            if name == "model" and value.value != self.ref.model:
                row["id"] = self.ref.model
            row["shadowed"] = [{"value": _jsonable(s.value), "source": s.source} for s in value.shadowed]
            settings[name] = row
        return {"settings": settings, "notices": list(self.notices), "problems": list(self.problems)}

    def explain(self) -> str:
        """The same as a table for people."""
        shown = {name: _plain(value.value) for name, value in self.values.items()}
        if self.values["model"].value != self.ref.model:
            shown["model"] += f" ({self.ref.model})"
        names, width = max(map(len, shown)), min(44, max(map(len, shown.values())))
        lines = []
        for name, value in self.values.items():
            lines.append(f"{name:<{names}}  {shown[name]:<{width}}  {value.source}")
            lines += [
                f"{'':<{names}}  {'hides ' + _plain(hidden.value):<{width}}  {hidden.source}"
                for hidden in value.shadowed
            ]
        lines += [f"note: {text}" for text in self.notices]
        lines += [f"error: {text}" for text in self.problems]
        return "\n".join(lines)


def _jsonable(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def clock(env: Mapping[str, str]) -> datetime:
    """The time, or the one that STIGMER_NOW sets for tests."""
    said = env.get("STIGMER_NOW", "").strip()
    if not said:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        raise ConfigError(
            [f"STIGMER_NOW {said!r} is no time, e.g. 2026-12-15 or 2026-12-15T08:00:00Z"]
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
