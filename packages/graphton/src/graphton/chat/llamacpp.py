"""Models that run on this machine without any other server: llama.cpp in a child process of ours, OpenAI's dialect."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from copy import copy
from dataclasses import replace
from typing import Any

from graphton.chat._failures import Peer
from graphton.chat._llamacpp_file import ModelFile, Room, choose_room, locate, rungs
from graphton.chat._llamacpp_pool import LOOK_EVERY, Server, close_all, pool, served, wait_until_loaded
from graphton.chat._llamacpp_slots import Talk
from graphton.chat._llamacpp_trouble import ended_midway
from graphton.chat._machine import slots_worth
from graphton.chat._window import BYTES_PER_TOKEN, GOOD_REPLY, ROOM_TO_GROW, Prompt, bytes_per_token, too_long
from graphton.chat._wire import dumps
from graphton.chat.base import Chunk, Done, Request, WaitChunk
from graphton.chat.openai import OpenAIChat
from graphton.errors import BrokenStream, ConnectError, ProviderError, StatusError
from graphton.messages import AssistantMessage, Message, StopReason, ToolResults, UserMessage
from graphton.models import ModelRef, ModelSettings, find_provider

__all__ = ["LlamaCppChat", "ModelFile", "close_all", "locate", "served", "set_idle_seconds"]

MEASURABLE = 64
"""Prompt tokens from which on the time to the first token says how fast the server reads."""
_MARKS = 20
"""Bytes that stand for what a chat template puts around a message."""
IDLE = 600.0
"""Seconds between two pieces of a reply, where nobody says: while another prompt is read they come far apart."""
_FOR_EVER = 7 * 86_400.0
PATIENCE = 4
"""The first token may take so many times what it should by the speed measured last."""


def set_idle_seconds(seconds: float) -> None:
    """How long the running loop's children stay loaded without a call (600 s when nobody says)."""
    pool().idle_seconds = seconds


class LlamaCppChat(OpenAIChat):
    """One model file, served by a llama.cpp child process that all chats of this process share.

    The model is a name of the catalogue (`qwen2.5-coder:1.5b`) or the path of a `.gguf` file. Nothing is started
    before the first call; what loading and reading the prompt take is told by WaitChunks.

    `window` is what each of this chat's calls has for itself, as the server says it; 0 before the first. It is chosen
    once, for the first prompt, and grows once at most, because that loads the model again.
    """

    extra_body: Mapping[str, Any] = {"cache_prompt": True, "return_progress": True}
    pending_url = "(llama.cpp's own address, known once it is started)"

    def __init__(self, ref: ModelRef, settings: ModelSettings) -> None:
        self._level: str | None = None
        super().__init__(ref, settings)
        self.window = 0
        self._goal = 0
        """The window that the next call needs; 0 before the first."""
        self._asked = settings.context_window
        self._may_grow = self._asked is None
        usual = find_provider(ref.provider)
        self._said_reply = settings.max_tokens not in (None, usual.max_tokens)
        self._bytes_per_token = BYTES_PER_TOKEN
        self._file: ModelFile | None = None
        self._patient = settings.timeouts.first_token in (None, usual.timeouts.first_token)
        self._calm = settings.timeouts.idle in (None, usual.timeouts.idle)

    # --- settings -----------------------------------------------------------------------------------------------

    def _thinking_fields(self, level: str) -> dict[str, Any]:
        """Nothing yet: only the chat template in use tells what the model can be told."""
        self._check_thinking(level)
        self._level = level
        return {}

    def _template_fields(self, template: str) -> dict[str, Any]:
        """How this chat template takes the thinking level; what it does not take is a notice."""
        level = self._level
        if level is None:
            return {}
        if "enable_thinking" in template:
            return {"chat_template_kwargs": {"enable_thinking": level != "off"}}
        if "reasoning_effort" in template and level != "off":
            return {"chat_template_kwargs": {"reasoning_effort": level}}
        if "reasoning_effort" in template:
            self._say(f"thinking off is not sent: {self.ref.model} always thinks")
        elif level != "off":
            self._say(
                f"thinking {level} is not sent: the chat template of {self.ref.model} has no switch for it"
            )
        return {}

    def _say(self, text: str) -> None:
        if text and text not in self.notices:
            self.notice(text)

    def resolve(self) -> ModelFile:
        """Find the model's file, once; raises ModelMissing. Called by the first `stream`."""
        if self._file is None:
            self._file = locate(self.ref.model)
            if not self._file.has_template:
                self._say(
                    f"{self._file.path.name} holds no chat template: llama.cpp takes its usual one (ChatML), "
                    "which may not be what the model was trained with"
                )
        return self._file

    # --- the window ---------------------------------------------------------------------------------------------

    @property
    def largest_window(self) -> int | None:
        """What the window may still become; None as long as the file is not known."""
        if self._file is None or not self._may_grow:
            return self._goal or self._asked
        room = choose_room(self._file, rungs(self._file)[-1], None, free=pool().free(), slots=1)
        return max(self.window, room.window)

    async def _fitting(self, prompt: Prompt) -> tuple[Server, int, str]:
        """The server for this prompt, the window it was asked for, and what to say where it is another than before."""
        least, said = self._least(prompt), ""
        if self._goal:
            if least > self._goal:
                said = self._grow(least)
            goal = self._goal
            return await self._server(goal, enough=goal), goal, said
        wanted = self._asked or prompt.tokens + prompt.reply + ROOM_TO_GROW
        return await self._server(wanted, enough=self._asked or min(wanted, least + ROOM_TO_GROW)), 0, ""

    def _least(self, prompt: Prompt) -> int:
        """Tokens without which this prompt and a reply do not fit; nobody asked for the longest reply there can be."""
        reply = prompt.reply if self._said_reply else min(prompt.reply, GOOD_REPLY)
        return max(prompt.tokens, prompt.words) + reply

    async def _server(self, wanted: int, *, enough: int) -> Server:
        """A server for windows of `wanted` tokens, or one that runs already and gives `enough`.

        It may be less, and a notice, where model or memory allow no more.
        """
        file = self.resolve()

        def room(free: int) -> Room:
            return choose_room(file, wanted, self._asked, free=free, slots=slots_worth())

        server = await pool().server(file, min(enough, rungs(file)[-1]), room)
        self._say(server.room.notice)
        return server

    def _take_window(self, server: Server, goal: int) -> None:
        """The window is what the loaded server gives to each call; unless another call has outgrown `goal` meanwhile."""
        self._say(server.note)
        if server.window < server.room.window:
            self._say(
                f"llama.cpp gives {self.ref.model} a context window of {server.window} tokens, "
                f"not the {server.room.window} that it was started for"
            )
        if self._goal == goal or server.window > self._goal:
            self.window = self._goal = server.window
            self.settings = replace(self.settings, context_window=server.window)

    def _grow(self, need: int) -> str:
        """The one step up, to at least twice the size where model and memory allow it; "" where there is none."""
        largest = self.largest_window or 0
        if not self._may_grow or largest < max(need, self.window + 1):
            return ""
        wanted = min(max(need + ROOM_TO_GROW, 2 * self.window), largest)
        self._goal = next(rung for rung in (*rungs(self.resolve()), largest) if rung >= wanted)
        self._may_grow = False
        pool().leave(self)  # The smaller server may be ended, should its memory be needed.
        said = f"context window raised from {self.window} to {self._goal} tokens; {self.ref.model} is loaded again"
        self._say(said)
        return said

    async def preload(self, request: Request) -> AsyncGenerator[WaitChunk]:
        """Load the model before it is asked, and read the beginning that the first request will have.

        A server that runs already stays loaded for another while, and nothing is read that it knows.
        """
        file = self.resolve()
        server, goal = pool().latest(file.path), 0
        if server is None:
            server, goal, _ = await self._fitting(self._measured(request))
        with server.in_use():
            async with aclosing(wait_until_loaded(server)) as waits:
                async for wait in waits:
                    yield wait
            self._take_window(server, goal)
            talk = _talk(request, whole=False)
            if server.slots.busy or server.slots.knows(talk):
                return
            async with (
                server.slots.turn(talk, self) as slot,
                aclosing(self._answer(server, slot.id, request, self._measured(request), reply=1)) as chunks,
            ):
                pool().leave(self)  # It is for whoever comes.
                async for chunk in chunks:
                    if isinstance(chunk, WaitChunk):
                        slot.read = chunk.done, chunk.total
                        yield chunk

    # --- the call -----------------------------------------------------------------------------------------------

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Send the request and hand out the reply as it comes; see `Chat`."""
        self.resolve()
        prompt = self._measured(request)
        server, goal, said = await self._fitting(prompt)
        with server.in_use():  # At once: an idle server may be ended for the memory that another one needs.
            if said:
                yield WaitChunk("load", text=said)
            async with aclosing(wait_until_loaded(server)) as waits:
                async for wait in waits:
                    yield wait
            self._take_window(server, goal)
            if prompt.words > server.window:
                why = f"the prompt does not fit the context window of {self.ref.model}"
                raise self._too_long(why, prompt, server)
            talk = _talk(request)
            async with aclosing(_read_ahead(server, talk)) as waits:
                async for wait in waits:
                    yield wait
            if server.slots.must_wait(talk):
                yield WaitChunk("prompt", text=_why_wait(server))
            async with (
                server.slots.turn(talk, self) as slot,
                aclosing(self._answer(server, slot.id, request, prompt)) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk

    async def _answer(
        self, server: Server, slot: int, request: Request, prompt: Prompt, *, reply: int | None = None
    ) -> AsyncGenerator[Chunk]:
        """What the server says, in this slot; `reply`: no more than so many tokens."""
        if server.reading:
            yield WaitChunk("prompt", text="the prompt of another call is read first")
        began, first = time.monotonic(), 0.0
        call = self._call(server, slot)
        if reply is not None:
            call._fixed = {**self._fixed, "max_tokens": reply}
        limit = self._patience(server, prompt)
        server.pending += prompt.tokens
        server.reading += 1
        try:
            async with (
                aclosing(OpenAIChat.stream(call, request)) as stream,  # type: ignore[type-var]  # a generator by another name
                aclosing(_while_it_works(stream, server, limit)) as chunks,
            ):
                async for chunk in chunks:
                    if not first and _speaks(chunk):
                        first = time.monotonic()
                        server.reading -= 1
                    if isinstance(chunk, Done):
                        yield self._done(chunk, server, prompt, first - began)
                    else:
                        yield chunk
        except (ConnectError, BrokenStream) as error:
            raise await _if_dead(server, error) from error
        except StatusError as error:
            raise self._if_too_long(error, prompt, server) from error
        finally:
            server.pending -= prompt.tokens
            server.reading -= not first

    def _patience(self, server: Server, prompt: Prompt) -> float | None:
        """Seconds that the server may do nothing for any call before the first token; None: somebody set the limit."""
        if not self._patient:
            return None
        estimate = (prompt.tokens + server.pending) / server.speed if server.speed else 0.0
        return max(self._limits.first_token, PATIENCE * estimate)

    def _call(self, server: Server, slot: int) -> LlamaCppChat:
        """This chat as one call needs it: with the server's address and key, and its slot.

        The server reads one prompt after the other, and says nothing to the calls that wait: where nobody set a limit,
        it counts from what it last did for anybody.
        """
        call = copy(self)
        call.base_url = f"{server.url}/v1"
        call.settings = replace(self.settings, api_key=server.api_key)
        call.extra_body = {**self.extra_body, **self._template_fields(server.template), "id_slot": slot}
        if self._patient:
            call._limits = replace(call._limits, first_token=_FOR_EVER)
        if self._calm:
            call._limits = replace(call._limits, idle=max(self._limits.idle, IDLE))
        return call

    def _done(self, done: Done, server: Server, prompt: Prompt, seconds: float) -> Done:
        """llama.cpp says "length" for both limits, the output's and the window's, and names the model by its path."""
        usage = done.message.usage
        fresh = usage.input_tokens - usage.cached_tokens
        if fresh >= MEASURABLE and seconds > 0:
            server.speed = fresh / seconds
        self._bytes_per_token = bytes_per_token(prompt, usage.input_tokens)
        message = replace(done.message, model=self.ref.model)
        used = usage.input_tokens + usage.output_tokens
        if message.stop is StopReason.LENGTH and used >= server.window - 1:
            why = f"the reply of {self.ref.model} filled the context window before it was whole"
            if self._grow(usage.input_tokens + max(usage.output_tokens, self._least(prompt) - prompt.tokens)):
                raise self._too_long(why, prompt, server, retryable=True)
            message = replace(message, stop=StopReason.CONTEXT)
        return Done(message)

    def _if_too_long(self, error: StatusError, prompt: Prompt, server: Server) -> ProviderError:
        """The error with the budget; where the window can grow, it does, and the next try has room."""
        if "exceed_context_size" not in error.kind and "Context size has been exceeded" not in error.message:
            return error
        counted = re.search(r"\((\d+) tokens\)", error.message)
        tokens = int(counted[1]) if counted else prompt.tokens
        prompt = replace(prompt, bytes_per_token=prompt.size / tokens)
        why = f"the prompt of {tokens:,} tokens does not fit the context window of {self.ref.model}"
        return self._too_long(why, prompt, server, retryable=bool(self._grow(self._least(prompt))))

    def _too_long(
        self, why: str, prompt: Prompt, server: Server, *, retryable: bool = False
    ) -> ProviderError:
        return too_long(
            why,
            prompt,
            window=server.window,
            limit=server.file.context_window or None,
            provider=self.ref.provider,
            url=server.url,
            retryable=retryable,
        )

    def _headers(self, key: str) -> dict[str, str]:
        # llama.cpp's HTTP server closes idle connections when it likes; on the loopback a new one costs nothing.
        return {**super()._headers(key or "***"), "connection": "close"}

    async def close(self) -> None:
        """The run has ended: other runs may have its slots."""
        pool().leave(self)

    def _measured(self, request: Request) -> Prompt:
        """The parts of the prompt in bytes, the marks between messages included."""
        sizes = [_size(message) for message in request.messages]
        return Prompt(
            system=len(dumps(request.system)) + _MARKS,
            tools=len(_offered(request)) if request.tools else 0,
            messages=sum(size for size, _ in sizes),
            tool_count=len(request.tools),
            message_count=len(sizes),
            words=len(request.system.split()) + sum(words for _, words in sizes),
            reply=self.settings.max_tokens or 0,
            bytes_per_token=self._bytes_per_token,
        )


def _size(message: Message) -> tuple[int, int]:
    """Bytes of a message, and the words between blanks in it; measured once."""
    if "llamacpp" not in message.wire:
        text = _said(message)
        message.wire["llamacpp"] = len(text.encode("utf-8", "replace")) + _MARKS, len(text.split())
    size, words = message.wire["llamacpp"]
    return size, words


def _said(message: Message) -> str:
    match message:
        case UserMessage():
            return message.text
        case ToolResults():
            return "\n".join(result.text for result in message.results)
        case AssistantMessage():
            calls = (
                f"{call.name} {call.malformed or dumps(call.arguments).decode()}" for call in message.calls
            )
            return "\n".join((message.text, *calls))


def _offered(request: Request) -> bytes:
    return dumps([[tool.name, tool.description, tool.parameters] for tool in request.tools])


def _talk(request: Request, *, whole: bool = True) -> Talk:
    """Which conversation a request belongs to; not `whole`: for whoever comes with this beginning."""
    beginning = hashlib.sha256(dumps(request.system) + _offered(request)).digest()
    if not whole or not request.messages:
        return Talk(beginning)
    return Talk(beginning, hashlib.sha256(_said(request.messages[0]).encode("utf-8", "replace")).digest())


async def _while_it_works(
    stream: AsyncIterator[Chunk], server: Server, seconds: float | None
) -> AsyncGenerator[Chunk]:
    """The chunks of a reply; until it begins, the server may be silent to all its calls for so many seconds."""
    server.alive, spoke = time.monotonic(), seconds is None
    while True:
        chunk = await (anext(stream, None) if spoke else _sign_of_life(stream, server, seconds or 0.0))
        if chunk is None:
            return
        server.alive, spoke = time.monotonic(), spoke or _speaks(chunk)
        yield chunk


async def _sign_of_life(stream: AsyncIterator[Chunk], server: Server, seconds: float) -> Chunk | None:
    coming = asyncio.ensure_future(anext(stream, None))
    try:
        while not coming.done():
            await asyncio.wait({coming}, timeout=LOOK_EVERY)
            if not coming.done() and time.monotonic() - server.alive > seconds:
                raise Peer("llamacpp", server.url).timed_out("first_token", seconds)
        return coming.result()
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def _speaks(chunk: Chunk) -> bool:
    return not isinstance(chunk, WaitChunk)


async def _read_ahead(server: Server, talk: Talk) -> AsyncGenerator[WaitChunk]:
    """How far the beginning of a conversation is read, while that is being done for it."""
    while (slot := server.slots.being_read(talk)) is not None:
        yield WaitChunk("prompt", *slot.read, "tokens")
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY):
                await server.slots.freed(slot)


def _why_wait(server: Server) -> str:
    if server.room.slots == 1:
        return "waiting for another call of this model: memory allows one at a time"
    return "waiting for other calls of this model"


async def _if_dead(server: Server, error: ProviderError) -> ProviderError:
    """The same error, or the plain truth when the child is gone."""
    try:
        async with asyncio.timeout(1):
            await server.over.wait()
    except TimeoutError:
        return error
    return ended_midway(server.file, server.why or "ended", error.url, pool().free())
