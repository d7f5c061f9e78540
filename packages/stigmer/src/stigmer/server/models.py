"""ModelService: makes a local model ready while its user is still typing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.home import Home
from stigmer.runner import agent_for, recorded_chat
from stigmer.server._activity import Activity
from stigmer.server._places import as_shown, settle
from stigmer.server._resolve import Resolved
from stigmer.server.auth import by_unix_socket
from stigmer.server.status import abort

if TYPE_CHECKING:
    from graphton.chat.base import Chat, Chunk, Preview, Request, WaitChunk

__all__ = ["ModelService"]

log = logging.getLogger("stigmer.server")

TOUCH_SECONDS = 300.0
"""How often a model that is held is used: both local servers unload one that nobody uses for ten minutes or more."""
HOLD_SECONDS = 4 * 3600.0
"""A chat that somebody left open over night does not keep gigabytes from others."""


class _Resolves(Protocol):
    async def __call__(self, request: api.CreateExecutionRequest, *, local: bool) -> Resolved: ...


class ModelService(service_pb2_grpc.ModelServiceServicer):
    """The method of proto/stigmer/v1. Nothing is recorded, and nothing is sent to a provider that is paid.

    Where runs are for workers (`runs_here` is false), a model that is loaded here would serve nobody.
    """

    def __init__(self, *, home: Home, activity: Activity, resolve: _Resolves, runs_here: bool) -> None:
        self._home, self._activity, self._resolve = home, activity, resolve
        self._runs_here = runs_here

    async def PreloadModel(
        self, request: api.CreateExecutionRequest, context: Any
    ) -> AsyncIterator[api.PreloadProgress]:
        """Loads the model that such an execution begins with, and keeps it loaded until the caller leaves."""
        await context.send_initial_metadata(
            ()
        )  # The caller waits for no more than to know that we have begun.
        with self._activity.call():
            try:
                settle(request, local=by_unix_socket(context))
                resolved = await self._resolve(request, local=by_unix_socket(context))
                async with aclosing(self._held(request, resolved)) as frames:
                    async for frame in frames:
                        yield frame
            except Exception as error:
                log.info("preload failed code=%s", getattr(error, "code", "internal"))
                await abort(context, error, home=self._home.path, about="preload")

    async def _held(
        self, request: api.CreateExecutionRequest, resolved: Resolved
    ) -> AsyncGenerator[api.PreloadProgress]:
        chat = recorded_chat(resolved.config.models[0], resolved.key)
        try:
            if not (self._runs_here and hasattr(chat, "preload")):
                yield api.PreloadProgress(what="none")
                return
            until = time.monotonic() + HOLD_SECONDS
            while time.monotonic() < until:
                async with aclosing(_preloaded(chat, request, self._home.path)) as waits:
                    async for wait in waits:
                        yield _frame(wait)
                yield api.PreloadProgress(what="ready")
                await asyncio.sleep(TOUCH_SECONDS)
        finally:
            await chat.close()


def _frame(wait: WaitChunk) -> api.PreloadProgress:
    return api.PreloadProgress(
        what=wait.what, done=wait.done, total=wait.total, unit=wait.unit, text=wait.text
    )


async def _preloaded(
    chat: Chat, request: api.CreateExecutionRequest, home: Path
) -> AsyncGenerator[WaitChunk]:
    """Loads the model, with the beginning of the first request as the agent will send it."""
    from graphton.chat.base import Request, WaitChunk
    from graphton.messages import UserMessage

    agent = agent_for(_Preloading(chat), as_shown(request), closed=(home,))
    first = Request(agent.system, [UserMessage("")], tools=agent.tool_specs)
    async for chunk in agent.chat.stream(first):
        if isinstance(chunk, WaitChunk):
            yield chunk


class _Preloading:
    """Stands in the place of the agent's chat: what would be asked is only made ready."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ref, self.settings, self.notices = chat.ref, chat.settings, chat.notices

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """Loads the model, and ends with an empty reply."""
        from graphton.chat.base import Done
        from graphton.messages import AssistantMessage

        local: Any = self.chat  # Both local dialects have it; only llama.cpp reads ahead.
        loading = local.preload(request) if self.ref.provider == "llamacpp" else local.preload()
        async with aclosing(loading) as waits:
            async for wait in waits:
                yield wait
        yield Done(AssistantMessage(()))

    def preview(self, request: Request) -> Preview:
        return self.chat.preview(request)

    async def close(self) -> None:
        await self.chat.close()
