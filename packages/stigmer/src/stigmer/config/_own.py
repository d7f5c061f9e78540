"""What one layer says of provider and model, taken alone."""

from __future__ import annotations

from typing import NamedTuple

from graphton.errors import ModelNameError
from graphton.models import implied_provider, split_provider

from stigmer.config._layers import Layer, Said
from stigmer.config._settings import SETTINGS

__all__ = ["Own", "alone", "mode_provider", "own_words", "presentable", "read", "shown_url"]


class Own(NamedTuple):
    """What one layer itself says of provider and model."""

    provider: str | None = None
    """The provider that it names, or that its model names or implies."""
    provider_source: str = ""
    provider_shown: object = None
    model: str | None = None
    model_owner: str | None = None
    """The provider that the model belongs to; None where its name says nothing."""
    fault: str = ""
    """Why neither can be used."""


def read(name: str, said: Said) -> tuple[object, str]:
    """The value, and what is wrong with it."""
    row = SETTINGS[name]
    try:
        return row.parse(said.raw, said.text), ""
    except ValueError as error:
        value = "" if row.secret else f" {presentable(name, said.raw)!r}"
        return None, f"{name}{value} from {said.source} {error}"


def own_words(layer: Layer) -> Own:
    """What a layer says of provider and model, taken alone."""
    provider_said, model_said = layer.said.get("provider"), layer.said.get("model")
    provider: str | None = None
    own = Own()
    if provider_said is not None:
        value, fault = read("provider", provider_said)
        if fault:
            return Own(fault=fault, provider_shown=provider_said.raw, provider_source=provider_said.source)
        provider = str(value)
        own = Own(provider, provider_said.source, provider)
    if model_said is None:
        return own
    text, fault = read("model", model_said)
    if fault:
        return own._replace(fault=fault)
    try:
        named, model = split_provider(str(text), provider)
    except ModelNameError as error:
        also = f" and {provider_said.source}" if provider_said is not None else ""
        return own._replace(fault=f"{error.message}, from {model_said.source}{also}: {error.hint}")
    owner = named or implied_provider(model)
    if provider is None and owner is not None:
        source = model_said.source if named else f"implied by {model_said.source}"
        return Own(owner, source, owner, model, owner)
    return own._replace(model=model, model_owner=owner)


def alone(layer: Layer, own: Own) -> str:
    """The provider that an environment by itself comes to, its mode included."""
    if own.provider or own.fault:
        return own.provider or ""
    said = layer.said.get("mode")
    mode, fault = read("mode", said) if said is not None else ("local", "")
    return "" if fault else mode_provider(str(mode))


def mode_provider(mode: str) -> str:
    """The provider of a mode where nobody names one, before anything was measured."""
    return "anthropic" if mode == "cloud" else "ollama"


def presentable(name: str, raw: object) -> object:
    """A value that nobody could use, as it may be shown."""
    return shown_url(raw) if name in ("base_url", "models.mirror") else raw


def shown_url(raw: object) -> str:
    """An address as it may be shown: without a password that somebody put into it."""
    text = str(raw)
    head, sign, tail = text.partition("://")
    if "@" not in (tail or head):
        return text
    return f"{head}{sign}***@{tail.rpartition('@')[2]}" if sign else f"***@{head.rpartition('@')[2]}"
