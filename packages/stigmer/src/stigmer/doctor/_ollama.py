"""The Ollama at the resolved address: is it one, what has it, and will the model of the default run work there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from graphton import catalog
from graphton._proxies import is_loopback
from graphton.chat._aiohttp import aiohttp  # noqa: F401  # Imported late by the client; here before any limit runs.
from graphton.chat._machine import free_memory
from graphton.chat._window import ROOM_TO_GROW, rung
from graphton.chat.ollama_facts import SINCE, Loaded, ModelFacts, Server, measure, model_facts
from graphton.errors import ConnectError, GraphtonError, ProviderTimeout
from graphton.models import ModelRef, tool_mode

from stigmer import preflight
from stigmer.config._installed import best
from stigmer.doctor._check import FAIL, OK, SKIP, WARN, Check, check

__all__ = ["SECONDS", "look"]

SECONDS = 2.5
SHOW_SECONDS = 6.0
"""For describing one model: a tenth of it where the server's machine has nothing else to do."""
FIRST_PROMPT = 900
"""Tokens of the default agent's first request."""


async def look(asked: Mapping[str, Any]) -> list[Check]:
    """`asked`: url, source and key of the address; `model`, `window` and `max_tokens` where the run goes there."""
    used = asked["model"] is not None
    try:
        async with asyncio.timeout(SECONDS):
            server = await measure(asked["url"], api_key=asked["key"] or None)
    except TimeoutError:
        text = f"nothing at {asked['url']} gave a whole answer within {SECONDS:g} s"
        return [
            _not_there(asked, "timeout", text, "see what listens there: curl {url}/api/version", used=used)
        ]
    except GraphtonError as error:
        outcome = _outcome(error)
        return [_not_there(asked, outcome, error.message, error.hint, used=used)]
    found = [_server(server, asked)]
    if not used:
        return found
    if server.installed_model(asked["model"]) is None:
        return [*found, await _missing(server, asked["model"])]
    try:
        async with asyncio.timeout(SHOW_SECONDS):
            facts = await model_facts(server, asked["model"])
    except (GraphtonError, TimeoutError) as error:
        return [*found, _undescribed(asked["model"], error)]
    if facts is None:  # Removed just now.
        return [*found, await _missing(server, asked["model"])]
    loaded = server.loaded_model(facts.name)
    window = _window(asked, facts, loaded)
    return [
        *found,
        _model(facts),
        *_template(facts),
        _tools(facts),
        _loaded(facts, loaded, window),
        *_memory(server, facts, loaded, window),
    ]


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


def _undescribed(model: str, error: GraphtonError | TimeoutError) -> Check:
    why = error.message if isinstance(error, GraphtonError) else f"it took longer than {SHOW_SECONDS:g} s"
    return check(
        "ollama.model",
        WARN,
        f"the model {model!r} is installed; the server did not describe it: {why}",
        f"try again, or: ollama show {model}",
        model=model,
        installed=True,
    )


def _model(facts: ModelFacts) -> Check:
    can = sorted(facts.capabilities) if facts.capabilities is not None else None
    size = f"{facts.size / 1e9:.1f} GB" if facts.size else facts.remote or "of unknown size"
    about = ", ".join(part for part in (facts.parameter_size, facts.quantization, size) if part)
    numbers = {
        "model": facts.name,
        "installed": True,
        "digest": facts.digest,
        "bytes": facts.size,
        "capabilities": can,
        "context_length": facts.context_length,
        "quantization": facts.quantization,
        "remote": facts.remote,
    }
    if can is not None and "completion" not in can:
        return check(
            "ollama.model",
            FAIL,
            f"the model {facts.name!r} answers no chat: it can do {', '.join(can) or 'nothing'}",
            "take another one: ollama list",
            **numbers,
        )
    said = f"it can do {', '.join(can)}" if can else "the server does not say what it can do"
    made = f"; made for {facts.context_length:,} tokens" if facts.context_length else ""
    return check("ollama.model", OK, f"model {facts.name} ({about}): {said}{made}", **numbers)


def _template(facts: ModelFacts) -> list[Check]:
    if not facts.bare_template:
        return []
    return [
        check(
            "ollama.template",
            WARN,
            f"the template of {facts.name} is a bare {{{{ .Prompt }}}}: it sees neither the system text nor the tools",
            f"pull a model that brings its template (ollama pull …), or give this one: "
            f"ollama show --modelfile {facts.name}",
            template=facts.template,
        )
    ]


def _tools(facts: ModelFacts) -> Check:
    mode = tool_mode(ModelRef("ollama", facts.name))
    numbers = {"mode": mode, "native": facts.tools}
    if mode == "native" and facts.tools is False:
        return check(
            "ollama.tools",
            WARN,
            f"{facts.name} takes no tools natively, and tool mode {mode} is chosen for it",
            "take a model that can use tools: https://ollama.com/search?c=tools",
            **numbers,
        )
    words = {
        "native": "through Ollama's native tools",
        "envelope": "by replies held to a schema",
        "recovery": "by calls recovered from its text",
    }
    return check("ollama.tools", OK, f"tools are used {words.get(mode, mode)} (tool mode {mode})", **numbers)


def _window(asked: Mapping[str, Any], facts: ModelFacts, loaded: Loaded | None) -> int:
    """The window that the first request of the default run will ask for."""
    if asked["window"]:
        return int(asked["window"])
    return rung(FIRST_PROMPT + int(asked["max_tokens"] or 0) + ROOM_TO_GROW, facts.context_length)


def _loaded(facts: ModelFacts, loaded: Loaded | None, window: int) -> Check:
    numbers = {
        "window": window,
        "loaded": loaded is not None,
        "loaded_window": loaded.window if loaded else None,
        "memory_bytes": loaded.size if loaded else None,
        "gpu_bytes": loaded.vram if loaded else None,
    }
    if loaded is None:
        return check(
            "ollama.window",
            OK,
            f"not loaded; a first short task loads it with a window of {window:,} tokens",
            **numbers,
        )
    where = ""
    if loaded.size:
        part = (loaded.vram or 0) / loaded.size
        where = f", {loaded.size / 1e9:.1f} GB of memory, {part:.0%} of it on the graphics card"
    has = f"a window of {loaded.window:,} tokens" if loaded.window else "a window that it does not tell"
    text = f"loaded with {has}{where}"
    if loaded.window and loaded.window < window:
        text += f"; a run asks for {window:,}, so it is loaded again"
    return check("ollama.window", OK, text, **numbers)


def _memory(server: Server, facts: ModelFacts, loaded: Loaded | None, window: int) -> list[Check]:
    """What loading takes against what is free, where the server runs on this machine and the model does not yet."""
    here = is_loopback(urlsplit(server.base_url).hostname or "")
    if not here or loaded is not None or not facts.size:
        return []
    needed, free = facts.size + (facts.kv_bytes or 0) * window, free_memory()
    numbers = {"needed_bytes": needed, "free_bytes": free}
    text = (
        f"it takes about {needed / 1e9:.1f} GB with that window, and {free / 1e9:.1f} GB of memory are free"
    )
    if needed > free:
        return [
            check(
                "ollama.memory",
                WARN,
                f"{text} (a graphics card's own memory is not counted)",
                "end other programs, or take a smaller model or a smaller window: --context-window 4096",
                **numbers,
            )
        ]
    return [check("ollama.memory", OK, text, **numbers)]
