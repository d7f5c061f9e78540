"""What an Ollama and its models really are: measured at the server, remembered by the model's digest.

    server = await measure("http://localhost:11434")
    facts = await model_facts(server, "qwen3:8b")
    facts.tools, facts.context_length, server.loaded_model("qwen3:8b")

What the server does not say is None, and never guessed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from graphton.chat import _json
from graphton.chat._failures import Peer, origin_of
from graphton.chat._http import HEADERS, Limits, endpoint, fetch
from graphton.chat._keys import Key, check_key
from graphton.chat._wire import dumps
from graphton.errors import (
    BrokenStream,
    ConnectError,
    ProtocolError,
    ProviderError,
    ProviderTimeout,
    StatusError,
)

__all__ = [
    "SINCE",
    "Installed",
    "Loaded",
    "ModelFacts",
    "Server",
    "loaded_models",
    "measure",
    "model_facts",
    "without_v1",
]

START = "start it with `ollama serve`, or set base_url (OLLAMA_HOST) to where it runs"
REACH_SECONDS = 0.9
"""How long an Ollama may take to say its version, before it counts as not running."""
SHOW_SECONDS = 10.0
"""What `/api/show` may take: it reads the head of the model's file, 0.4 s where the vocabulary is large."""

SINCE: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "tools": (0, 3, 0),
        "schema": (0, 5, 0),
        "capabilities": (0, 6, 4),
        "think": (0, 9, 0),
        "loaded window": (0, 10, 0),
        "think level": (0, 11, 0),
        "truncate": (0, 12, 6),
        "call ids": (0, 12, 10),
    }
)
"""The version from which Ollama takes, or tells, each of these; older ones ignore the field without a word."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A model that the server has, as `/api/tags` lists it."""

    name: str
    digest: str
    size: int
    """Bytes on its disk."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in the server's memory, as `/api/ps` lists it."""

    name: str
    """Of the name that it was loaded by: another one with the same file is served from there, too."""
    window: int | None
    """The context window that it was really given; versions before 0.10.0 do not say."""
    size: int | None
    """Bytes of memory, the window's part included."""
    vram: int | None
    """How many of them lie on a graphics card."""
    expires: datetime | None = None
    """When it is unloaded, should nobody use it until then."""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model, as `/api/show` describes it."""

    name: str
    digest: str
    size: int | None
    capabilities: frozenset[str] | None
    """completion, tools, thinking, vision, insert, embedding; versions before 0.6.4 do not say."""
    context_length: int | None
    """What it was made for."""
    kv_bytes: int | None
    """Memory that one token of the window takes, at two bytes a number. An upper bound: a server may be told to
    store less, and some layers look only at the last tokens."""
    template: str
    bare_template: bool
    """It knows only `{{ .Prompt }}`: the model sees neither the system text nor the tools, nor who said what."""
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Of its Modelfile, such as num_ctx or stop; of several with one name the last."""
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    remote: str = ""
    """The host that serves it, where Ollama only passes requests on."""

    @property
    def tools(self) -> bool | None:
        """Whether it takes tools; None: the server does not say."""
        return None if self.capabilities is None else "tools" in self.capabilities

    @property
    def thinks(self) -> bool | None:
        """Whether it can be told to think; None: the server does not say."""
        return None if self.capabilities is None else "thinking" in self.capabilities


@dataclass(frozen=True, slots=True)
class Server:
    """One Ollama at one moment."""

    base_url: str
    version: str
    """As it says it; a build without a number says 0.0.0."""
    installed: tuple[Installed, ...]
    loaded: tuple[Loaded, ...]
    key: Key = field(repr=False, compare=False)

    @property
    def number(self) -> tuple[int, int, int] | None:
        """The version as numbers that compare; None for a build that has none."""
        found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", self.version)
        number = (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)
        return None if number == (0, 0, 0) else number

    def takes(self, what: str) -> bool:
        """Whether this version knows a thing of `SINCE`. A build without a number is taken for a new one."""
        return self.number is None or self.number >= SINCE[what]

    def installed_model(self, name: str) -> Installed | None:
        """The installed model that a name means: without a tag it is `:latest`."""
        return next((one for one in self.installed if _same(one.name, name)), None)

    def loaded_model(self, name: str) -> Loaded | None:
        """The model in memory that a name means, or a copy of it: that is loaded by whichever name was used first."""
        row = self.installed_model(name)
        by_name = (one for one in self.loaded if _same(one.name, name))
        copies = (one for one in self.loaded if row is not None and row.digest and one.digest == row.digest)
        return next(by_name, None) or next(copies, None)


def without_v1(base_url: str) -> str:
    """A base URL as Ollama's own routes want it: without the /v1 of its OpenAI-compatible ones."""
    url = base_url.strip().rstrip("/")
    return url.removesuffix("/v1").rstrip("/")


async def measure(
    base_url: str, *, api_key: str | None = None, provider: str = "ollama", seconds: float = REACH_SECONDS
) -> Server:
    """Ask a server what it is and what it holds: a few milliseconds on this machine.

    Raises ConnectError where nothing listens, ProviderTimeout where nothing answers within `seconds`, ProtocolError
    where something else than an Ollama does (its text says what), StatusError where the server refuses (a key).
    """
    import aiohttp  # noqa: F401  # Before the clock runs: on a busy machine it takes longer than a server may.

    base = without_v1(base_url)
    key = check_key(provider, endpoint(base, "/api/version"), api_key)
    version = await _version(base, key, seconds)
    tags, running = await asyncio.gather(_get(base, "/api/tags", key, SHOW_SECONDS), _running(base, key))
    if not isinstance(tags, dict) or "models" not in tags:  # Many servers name a version there.
        raise await _no_ollama(base, key, "lists no models at /api/tags")
    return Server(
        base, version, tuple(map(_installed, _rows(tags))), tuple(map(_loaded, _rows(running))), key
    )


async def loaded_models(server: Server) -> tuple[Loaded, ...]:
    """What this server has in memory now."""
    return tuple(map(_loaded, _rows(await _running(server.base_url, server.key))))


_known: dict[tuple[str, str, str, str], ModelFacts] = {}


async def model_facts(server: Server, name: str) -> ModelFacts | None:
    """What is known of a model of this server; None where it is not installed. Asked once for each digest."""
    row = server.installed_model(name)
    if row is None:
        return None
    about = (server.base_url, server.version, row.name, row.digest)
    if about not in _known:
        shown = await _show(server, row.name)
        if shown is None:
            return None  # removed since
        _known[about] = _facts(row, shown)
    return _known[about]


# --- requests -----------------------------------------------------------------------------------------------------


async def _version(base: str, key: Key, seconds: float) -> str:
    """The version that the server says; what is not one becomes an error that says what is there instead."""
    try:
        async with asyncio.timeout(seconds):
            found = await _get(base, "/api/version", key, seconds)
    except (TimeoutError, ProviderTimeout) as error:
        raise ProviderTimeout(
            f"nothing at {origin_of(base)!r} ({key.provider}) answered within {seconds:g} s",
            limit="connect",
            hint=f"check that the address is right, and see: curl {base}/api/version",
            provider=key.provider,
            url=endpoint(base, "/api/version"),
        ) from error
    except ConnectError as error:
        if error.trouble == "refused":
            error.hint = START
        raise
    except BrokenStream as error:
        error.hint = (
            f"see what listens there: curl {base}/api/version; a forwarded port (docker, ssh -L) behind which nothing "
            "runs takes connections and closes them"
        )
        raise
    except StatusError as error:
        if error.status in (401, 403, 407) or error.status >= 500:
            raise
        raise await _no_ollama(base, key, f"answers {error.status} to /api/version") from error
    except ProtocolError as error:
        told = "HTTP" if _is_no_http(error) else "JSON"
        raise await _no_ollama(base, key, f"answers /api/version with no {told}") from error
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, str):
        raise await _no_ollama(base, key, "names no version")
    return version


async def _running(base: str, key: Key) -> Any:
    """What `/api/ps` says; versions before 0.1.38 have no such route."""
    try:
        return await _get(base, "/api/ps", key, SHOW_SECONDS)
    except StatusError as error:
        if error.status == 404:
            return None
        raise


async def _no_ollama(base: str, key: Key, why: str) -> ProtocolError:
    """The error for a server that is none, with what it is instead, as far as it can be told."""
    what, hint = await _what_is_there(base, key)
    return ProtocolError(
        f"what listens at {origin_of(base)!r} is no Ollama but {what}: it {why}",
        hint=hint
        or "set base_url (OLLAMA_HOST) to the address of an Ollama, for example http://localhost:11434",
        provider=key.provider,
        url=endpoint(base, "/api/version"),
    )


_OWNERS = {"llamacpp": ("a llama.cpp server", "llamacpp"), "vllm": ("a vLLM server", "vllm")}


async def _what_is_there(base: str, key: Key) -> tuple[str, str]:
    """What answers at an address that is no Ollama's, and how it is used."""
    try:
        listed = await _get(base, "/v1/models", key, REACH_SECONDS)
        owner = str(listed["data"][0].get("owned_by", "")) if listed["data"] else ""
        what, provider = _OWNERS.get(owner, ("a server of OpenAI's API", "lmstudio"))
        return what, f"use it as --provider {provider} --base-url {base}/v1"
    except ProtocolError as error:
        return "something else" if _is_no_http(error) else "a web server", ""
    except (ProviderError, LookupError, TypeError, AttributeError):
        return "a web server", ""


def _is_no_http(error: ProtocolError) -> bool:
    """Whether what was sent could not be read as HTTP at all, as by an SSH server."""
    return " sent no valid HTTP: " in error.message


async def _show(server: Server, name: str) -> dict[str, Any] | None:
    try:
        shown = await _post(server, "/api/show", {"model": name})
    except StatusError as error:
        if error.status == 404:
            return None
        raise
    return shown if isinstance(shown, dict) else {}


async def _post(server: Server, path: str, body: Any) -> Any:
    return await _send(server.base_url, path, server.key, SHOW_SECONDS, dumps(body), "POST")


async def _get(base: str, path: str, key: Key, seconds: float) -> Any:
    return await _send(base, path, key, seconds, None, "GET")


async def _send(base: str, path: str, key: Key, seconds: float, body: bytes | None, method: str) -> Any:
    url = endpoint(base, path)
    answer = await fetch(
        url,
        body,
        headers={**HEADERS, "authorization": f"Bearer {key.value}"} if key.value else HEADERS,
        provider=key.provider,
        limits=Limits(seconds, seconds, seconds),
        secrets=key.secrets,
        method=method,
    )
    try:
        return _json.loads(answer)
    except (ValueError, RecursionError) as error:
        peer = Peer(key.provider, url, key.secrets)
        raise peer.protocol(f"no JSON in answer to {path}: {peer.excerpt(answer)}") from error


# --- answers ------------------------------------------------------------------------------------------------------


def _rows(answer: Any) -> list[dict[str, Any]]:
    """The models of a list; an old server without the route, or a proxy that hides it, has said nothing."""
    listed = answer.get("models") if isinstance(answer, dict) else None
    return [row for row in listed or () if isinstance(row, dict)]


def _installed(row: dict[str, Any]) -> Installed:
    return Installed(str(row.get("name") or ""), str(row.get("digest") or ""), _int(row.get("size")) or 0)


def _loaded(row: dict[str, Any]) -> Loaded:
    return Loaded(
        str(row.get("name") or ""),
        _int(row.get("context_length")) or None,
        _int(row.get("size")),
        _int(row.get("size_vram")),
        _time(row.get("expires_at")),
        str(row.get("digest") or ""),
    )


def _facts(row: Installed, shown: Mapping[str, Any]) -> ModelFacts:
    info, details = shown.get("model_info") or {}, shown.get("details") or {}
    can, template = shown.get("capabilities"), str(shown.get("template") or "")
    remote = str(shown.get("remote_host") or "")
    return ModelFacts(
        name=row.name,
        digest=row.digest,
        size=None if remote else row.size or None,
        capabilities=frozenset(map(str, can)) if isinstance(can, list) else None,
        context_length=_int(_of_architecture(info, "context_length")),
        kv_bytes=_kv_bytes(info),
        template=template,
        bare_template=_is_bare(template, str(shown.get("modelfile") or ""), shown.get("renderer")),
        parameters=_parameters(str(shown.get("parameters") or "")),
        family=str(details.get("family") or ""),
        parameter_size=str(details.get("parameter_size") or ""),
        quantization=str(details.get("quantization_level") or ""),
        remote=remote,
    )


def _of_architecture(info: Mapping[str, Any], name: str) -> Any:
    return info.get(f"{info.get('general.architecture')}.{name}")


def _kv_bytes(info: Mapping[str, Any]) -> int | None:
    """Bytes of the cache for one token, a key and a value in each layer; None where a layer may work otherwise."""
    layers, heads, embedding = (
        _int(_of_architecture(info, name))
        for name in ("block_count", "attention.head_count", "embedding_length")
    )
    kv_heads = _of_architecture(info, "attention.head_count_kv")
    recurrent = any(".ssm." in name or name.endswith("full_attention_interval") for name in info)
    if layers is None or recurrent:
        return None
    width = embedding // heads if embedding and heads else None
    key = _int(_of_architecture(info, "attention.key_length")) or width
    value = _int(_of_architecture(info, "attention.value_length")) or width
    each = kv_heads if isinstance(kv_heads, list) else [heads if kv_heads is None else kv_heads] * layers
    if key is None or value is None or not all(isinstance(one, int) for one in each):
        return None
    return sum(each) * (key + value) * 2


def _is_bare(template: str, modelfile: str, renderer: Any) -> bool:
    """Whether prompts are built by nothing but `{{ .Prompt }}`: a renderer of the server's own takes its place."""
    if renderer or re.search(r"^RENDERER\s", modelfile, re.MULTILINE):
        return False
    return re.sub(r"[{}\s-]", "", template) in ("", ".Prompt")


def _parameters(text: str) -> Mapping[str, str]:
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return MappingProxyType({pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs})


def _same(listed: str, name: str) -> bool:
    name = name.lower()
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return listed.lower() in (name, tagged)


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _time(value: Any) -> datetime | None:
    try:
        # Go writes nine digits of a second, which Python reads down to six.
        found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(value)))
    except ValueError:
        return None
    return found if found.tzinfo else None
