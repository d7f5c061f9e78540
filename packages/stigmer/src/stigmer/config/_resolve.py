"""The cascade itself: layers in, one value and one source for every setting out. Pure; reads nothing.

Small records are NamedTuples: making a frozen dataclass costs a millisecond at import, and this is on every run's way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, NamedTuple, Protocol

from graphton.errors import ModelNameError
from graphton.models import (
    PROVIDERS,
    Model,
    ModelRef,
    ModelSettings,
    Provider,
    Timeouts,
    api_id,
    implied_provider,
    lookup,
    origin,
    split_provider,
)

from stigmer.config._address import read_address
from stigmer.config._layers import RANKS, Layer, Said
from stigmer.config._settings import SETTINGS, mask
from stigmer.errors import ConfigError

__all__ = ["Facts", "Fallback", "Known", "LLMConfig", "Shadow", "Value", "clock", "resolve"]

_OLLAMA = PROVIDERS["ollama"]
_GB = 1_000_000_000
_PLACES = {
    "local": "your shell, the daemon's environment",
    "serve": "the server's environment (stigmer serve)",
    "worker": "the worker's environment (stigmer worker)",
}


class Facts(Protocol):
    """What a caller can measure. Each is asked only when the answer matters, and answers in under a second."""

    def ollama_up(self, base_url: str) -> bool:
        """Whether an Ollama answers there."""
        ...

    def free_memory(self) -> int:
        """Bytes that a model could use."""
        ...


class Known(NamedTuple):
    """Facts that are known already."""

    ollama: bool
    memory: int = 8 * _GB

    def ollama_up(self, base_url: str) -> bool:
        return self.ollama

    def free_memory(self) -> int:
        return self.memory


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


def resolve(
    layers: Iterable[Layer],
    facts: Facts,
    now: datetime | date,
    *,
    where: str = "local",
    allowed: Mapping[tuple[str, str], bool] | None = None,
) -> LLMConfig:
    """The one resolver: what a run with these layers would use, and where each value comes from.

    `where` is the process that will call the model: local (a CLI or the user's own daemon), serve or worker; the
    latter two need the mode said, and never fall back to the built-in llama.cpp. `allowed` is a server's list of
    (provider, origin) that a request over TCP may name, and whether the server's key may go there. All problems
    are raised together, as one ConfigError whose `config` is what could be resolved.
    """
    if isinstance(now, datetime):
        now = (now if now.tzinfo else now.replace(tzinfo=UTC)).astimezone(UTC).date()
    config = _Cascade(tuple(layers), facts, now, where, dict(allowed or {})).config()
    if config.problems:
        raise ConfigError(config.problems, config=config)
    return config


class _Own(NamedTuple):
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


class _Url(NamedTuple):
    """A base URL that stands somewhere, for one provider."""

    layer: Layer
    source: str
    url: str
    origin: str
    corrected: str = ""
    fault: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True)
class _Key:
    """A key and where it may go."""

    layer: Layer
    source: str
    value: str = field(repr=False)
    origins: tuple[str, ...] = ()


class _Cascade:
    """One resolution at work; its lists fill as it goes."""

    def __init__(
        self,
        layers: tuple[Layer, ...],
        facts: Facts,
        today: date,
        where: str,
        allowed: dict[tuple[str, str], bool],
    ) -> None:
        self.facts, self.today, self.where, self.allowed = facts, today, where, allowed
        self.layers: tuple[Layer, ...] = tuple(sorted(layers, key=lambda layer: RANKS.index(layer.kind)))
        self.values: dict[str, Value] = {}
        self.problems: list[str] = [p for layer in self.layers for p in layer.problems]
        self.notices: list[str] = [n for layer in self.layers for n in layer.notices]
        self.unset: dict[str, str] = {}
        """Providers whose key stands in a variable that is not set, and what to say of it."""
        self.sure = True
        """False once the provider or the model is a guess because what was said is wrong."""

    def config(self) -> LLMConfig:
        mode = self._mode()
        self.layers = tuple(_for_mode(layer, mode) for layer in self.layers)
        self.own = [self._own(layer) for layer in self.layers]
        provider = self._provider(mode)
        self.owners = self._layer_providers(mode)
        model, ref = self._model(provider)
        self._keep_data_at_home(mode, provider)
        url = self._base_url(provider)
        key = self._api_key(provider, url)
        settings = self._numbers(provider, model, ref)
        settings = replace(settings, base_url=url.url if url else None, api_key=key)
        fallbacks = self._fallbacks(mode, provider, settings)
        order = [name for name in SETTINGS if name in self.values]
        return LLMConfig(
            mode,
            ref,
            settings,
            fallbacks,
            {name: self.values[name] for name in order},
            tuple(n for n in dict.fromkeys(self.notices) if not n.startswith(tuple(self.problems))),
            tuple(dict.fromkeys(self.problems)),
        )

    # -- single settings

    def _said(self, name: str) -> list[Said]:
        return [layer.said[name] for layer in self.layers if name in layer.said]

    def _read(self, name: str, said: Said) -> tuple[object, str]:
        """The value, and what is wrong with it."""
        row = SETTINGS[name]
        try:
            return row.parse(said.raw, said.text), ""
        except ValueError as error:
            shown = "" if row.secret else f" {said.raw!r}"
            return None, f"{name}{shown} from {said.source} {error}"

    def _shadows(self, name: str, said: Sequence[Said]) -> tuple[Shadow, ...]:
        """What the winner hides. A bad value among it is only a notice."""
        hidden = []
        for one in said:
            value, fault = self._read(name, one)
            if fault:
                self.notices.append(f"{fault} (hidden by a stronger layer)")
            hidden.append(Shadow(one.raw if fault else value, one.source))
        return tuple(hidden)

    def _plain_value(self, name: str, default: object, source: str) -> tuple[object, Said | None]:
        """The highest layer's value of a setting, or the default. A bad value that wins is a problem."""
        said = self._said(name)
        if not said:
            self.values[name] = Value(default, source)
            return default, None
        value, fault = self._read(name, said[0])
        if fault:
            self.problems.append(fault)
            self.values[name] = Value(said[0].raw, said[0].source, self._shadows(name, said[1:]))
            return default, None
        self.values[name] = Value(value, said[0].source, self._shadows(name, said[1:]))
        return value, said[0]

    def _mode(self) -> str:
        default = "local"
        said = bool(self._said("mode"))
        if not said and self.where != "local":
            self.problems.append(
                f"mode is not set, and `stigmer {self.where}` does not guess it: "
                "set STIGMER_MODE, e.g. STIGMER_MODE=cloud, or pass --mode cloud"
            )
            self.sure = False
        mode, valid = self._plain_value("mode", default, "default")
        if said and valid is None:
            self.sure = False
        return str(mode)

    # -- provider and model

    def _own(self, layer: Layer) -> _Own:
        """What a layer says of provider and model, taken alone."""
        provider_said, model_said = layer.said.get("provider"), layer.said.get("model")
        provider: str | None = None
        own = _Own()
        if provider_said is not None:
            value, fault = self._read("provider", provider_said)
            if fault:
                return _Own(
                    fault=fault, provider_shown=provider_said.raw, provider_source=provider_said.source
                )
            provider = str(value)
            own = _Own(provider, provider_said.source, provider)
        if model_said is None:
            return own
        text, fault = self._read("model", model_said)
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
            return _Own(owner, source, owner, model, owner)
        return own._replace(model=model, model_owner=owner)

    def _provider(self, mode: str) -> Provider:
        """The highest layer that names one, or whose model names or implies one; else the mode's."""
        speaking = [i for i, own in enumerate(self.own) if own.provider or own.fault]
        if not speaking:
            name, source = self._default_provider(mode)
            self.values["provider"] = Value(name, source)
            self.provider_layer: Layer | None = None
            return PROVIDERS[name]
        first, rest = self.own[speaking[0]], [self.own[i] for i in speaking[1:]]
        hidden = tuple(Shadow(own.provider_shown, own.provider_source) for own in rest if own.provider_source)
        for own in rest:
            if own.fault:
                self.notices.append(f"{own.fault} (hidden by a stronger layer)")
        self.provider_layer = self.layers[speaking[0]]
        if first.fault:
            self.problems.append(first.fault)
            self.sure = False
        if first.provider is None:
            guess = _mode_provider(mode)
            shown = guess if first.provider_shown is None else first.provider_shown
            source = first.provider_source or f"default for mode {mode}"
            self.values["provider"] = Value(shown, source, hidden)
            return PROVIDERS[guess]
        self.values["provider"] = Value(first.provider, first.provider_source, hidden)
        return PROVIDERS[first.provider]

    def _default_provider(self, mode: str) -> tuple[str, str]:
        name = _mode_provider(mode)
        if name != "ollama" or self.where != "local" or self._somebody_named_a_place() or not self.sure:
            return name, f"default for mode {mode}"
        if self.facts.ollama_up(_OLLAMA.base_url):
            return name, f"default for mode {mode}"
        return (
            "llamacpp",
            f"default for mode {mode}: no Ollama at {_OLLAMA.base_url}, using built-in llama.cpp",
        )

    def _somebody_named_a_place(self) -> bool:
        """Whether a provider, a model or a base URL (Ollama's own variables too) stands anywhere."""
        return any(
            any(name in layer.said for name in ("provider", "model", "base_url"))
            or any(name in layer.variables for name in _OLLAMA.url_variables)
            for layer in self.layers
        )

    def _layer_providers(self, mode: str) -> list[str]:
        """The provider of each layer: its own, else the one resolved from the layers below it."""
        below = str(self.values["provider"].value) if self.provider_layer is None else _mode_provider(mode)
        owners = []
        for own in reversed(self.own):
            below = own.provider or below
            owners.append(below)
        return owners[::-1]

    def _model(self, provider: Provider) -> tuple[Model, ModelRef]:
        """The highest layer's model that does not belong to another provider; else the provider's default."""
        found: tuple[str, str] | None = None
        hidden: list[Shadow] = []
        for layer, own in zip(self.layers, self.own, strict=True):
            said = layer.said.get("model")
            if said is None:
                continue
            if own.fault and own.model is None:
                bad_provider = own.provider is None and own.provider_shown is not None
                if found is None and not bad_provider and own.provider in (None, provider.name):
                    self.problems.append(own.fault)
                    self.sure = False
                hidden.append(Shadow(said.raw, said.source))
                continue
            owner = own.provider if "provider" in layer.said else own.model_owner
            name = str(own.model)
            if owner not in (None, provider.name):
                hidden.append(Shadow(name, said.source))
                self.notices.append(
                    f"model {name!r} from {said.source} is not used: it belongs to {owner}, "
                    f"and the provider is {provider.name}"
                )
            elif found is None:
                found = (name, said.source)
                hidden = []
            else:
                hidden.append(Shadow(name, said.source))
        default = found is None
        name, source = found or self._default_model(provider)
        id_, shown = api_id(provider.name, name, today=self.today, default=default)
        given = lookup(ModelRef(provider.name, api_id(provider.name, name, today=date.min)[0]))
        if shown != name and given.retires and self.today >= given.retires:
            source += f": {name} ended on {given.retires}, this is its successor"
        elif not default:
            self._warn_of_retirement(given, name, source)
        ref = ModelRef(provider.name, id_)
        self.values["model"] = Value(shown if shown.lower() != name.lower() else name, source, tuple(hidden))
        return lookup(ref), ref

    def _default_model(self, provider: Provider) -> tuple[str, str]:
        source = f"default for provider {provider.name}"
        if provider.name == "llamacpp" and self.where == "local":
            memory = self.facts.free_memory()
            if memory < 4 * _GB:
                return "qwen2.5-coder:0.5b", f"{source}, with {memory / _GB:.1f} GB of memory free"
        return provider.default_model, source

    def _warn_of_retirement(self, row: Model, name: str, source: str) -> None:
        """A full id by hand goes out as given; its end is worth a word, from two months before."""
        if row.retires is None or row.name == name.lower():
            return
        days = (row.retires - self.today).days
        then = f"; its successor is {row.successor}" if row.successor else ""
        if days <= 0:
            self.notices.append(
                f"model {name!r} from {source} ended on {row.retires}; it goes out as given{then}"
            )
        elif days <= 60:
            self.notices.append(f"model {name!r} from {source} ends on {row.retires}{then}")

    def _keep_data_at_home(self, mode: str, provider: Provider) -> None:
        layer = self.provider_layer
        if mode != "local" or provider.local or layer is None or layer.kind not in ("agent", "project_file"):
            return
        said = self.values["provider"].source
        self.problems.append(_leaves_home(provider.name, said))
        self.sure = False

    # -- addresses and keys

    def _urls(self, provider: Provider) -> Iterator[_Url]:
        """Every base URL that stands somewhere for a provider, highest first."""
        for layer, owner in zip(self.layers, self.owners, strict=True):
            said = layer.said.get("base_url")
            if said is not None and owner == provider.name:
                yield self._url(layer, said, provider)
            yield from self._own_urls(layer, provider)

    def _own_urls(self, layer: Layer, provider: Provider) -> Iterator[_Url]:
        """The addresses in the provider's own variables."""
        if layer.kind in ("shell", "environment"):
            for name in provider.url_variables:
                if name in layer.variables:
                    said = Said(layer.variables[name], layer.variable_source.format(name), text=True)
                    yield self._url(layer, said, provider, ollama_host=name == "OLLAMA_HOST")

    def _url(self, layer: Layer, said: Said, provider: Provider, *, ollama_host: bool = False) -> _Url:
        text, fault = self._read("base_url", said)
        if fault:
            return _Url(layer, said.source, "", "", fault=fault, shown=_shown_url(said.raw))
        try:
            address = read_address(str(text), provider, ollama_host=ollama_host)
        except ValueError as error:
            shown = _shown_url(said.raw)
            return _Url(
                layer,
                said.source,
                "",
                "",
                fault=f"base URL {shown!r} from {said.source} {error}",
                shown=shown,
            )
        return _Url(
            layer, said.source, address.url, origin(address.url), address.corrected, shown=address.url
        )

    def _base_url(self, provider: Provider) -> _Url | None:
        """The address of the chosen provider; None where it has none of its own and nobody gave one."""
        found = list(self._urls(provider))
        used = {url.source for url in found}
        for layer, owner in zip(self.layers, self.owners, strict=True):
            said = layer.said.get("base_url")
            if said is not None and said.source not in used:
                url = self._url(layer, said, PROVIDERS[owner])
                if url.fault:
                    (self.problems if said.file else self.notices).append(url.fault)
                self.notices.append(
                    f"base_url {url.shown!r} from {said.source} is not used: it belongs to {owner}, "
                    f"and the provider is {provider.name}"
                )
        for url in found[1:]:
            if url.fault:
                in_file = url.layer.kind == "user_file"
                (self.problems if in_file else self.notices).append(
                    url.fault if in_file else f"{url.fault} (hidden by a stronger layer)"
                )
        source = f"default for provider {provider.name}"
        default = _Url(Layer("user_file"), source, provider.base_url, origin(provider.base_url))
        if not found:
            self.values["base_url"] = Value(provider.base_url or None, source)
            if not provider.base_url and provider.name != "llamacpp" and self.sure:
                self.problems.append(
                    f"provider {provider.name!r} has no address of its own: set base_url, "
                    "e.g. STIGMER_LLM_BASE_URL=https://acme.openai.azure.com/openai/v1"
                )
                self.sure = False
            return default if provider.base_url else None
        first = found[0]
        self.values["base_url"] = Value(
            first.shown, first.source, tuple(Shadow(url.shown, url.source) for url in found[1:])
        )
        if first.fault:
            self.problems.append(first.fault)
            self.sure = False
            return None
        if first.corrected:
            self.notices.append(first.corrected)
        if first.layer.remote and (provider.name, first.origin) not in self.allowed:
            self.problems.append(
                f"base_url {first.url!r} from {first.source} is refused: this server does not allow "
                f"{provider.name!r} at {first.origin} in a request"
            )
            self.sure = False
        return first

    def _keys(self, provider: Provider) -> Iterator[_Key]:
        """Every key of a provider with the origins that it is bound to, strongest first."""
        for index, layer in enumerate(self.layers):
            if layer.kind in ("shell", "environment"):
                yield from self._environment_keys(layer, self.own[index], provider)
            elif layer.kind == "secret" and provider.key_variable in layer.variables:
                source = layer.variable_source.format(provider.key_variable)
                yield _Key(layer, source, layer.variables[provider.key_variable], provider.origins)
            elif layer.kind == "user_file" and self.owners[index] == provider.name:
                yield from self._file_keys(layer, provider)

    def _environment_keys(self, layer: Layer, own: _Own, provider: Provider) -> Iterator[_Key]:
        said = layer.said.get("base_url")
        general = self._url(layer, said, provider) if said is not None else None
        own_urls = list(self._own_urls(layer, provider))
        generic = layer.said.get("api_key")
        if generic is not None and self._alone(layer, own) == provider.name:
            value, fault = self._read("api_key", generic)
            if fault:
                self.problems.append(fault)
            else:
                beside = [general] if general else own_urls[:1]
                bound = tuple(url.origin for url in beside if not url.fault)
                yield _Key(layer, generic.source, str(value), bound if beside else provider.origins)
        if provider.key_variable in layer.variables:
            source = layer.variable_source.format(provider.key_variable)
            value, fault = self._read(
                "api_key", Said(layer.variables[provider.key_variable], source, text=True)
            )
            if fault:
                self.problems.append(fault)
                return
            beside = [*own_urls[:1], *([general] if general and own.provider == provider.name else [])]
            paired = tuple(url.origin for url in beside if not url.fault)
            yield _Key(layer, source, str(value), (*provider.origins, *paired))

    def _alone(self, layer: Layer, own: _Own) -> str:
        """The provider that an environment by itself comes to, its mode included."""
        if own.provider or own.fault:
            return own.provider or ""
        said = layer.said.get("mode")
        mode, fault = self._read("mode", said) if said is not None else ("local", "")
        return "" if fault else _mode_provider(str(mode))

    def _file_keys(self, layer: Layer, provider: Provider) -> Iterator[_Key]:
        said = layer.said.get("base_url")
        beside = self._url(layer, said, provider) if said is not None else None
        origins = provider.origins if beside is None else () if beside.fault else (beside.origin,)
        for name in ("api_key", "api_key_env"):
            key = layer.said.get(name)
            if key is None:
                continue
            value, fault = self._read(name, key)
            if fault:
                self.problems.append(fault)
            elif name == "api_key":
                yield _Key(layer, key.source, str(value), origins)
            else:
                places = [one for one in self.layers if one.kind in ("shell", "environment")]
                found = next(
                    (one.variables[str(value)] for one in places if str(value) in one.variables), None
                )
                if found is None:
                    self.unset[provider.name] = (
                        f"api_key_env from {key.source} names {value!r}, and no such variable is set: "
                        f"e.g. export {value}=…"
                    )
                else:
                    yield _Key(layer, f"env {value}, named by {key.source}", found, origins)

    def _api_key(self, provider: Provider, url: _Url | None) -> str | None:
        """The strongest key that is bound to this provider at this origin. No other key is ever tried."""
        place = url.origin if url else ""
        refused = bool(url and url.layer.remote and not self.allowed.get((provider.name, place), False))
        keys = list(self._keys(provider))
        bound = [] if refused else [key for key in keys if place in key.origins]
        self._tell_unused_keys(provider, place, keys, bound)
        if bound:
            hidden = tuple(Shadow(mask(key.value), key.source) for key in bound[1:])
            self.values["api_key"] = Value(mask(bound[0].value), bound[0].source, hidden)
            return bound[0].value
        self.values["api_key"] = Value(None, f"default for provider {provider.name}")
        if provider.needs_key and self.sure:
            self.problems.append(self.unset.get(provider.name) or self._no_key(provider, url))
        elif provider.name in self.unset:
            self.notices.append(self.unset[provider.name])
        return None

    def _no_key(self, provider: Provider, url: _Url | None) -> str:
        place = _PLACES[self.where]
        variable = provider.key_variable
        if url is not None and url.origin in provider.origins:
            return (
                f"provider {provider.name!r} at {url.url} needs a key, and none was found in {place} or the user's "
                f"file: set {variable}, e.g. export {variable}=…"
            )
        named = "base_url" if url is None else url.source
        pair = provider.url_variables[0] if provider.url_variables else "STIGMER_LLM_BASE_URL"
        also = "" if provider.url_variables else f" and STIGMER_LLM_PROVIDER={provider.name}"
        return (
            f"provider {provider.name!r} at {url.url if url else 'no address'} ({named}) needs a key, and none in "
            f"{place} or the user's file is bound to that address: a key goes to an address only where both stand "
            f"together, e.g. {pair}={url.url if url else 'https://…'} and {variable}=…{also} in one environment"
        )

    def _tell_unused_keys(self, provider: Provider, place: str, keys: list[_Key], bound: list[_Key]) -> None:
        for key in keys:
            if key not in bound and key.source not in {one.source for one in bound}:
                where = ", ".join(key.origins) or "no address"
                self.notices.append(
                    f"the key from {key.source} is not sent: it is bound to {where}, not to {place or 'this model'}"
                )
        told = {key.source for key in keys}
        for layer, own, owner in zip(self.layers, self.own, self.owners, strict=True):
            said = layer.said.get("api_key")
            if said is None or said.source in told:
                continue
            belongs = owner if layer.kind == "user_file" else self._alone(layer, own)
            if belongs and belongs != provider.name:
                self.notices.append(
                    f"the key from {said.source} is not sent: it belongs to {belongs}, and the provider is "
                    f"{provider.name}"
                )
            if said.file:
                _, fault = self._read("api_key", said)
                if fault:
                    self.problems.append(fault)

    # -- the numbers, and what is sent of them

    def _numbers(self, provider: Provider, model: Model, ref: ModelRef) -> ModelSettings:
        source = f"default for provider {provider.name}"
        name = str(self.values["model"].value)
        limit, tokens = model.max_output, provider.max_tokens
        limited = limit is not None and tokens > limit
        max_tokens, said = self._plain_value(
            "max_tokens",
            limit if limited else tokens,
            f"{source}, limited by {name}" if limited else source,
        )
        if said is not None and limit is not None and isinstance(max_tokens, int) and max_tokens > limit:
            self.problems.append(
                f"max_tokens {max_tokens!r} from {said.source} is above what {name} can write, {limit}: "
                f"e.g. {limit}"
            )
        temperature = self._temperature(provider, model, source)
        window, said = self._plain_value(
            "context_window",
            None if provider.local else model.context_window,
            f"{source}, chosen by preflight" if provider.local else f"default for model {name}",
        )
        known = model.context_window
        if said is not None and known is not None and isinstance(window, int) and window > known:
            self.problems.append(
                f"context_window {window!r} from {said.source} is above what {name} has, {known}: e.g. {known}"
            )
        thinking = self._thinking(model, source, temperature)
        if (
            thinking not in (None, "off")
            and temperature is not None
            and model.thinking in ("budget", "adaptive")
        ):
            self._not_sent("temperature", temperature, f"{name} takes none while it thinks")
            temperature = None
        limits = [
            self._plain_value(f"timeouts.{part}", getattr(provider.timeouts, part), source)[0]
            for part in ("connect", "first_token", "idle")
        ]
        return ModelSettings(
            max_tokens=_int(max_tokens),
            temperature=temperature,
            context_window=_int(window),
            thinking=thinking,
            timeouts=Timeouts(*(_float(limit) for limit in limits)),
        )

    def _temperature(self, provider: Provider, model: Model, source: str) -> float | None:
        default = provider.temperature if model.sampling else None
        value, said = self._plain_value("temperature", default, source)
        number = _float(value)
        if said is None or number is None:
            return number
        if not model.sampling:
            self._not_sent(
                "temperature", number, f"{self.values['model'].value} takes no sampling parameters"
            )
            return None
        if number > provider.max_temperature:
            top = provider.max_temperature
            self.problems.append(
                f"temperature {said.raw!r} from {said.source} is out of 0..{top:g}, which {provider.name} takes, "
                f"e.g. {top:g}"
            )
        return number

    def _thinking(self, model: Model, source: str, temperature: float | None) -> str | None:
        value, said = self._plain_value("thinking", None, source)
        if said is None or value is None:
            return None
        name = self.values["model"].value
        if model.thinking == "none":
            if value != "off":
                self._not_sent("thinking", value, f"{name} does not think")
            return None
        if value == "off" and model.thinking_off == "never":
            self._not_sent("thinking", value, f"{name} cannot be told to stop thinking")
            return None
        return str(value)

    def _not_sent(self, name: str, value: object, reason: str) -> None:
        self.notices.append(f"{name} {value!r} from {self.values[name].source} is not sent: {reason}")

    # -- fallbacks

    def _fallbacks(self, mode: str, provider: Provider, settings: ModelSettings) -> tuple[Fallback, ...]:
        value, said = self._plain_value("fallbacks", None, f"default for provider {provider.name}")
        if said is None or not isinstance(value, tuple):
            self.values["fallbacks"] = self.values["fallbacks"]._replace(
                value=self.values["fallbacks"].value or ()
            )
            return ()
        layer = next(layer for layer in self.layers if layer.said.get("fallbacks") is said)
        found = []
        for text in value:
            try:
                owner, model = self._fallback_model(str(text), layer, provider)
            except ModelNameError as error:
                self.problems.append(f"fallback {text!r} from {said.source}: {error.message}; {error.hint}")
                continue
            row = PROVIDERS[owner]
            if mode == "local" and layer.kind in ("agent", "project_file") and not row.local:
                self.problems.append(_leaves_home(owner, f"fallbacks of {said.source}"))
                continue
            found.append(self._fallback(row, model, settings, provider, said))
        return tuple(found)

    def _fallback_model(self, text: str, layer: Layer, provider: Provider) -> tuple[str, str]:
        """Whose a fallback is: as for a model, but one that is plainly somebody else's is no contradiction."""
        own = self.own[self.layers.index(layer)]
        named = own.provider if "provider" in layer.said else None
        prefix = text.partition(":")[0].strip().lower()
        if named and prefix not in PROVIDERS and ("/" in text or "base_url" in layer.said):
            return named, text
        owner, model = split_provider(text)
        return owner or implied_provider(model) or named or provider.name, model

    def _fallback(
        self, row: Provider, name: str, settings: ModelSettings, chosen: Provider, said: Said
    ) -> Fallback:
        ref = ModelRef(row.name, api_id(row.name, name, today=self.today)[0])
        model = lookup(ref)
        self._warn_of_retirement(model, name, said.source)
        urls = [url for url in self._urls(row) if not url.fault]
        url = urls[0] if urls else _Url(Layer("user_file"), "", row.base_url, origin(row.base_url))
        if not url.url and row.name != "llamacpp":
            self.problems.append(
                f"fallback {name!r} from {said.source}: provider {row.name!r} has no address of its own"
            )
        refused = url.layer.remote and not self.allowed.get((row.name, url.origin), False)
        key = None if refused else next((k.value for k in self._keys(row) if url.origin in k.origins), None)
        if row.needs_key and key is None and url.url:
            self.problems.append(f"fallback {name!r} from {said.source}: {self._no_key(row, url)}")
        said_tokens = self._said("max_tokens")
        tokens = settings.max_tokens if said_tokens and settings.max_tokens else row.max_tokens
        said_temperature = (
            _float(self.values["temperature"].value) if self._said("temperature") else row.temperature
        )
        timeouts = [
            getattr(settings.timeouts if self._said(f"timeouts.{part}") else row.timeouts, part)
            for part in ("connect", "first_token", "idle")
        ]
        window = self._said("context_window")
        thinking = self.values["thinking"].value if self._said("thinking") else None
        takes_thinking = model.thinking != "none" and not (
            thinking == "off" and model.thinking_off == "never"
        )
        return Fallback(
            ref,
            ModelSettings(
                max_tokens=min(tokens, model.max_output) if model.max_output else tokens,
                temperature=min(said_temperature, row.max_temperature)
                if model.sampling and said_temperature is not None
                else None,
                context_window=settings.context_window
                if window
                else None
                if row.local
                else model.context_window,
                thinking=str(thinking) if thinking is not None and takes_thinking else None,
                base_url=url.url or None,
                api_key=key,
                timeouts=Timeouts(*timeouts),
            ),
        )


def _mode_provider(mode: str) -> str:
    return "anthropic" if mode == "cloud" else "ollama"


def _for_mode(layer: Layer, mode: str) -> Layer:
    """An agent's plain keys with the map of the mode laid over them."""
    over = layer.modes.get(mode)
    if not over:
        return layer
    plain = dict(layer.said)
    if "model" in over and "provider" not in over:
        plain.pop("provider", None)
    return replace(layer, said={**plain, **over})


def _leaves_home(provider: str, source: str) -> str:
    return (
        f"provider {provider!r} ({source}) is outside this machine, and the mode is local: say that you want it, "
        f"e.g. --provider {provider} or STIGMER_LLM_PROVIDER={provider}, or choose --mode cloud"
    )


def _shown_url(raw: object) -> str:
    """An address as it may be shown: without a password that somebody put into it."""
    text = str(raw)
    head, sign, tail = text.partition("://")
    if "@" not in (tail or head):
        return text
    return f"{head}{sign}***@{tail.rpartition('@')[2]}" if sign else f"***@{head.rpartition('@')[2]}"


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
