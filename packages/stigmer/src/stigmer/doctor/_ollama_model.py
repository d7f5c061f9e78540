"""The model of an Ollama that the default run asks: what it can do, how it is used, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphton._tool_modes import ToolModes, without_a_trial
from graphton.chat._ollama_known import Known
from graphton.chat._tool_facts import ToolFacts
from graphton.chat._window import Bounds, choose, fits_loaded
from graphton.chat.ollama_facts import SINCE, Loaded, ModelFacts, Server
from graphton.models import ModelRef, lookup, tool_mode

from stigmer.doctor._check import FAIL, OK, WARN, Check, check

__all__ = ["FIRST_PROMPT", "described"]

FIRST_PROMPT = 900
"""Tokens of the default agent's first request."""


def described(server: Server, facts: ModelFacts, asked: Mapping[str, Any]) -> list[Check]:
    """Everything about it. `asked`: window, max_tokens, whether somebody said that, and the file of tool modes."""
    known = Known(server.base_url, facts.name)
    known.server, known.facts = server, facts
    window, wanted = _window(known, facts, asked)
    return [
        _model(facts),
        *_template(facts),
        _tools(server, facts, asked),
        _loaded(known.loaded, window),
        *_memory(known, window, wanted),
    ]


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


def _tools(server: Server, facts: ModelFacts, asked: Mapping[str, Any]) -> Check:
    """The way that a run will take, as the table, the server or an earlier trial says."""
    ref = ModelRef("ollama", facts.name)
    identity = f"ollama {facts.digest}" if facts.digest else ""
    found = without_a_trial(ref, ToolFacts(identity, facts.tools, facts.bare_template))
    tried = None if found else ToolModes(Path(asked["tool_modes"])).recall(identity)
    mode = found.mode if found else tried
    numbers = {"mode": mode, "native": facts.tools, "tried": tried is not None}
    if mode is None:
        text = "how it uses tools is tried out before its first run, in a few seconds"
        return check("ollama.tools", OK, text, **numbers)
    words = {
        "native": "through Ollama's native tools",
        "envelope": "by replies held to a schema",
        "recovery": "by calls recovered from its text",
    }
    why = f": it {found.why}" if found and found.why else "; so a trial has found" if tried else ""
    text = f"tools are used {words.get(mode, mode)} (tool mode {mode}){why}"
    needs = "schema" if mode == "envelope" else "tools"
    if not server.takes(needs):
        since = ".".join(map(str, SINCE[needs]))
        text += f", which this Ollama does not know: it is older than {since}"
        return check("ollama.tools", WARN, text, "get a newer one: https://ollama.com/download", **numbers)
    if mode != "native" and tool_mode(ref) == "native":
        hint = "take a model that can use tools: https://ollama.com/search?c=tools"
        return check("ollama.tools", WARN, text, hint, **numbers)
    return check("ollama.tools", OK, text, **numbers)


def _window(known: Known, facts: ModelFacts, asked: Mapping[str, Any]) -> tuple[int, int]:
    """The window that a first short task asks for, and the one that it would be with memory enough."""
    if asked["window"]:
        return int(asked["window"]), int(asked["window"])
    limit = facts.context_length or lookup(ModelRef("ollama", facts.name)).context_window
    reply, said = int(asked["max_tokens"] or 0), bool(asked["max_tokens_said"])
    choice = choose(FIRST_PROMPT, reply, Bounds(limit, known.largest_window()), said=said)
    loaded = known.loaded.window if known.loaded else None
    if loaded and fits_loaded(loaded, FIRST_PROMPT, choice, said=said):
        return loaded, choice.wanted
    return choice.window, choice.wanted


def _loaded(loaded: Loaded | None, window: int) -> Check:
    numbers = {
        "window": window,
        "loaded": loaded is not None,
        "loaded_window": loaded.window if loaded else None,
        "memory_bytes": loaded.size if loaded else None,
        "gpu_bytes": loaded.vram if loaded else None,
    }
    if loaded is None:
        text = f"not loaded; a first short task loads it with a window of {window:,} tokens"
        return check("ollama.window", OK, text, **numbers)
    where = ""
    if loaded.size:
        part = (loaded.vram or 0) / loaded.size
        where = f", {loaded.size / 1e9:.1f} GB of memory, {part:.0%} of it on the graphics card"
    has = f"a window of {loaded.window:,} tokens" if loaded.window else "a window that it does not tell"
    again = (
        f"; a run asks for {window:,}, so it is loaded again" if loaded.window not in (None, window) else ""
    )
    return check("ollama.window", OK, f"loaded with {has}{where}{again}", **numbers)


def _memory(known: Known, window: int, wanted: int) -> list[Check]:
    """What it takes against what is free, where that can be known: on this machine, without a graphics card."""
    needed, free = known.needs(window), known.free()
    if not needed or free is None or known.loaded is not None:
        return []
    numbers = {"needed_bytes": needed, "free_bytes": free, "wanted_window": wanted}
    text = (
        f"it takes about {needed / 1e9:.1f} GB with that window, and {free / 1e9:.1f} GB of memory are free"
    )
    if window < wanted:
        text += f"; with enough it would be {wanted:,} tokens"
    if needed > free or window < wanted:
        hint = "end other programs, or take a smaller model: stigmer models list"
        return [check("ollama.memory", WARN, text, hint, **numbers)]
    return [check("ollama.memory", OK, text, **numbers)]
