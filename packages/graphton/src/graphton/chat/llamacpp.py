"""Models that run on this machine without any other server: llama.cpp in a child process of ours, OpenAI's dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphton.catalog import CATALOG, Entry, by_path, known, models_dir, own_entries, path_of
from graphton.chat._gguf import read_head
from graphton.chat._llamacpp_pool import Key, Server, close_all, pool, served, wait_until_loaded
from graphton.chat._machine import free_memory
from graphton.chat.base import Chunk, Done, Request, WaitChunk
from graphton.chat.openai import OpenAIChat
from graphton.errors import BrokenStream, ConnectError, ModelMissing, ProviderError, SettingError, StatusError
from graphton.messages import StopReason
from graphton.models import ModelRef, ModelSettings

__all__ = ["LADDER", "LlamaCppChat", "ModelFile", "close_all", "locate", "served", "set_idle_seconds"]

LADDER = (8192, 16384, 32768)
"""Windows that we take, so that a model is not loaded again for every other number."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file that is, or would be, on this machine. 0: not known."""

    path: Path
    size: int
    context_window: int
    kv_bytes: int

    def memory(self, window: int) -> int:
        """Bytes that serving it takes. Measured with a window of 8192: 2.0 GB for 1.5b, 0.8 GB for 0.5b.

        The file is mapped, and about two thirds of it are copied in another order for the processor.
        """
        return self.size * 16 // 10 + self.kv_bytes * window + (100 << 20)


def locate(model: str) -> ModelFile:
    """The file of a model, by its name in the catalogue or its own path; raises ModelMissing when it is not here.

    >>> locate("qwen2.5-coder:1.5b").path  # doctest: +SKIP
    """
    if path := by_path(model):
        if not path.is_file():
            raise ModelMissing(
                f"there is no model file {str(path)!r}",
                name=model,
                hint="check the path; `stigmer models list` names the models that need none",
            )
        head = read_head(path)
        return ModelFile(path, path.stat().st_size, head.context_window, head.kv_bytes)
    entry = _entry(model)
    found = path_of(entry.name)
    if found is None:
        raise ModelMissing(
            f"model {entry.name!r} is not on this machine: {entry.size / 1e9:.1f} GB, from "
            f"{entry.publisher or 'an address of your own'} ({entry.licence or 'licence unknown'}), looked for in "
            f"{str(models_dir())!r}",
            name=entry.name,
            size=entry.size,
            source=str(entry.sources[0]),
            hint=f"stigmer models pull {entry.name}",
        )
    if not entry.context_window:  # A file of the user's own: only its head tells.
        head = read_head(found)
        return ModelFile(found, entry.size, head.context_window, head.kv_bytes)
    return ModelFile(found, entry.size, entry.context_window, entry.kv_bytes)


def _entry(model: str) -> Entry:
    entry = known(model)
    if entry is not None:
        return entry
    names = ", ".join(entry.name for entry in (*CATALOG, *own_entries()))
    raise ModelMissing(
        f"the built-in llama.cpp knows no model {model!r}",
        name=model,
        hint=f"take one of {names}, or the path of a .gguf file",
    )


def choose_window(file: ModelFile, asked: int | None, *, free: int, running: int = 0) -> tuple[int, str]:
    """The window to serve with, and a notice when it is less than was asked for.

    The smallest step of the ladder that holds what was asked for (8192 when nobody asked), lowered as far as memory
    demands. A window that is running already and is large enough is taken as it is.
    """
    limit = file.context_window or LADDER[-1]
    if asked is not None and file.context_window and asked > file.context_window:
        raise SettingError(
            f"context_window {asked} is above the {file.context_window} tokens that {file.path.name!r} can take",
            hint=f"context_window={file.context_window}",
        )
    wanted = min(asked or LADDER[0], limit) if asked is None else asked
    if running >= wanted:
        return running, ""
    rungs = sorted(
        {min(rung, limit) for rung in LADDER} | ({asked} if asked and asked > LADDER[-1] else set())
    )
    first = next((rung for rung in rungs if rung >= wanted), rungs[-1])
    for rung in reversed([rung for rung in rungs if rung <= first]):
        if file.memory(rung) <= free:
            if rung >= wanted:
                return rung, ""
            return rung, (
                f"context_window {wanted} is lowered to {rung}: it needs {_gb(file.memory(wanted))} of memory "
                f"and {_gb(free)} are free"
            )
    # The estimate may be too careful, and the system can give back more than it says: try with the smallest.
    low = f"memory is short: {file.path.name} takes about {_gb(file.memory(rungs[0]))}, {_gb(free)} are free"
    return rungs[0], low


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def set_idle_seconds(seconds: float) -> None:
    """How long the running loop's children stay loaded without a call (600 s when nobody says)."""
    pool().idle_seconds = seconds


class LlamaCppChat(OpenAIChat):
    """One model file, served by a llama.cpp child process that all chats of this process share.

    The model is a name of the catalogue (`qwen2.5-coder:1.5b`) or the path of a `.gguf` file. Nothing is started
    before the first call; what loading and reading the prompt take is told by WaitChunks.
    """

    extra_body: Mapping[str, Any] = {"cache_prompt": True, "return_progress": True}
    pending_url = "(llama.cpp's own address, known once it is started)"

    def __init__(self, ref: ModelRef, settings: ModelSettings) -> None:
        super().__init__(ref, settings)
        self._asked = settings.context_window
        self._file: ModelFile | None = None
        self._window = 0

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Send the request and hand out the reply as it comes; see `Chat`."""
        file = self.resolve()
        server = pool().server(Key(file.path, self._window))
        with server.in_use():
            async with aclosing(wait_until_loaded(server, file.size, self._limits.first_token)) as waits:
                async for wait in waits:
                    yield wait
            if server.turn.locked():
                yield WaitChunk("prompt", text="waiting for another call of this model")
            async with server.turn:
                self.base_url = f"{server.url}/v1"
                self.settings = replace(self.settings, api_key=server.api_key)
                async with aclosing(super().stream(request)) as chunks:  # type: ignore[type-var]  # a generator by another name
                    try:
                        async for chunk in chunks:
                            yield self._done(chunk) if isinstance(chunk, Done) else chunk
                    except (ConnectError, BrokenStream) as error:
                        raise await _if_dead(server, error) from error
                    except StatusError as error:
                        raise _if_too_long(error, self._window) from error

    def _done(self, done: Done) -> Done:
        """llama.cpp says "length" for both limits, the output's and the window's, and names the model by its path."""
        message = replace(done.message, model=self.ref.model)
        used = message.usage.input_tokens + message.usage.output_tokens
        if message.stop is StopReason.LENGTH and used >= self._window:
            message = replace(message, stop=StopReason.CONTEXT)
        return Done(message)

    def _headers(self, key: str) -> dict[str, str]:
        # llama.cpp's HTTP server closes idle connections when it likes; on the loopback a new one costs nothing.
        return {**super()._headers(key or "***"), "connection": "close"}

    def resolve(self) -> ModelFile:
        """Find the model's file and settle the window, once; raises ModelMissing. Called by the first `stream`."""
        if self._file is None:
            file = locate(self.ref.model)
            running = pool().widest(file.path)
            self._window, notice = choose_window(file, self._asked, free=free_memory(), running=running)
            self.settings = replace(self.settings, context_window=self._window)
            self.notices += (notice,) if notice else ()
            self._file = file
        return self._file


async def _if_dead(server: Server, error: ProviderError) -> ProviderError:
    """The same error, or the plain truth when the child is gone."""
    try:
        async with asyncio.timeout(1):
            await server.over.wait()
    except TimeoutError:
        return error
    return BrokenStream(
        f"the llama.cpp process that serves {server.key.path.name!r} {server.why or 'ended'} in the middle of a call",
        hint="the next call starts it again; if that goes on, the machine may be out of memory",
        provider="llamacpp",
        url=error.url,
    )


def _if_too_long(error: StatusError, window: int) -> StatusError:
    if "exceed_context_size" not in error.kind and "Context size has been exceeded" not in error.message:
        return error
    larger = next((rung for rung in LADDER if rung > window), None)
    return StatusError(
        f"the prompt does not fit the window of {window} tokens: {error.message}",
        status=400,
        kind="context",
        hint=f"set context_window={larger}, or shorten the conversation"
        if larger
        else "shorten the conversation",
        provider="llamacpp",
        url=error.url,
        retryable=False,
    )
