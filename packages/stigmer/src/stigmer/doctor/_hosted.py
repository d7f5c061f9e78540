"""A provider is asked what costs nothing: the list of its models, with the key that a run would use."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from graphton.chat._aiohttp import aiohttp  # noqa: F401  # Imported late by the client; here before any limit runs.
from graphton.chat._http import HEADERS, Limits, endpoint, post
from graphton.chat._keys import check_key
from graphton.errors import (
    ConnectError,
    GraphtonError,
    ProtocolError,
    ProviderTimeout,
    RedirectRefused,
    StatusError,
)
from graphton.models import ModelRef, find_provider, lookup, origin

from stigmer.doctor._certificate import shown
from stigmer.doctor._check import FAIL, OK, SKIP, WARN, Check, check
from stigmer.doctor._targets import Target

__all__ = ["SECONDS", "SKEW", "ask"]

SECONDS = 2.5
"""How long one provider may take in all."""
SKEW = 120.0
"""Seconds that this machine's clock may be off before something is said: certificates and signed requests mind."""
_LIMITS = Limits(connect=2.0, first_token=SECONDS, idle=SECONDS)
_MOST = 8 << 20


async def ask(target: Target) -> list[Check]:
    """What one provider says to its key, and of the models that a run would ask of it."""
    began = time.monotonic()
    deadline = asyncio.get_running_loop().time() + SECONDS
    try:
        async with asyncio.timeout_at(deadline):
            listed, date = await _listed(target)
    except TimeoutError:
        error = ProviderTimeout(
            f"{target.provider} at {target.url!r} gave no whole answer within {SECONDS:g} s",
            limit="first_token",
            hint="try again; if it stays so, see whether a proxy or a VPN stands between",
        )
        return [_failure(target, error)]
    except GraphtonError as error:
        certificate = {}
        if isinstance(error, ConnectError) and error.trouble == "certificate":
            certificate = await shown(target.url, deadline=deadline)
        return [_failure(target, error, certificate)]
    facts = {**_facts(target), "seconds": round(time.monotonic() - began, 3)}
    found = [_answered(target, listed, facts)]
    for number, model in enumerate(target.models):
        found.append(await _model(target, model, listed, deadline, number=number))
    return [*found, *_clock(target, date)]


def _facts(target: Target) -> dict[str, Any]:
    return {
        "provider": target.provider,
        "role": target.role,
        "url": target.url,
        "url_source": target.url_source,
        "key_found": bool(target.key),
        "key_source": target.key_source,
    }


# --- the request --------------------------------------------------------------------------------------------------


async def _listed(target: Target) -> tuple[frozenset[str], str]:
    """The ids of the models that are there, and the answer's date."""
    if target.provider == "openrouter" and target.key and _at_home(target):
        await _get(target, "/key")  # Its list is open to everybody; only this says whether the key is good.
    path = "/v1/models?limit=1000" if target.dialect == "anthropic" else "/models"
    body, date = await _get(target, path)
    rows = body.get("data") if isinstance(body, dict) else body if isinstance(body, list) else None
    if not isinstance(rows, list):
        raise ProtocolError(
            f"{target.provider} at {target.url!r} answers, but not with a list of models",
            hint=f"check that the base URL {target.url!r} is one of {target.provider}'s API",
        )
    ids = (row.get("id") for row in rows if isinstance(row, dict))
    return frozenset(one.removeprefix("models/") for one in ids if isinstance(one, str)), date


async def _get(target: Target, path: str) -> tuple[Any, str]:
    url = endpoint(target.url, path)
    key = check_key(target.provider, url, target.key)
    async with post(
        url,
        None,
        headers=_headers(target, key.value),
        provider=target.provider,
        limits=_LIMITS,
        secrets=key.secrets,
        method="GET",
    ) as reply:
        body = await reply.body(_MOST)
        date = reply.headers.get("Date", "")
    try:
        return json.loads(body), date
    except ValueError as error:
        raise reply.peer.protocol("no JSON but " + reply.peer.excerpt(body)) from error


def _headers(target: Target, key: str) -> Mapping[str, str]:
    plain = {name: value for name, value in HEADERS.items() if name != "content-type"}
    if target.dialect == "anthropic":
        return {**plain, "anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
    if not key:
        return plain
    return {
        **plain,
        **({"api-key": key} if target.provider == "azure" else {"authorization": f"Bearer {key}"}),
    }


def _at_home(target: Target) -> bool:
    return origin(target.url) in find_provider(target.provider).origins


# --- what it means ------------------------------------------------------------------------------------------------


def _answered(target: Target, listed: frozenset[str], facts: Mapping[str, Any]) -> Check:
    key = (
        f"the key from {target.key_source or 'the settings'} works at"
        if target.key
        else "no key is needed at"
    )
    return check(
        f"provider.{target.name}",
        OK,
        f"{target.provider}: {key} {target.url} ({len(listed)} models, {facts['seconds']:.2f} s)",
        **facts,
        outcome="works",
        models=len(listed),
    )


def _failure(target: Target, error: GraphtonError, certificate: Mapping[str, Any] | None = None) -> Check:
    """A provider that a run would use decides; of another one it is worth a word, but where it is just not there."""
    outcome = _outcome(error)
    row = find_provider(target.provider)
    status = FAIL if target.role == "run" else WARN
    message, hint = error.message, error.hint
    if target.provider not in message:
        message = f"{target.provider}: {message}"
    if certificate:
        message += (
            f"; it is for {certificate['subject']}, signed by {certificate['issuer']}, "
            f"valid from {certificate['from']} to {certificate['until']}"
        )
    if outcome == "refused" and target.role == "other" and row.local:
        status, hint = SKIP, ""
    if outcome in ("key_refused", "forbidden") and target.key:
        hint = (
            f"the key is from {target.key_source or 'the settings'}; get a good one, then export "
            f"{row.key_variable}=…, or: stigmer secret set {row.key_variable}"
        )
    if outcome == "key_refused" and not target.key:
        hint = f"that server wants a key: export {row.key_variable or 'STIGMER_LLM_API_KEY'}=… beside its address"
    if outcome == "no_list":
        status = WARN
        message += "; it lists no models, so the key was not tried"
    if outcome == "rate_limited":
        status = WARN
    return check(
        f"provider.{target.name}",
        status,
        message,
        hint,
        **_facts(target),
        outcome=outcome,
        http_status=error.status if isinstance(error, StatusError) else None,
        certificate=dict(certificate or {}),
    )


def _outcome(error: GraphtonError) -> str:
    """A stable word for what came of the question."""
    match error:
        case StatusError(status=401):
            return "key_refused"
        case StatusError(status=400) if "api key" in error.message.lower():
            return "key_refused"  # So says Gemini.
        case StatusError(status=403):
            return "forbidden"
        case StatusError(status=404 | 405):
            return "no_list"
        case StatusError(status=429):
            return "rate_limited"
        case StatusError():
            return "server_error"
        case ProviderTimeout():
            return f"timeout_{error.limit}"
        case ConnectError():
            return error.trouble
        case RedirectRefused():
            return "redirect"
        case _:
            return "protocol"


async def _model(
    target: Target, model: str, listed: frozenset[str], deadline: float, *, number: int
) -> Check:
    """Whether the provider still has the model, by its own list and, where one can be asked, by name.

    The first is the run's, where the provider is; the others are fallbacks.
    """
    role = target.role if number == 0 else "fallback"
    row = lookup(ModelRef(target.provider, model))
    ended = row.retires is not None and datetime.now(UTC).date() >= row.retires
    facts = {
        "provider": target.provider,
        "model": model,
        "role": role,
        "retires": str(row.retires or ""),
    }
    id = f"provider.{target.name}.model" + (f".{number + 1}" if number else "")
    there = model in listed or await _there(target, model, deadline)
    if there and not ended:
        return check(id, OK, f"{target.provider} has the model {model!r}", **facts, found=True)
    successor = f"take its successor: --model {target.provider}:{row.successor}" if row.successor else ""
    if ended and there is not False:
        return check(
            id,
            WARN,
            f"the model {model!r} ended on {row.retires}, by our table",
            successor,
            **facts,
            found=there,
        )
    near = _like(model, listed)
    hint = successor or (f"take one that it has, e.g. --model {target.provider}:{near}" if near else "")
    if there is None:
        return check(
            id, WARN, f"{target.provider} does not list the model {model!r}", hint, **facts, found=None
        )
    status = FAIL if role == "run" else WARN
    return check(
        id,
        status,
        f"{target.provider} has no model {model!r}",
        hint or "see its list of models",
        **facts,
        found=False,
    )


async def _there(target: Target, model: str, deadline: float) -> bool | None:
    """The provider's word on one name that its list does not hold: an alias, perhaps. None: it cannot be asked."""
    if target.provider == "azure" or not (target.dialect in ("anthropic", "responses") or _lists_all(target)):
        return None
    if _lists_all(target):
        return False
    path = "/v1/models/" if target.dialect == "anthropic" else "/models/"
    try:
        async with asyncio.timeout_at(deadline):
            await _get(target, path + quote(model, safe=""))
    except StatusError as error:
        return False if error.status == 404 else None
    except (GraphtonError, TimeoutError):
        return None
    return True


def _lists_all(target: Target) -> bool:
    """vLLM serves what it lists, and nothing else."""
    return target.provider == "vllm"


def _like(model: str, listed: frozenset[str]) -> str:
    from difflib import get_close_matches

    return next(iter(get_close_matches(model, sorted(listed), n=1)), "")


def _clock(target: Target, date: str) -> list[Check]:
    """How far this machine's clock is from the provider's; nothing where it gives no date."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return []
    skew = time.time() - theirs
    facts = {"seconds_ahead": round(skew), "by": target.url}
    if abs(skew) > SKEW:
        way = "ahead of" if skew > 0 else "behind"
        return [
            check(
                "network.clock",
                WARN,
                f"this machine's clock is {abs(skew):.0f} s {way} that of {target.url}",
                "set the clock right, e.g. timedatectl set-ntp true",
                **facts,
            )
        ]
    return [check("network.clock", OK, f"the clock agrees with that of {target.url}", **facts)]
