"""Providers and models: which exist, what they take, and how a model string names one. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from graphton._model_table import (
    FAMILIES,
    GUESSES,
    LOCAL_NAMES,
    MODELS,
    Family,
    Model,
    Thinking,
    TokensField,
    ToolMode,
)
from graphton.errors import ModelNameError, SettingError

if TYPE_CHECKING:
    from graphton.messages import Usage

__all__ = [
    "PROVIDERS",
    "Model",
    "ModelRef",
    "ModelSettings",
    "Provider",
    "Timeouts",
    "ToolMode",
    "api_id",
    "cost",
    "dialect_at",
    "find_provider",
    "implied_provider",
    "known_models",
    "lookup",
    "origin",
    "several_calls",
    "split_provider",
    "succeeds",
    "tool_mode",
    "with_defaults",
]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. None: nobody said, the provider's default applies."""

    connect: float | None = None
    first_token: float | None = None
    idle: float | None = None


_LOCAL_TIMEOUTS = Timeouts(connect=5, first_token=600, idle=120)
_HOSTED_TIMEOUTS = Timeouts(connect=10, first_token=120, idle=60)


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
    """chat | responses, at a host of OpenAI's kind: chat completions, or the Responses API."""
    timeouts: Timeouts = Timeouts()


@dataclass(frozen=True, slots=True)
class Provider:
    """One row of the provider table."""

    name: str
    dialect: str
    """anthropic | openai | ollama"""
    default_model: str
    base_url: str
    """"" where there is no address of its own: llamacpp serves itself, azure has one for each customer."""
    key_variable: str = ""
    needs_key: bool = False
    local: bool = False
    url_variables: tuple[str, ...] = ()
    """Environment variables that name its address, the strongest first."""
    max_tokens: int = 20_000
    """The default; lowered to the model's output limit."""
    temperature: float | None = None
    """The default; None is not sent."""
    max_temperature: float = 2.0
    """The highest temperature that its API takes."""
    timeouts: Timeouts = _HOSTED_TIMEOUTS
    thinking: Thinking = "none"
    """How a model of it that is not in the table is told to think."""
    tokens_field: TokensField = "max_tokens"
    home_dialect: str = ""
    """The dialect at its own origins, where it is another one: responses."""

    @property
    def origins(self) -> tuple[str, ...]:
        """Its own origins: where its key may go without anybody saying so. Only https ones count."""
        return (origin(self.base_url),) if self.base_url.startswith("https://") else ()


def origin(url: str) -> str:
    """Scheme, host and port of an address, as keys are bound to it: `https://api.openai.com:443`."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower(), 0)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme.lower()}://{host}:{port}"


def dialect_at(row: Provider, base_url: str | None) -> str:
    """What a provider speaks at an address: at its own origins its home dialect, else what its kind speaks anywhere."""
    home = row.home_dialect and origin(base_url or row.base_url) in row.origins
    return row.home_dialect if home else row.dialect


def _local(
    name: str,
    dialect: str,
    model: str,
    base_url: str,
    *,
    url_variables: tuple[str, ...] = (),
    **columns: object,
) -> Provider:
    row = Provider(
        name,
        dialect,
        model,
        base_url,
        local=True,
        url_variables=url_variables,
        max_tokens=8192,
        timeouts=_LOCAL_TIMEOUTS,
    )
    return replace(row, **columns)  # type: ignore[arg-type]  # mypy cannot match keywords with columns


_OPENROUTER = "https://openrouter.ai/api/v1"
_GEMINI = "https://generativelanguage.googleapis.com/v1beta/openai"

PROVIDERS: dict[str, Provider] = {
    row.name: row
    for row in (
        Provider(
            "anthropic",
            "anthropic",
            "claude-sonnet-4.5",
            "https://api.anthropic.com",
            "ANTHROPIC_API_KEY",
            needs_key=True,
            url_variables=("ANTHROPIC_BASE_URL",),
            max_temperature=1.0,
            thinking="adaptive",
        ),
        Provider(
            "openai",
            "openai",
            "gpt-6.1-sol",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            needs_key=True,
            url_variables=("OPENAI_BASE_URL",),
            thinking="effort",
            tokens_field="max_completion_tokens",
            home_dialect="responses",
        ),
        _local(
            "ollama",
            "ollama",
            "qwen2.5-coder:7b",
            "http://localhost:11434",
            url_variables=("OLLAMA_BASE_URL", "OLLAMA_HOST"),
            temperature=0.0,
            thinking="think",
        ),
        _local("llamacpp", "openai", "qwen2.5-coder:1.5b", "", temperature=0.0),
        Provider(
            "openrouter",
            "openai",
            "anthropic/claude-sonnet-5.5",
            _OPENROUTER,
            "OPENROUTER_API_KEY",
            needs_key=True,
            thinking="effort",
        ),
        Provider(
            "groq",
            "openai",
            "openai/gpt-oss-120b",
            "https://api.groq.com/openai/v1",
            "GROQ_API_KEY",
            needs_key=True,
            thinking="effort",
        ),
        Provider(
            "mistral-api",
            "openai",
            "mistral-medium-latest",
            "https://api.mistral.ai/v1",
            "MISTRAL_API_KEY",
            needs_key=True,
            max_temperature=1.5,
        ),
        Provider(
            "deepseek-api",
            "openai",
            "deepseek-flash",
            "https://api.deepseek.com/v1",
            "DEEPSEEK_API_KEY",
            needs_key=True,
        ),
        Provider(
            "gemini",
            "openai",
            "gemini-3.8-flash",
            _GEMINI,
            "GEMINI_API_KEY",
            needs_key=True,
            thinking="effort",
        ),
        _local(
            "vllm", "openai", "Qwen/Qwen2.5-Coder-7B-Instruct", "http://localhost:8000/v1", thinking="effort"
        ),
        _local("lmstudio", "openai", "qwen2.5-coder-7b-instruct", "http://localhost:1234/v1"),
        # Azure names models by deployment; the default is the deployment named like OpenAI's default.
        Provider(
            "azure",
            "openai",
            "gpt-6.1-sol",
            "",
            "AZURE_OPENAI_API_KEY",
            needs_key=True,
            thinking="effort",
            tokens_field="max_completion_tokens",
        ),
    )
}

_BY_NAME = {f"{row.provider}:{row.name}": row for row in MODELS.values() if row.name}
_IMPLIED = (
    ("anthropic", re.compile(r"claude-")),
    # gpt-oss is an open model: OpenAI's own host does not serve it.
    ("openai", re.compile(r"(gpt-(?!oss)|chatgpt-|o[134](-|$))")),
)
_BLANKS = " \t\r\n\ufeff"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A provider and a model of it, by the name that goes to the provider."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"

    @classmethod
    def parse(cls, text: str, provider: str | None = None, *, today: date | None = None) -> ModelRef:
        """The model that a string names: `provider:model`, `provider/model`, or a name that implies its provider.

        Where `provider` is given, a slash is part of the model's id, and only the colon form can contradict. A
        friendly name becomes the provider's id, and its successor's once it is retired on `today` (the default is
        today's date, UTC); an id stays as it is.

        >>> ModelRef.parse("anthropic:claude-haiku-4.5")
        ModelRef(provider='anthropic', model='claude-haiku-4-5-20251001')
        """
        named, model = split_provider(text, provider)
        owner = named or implied_provider(model)
        if owner is None:
            raise ModelNameError(
                f"model {model!r} names no provider that we know", hint=_ways_to_say_it(model)
            )
        return cls(owner, api_id(owner, model, today=today or datetime.now(UTC).date())[0])


def find_provider(name: str) -> Provider:
    """The row of a provider, in any case; an unknown name is an error with the nearest known one."""
    row = PROVIDERS.get(name.strip(_BLANKS).lower())
    if row is None:
        near = _nearest(name.strip(_BLANKS).lower(), PROVIDERS)
        raise ModelNameError(
            f"provider {name!r} is not known",
            hint=(f"did you mean {near!r}? " if near else "") + f"Known providers: {', '.join(PROVIDERS)}",
        )
    return row


def split_provider(text: str, provider: str | None = None) -> tuple[str | None, str]:
    """The provider that a model string names (or `provider`, where its layer names one), and the rest of it."""
    model = text.strip(_BLANKS)
    if not model:
        raise ModelNameError(
            f"model {text!r} is empty", hint=f"for example {PROVIDERS['ollama'].default_model!r}"
        )
    owner = find_provider(provider).name if provider else None
    left, _, right = model.partition(":")
    if left.lower() in PROVIDERS:
        named = left.lower()
        if not right.strip(_BLANKS):
            raise ModelNameError(
                f"model {text!r} names provider {named!r} but no model",
                hint=f"for example '{named}:{PROVIDERS[named].default_model}'",
            )
        if owner not in (None, named):
            raise ModelNameError(
                f"model {text!r} names provider {named!r}, but the provider is {owner!r}",
                hint=f"say only one of them, for example '{named}:{right}' without a provider",
            )
        return named, right.strip(_BLANKS)
    if owner is not None:
        return owner, model
    left, slash, right = model.partition("/")
    if slash and left.lower() in PROVIDERS:
        if not right.strip(_BLANKS):
            raise ModelNameError(
                f"model {text!r} names provider {left.lower()!r} but no model",
                hint=f"for example '{left.lower()}/{PROVIDERS[left.lower()].default_model}'",
            )
        return left.lower(), right.strip(_BLANKS)
    _refuse_misspelt_prefix(model)
    return None, model


def _refuse_misspelt_prefix(model: str) -> None:
    """`antropic:claude-haiku-4.5` has the form of an Ollama tag, but nobody means one."""
    for sign in ":/":
        left, found, right = model.partition(sign)
        near = _nearest(left.lower(), PROVIDERS) if found else None
        if near and implied_provider(right) == near:
            raise ModelNameError(
                f"model {model!r} names no provider that we know", hint=f"did you mean '{near}{sign}{right}'?"
            )


def implied_provider(model: str) -> str | None:
    """The provider that a bare model name implies; None where it implies nothing.

    The table is of November 2026: `claude-*` is Anthropic's, `gpt-*`, `chatgpt-*`, `o1`, `o3`, `o4*` and `ft:*`
    are OpenAI's, `name:tag` and the names of local families are Ollama's.
    """
    name = model.strip(_BLANKS).lower()
    if name.startswith("ft:"):
        return "openai"
    last = name.rpartition("/")[2]
    tag = last.count(":") == 1 and all(last.split(":"))
    if tag or name in LOCAL_NAMES:
        return "ollama"
    return next((provider for provider, pattern in _IMPLIED if pattern.match(name)), None)


def api_id(provider: str, name: str, *, today: date, default: bool = False) -> tuple[str, str]:
    """The id that goes out for a model's name, and the name that it is shown by.

    A friendly name, and a `default` however it is written, that is retired on `today` becomes its successor. A
    full id given by hand stays as given; an unknown name does too.
    """
    row = _BY_NAME.get(f"{provider}:{name.lower()}") or MODELS.get(f"{provider}:{name}")
    if row is None or (row.name != name.lower() and not default):
        return name, name
    while row.retires and today >= row.retires and row.successor:
        row = _BY_NAME.get(f"{provider}:{row.successor}") or MODELS[f"{provider}:{row.successor}"]
    return row.id, row.name or row.id


def succeeds(new: ModelRef, old: ModelRef) -> bool:
    """Whether the table puts `new` in the place of `old`, once that has ended.

    >>> succeeds(ModelRef("openai", "gpt-6.1-terra"), ModelRef("openai", "o4-mini"))
    True
    """
    row = MODELS.get(str(old))
    while row is not None and row.successor and new.provider == old.provider:
        row = _BY_NAME.get(f"{old.provider}:{row.successor}") or MODELS[f"{old.provider}:{row.successor}"]
        if row.id == new.model:
            return True
    return False


def lookup(ref: ModelRef) -> Model:
    """What is known of a model. An unknown one is allowed: its row is inferred, and `assumed` says so.

    Assumed are: for Anthropic and OpenAI the way of being asked of their current models and a window of 200,000
    and 128,000 tokens; for other hosts a window of 128,000; for local servers that the window is the server's,
    and that calls must be recovered from text. Limits and prices are never assumed.
    """
    row = MODELS.get(f"{ref.provider}:{ref.model}") or _BY_NAME.get(f"{ref.provider}:{ref.model.lower()}")
    if row is not None:
        return row
    provider = PROVIDERS.get(ref.provider)
    if provider is None or provider.local:
        return _local_model(ref)
    base = ref.model.split(":")[1] if ref.model.startswith("ft:") else ref.model
    known = MODELS.get(f"openai:{base}") if ref.provider in ("openai", "azure") else None
    if known is not None:
        return replace(
            known,
            provider=ref.provider,
            id=ref.model,
            dialect=known.dialect if ref.provider == "openai" else "",
            price_input=None,
            price_output=None,
            price_cached=None,
            price_cache_write=None,
            long_prompt=None,
            assumed=True,
        )
    guess = next((g for g in GUESSES if g.provider == ref.provider and g.pattern.match(base.lower())), None)
    like = MODELS[f"{guess.provider}:{guess.like}"] if guess else None
    return Model(
        ref.provider,
        ref.model,
        context_window=200_000 if ref.provider == "anthropic" else 128_000,
        sampling=like.sampling if like else True,
        thinking=like.thinking if like else provider.thinking,
        thinking_off=like.thinking_off if like else "",
        tokens_field=provider.tokens_field,
        dialect=like.dialect if like else "",
        assumed=True,
    )


def _local_model(ref: ModelRef) -> Model:
    family = _family(ref.model) if ref.provider in ("ollama", "llamacpp") else None
    provider = PROVIDERS.get(ref.provider)
    thinking: Thinking = provider.thinking if provider else "none"
    return Model(
        ref.provider,
        ref.model,
        context_window=family.context_window if family else None,
        thinking=family.thinking if family else thinking,
        price_input=0.0,
        price_output=0.0,
        tool_mode=family.tool_mode if family else "recovery",
        assumed=family is None,
    )


_BY_LENGTH = sorted(FAMILIES, key=lambda family: -len(family.name))


def _family(model: str) -> Family | None:
    """The family of a local model: `qwen2.5-coder:7b`, `hf.co/Qwen/Qwen2.5-Coder-7B-GGUF:Q4_K_M`, a file's path."""
    name = model.lower().rpartition("/")[2]
    for family in _BY_LENGTH:
        if name.startswith(family.name) and not name[len(family.name) :][:1].isalnum():
            return family
    return None


SEVERAL_CALLS_FROM = 7.0
"""Billions of parameters."""


def tool_mode(ref: ModelRef) -> ToolMode:
    """The best proven way to bring this model to use tools."""
    return lookup(ref).tool_mode


def several_calls(ref: ModelRef) -> bool:
    """Whether a model that is held to a schema may make several calls in one reply: from 7 billion parameters on, by its name.

    Smaller ones then call for the sake of calling, or forget the second. A name without a size is taken for a small one.
    """
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z0-9])", ref.model.lower())
    return bool(sizes) and float(sizes[-1]) >= SEVERAL_CALLS_FROM


def known_models() -> tuple[Model, ...]:
    """Every hosted model of the table, in its order."""
    return tuple(MODELS.values())


def with_defaults(ref: ModelRef, settings: ModelSettings) -> ModelSettings:
    """The settings with the provider's defaults where nobody said anything.

    A default above the model's output limit is lowered to it; a value that somebody set above it is an error. A
    default temperature is left out for a model that takes none.
    """
    provider, model = find_provider(ref.provider), lookup(ref)
    limit = model.max_output
    if settings.max_tokens is not None and limit is not None and settings.max_tokens > limit:
        raise SettingError(
            f"max_tokens {settings.max_tokens!r} is above what {ref.model} can write, {limit}",
            hint=f"for example max_tokens={limit}, or another model",
        )
    said, ours = settings.timeouts, provider.timeouts
    default_tokens = provider.max_tokens if limit is None else min(provider.max_tokens, limit)
    return replace(
        settings,
        max_tokens=default_tokens if settings.max_tokens is None else settings.max_tokens,
        temperature=(provider.temperature if model.sampling else None)
        if settings.temperature is None
        else settings.temperature,
        context_window=settings.context_window or (None if provider.local else model.context_window),
        base_url=settings.base_url or provider.base_url or None,
        timeouts=Timeouts(
            connect=ours.connect if said.connect is None else said.connect,
            first_token=ours.first_token if said.first_token is None else said.first_token,
            idle=ours.idle if said.idle is None else said.idle,
        ),
    )


def cost(ref: ModelRef, usage: Usage) -> float | None:
    """What a reply cost, in USD, by the price list in the table; None where no price is known. Local models cost 0."""
    row = lookup(ref)
    if row.price_input is None or row.price_output is None:
        return None
    fresh, out, cached, write = row.price_input, row.price_output, row.price_cached, row.price_cache_write
    if row.long_prompt is not None and usage.input_tokens > row.long_prompt[0]:
        _, fresh, out, cached, write = row.long_prompt
    plain = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
    total = (
        plain * fresh
        + usage.output_tokens * out
        + usage.cached_tokens * (fresh if cached is None else cached)
        + usage.cache_write_tokens * (fresh if write is None else write)
    )
    return total / 1_000_000


def _nearest(name: str, known: Iterable[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, list(known), n=1)), None)


def _ways_to_say_it(model: str) -> str:
    names = [row.name or row.id for row in MODELS.values() if row.provider in ("anthropic", "openai")]
    near = _nearest(model.lower(), [*names, *sorted(LOCAL_NAMES)])
    said = f"did you mean {near!r}? " if near else ""
    return f"{said}Say the provider too, for example 'ollama:{model}' or 'openai:{model}'"
