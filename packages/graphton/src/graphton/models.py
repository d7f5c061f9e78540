"""Providers and models: which exist, what they take, and how a model string names one. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from graphton.errors import ModelNameError

__all__ = ["ModelRef", "ModelSettings", "Provider", "Timeouts", "ToolMode"]

ToolMode = Literal["native", "recovery", "envelope"]
"""How a model is brought to use tools: its own API, calls recovered from its text, or a reply schema."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. None: nobody said, the provider's default applies."""

    connect: float | None = None
    first_token: float | None = None
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What somebody set for a model. None means that nobody said; the provider's default applies then."""

    max_tokens: int | None = None
    temperature: float | None = None
    context_window: int | None = None
    thinking: str | None = None
    """off | low | medium | high"""
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    dialect: str | None = None
    timeouts: Timeouts = Timeouts()


@dataclass(frozen=True, slots=True)
class Provider:
    """One row of the provider table."""

    name: str
    dialect: str
    """anthropic | openai | ollama"""
    default_model: str
    base_url: str
    key_variable: str = ""
    needs_key: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A provider and a model of it."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """`provider:model`, `provider/model`, or a bare name that implies its provider."""
        raise ModelNameError(f"model {text!r} names no provider")
