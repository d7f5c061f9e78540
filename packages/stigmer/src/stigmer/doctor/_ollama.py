"""The Ollama at the resolved address: is it one, what has it, and will the model of the default run work there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from graphton import catalog
from graphton.chat._aiohttp import aiohttp  # noqa: F401  # Imported late by the client; here before any limit runs.
from graphton.chat._machine import free_memory
from graphton.chat.ollama_facts import SINCE, Server, measure, model_facts
from graphton.chat.ollama_models import knows
from graphton.errors import ConnectError, GraphtonError, ProviderTimeout

from stigmer import preflight
from stigmer.config._installed import best
from stigmer.doctor._check import FAIL, OK, SKIP, WARN, Check, check
from stigmer.doctor._ollama_model import described

__all__ = ["SECONDS", "look"]

REACH_SECONDS = 2.0
SECONDS = 6.0
"""For all that it has and has loaded, where it has said what it is: it may be slow, but it is one."""
SHOW_SECONDS = 6.0
"""For describing one model: a tenth of it where the server's machine has nothing else to do."""


async def look(asked: Mapping[str, Any]) -> list[Check]:
    """`asked`: url, source and key of the address; `model`, `window` and `max_tokens` where the run goes there."""
    used = asked["model"] is not None
    try:
        async with asyncio.timeout(SECONDS):
            server = await measure(asked["url"], api_key=asked["key"] or None, seconds=REACH_SECONDS)
    except TimeoutError:
        text = f"what listens at {asked['url']} gave no whole answer within {SECONDS:g} s"
        return [
            _not_there(asked, "timeout", text, "see what listens there: curl {url}/api/version", used=used)
        ]
    except GraphtonError as error:
        outcome = _outcome(error)
        return [_not_there(asked, outcome, error.message, error.hint, used=used)]
    found = [_server(server, asked)]
    if not used:
        return found
    try:
        async with asyncio.timeout(SHOW_SECONDS):
            if not await knows(server, asked["model"]):
                return [*found, await _missing(server, asked["model"])]
            facts = await model_facts(server, asked["model"])
    except (GraphtonError, TimeoutError) as error:
        why = error.message if isinstance(error, GraphtonError) else f"it took longer than {SHOW_SECONDS:g} s"
        return [*found, _undescribed(asked["model"], f"the server did not describe it: {why}")]
    if facts is None:
        return [*found, _undescribed(asked["model"], "the server lists it under another name")]
    return [*found, *described(server, facts, asked)]


def _outcome(error: GraphtonError) -> str:
    if isinstance(error, ConnectError):
        return error.trouble
    return "timeout" if isinstance(error, ProviderTimeout) else error.code


def _not_there(asked: Mapping[str, Any], outcome: str, text: str, hint: str, *, used: bool) -> Check:
    """Without anybody naming an Ollama its absence is no fault: the built-in llama.cpp serves then."""
    quiet = outcome == "refused" and not asked["named"]
    return check(
        "ollama.server",
        FAIL if used else SKIP if quiet else WARN,
        f"{text} (address: {asked['source']})",
        hint.format(url=asked["url"]),
        url=asked["url"],
        source=asked["source"],
        reachable=False,
        outcome=outcome,
    )


def _server(server: Server, asked: Mapping[str, Any]) -> Check:
    facts = {
        "url": server.base_url,
        "source": asked["source"],
        "reachable": True,
        "outcome": "works",
        "version": server.version,
        "installed": [one.name for one in server.installed],
        "loaded": [one.name for one in server.loaded],
    }
    names = ", ".join(facts["installed"][:6]) + (", …" if len(server.installed) > 6 else "")
    version = server.version if server.number else "of a build without a number"
    text = f"Ollama {version} at {server.base_url} ({asked['source']}): {names or 'no model is installed'}"
    if not server.takes("truncate"):
        needed = ".".join(map(str, SINCE["truncate"]))
        return check(
            "ollama.server",
            WARN,
            f"{text}; it is older than {needed}, so it cuts long prompts and does not say so",
            "get a newer one: https://ollama.com/download",
            **facts,
        )
    return check("ollama.server", OK, text, **facts)


async def _missing(server: Server, model: str) -> Check:
    """The model is not installed; the best installed one is the way out that costs nothing."""
    rows = await preflight.installed(server.base_url, api_key=server.key.value or None)
    able = best(rows or (), free_memory())
    hint = f"fetch it: stigmer models pull {'--on ollama ' if catalog.known(model) else ''}{model}"
    if able:
        hint += f"; or take one that is installed: --model ollama:{able.name}"
    return check(
        "ollama.model",
        FAIL,
        f"the model {model!r} is not installed in the Ollama at {server.base_url}",
        hint,
        model=model,
        installed=False,
        instead=able.name if able else None,
    )


def _undescribed(model: str, why: str) -> Check:
    return check(
        "ollama.model",
        WARN,
        f"the model {model!r} is installed; {why}",
        f"see: ollama show {model}; where its file is damaged, remove and pull it again",
        model=model,
        installed=True,
    )
