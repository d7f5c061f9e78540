"""The cascade itself: layers in, one value and one source for every setting out. Pure; reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime

from graphton.errors import ModelNameError
from graphton.models import (
    PROVIDERS,
    Model,
    ModelRef,
    ModelSettings,
    Provider,
    Timeouts,
    api_id,
    dialect_at,
    implied_provider,
    lookup,
    origin,
    split_provider,
)

from stigmer.config._bindings import Bindings, Key, Url
from stigmer.config._installed import Installed, best, has, why_none
from stigmer.config._layers import RANKS, Layer, Said
from stigmer.config._own import alone, mode_provider, own_words, presentable, read
from stigmer.config._records import GB, Facts, Fallback, LLMConfig, Shadow, Value
from stigmer.config._settings import SETTINGS, mask
from stigmer.errors import ConfigError

__all__ = ["resolve"]

_OLLAMA = PROVIDERS["ollama"]
_FOLDERS = ("agent", "project_file")
"""Layers that come with a definition or a folder: what they say is not the user's own word."""
_PLACES = {
    "local": "your shell, the daemon's environment",
    "serve": "the server's environment (stigmer serve)",
    "worker": "the worker's environment (stigmer worker)",
}


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
        self.sure = True
        """False once the provider or the model is a guess because what was said is wrong."""

    def config(self) -> LLMConfig:
        mode = self._mode()
        self.layers = tuple(layer.in_mode(mode) for layer in self.layers)
        self.own = [own_words(layer) for layer in self.layers]
        provider = self._provider(mode)
        self.owners = self._layer_providers(mode)
        self.bindings = Bindings(self.layers, self.own, self.owners, allowed=self.allowed)
        model, ref = self._model(provider)
        self._keep_data_at_home(mode, provider)
        url = self._base_url(provider)
        key = self._api_key(provider, url)
        settings = self._numbers(provider, model)
        dialect = self._dialect(provider, url)
        settings = replace(settings, base_url=url.url if url else None, api_key=key, dialect=dialect)
        fallbacks = self._fallbacks(mode, provider, settings)
        self._plain_value("models.mirror", None, "default")
        self.problems += self.bindings.problems
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

    def _shadows(self, name: str, said: Sequence[Said]) -> tuple[Shadow, ...]:
        """What the winner hides. A bad value among it is only a notice."""
        hidden = []
        for one in said:
            value, fault = read(name, one)
            if fault:
                self.notices.append(f"{fault} (hidden by a stronger layer)")
            hidden.append(Shadow(presentable(name, one.raw) if fault else value, one.source))
        return tuple(hidden)

    def _plain_value(self, name: str, default: object, source: str) -> tuple[object, Said | None]:
        """The highest layer's value of a setting, or the default. A bad value that wins is a problem."""
        said = self._said(name)
        if not said:
            self.values[name] = Value(default, source)
            return default, None
        value, fault = read(name, said[0])
        if fault:
            self.problems.append(fault)
            raw = presentable(name, said[0].raw)
            self.values[name] = Value(raw, said[0].source, self._shadows(name, said[1:]))
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
            guess = mode_provider(mode)
            shown = guess if first.provider_shown is None else first.provider_shown
            source = first.provider_source or f"default for mode {mode}"
            self.values["provider"] = Value(shown, source, hidden)
            return PROVIDERS[guess]
        self.values["provider"] = Value(first.provider, first.provider_source, hidden)
        return PROVIDERS[first.provider]

    def _default_provider(self, mode: str) -> tuple[str, str]:
        name = mode_provider(mode)
        if name != "ollama" or self.where != "local" or self._somebody_named_a_place() or not self.sure:
            return name, f"default for mode {mode}"
        if not self.facts.ollama_up(_OLLAMA.base_url):
            why = f"no Ollama at {_OLLAMA.base_url}"
        else:
            found = self._without_default(_OLLAMA.base_url)
            if found is None or self._best(found):
                return name, f"default for mode {mode}"
            why = why_none(found, _OLLAMA.base_url)
        return "llamacpp", f"default for mode {mode}: {why}, using built-in llama.cpp"

    def _without_default(self, url: str) -> Sequence[Installed] | None:
        """What the Ollama there has, if that is known and its default model is not among it."""
        # Facts that were made before this question do not answer it.
        ask = getattr(self.facts, "installed", None)
        rows: Sequence[Installed] | None = ask(url) if ask else None
        return None if rows is None or has(rows, _OLLAMA.default_model) else rows

    def _best(self, rows: Sequence[Installed]) -> Installed | None:
        """The installed model that takes the default's place. How much memory is free is asked only if it matters."""
        return best(rows, self.facts.free_memory() if any(row.memory for row in rows) else 0)

    def _somebody_named_a_place(self) -> bool:
        """Whether a provider, a model or a base URL (Ollama's own variables too) stands anywhere."""
        return any(
            any(name in layer.said for name in ("provider", "model", "base_url"))
            or any(name in layer.variables for name in _OLLAMA.url_variables)
            for layer in self.layers
        )

    def _layer_providers(self, mode: str) -> list[str]:
        """The provider of each layer: its own, else the one resolved from the layers below it."""
        below = str(self.values["provider"].value) if self.provider_layer is None else mode_provider(mode)
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
            if memory < 4 * GB:
                return "qwen2.5-coder:0.5b", f"{source}, with {memory / GB:.1f} GB of memory free"
        if provider.name == "ollama" and self.where == "local" and (url := self._default_address(provider)):
            found = self._without_default(url)
            if found is not None and (row := self._best(found)):
                return row.name, self._taken(row, found, url)
        return provider.default_model, source

    def _taken(self, row: Installed, found: Sequence[Installed], url: str) -> str:
        """The source of a model that takes the default's place, and the notice that says so at length."""
        fits = " and fits into the free memory" if row.memory else ""
        choice = f"the largest of {len(found)} that can use tools{fits}" if len(found) > 1 else "the only one"
        self.notices.append(
            f"model {row.name} is taken: the default {_OLLAMA.default_model} is not installed at the Ollama at {url}, "
            f"and this is {choice}; for the default: stigmer models pull {_OLLAMA.default_model}"
        )
        return f"installed at Ollama; the default {_OLLAMA.default_model} is not"

    def _default_address(self, provider: Provider) -> str:
        """Where a model of this provider would be asked; "" where nobody may be asked there."""
        first = next(iter(self.bindings.urls(provider)), None)
        if first is None:
            return provider.base_url
        return "" if first.fault or self.bindings.refusal(provider, first) else first.url

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
        if mode != "local" or provider.local or layer is None or layer.kind not in _FOLDERS:
            return
        if self._user_named(provider):
            return
        said = self.values["provider"].source
        self.problems.append(_leaves_home(provider.name, said))
        self.sure = False

    def _user_named(self, provider: Provider) -> bool:
        """Whether this provider is what the user's own layers come to, those of folders left out."""
        said = (
            own.provider
            for layer, own in zip(self.layers, self.own, strict=True)
            if layer.kind not in _FOLDERS and (own.provider or own.fault)
        )
        return next(said, None) == provider.name

    # -- addresses and keys

    def _base_url(self, provider: Provider) -> Url | None:
        """The address of the chosen provider; None where it has none of its own and nobody gave one."""
        found = list(self.bindings.urls(provider))
        used = {url.source for url in found}
        for layer, owner in zip(self.layers, self.owners, strict=True):
            said = layer.said.get("base_url")
            if said is not None and said.source not in used:
                url = self.bindings.url(layer, said, PROVIDERS[owner])
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
        default = Url(Layer("user_file"), source, provider.base_url, origin(provider.base_url))
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
        if refusal := self.bindings.refusal(provider, first):
            self.problems.append(refusal)
            self.sure = False
        return first

    def _api_key(self, provider: Provider, url: Url | None) -> str | None:
        """The strongest key that is bound to this provider at this origin. No other key is ever tried."""
        place = url.origin if url else ""
        bound = self.bindings.bound(provider, url)
        self._tell_unused_keys(provider, place, list(self.bindings.keys(provider)), bound)
        if bound:
            hidden = tuple(Shadow(mask(key.value), key.source) for key in bound[1:])
            self.values["api_key"] = Value(mask(bound[0].value), bound[0].source, hidden)
            return bound[0].value
        self.values["api_key"] = Value(None, f"default for provider {provider.name}")
        if provider.needs_key and self.sure and not self.bindings.problems:
            self.problems.append(self.bindings.unset.get(provider.name) or self._no_key(provider, url))
        elif provider.name in self.bindings.unset:
            self.notices.append(self.bindings.unset[provider.name])
        return None

    def _no_key(self, provider: Provider, url: Url | None) -> str:
        place = _PLACES[self.where]
        variable = provider.key_variable
        if url is not None and url.origin in provider.origins:
            return (
                f"provider {provider.name!r} at {url.url} needs a key, and none was found in {place}, the stored "
                f"secrets or the user's file: set {variable}, e.g. export {variable}=…, or keep it for all runs: "
                f"stigmer secret set {variable}"
            )
        named = "base_url" if url is None else url.source
        pair = provider.url_variables[0] if provider.url_variables else "STIGMER_LLM_BASE_URL"
        also = "" if provider.url_variables else f" and STIGMER_LLM_PROVIDER={provider.name}"
        return (
            f"provider {provider.name!r} at {url.url if url else 'no address'} ({named}) needs a key, and none in "
            f"{place} or the user's file is bound to that address: a key goes to an address only where both stand "
            f"together, e.g. {pair}={url.url if url else 'https://…'} and {variable}=…{also} in one environment"
        )

    def _tell_unused_keys(self, provider: Provider, place: str, keys: list[Key], bound: list[Key]) -> None:
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
            belongs = owner if layer.kind == "user_file" else alone(layer, own)
            if belongs and belongs != provider.name:
                self.notices.append(
                    f"the key from {said.source} is not sent: it belongs to {belongs}, and the provider is "
                    f"{provider.name}"
                )
            if said.file:
                _, fault = read("api_key", said)
                if fault:
                    self.problems.append(fault)

    # -- the numbers, and what is sent of them

    def _numbers(self, provider: Provider, model: Model) -> ModelSettings:
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
        said_temperature = self._temperature(provider, model, source)
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
        said_thinking, said = self._plain_value("thinking", None, source)
        temperature, thinking, unsent = _fitting(
            model,
            name,
            temperature=said_temperature,
            thinking=None if said_thinking is None else str(said_thinking),
        )
        for one, reason in unsent.items():
            shown = self.values[one]
            self.notices.append(f"{one} {shown.value!r} from {shown.source} is not sent: {reason}")
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
        if model.sampling and number > provider.max_temperature:
            top = provider.max_temperature
            self.problems.append(
                f"temperature {said.raw!r} from {said.source} is out of 0..{top:g}, which {provider.name} takes, "
                f"e.g. {top:g}"
            )
        return number

    def _dialect(self, provider: Provider, url: Url | None) -> str | None:
        """How a host of OpenAI's kind is asked; None for providers that have one way only."""
        default = _dialect_at(provider, url)
        said_one, said = self._plain_value("dialect", default, f"default for provider {provider.name}")
        if provider.dialect != "openai" or (url is None and not provider.base_url):
            if said is not None:
                self.notices.append(
                    f"dialect {said_one!r} from {said.source} is not used: {provider.name} is asked in one way only"
                )
            return None
        return str(said_one)

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
            abroad = mode == "local" and layer.kind in _FOLDERS and not row.local
            if abroad and not self._user_named(row):
                self.problems.append(_leaves_home(owner, f"fallbacks of {said.source}"))
                continue
            found.append(self._fallback(row, model, settings, said))
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

    def _fallback(self, row: Provider, name: str, settings: ModelSettings, said: Said) -> Fallback:
        ref = ModelRef(row.name, api_id(row.name, name, today=self.today)[0])
        model = lookup(ref)
        self._warn_of_retirement(model, name, said.source)
        url = next(self.bindings.urls(row), Url(Layer("user_file"), "", row.base_url, origin(row.base_url)))
        about = f"fallback {name!r} from {said.source}: "
        bound = self.bindings.bound(row, url)
        if url.fault or (fault := self.bindings.refusal(row, url)):
            self.problems.append(about + (url.fault or fault))
        elif not url.url and row.name != "llamacpp":
            self.problems.append(f"{about}provider {row.name!r} has no address of its own")
        elif row.needs_key and not bound:
            self.problems.append(about + (self.bindings.unset.get(row.name) or self._no_key(row, url)))
        said_tokens = self._said("max_tokens")
        tokens = settings.max_tokens if said_tokens and settings.max_tokens else row.max_tokens
        said_temperature = (
            _float(self.values["temperature"].value) if self._said("temperature") else row.temperature
        )
        timeouts = [
            getattr(settings.timeouts if self._said(f"timeouts.{part}") else row.timeouts, part)
            for part in ("connect", "first_token", "idle")
        ]
        said_thinking = self.values["thinking"].value if self._said("thinking") else None
        temperature, thinking, _ = _fitting(
            model,
            name,
            temperature=None if said_temperature is None else min(said_temperature, row.max_temperature),
            thinking=None if said_thinking is None else str(said_thinking),
        )
        window = None if row.local else model.context_window
        # A dialect that somebody set was meant for the provider that is asked first.
        same = self._said("dialect") and row.name == self.values["provider"].value
        return Fallback(
            ref,
            ModelSettings(
                max_tokens=min(tokens, model.max_output) if model.max_output else tokens,
                temperature=temperature,
                context_window=settings.context_window if self._said("context_window") else window,
                thinking=thinking,
                base_url=url.url or None,
                api_key=bound[0].value if bound else None,
                dialect=settings.dialect if same else None,
                timeouts=Timeouts(*timeouts),
            ),
        )


def _dialect_at(provider: Provider, url: Url | None) -> str:
    spoken = dialect_at(provider, url.url if url and not url.fault else None)
    return "chat" if spoken == "openai" else spoken


def _fitting(
    model: Model, name: str, *, temperature: float | None, thinking: str | None
) -> tuple[float | None, str | None, dict[str, str]]:
    """What of temperature and thinking this model takes, and why the rest is not sent."""
    unsent = {}
    if thinking is not None and model.thinking == "none":
        if thinking != "off":
            unsent["thinking"] = f"{name} does not think"
        thinking = None
    elif thinking == "off" and model.thinking_off == "never":
        unsent["thinking"] = f"{name} cannot be told to stop thinking"
        thinking = None
    thinks = thinking not in (None, "off") and model.thinking in ("budget", "adaptive")
    if temperature is not None and (not model.sampling or thinks):
        reason = "none while it thinks" if model.sampling else "no sampling parameters"
        unsent["temperature"] = f"{name} takes {reason}"
        temperature = None
    return temperature, thinking, unsent


def _leaves_home(provider: str, source: str) -> str:
    return (
        f"provider {provider!r} ({source}) is outside this machine, and the mode is local: say that you want it, "
        f"e.g. --provider {provider} or STIGMER_LLM_PROVIDER={provider}, or choose --mode cloud"
    )


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
