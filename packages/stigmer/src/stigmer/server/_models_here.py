"""Whether the local models of a request are there, before it is accepted: a run that cannot begin is no run.

A hosted model, and one of a server over TCP, is not asked for: whether it answers, the run itself finds out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from graphton.catalog import known
from graphton.errors import BrokenStream, ConnectError, ModelNameError, ProtocolError, ProviderError

from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.preflight import patience
from stigmer.server.status import Refused

if TYPE_CHECKING:
    from graphton.chat.ollama_facts import Server

    from stigmer.server._resolve import Resolved

__all__ = ["check_model_file", "check_models", "models_elsewhere"]

FOLDERS = ("agent ", "file .stigmer/")
"""How the sources of what comes with a definition or a folder begin: it is not the user's own word."""
LOOKING_SECONDS = 5.0
"""What asking an Ollama whether it has a model may take; then the run finds out."""
SHOWN = 6
"""Installed models that are named at most."""


class _Used(NamedTuple):
    """A model that the request's agent, or one of its sub-agents, would call first."""

    provider: str
    model: str
    base_url: str
    sources: Mapping[str, str]
    """Of the settings `model` and `base_url`."""
    mode: str
    key: str | None
    has_fallback: bool


async def check_models(request: api.CreateExecutionRequest, resolved: Resolved, *, local: bool) -> None:
    """Raises Refused, with the way out, where a model that would run on this machine is not there.

    `local`: the request came from the user of this machine, whose Ollama we may ask.
    """
    elsewhere = models_elsewhere(request.shell)
    used = list(_used(resolved))
    for one in used:
        check_model_file(one.provider, one.model, one.base_url, elsewhere=elsewhere)
    if elsewhere and any(one.provider == "llamacpp" and not one.base_url for one in used):
        resolved.config.notices.append(elsewhere)
    for place in {(one.base_url, one.model): one for one in used if one.provider == "ollama"}.values():
        if local:
            await _check_ollama(place)


def _used(resolved: Resolved) -> Iterator[_Used]:
    keys = {(provider, url): key for provider, url, key in resolved.fallback_keys}
    children = [(child.settings, child.models) for child in resolved.config.subagents]
    main = pb.ResolvedModel(provider=resolved.provider, model=resolved.model, base_url=resolved.base_url)
    for settings, models in [(resolved.config.settings, [main, *resolved.config.models[1:]]), *children]:
        first = models[0]
        key = resolved.key if first is main else keys.get((first.provider, first.base_url))
        sources = {row.name: row.source for row in settings}
        mode = next((json.loads(row.value) for row in settings if row.name == "mode"), "")
        yield _Used(first.provider, first.model, first.base_url, sources, mode, key, len(models) > 1)


# ---- an Ollama


async def _check_ollama(used: _Used) -> None:
    import aiohttp  # noqa: F401  # Not before a local model is wanted, and before the clock runs.
    from graphton.chat.ollama_facts import measure
    from graphton.chat.ollama_models import knows

    try:
        async with asyncio.timeout(LOOKING_SECONDS):
            server = await measure(used.base_url, api_key=used.key, seconds=patience(used.base_url))
            if await knows(server, used.model):
                await _keep_data_at_home(used, server)
                return
    except (BrokenStream, ConnectError) as error:
        if used.has_fallback:
            return  # It takes over, as for any model that cannot be reached.
        raise _not_reached(used, error) from error
    except ProtocolError as error:
        where = used.sources.get("base_url", "")
        raise Refused(f"{error.message} (address: {where})", code="protocol", hint=error.hint) from error
    except (ProviderError, TimeoutError):
        return  # It is slow, or wants a key: the run has more patience, and says what is wrong.
    raise _not_installed(used, server)


async def _keep_data_at_home(used: _Used, server: Server) -> None:
    """An Ollama may only pass requests on: what comes with a folder does not send data away in mode local."""
    from graphton.chat.ollama_facts import model_facts

    said = used.sources.get("model", "")
    if used.mode != "local" or not said.startswith(FOLDERS):
        return
    facts = await model_facts(server, used.model)
    if facts is not None and facts.remote:
        raise Refused(
            f"model {used.model!r} from {said} is served by {facts.remote}, which is outside this machine, and the "
            "mode is local",
            code="config",
            hint=f"say so yourself: --model {used.model}",
        )


def _not_reached(used: _Used, error: BrokenStream | ConnectError) -> Refused:
    from graphton import catalog

    ours = next((entry.name for entry in catalog.CATALOG if catalog.path_of(entry.name)), "")
    here = f" ({ours} is on this machine)" if ours else f" (fetches {catalog.CATALOG[0].name} first)"
    return Refused(
        f"{error.message} (address: {used.sources.get('base_url', '')})",
        code="unreachable",
        hint=f"{error.hint}; or without it, on the built-in llama.cpp: --provider llamacpp{here}",
    )


def _not_installed(used: _Used, server: Server) -> Refused:
    names = _nearest_first(used.model, [row.name for row in server.installed])
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return Refused(
        f"model {used.model!r} ({used.sources.get('model', '')}) is not installed at the Ollama at "
        f"{server.base_url} ({used.sources.get('base_url', '')})",
        code="not_installed",
        hint=f"stigmer models pull {'--on ollama ' if known(used.model) else ''}{used.model}"
        + (f"; or take one that is installed: {shown}" if shown else "; nothing is installed there"),
        details={
            "name": used.model,
            "base_url": server.base_url,
            "installed": ", ".join(names),
            "named_by": used.sources.get("model", ""),
            "of_folder": "yes" if used.sources.get("model", "").startswith(FOLDERS) else "",
        },
    )


def _nearest_first(name: str, names: Sequence[str]) -> list[str]:
    """The installed ones, those that look like the wanted one first: a slip of the keys is the likeliest reason."""
    bare = name.partition(":")[0]
    near = get_close_matches(name, names, n=SHOWN, cutoff=0.6)
    same = [one for one in names if one.partition(":")[0] == bare]
    return list(dict.fromkeys([*same, *near, *names]))


# ---- a file of our own


def models_elsewhere(shell: Mapping[str, str]) -> str:
    """What a caller must know whose STIGMER_MODELS is not this process's: model files are looked for in one folder."""
    from graphton import catalog

    named, ours = shell.get("STIGMER_MODELS", ""), str(catalog.models_dir())
    if named in ("", ours):
        return ""
    return (
        f"STIGMER_MODELS={named!r} of this shell does not count: the running daemon looks in {ours!r}; "
        "to start it anew with yours: stigmer down"
    )


def check_model_file(provider: str, model: str, base_url: str, *, elsewhere: str = "") -> None:
    """A model that we would serve ourselves must be on this machine; downloading it is the caller's decision.

    `elsewhere`: the caller keeps models in another folder, so that what it downloads would not be found.
    """
    if provider != "llamacpp" or base_url:
        return
    from graphton import catalog

    own = catalog.by_path(model)
    if own is not None:
        if not own.is_file():
            raise ModelNameError(f"there is no model file {str(own)!r}", hint="stigmer models list")
        return
    entry = catalog.find(model)
    if catalog.path_of(model) is None and elsewhere:
        raise Refused(
            f"the model {entry.name} is not in {str(catalog.models_dir())!r}",
            code="model_missing",
            hint=elsewhere,
        )
    if catalog.path_of(model) is None and str(entry.sources[0]).startswith("file:"):
        raise ModelNameError(
            f"the file of model {entry.name!r} is not where it was: {entry.sources[0]!s}",
            hint=f"put it back, or forget it: stigmer models remove {entry.name}",
        )
    if catalog.path_of(model) is None:
        source = str(entry.sources[0])
        raise Refused(
            f"the model {entry.name} is not on this machine ({entry.size / 1e9:.1f} GB, from {source})",
            code="model_missing",
            hint=f"stigmer models pull {entry.name}",
            details={"name": entry.name, "size": str(entry.size), "source": source},
        )
