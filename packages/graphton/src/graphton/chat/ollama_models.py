"""Fetching and removing the models of an Ollama: it does the work, we tell how it goes and what went wrong.

async for step in pull(server, "qwen3:8b"):
    print(step.done, step.total, step.text)
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from graphton.chat import _json
from graphton.chat._http import HEADERS, Limits, endpoint, fetch, post
from graphton.chat._wire import dumps
from graphton.chat.ollama_facts import SHOW_SECONDS, Server
from graphton.errors import BrokenStream, DownloadError, ProviderTimeout, StatusError

__all__ = ["Step", "knows", "pull", "remove"]

_PATIENCE = Limits(connect=5.0, first_token=120.0, idle=900.0)
"""The registry may be slow to answer, and Ollama is silent while it checks the digest of a large file."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a pull has come: bytes of all layers that are known by now, and what is being done."""

    done: int
    total: int
    text: str


async def knows(server: Server, name: str) -> bool:
    """Whether the server has a model that it takes this name for, in whatever spelling; its own word where the list says no."""
    if server.installed_model(name) is not None:
        return True
    try:
        await _send(server, "POST", "/api/show", {"model": name})
    except StatusError as error:
        if error.status in (400, 404):
            return False
        raise
    return True


async def pull(server: Server, name: str, *, insecure: bool = False) -> AsyncGenerator[Step]:
    """Let the server fetch a model, and tell how it goes; leaving early stops it, and what came is kept there.

    `insecure`: it may ask its registry without TLS. Raises DownloadError with what helps, or a ProviderError where the
    server itself cannot be asked.
    """
    layers: dict[str, tuple[int, int]] = {}
    text = "waiting for Ollama"
    body = dumps({"model": name, "stream": True, "insecure": insecure})
    try:
        async with (
            post(
                endpoint(server.base_url, "/api/pull"),
                body,
                headers=_headers(server),
                provider=server.key.provider,
                limits=_PATIENCE,
                secrets=server.key.secrets,
            ) as reply,
            aclosing(reply.lines()) as lines,
        ):
            async for line in lines:
                event = _read(line)
                if error := event.get("error"):
                    raise _failed(server, name, str(error))
                text = str(event.get("status") or text)
                if digest := event.get("digest"):
                    layers[str(digest)] = (int(event.get("completed") or 0), int(event.get("total") or 0))
                if text == "success":
                    return
                done, total = (sum(one) for one in zip(*layers.values(), strict=True)) if layers else (0, 0)
                yield Step(done, total, _told(text))
    except StatusError as error:
        raise _failed(server, name, error.message) from error
    except (BrokenStream, ProviderTimeout) as error:
        raise DownloadError(
            f"the pull of {name!r} broke off: {error.message}",
            hint=f"see that Ollama still runs, and try again: what has come is kept there; {_again(name)}",
        ) from error
    raise DownloadError(
        f"the pull of {name!r} ended without a word from the Ollama at {server.base_url}",
        hint=f"try again: what has come is kept there; {_again(name)}",
    )


async def remove(server: Server, name: str) -> None:
    """Let the server remove a model. Raises DownloadError where it has none of that name."""
    try:
        await _send(server, "DELETE", "/api/delete", {"model": name})
    except StatusError as error:
        if error.status in (400, 404):
            raise DownloadError(
                f"the Ollama at {server.base_url} has no model {name!r}", hint="stigmer models list"
            ) from error
        raise


async def _send(server: Server, method: str, path: str, body: Any) -> bytes:
    return await fetch(
        endpoint(server.base_url, path),
        dumps(body),
        headers=_headers(server),
        provider=server.key.provider,
        limits=Limits(SHOW_SECONDS, SHOW_SECONDS, SHOW_SECONDS),
        secrets=server.key.secrets,
        method=method,
    )


def _headers(server: Server) -> dict[str, str]:
    value = server.key.value
    return {**HEADERS, "authorization": f"Bearer {value}"} if value else dict(HEADERS)


def _read(line: bytes) -> dict[str, Any]:
    if not line.strip():
        return {}
    try:
        event = _json.loads(line)
    except ValueError as error:
        raise DownloadError(
            f"Ollama told its progress in a line that cannot be read: {line[:200].decode('utf-8', 'replace')!r}",
            hint="try again; a newer Ollama may help: https://ollama.com/download",
        ) from error
    return event if isinstance(event, dict) else {}


def _told(status: str) -> str:
    """A digest says nothing to people."""
    return "pulling" if re.fullmatch(r"pulling [0-9a-f]{12}", status) else status


# --- what went wrong --------------------------------------------------------------------------------------------------

_AGAIN = "and run it again: what has come is kept there, and it goes on"
_TROUBLES = (
    (
        r"no space left|not enough space|disk quota",
        "the disk of the Ollama at {where} is full",
        f"make room where it keeps its models (OLLAMA_MODELS, else ~/.ollama/models of its user), {_AGAIN}",
    ),
    (
        r"does not look like a TLS handshake|insecure protocol",
        "its registry speaks plain HTTP, which the Ollama at {where} takes only where it is told to",
        "if the network between them is yours: --insecure",
    ),
    (
        r"x509:|certificate|tls:",
        "the Ollama at {where} does not believe the registry's certificate",
        "a proxy that reads TLS? let the machine that runs Ollama trust its certificate (its system's store, or "
        f"SSL_CERT_FILE in Ollama's environment), {_AGAIN}",
    ),
    (
        r"requires a newer version|\b412\b",
        "the Ollama at {where} is too old for this model",
        "get a newer one: https://ollama.com/download",
    ),
    (
        r"unauthorized|access denied|\b40[13]\b|forbidden",
        "the registry refuses the Ollama at {where}",
        "the name may be private or mistyped; to sign in on the machine that runs Ollama: ollama signin",
    ),
    (
        r"file does not exist|\b404\b|not found|manifest unknown",
        "the registry of the Ollama at {where} has no such model",
        "look it up at https://ollama.com/library; a model of a catalogue of ours: stigmer models list",
    ),
    (
        r"invalid model name|invalid name|name .* is invalid",
        "no model can have that name",
        "write it like qwen3:8b or hf.co/bartowski/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
    ),
    (
        r"digest mismatch",
        "what the Ollama at {where} fetched is not what its registry promised, and it was deleted",
        "run it again; if it goes on, ask who runs the registry or the proxy in between",
    ),
    (
        r"permission denied|read-only file system",
        "the Ollama at {where} may not write its models",
        "see who owns the folder (OLLAMA_MODELS, else ~/.ollama/models of its user)",
    ),
    (
        r"no such host|dial tcp|connection re(fused|set)|timeout|timed out|unreachable|EOF|max retries|proxyconnect",
        "the Ollama at {where} does not reach its registry",
        f"check its network (it takes HTTPS_PROXY from its own environment, not from this one), {_AGAIN}",
    ),
)


def _failed(server: Server, name: str, said: str) -> DownloadError:
    """What Ollama said, as what it means and what helps; its own words stand behind."""
    for pattern, meaning, hint in _TROUBLES:
        if re.search(pattern, said, re.IGNORECASE):
            return DownloadError(
                f"model {name!r} could not be pulled: {meaning.format(where=server.base_url)} ({said})",
                hint=hint,
            )
    return DownloadError(
        f"model {name!r} could not be pulled by the Ollama at {server.base_url}: {said}",
        hint=f"{_again(name)}",
    )


def _again(name: str) -> str:
    return f"stigmer models pull {name}"
