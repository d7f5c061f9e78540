"""Ollama's native /api/chat: one JSON object a line. Its /v1 route would ignore the context window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

from graphton.chat._bare_template import flattened
from graphton.chat._http import HEADERS, Limits, Reply, endpoint, fetch, limits_for, post
from graphton.chat._keys import check_key
from graphton.chat._ollama_failures import explained, no_memory, no_tools, says_too_long
from graphton.chat._ollama_known import Known, known_of
from graphton.chat._ollama_reply import Collector, chunks
from graphton.chat._ollama_wait import answering, loading, reading, ticks
from graphton.chat._ollama_window import Window
from graphton.chat._ollama_wire import Outgoing, outgoing
from graphton.chat._window import Prompt, was_cut
from graphton.chat._wire import THINKING_LEVELS, Fragment, dumps
from graphton.chat.base import Chunk, Done, Preview, Request, WaitChunk
from graphton.chat.ollama_facts import ModelFacts, loaded_models, without_v1
from graphton.errors import ProviderError, SettingError
from graphton.models import ModelRef, ModelSettings, find_provider, lookup, with_defaults

__all__ = ["OllamaChat"]

LOAD_SECONDS = 7 * 86_400.0
"""Loading has no limit of ours: a large model on a slow disk takes as long as it takes, and Ollama itself ends a
load that stands still."""

WRITING_SECONDS = 600.0
"""Ollama says nothing while a model writes a call: where tools are offered, a gap is no sign of a stuck server."""


class OllamaChat:
    """One model of an Ollama server. Create it with `create_chat`.

    Before the first request the server is measured (`ollama_facts`): what it is, whether it has the model, what that
    can do, what is in memory. `window` is the context window of every request of this chat: `settings.context_window`,
    or, where nobody set one, a size that fits the first prompt, the model and the memory; a window that the model is
    loaded with already is taken where it serves. It grows once at most, because each change loads the model again;
    that is said in `notices` and in a WaitChunk. After the first reply the server is asked what it really gave.
    A prompt that the window does not hold is an error with a table of its parts, never a conversation without its
    beginning.
    """

    def __init__(self, ref: ModelRef, settings: ModelSettings) -> None:
        self.ref = ref
        self.settings = with_defaults(ref, settings)
        self.notices: tuple[str, ...] = ()
        self._provider = find_provider(ref.provider)
        self._limits = limits_for(self.settings.timeouts, local=self._provider.local)
        self._base = without_v1(self.settings.base_url or "")
        if (self.settings.base_url or "").strip().rstrip("/").endswith("/v1"):
            given = (self.settings.base_url or "").strip().rstrip("/")
            self._notice(f"base URL {given!r} ends in /v1, where Ollama ignores the context window: left out")
        self._url = endpoint(self._base, "/api/chat")
        self._key = check_key(ref.provider, self._url, self.settings.api_key)
        if settings.thinking is not None and settings.thinking not in THINKING_LEVELS:
            raise SettingError(
                f"thinking {settings.thinking!r} is not known",
                hint=f"one of {', '.join(THINKING_LEVELS)}, for example thinking='low'",
            )
        self._known: Known = known_of(self._base, ref.model)
        self._window = Window(
            self._known, self.settings, self._provider.max_tokens, lookup(ref).context_window
        )
        self._window.check_setting(self._notice)
        self._measured = False

    # --- settings ---------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int | None:
        """Tokens of the context window, as far as it is chosen: what the server really gave, once it has said so."""
        return self._window.size

    @property
    def largest_window(self) -> int:
        """What the window may still become."""
        return self._window.largest()

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices = (*self.notices, text)

    def _think_field(self) -> dict[str, Any]:
        """How the model is told to think; a level that it does not take is left out, and that is said."""
        level, model = self.settings.thinking, self.ref.model
        if level is None:
            return {}
        measured = self._known.facts.thinks if self._known.facts else None
        thinks = lookup(self.ref).thinking == "think" if measured is None else measured
        by_level = "gpt-oss" in model.lower() or (self._known.facts and self._known.facts.family == "gptoss")
        if not thinks:
            why = f"{model} does not think"
        elif not self._known.takes("think"):
            why = f"Ollama {self._version} knows no thinking, which began with 0.9.0"
        elif not by_level:
            return {"think": level != "off"}
        elif level == "off":
            why = f"{model} always thinks"
        elif not self._known.takes("think level"):
            why = f"Ollama {self._version} knows no levels of thinking, which began with 0.11.0"
        else:
            return {"think": level}
        if thinks or level != "off":
            self._notice(f"thinking {level} is not sent: {why}")
        return {}

    @property
    def _version(self) -> str:
        return self._known.server.version if self._known.server else ""

    # --- before the first request -----------------------------------------------------------------------------------

    async def _measure(self) -> None:
        """Ask the server what it is and has, unless it answered us a moment ago; what follows from that is said."""
        if self._measured and self._known.is_fresh():
            return
        self._measured = True
        if why := await self._known.look(self._key.value or None, self.ref.provider):
            self._notice(f"what this Ollama is and has could not be measured: {why}")
        if self._known.facts and self._known.facts.bare_template:
            self._notice(
                f"the template of {self.ref.model} is a bare {{{{ .Prompt }}}}, which hides the instructions from it: "
                "all that is said goes into one message; better `ollama create` it with its chat template, or "
                "`ollama pull` it"
            )
        if not self._known.takes("truncate"):
            self._notice(
                f"Ollama {self._version} cuts a prompt that is too long (0.12.6 and later refuse it): "
                "we find that out by its count of tokens"
            )

    async def _answering(self) -> AsyncGenerator[WaitChunk]:
        """Measures the server; where it takes its time to answer, that is told."""
        if self._measured and self._known.is_fresh():
            return
        task = asyncio.ensure_future(self._measure())
        async with aclosing(ticks(task, answering(self._base))) as waits:
            async for wait in waits:
                yield wait
        task.result()

    async def facts(self) -> ModelFacts | None:
        """What the server says of the model, measured at most a moment ago; None where it could not be asked."""
        await self._measure()
        return self._known.facts

    async def loaded_window(self) -> int | None:
        """The window that the server has really given this model (`/api/ps`); None while it is not loaded."""
        await self._measure()
        if self._known.server is None:
            return None
        self._known.server = replace(self._known.server, loaded=await loaded_models(self._known.server))
        return self._known.loaded.window if self._known.loaded else None

    async def preload(self) -> AsyncGenerator[WaitChunk]:
        """Load the model now, with the window that a first short prompt would get."""
        async with aclosing(self._answering()) as first:
            async for wait in first:
                yield wait
        prompt = Prompt(4 * 900, 0, 0, 0, 0, 0, self._window.reply)
        async for wait in self._loaded(prompt, self._window.fit(prompt, self.ref.model, self._notice)):
            yield wait

    async def _loaded(self, prompt: Prompt, said: str) -> AsyncGenerator[WaitChunk]:
        """Until the model is in memory with our window. It is loaded by a request of its own, which nothing limits."""
        known = self._known
        while known.in_memory != self._window.num_ctx and not (known.facts and known.facts.remote):
            if known.missing:
                return  # The request itself is refused, with the way to get it.
            size = f" ({known.facts.size / 1e9:.1f} GB)" if known.facts and known.facts.size else ""
            detail = f"{size}, window {self._window.num_ctx:,}"
            yield WaitChunk("load", text=said or f"{self.ref.model}{detail}")
            task = asyncio.ensure_future(self._load())
            async with aclosing(ticks(task, loading(self.ref.model, detail))) as waits:
                async for wait in waits:
                    yield wait
            try:
                task.result()
            except ProviderError as error:
                said = self._window.lower(prompt, self._notice) if no_memory(error) else ""
                if not said:
                    raise self._explained(error, prompt) from error
            else:
                known.replied(self._window.num_ctx)

    async def _load(self) -> None:
        body: dict[str, Any] = {"model": self.ref.model, "messages": []}
        body |= {"options": {"num_ctx": self._window.num_ctx}, "stream": False, **self._keep_alive()}
        await fetch(
            self._url,
            dumps(body),
            headers=self._headers(self._key.value),
            provider=self.ref.provider,
            limits=replace(self._limits, first_token=LOAD_SECONDS, idle=LOAD_SECONDS),
            secrets=self._key.secrets,
        )

    # --- the call ---------------------------------------------------------------------------------------------------

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Send the request once, to a server that was measured and has the model loaded; then the reply as it comes."""
        async with aclosing(self._answering()) as first:
            async for wait in first:
                yield wait
        out = self._outgoing(request)
        if out.tools and self._known.facts and self._known.facts.tools is False:
            raise self._explained(no_tools(self.ref.model, self._url), out.prompt)
        if out.tools and not self._known.takes("tools"):
            self._notice(
                f"Ollama {self._version} reads over the tools that are offered: they began with 0.3.0"
            )
        said = self._window.fit(out.prompt, self.ref.model, self._notice)
        out = replace(out, prompt=replace(out.prompt, reply=self._window.reply))
        if out.prompt.words > (self.window or 0):
            raise self._too_long(
                f"the prompt does not fit the context window of {self.ref.model}", out.prompt
            )
        async with aclosing(self._loaded(out.prompt, said)) as waits:
            async for wait in waits:
                yield wait
        collector = Collector(self.ref.provider)
        try:
            async with aclosing(self._answer(out, collector)) as answer:
                async for chunk in answer:
                    yield chunk
        except ProviderError as error:
            self._known.forget()
            raise self._explained(error, out.prompt) from error
        self._known.replied(self._window.num_ctx)
        await self._check_whole(collector, out)
        yield Done(collector.message(out.prompt, self.window or 0))

    async def _answer(self, out: Outgoing, collector: Collector) -> AsyncGenerator[Chunk]:
        """The reply as it comes; until it begins, how long it has been and may be."""
        fresh = out.prompt.tokens * self._known.speed.fresh(out.parts)
        estimate = self._known.speed.seconds(fresh)
        async with AsyncExitStack() as stack:
            sending = post(
                self._url,
                self._body(out),
                headers=self._headers(self._key.value),
                provider=self.ref.provider,
                limits=self._patience(estimate, calls=bool(out.tools)),
                secrets=self._key.secrets,
            )
            task: asyncio.Future[Reply] = asyncio.ensure_future(stack.enter_async_context(sending))
            async with aclosing(ticks(task, reading(fresh, estimate))) as waits:
                async for wait in waits:
                    yield wait
            reply = task.result()
            async with aclosing(chunks(reply, collector)) as found:
                async for chunk in found:
                    yield chunk
            if not collector.finished:
                raise reply.peer.broken("the stream ended without a last line")
        if collector.evaluated:
            self._known.speed.read(out.parts, collector.evaluated, collector.reading_seconds)

    def _patience(self, estimate: float | None, *, calls: bool) -> Limits:
        """The limits of a request. Where nobody set them, a slow prompt has four times what it will likely take."""
        first, idle = self._limits.first_token, self._limits.idle
        if first == self._provider.timeouts.first_token and estimate is not None:
            first = max(first, 4 * estimate)
        if idle == self._provider.timeouts.idle and calls:
            idle = max(idle, WRITING_SECONDS)
        return replace(self._limits, first_token=first, idle=idle)

    def preview(self, request: Request) -> Preview:
        """The request, its key masked. As long as the server is not measured, window and thinking go by our table."""
        out = self._outgoing(request)
        num_ctx, reply = self._window.would_be(out.prompt)
        headers = self._headers(self._key.masked)
        return Preview("POST", self._url, headers, self._body(out, num_ctx=num_ctx, reply=reply))

    async def close(self) -> None:
        """Nothing is held: connections belong to the event loop, and close with it."""

    def _headers(self, key: str) -> dict[str, str]:
        return {**HEADERS, "authorization": f"Bearer {key}"} if key else dict(HEADERS)

    def _outgoing(self, request: Request) -> Outgoing:
        if self._known.facts and self._known.facts.bare_template:
            request = flattened(request, self._known.facts.family)
        return outgoing(request, reply=self._window.reply, bytes_per_token=self._window.bytes_per_token)

    def _body(self, out: Outgoing, *, num_ctx: int | None = None, reply: int | None = None) -> bytes:
        # Always in this order: the server keeps the beginning of a prompt that it has read before.
        options: dict[str, Any] = {"num_ctx": num_ctx or self._window.num_ctx}
        options["num_predict"] = reply or self._window.reply
        if self.settings.temperature is not None:
            options["temperature"] = self.settings.temperature
        if out.schema is not None:
            # Ollama's default is 1.1 (docs.ollama.com/modelfile), against every token of the last 64: what a schema
            # wants again and again, names and quotes, a small model then avoids, and calls any tool but the right one.
            options["repeat_penalty"] = 1.0
        body: dict[str, Any] = {"model": self.ref.model, **out.body(), **self._format(out.schema)}
        # Without these two, Ollama drops the front of a long prompt, and its middle while it answers.
        whole = {"truncate": False, "shift": False}
        return dumps(
            {**body, "options": options, **self._think_field(), **whole, "stream": True, **self._keep_alive()}
        )

    def _format(self, schema: dict[str, Any] | None) -> dict[str, Any]:
        if schema is None:
            return {}
        if self._known.takes("schema"):
            return {"format": Fragment(dumps(schema))}
        self._notice(
            f"Ollama {self._version} holds replies to no schema, which began with 0.5.0: only to JSON"
        )
        return {"format": "json"}

    def _keep_alive(self) -> dict[str, str]:
        asked = self._known.keep_alive()
        return {"keep_alive": asked} if asked else {}

    # --- what went wrong --------------------------------------------------------------------------------------------

    async def _check_whole(self, collector: Collector, out: Outgoing) -> None:
        """Ask once what window was really given. Older servers cut a prompt in spite of `truncate: false`, in silence."""
        if self._window.unverified:
            try:
                given = await self.loaded_window()
                why = "" if self._known.server else "the server could not be measured"
                if self._known.server and self._known.loaded is None and self._known.takes("loaded window"):
                    why = "the server does not list it as loaded; another name of the same file may be"
                self._window.verify(given, self.ref.model, self._notice, why=why)
            except ProviderError as error:
                self._window.verify(None, self.ref.model, self._notice, why=error.message)
        evaluated, window, prompt = collector.evaluated, self.window or 0, out.prompt
        if evaluated is not None and was_cut(prompt, evaluated, window):
            why = (
                f"{self.ref.model} read {evaluated:,} tokens of a prompt of about {prompt.tokens:,}: "
                f"the context window cut off its beginning"
            )
            raise self._too_long(why, prompt)
        self._window.learn(prompt, evaluated)
        if collector.filled(window) and self._window.can_grow:
            why = f"the reply of {self.ref.model} filled the context window before it was whole"
            raise self._too_long(why, prompt)

    def _too_long(self, why: str, prompt: Prompt) -> ProviderError:
        """The error with the budget; where the window can grow, it does, and the next try has room."""
        return self._window.too_long(why, prompt, self.ref.provider, self._url, self.ref.model, self._notice)

    def _explained(self, error: ProviderError, prompt: Prompt) -> ProviderError:
        """The same error with a hint that works for Ollama; "too long" as an error of its own."""
        if says_too_long(error):
            return self._too_long(f"the prompt does not fit the context window of {self.ref.model}", prompt)
        return explained(error, model=self.ref.model, window=self._window.num_ctx, server=self._known.server)
