"""Whom to ask, with which key: what the cascade resolves for each provider, and nothing beside it.

A key goes to the address that the cascade has bound it to; where it has found none, the provider is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from graphton.models import ModelRef, ModelSettings, dialect_at, find_provider

from stigmer.config import LLMConfig, Value
from stigmer.doctor._check import SKIP, WARN, Check, check

__all__ = ["Target", "as_told", "embedded", "targets", "unasked"]


@dataclass(frozen=True, slots=True)
class Target:
    """One provider at one address."""

    name: str
    """Of the check: `provider.anthropic`."""
    provider: str
    dialect: str
    url: str
    url_source: str
    key: str = field(repr=False)
    key_source: str
    models: tuple[str, ...]
    """The ids that a run would ask of it."""
    role: str
    """run | fallback | other"""

    def to_json(self) -> dict[str, Any]:
        """For the examiner, over a pipe: the key is in it."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Target:
        return cls(**{**row, "models": tuple(row["models"])})


def embedded(ref: ModelRef, settings: ModelSettings) -> bool:
    """Whether we would serve this model ourselves."""
    return ref.provider == "llamacpp" and not settings.base_url


def as_told(run: LLMConfig, others: Mapping[str, LLMConfig], settings: Mapping[str, Any]) -> LLMConfig:
    """The run that a daemon has told of, with the key that this shell has for the same address.

    Its flags and environment may bring it to another model or place than the same settings resolved from here.
    """
    provider, url = str(settings["provider"]["value"]), settings["base_url"]["value"]
    model = str(settings["model"].get("id", settings["model"]["value"]))
    if (provider, model, url) == (run.ref.provider, run.ref.model, run.settings.base_url):
        return run
    like = run if provider == run.ref.provider else others[provider]
    key = like.settings.api_key if like.settings.base_url == url else None
    return replace(
        like,
        ref=ModelRef(provider, model),
        settings=replace(like.settings, base_url=url, api_key=key),
        fallbacks=(),
        values={**like.values, "base_url": Value(url, str(settings["base_url"]["source"]))},
    )


def targets(run: LLMConfig, others: Mapping[str, LLMConfig]) -> tuple[list[Target], list[Check]]:
    """Those to ask, and a check for each provider that is not asked, with the reason.

    `run`: the default run as it is resolved from here; `others`: for each provider the same run with it.
    """
    asked: list[Target] = []
    told: list[Check] = []
    wanted = [(run.ref, run.settings, run, "run")]
    wanted += [(one.ref, one.settings, run, "fallback") for one in run.fallbacks]
    wanted += [(others[name].ref, others[name].settings, others[name], "other") for name in others]
    for ref, settings, config, role in wanted:
        if ref.provider == "ollama" or embedded(ref, settings):
            continue
        same = next(
            (
                i
                for i, one in enumerate(asked)
                if (one.provider, one.url) == (ref.provider, settings.base_url)
            ),
            None,
        )
        if same is not None:
            asked[same] = _with_model(asked[same], ref.model) if role != "other" else asked[same]
        elif reason := _cannot_be_asked(ref, settings, config, role):
            if all(one.id != reason.id for one in told):
                told.append(reason)
        else:
            taken = sum(one.provider == ref.provider for one in asked)
            asked.append(_target(ref, settings, config, role, number=taken + 1))
    return asked, [one for one in told if all(f"provider.{target.name}" != one.id for target in asked)]


def _with_model(target: Target, model: str) -> Target:
    return target if model in target.models else replace(target, models=(*target.models, model))


def _target(ref: ModelRef, settings: ModelSettings, config: LLMConfig, role: str, *, number: int) -> Target:
    row = find_provider(ref.provider)
    own = role != "fallback"
    return Target(
        name=row.name if number == 1 else f"{row.name}#{number}",
        provider=row.name,
        dialect=settings.dialect or dialect_at(row, settings.base_url),
        url=settings.base_url or "",
        url_source=config.values["base_url"].source if own else "",
        key=settings.api_key or "",
        key_source=config.values["api_key"].source if own and settings.api_key else "",
        models=(ref.model,) if role != "other" else (),
        role=role,
    )


def _cannot_be_asked(ref: ModelRef, settings: ModelSettings, config: LLMConfig, role: str) -> Check | None:
    row = find_provider(ref.provider)
    facts = {
        "provider": row.name,
        "role": role,
        "url": settings.base_url,
        "key_found": bool(settings.api_key),
    }
    id = f"provider.{row.name}"
    if not settings.base_url:
        variable = row.url_variables[0] if row.url_variables else "STIGMER_LLM_BASE_URL"
        return check(
            id,
            SKIP,
            f"{row.name} has no address of its own, and none is set",
            f"export STIGMER_LLM_PROVIDER={row.name} {variable}=https://… {row.key_variable}=…",
            **facts,
            outcome="no_address",
        )
    if row.needs_key and not settings.api_key:
        hint = f"export {row.key_variable}=…, or keep it for all runs: stigmer secret set {row.key_variable}"
        notices = [one for one in config.notices if one.startswith("the key from ") and "is not sent" in one]
        return check(
            id,
            WARN if notices else SKIP,
            f"{row.name}: no key ({row.key_variable}) for {settings.base_url}"
            + "".join(f"; {one}" for one in notices[:1]),
            hint,
            **facts,
            outcome="no_key",
        )
    return None


def unasked(asked: Iterable[Target]) -> list[Check]:
    """The checks of those that would be asked, were we not told to stay offline."""
    return [
        check(
            f"provider.{one.name}",
            SKIP,
            f"{one.provider} at {one.url}: not asked (--offline)"
            + (f"; a key is there, from {one.key_source or 'the settings'}" if one.key else ""),
            provider=one.provider,
            role=one.role,
            url=one.url,
            key_found=bool(one.key),
            key_source=one.key_source,
            outcome="not_asked",
        )
        for one in asked
    ]
