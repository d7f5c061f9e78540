"""Ollama's native /api/chat: one JSON object a line. Its /v1 route would ignore the context window."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from graphton.chat import _json
from graphton.chat._failures import Peer
from graphton.chat._http import HEADERS, Reply, endpoint, fetch, limits_for, post
from graphton.chat._keys import check_key
from graphton.chat._think_tags import ThinkTags
from graphton.chat._window import LADDER, ROOM_TO_GROW, Prompt, rung, too_long, was_cut
from graphton.chat._wire import THINKING_LEVELS, Fragment, call_arguments, dumps, result_text, sent_arguments
from graphton.chat.base import Chunk, Done, Preview, Request, TextChunk, ThinkingChunk, ToolSpec, WaitChunk
from graphton.errors import ConnectError, ProviderError, SettingError, StatusError
from graphton.messages import (
    AssistantMessage,
    Block,
    Message,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    ToolResults,
    Usage,
    UserMessage,
)
from graphton.models import ModelRef, ModelSettings, find_provider, lookup, with_defaults

__all__ = ["OllamaChat"]

KEEP_ALIVE = "15m"
"""How long the model stays loaded after a reply: Ollama's own five minutes are over before a long tool is."""

_STOPS = {"stop": StopReason.END, "length": StopReason.LENGTH}


class OllamaChat:
    """One model of an Ollama server. Create it with `create_chat`.

    `window` is the context window of every request of this chat: `settings.context_window`, or, where nobody set
    one, a size that fits the first prompt. It grows once at most, because each change loads the model again; that
    is said in `notices` and in a WaitChunk. A prompt that the window does not hold is an error with a table of its
    parts, never a conversation without its beginning.
    """

    def __init__(self, ref: ModelRef, settings: ModelSettings) -> None:
        self.ref = ref
        self.settings = with_defaults(ref, settings)
        self.notices: tuple[str, ...] = ()
        self.window = settings.context_window
        self._model = lookup(ref)
        self._limits = limits_for(self.settings.timeouts, local=find_provider(ref.provider).local)
        self._base = self._without_v1((self.settings.base_url or "").strip().rstrip("/"))
        self._url = endpoint(self._base, "/api/chat")
        self._key = check_key(ref.provider, self._url, self.settings.api_key)
        self._think = self._think_field(settings.thinking)
        self._may_grow = settings.context_window is None
        known = self._model.context_window
        if settings.context_window is not None and known is not None and settings.context_window > known:
            # Not an error: a family's later models may take more than its first, on which the table goes by.
            self._notice(
                f"context_window {settings.context_window} is above the {known} tokens known for {ref.model}: "
                "Ollama may give less"
            )
        self._answered = False

    # --- settings -----------------------------------------------------------------------------------------------

    def _notice(self, text: str) -> None:
        self.notices = (*self.notices, text)

    def _without_v1(self, url: str) -> str:
        if not url.endswith("/v1"):
            return url
        self._notice(f"base URL {url!r} ends in /v1, where Ollama ignores the context window: left out")
        return url.removesuffix("/v1").removesuffix("/v1")

    def _think_field(self, level: str | None) -> dict[str, Any]:
        if level is None:
            return {}
        if level not in THINKING_LEVELS:
            raise SettingError(
                f"thinking {level!r} is not known",
                hint=f"one of {', '.join(THINKING_LEVELS)}, for example thinking='low'",
            )
        if self._model.thinking != "think":
            if level != "off":
                self._notice(f"thinking {level} is not sent: {self.ref.model} does not think")
            return {}
        if "gpt-oss" not in self.ref.model.lower():
            return {"think": level != "off"}
        if level == "off":
            self._notice(f"thinking off is not sent: {self.ref.model} always thinks")
            return {}
        return {"think": level}

    # --- the window ---------------------------------------------------------------------------------------------

    def _fit_window(self, prompt: Prompt) -> str:
        """Choose the window, or let it grow; what there is to say about a change."""
        need = prompt.tokens + prompt.reply
        if self.window is None:
            self.window = self._rung(need + ROOM_TO_GROW)
            return ""
        return self._grow(need) if need > self.window else ""

    @property
    def largest_window(self) -> int:
        """What the window may still become."""
        if self.window is None or self._can_grow:
            return self._rung(LADDER[-1])
        return self.window

    @property
    def _can_grow(self) -> bool:
        return self._may_grow and self.window is not None and self._rung(2 * self.window) > self.window

    def _grow(self, need: int) -> str:
        """The one step up, to at least twice the size where the model can; "" where there is none."""
        if not self._can_grow or self.window is None:
            return ""
        wanted = self._rung(max(need + ROOM_TO_GROW, 2 * self.window))
        said = (
            f"context window raised from {self.window} to {wanted} tokens; {self.ref.model} is loaded again"
        )
        self.window, self._may_grow = wanted, False
        self._notice(said)
        return said

    def _rung(self, need: int) -> int:
        return rung(need, self._model.context_window)

    async def loaded_window(self) -> int | None:
        """The window that the server has really given this model (`/api/ps`); None while it is not loaded."""
        body = await fetch(
            endpoint(self._base, "/api/ps"),
            headers=self._headers(self._key.value),
            provider=self.ref.provider,
            limits=self._limits,
            secrets=self._key.secrets,
            method="GET",
        )
        names = {self.ref.model, f"{self.ref.model}:latest"}
        loaded = _json.loads(body)["models"]
        return next((m.get("context_length") for m in loaded if m.get("name") in names), None)

    # --- the call -----------------------------------------------------------------------------------------------

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Send the request once; text and thinking as they come, then the whole message."""
        outgoing = self._outgoing(request)
        said = self._fit_window(outgoing.prompt)
        if outgoing.prompt.words > (self.window or 0):
            raise self._too_long(
                f"the prompt does not fit the context window of {self.ref.model}", outgoing.prompt
            )
        if said or not self._answered:
            yield WaitChunk("load", text=said or f"waiting for {self.ref.model}")
        collector = _Collector(self.ref)
        try:
            async with post(
                self._url,
                self._body(outgoing, self.window),
                headers=self._headers(self._key.value),
                provider=self.ref.provider,
                limits=self._limits,
                secrets=self._key.secrets,
            ) as answer:
                async with aclosing(_chunks(answer, collector)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if not collector.finished:
                    raise answer.peer.broken("the stream ended without a last line")
        except ProviderError as error:
            raise self._explained(error, outgoing.prompt) from error
        self._answered = True
        self._check_whole(collector, outgoing.prompt)
        yield Done(collector.message(outgoing.prompt, self.window or 0))

    def preview(self, request: Request) -> Preview:
        """The exact request, its key masked; the window is the one that the first request would choose."""
        outgoing = self._outgoing(request)
        window = self.window or self._rung(outgoing.prompt.tokens + outgoing.prompt.reply + ROOM_TO_GROW)
        return Preview("POST", self._url, self._headers(self._key.masked), self._body(outgoing, window))

    async def close(self) -> None:
        """Nothing is held: connections belong to the event loop, and close with it."""

    def _headers(self, key: str) -> dict[str, str]:
        return {**HEADERS, "authorization": f"Bearer {key}"} if key else dict(HEADERS)

    def _outgoing(self, request: Request) -> _Outgoing:
        """The parts of the body that depend on the request, encoded and measured."""
        system = [_Wire.of({"role": "system", "content": request.system})] if request.system.strip() else []
        tools = [_tool(tool) for tool in request.tools]
        messages = list(_wire_messages(request.messages))
        prompt = Prompt(
            system=sum(w.size for w in system),
            tools=sum(map(len, tools)),
            messages=sum(w.size for w in messages),
            tool_count=len(tools),
            message_count=len(messages),
            words=sum(w.words for w in (*system, *messages)),
            reply=self.settings.max_tokens or 0,
        )
        return _Outgoing([w.json for w in (*system, *messages)], tools, request.schema, prompt)

    def _body(self, outgoing: _Outgoing, window: int | None) -> bytes:
        # Always in this order: the server keeps the beginning of a prompt that it has read before.
        options: dict[str, Any] = {"num_ctx": window}
        if self.settings.max_tokens is not None:
            options["num_predict"] = self.settings.max_tokens
        if self.settings.temperature is not None:
            options["temperature"] = self.settings.temperature
        body: dict[str, Any] = {"model": self.ref.model, "messages": outgoing.messages}
        if outgoing.tools:
            body["tools"] = [Fragment(tool) for tool in outgoing.tools]
        if outgoing.schema is not None:
            body["format"] = Fragment(dumps(outgoing.schema))
        # Without these two, Ollama drops the front of a long prompt, and its middle while it answers.
        whole = {"truncate": False, "shift": False}
        return dumps(
            {**body, "options": options, **self._think, **whole, "stream": True, "keep_alive": KEEP_ALIVE}
        )

    # --- what went wrong ----------------------------------------------------------------------------------------

    def _check_whole(self, collector: _Collector, prompt: Prompt) -> None:
        """Older servers cut a prompt in spite of `truncate: false`, and say nothing."""
        evaluated, window = collector.evaluated, self.window or 0
        if evaluated is not None and was_cut(prompt, evaluated, window):
            why = (
                f"{self.ref.model} read {evaluated:,} tokens of a prompt of about {prompt.tokens:,}: "
                f"the context window cut off its beginning"
            )
            raise self._too_long(why, prompt)
        if collector.filled(window) and self._can_grow:
            why = f"the reply of {self.ref.model} filled the context window before it was whole"
            raise self._too_long(why, prompt)

    def _too_long(self, why: str, prompt: Prompt) -> ProviderError:
        """The error with the budget; where the window can grow, it does, and the next try has room."""
        window = self.window or 0
        return too_long(
            why,
            prompt,
            window=window,
            limit=self._model.context_window,
            provider=self.ref.provider,
            url=self._url,
            retryable=bool(self._grow(prompt.tokens + prompt.reply)),
        )

    def _explained(self, error: ProviderError, prompt: Prompt) -> ProviderError:
        """The same error with a hint that works for Ollama; "too long" as an error of its own."""
        if isinstance(error, ConnectError) and error.retryable:
            error.hint = "start it with `ollama serve`, or set base_url (OLLAMA_HOST) to where it runs"
        if not isinstance(error, StatusError):
            return error
        if _TOO_LONG.search(error.message):
            return self._too_long(f"the prompt does not fit the context window of {self.ref.model}", prompt)
        for pattern, hint in _HINTS:
            if pattern.search(error.message):
                error.hint = hint.format(model=self.ref.model, window=self.window)
                # None of these passes by waiting.
                error.retryable = False
        return error


_TOO_LONG = re.compile(r"exceeds? the (available )?context (length|size|window)|input length exceeds")
_HINTS = (
    (re.compile(r"model .* not found"), "fetch the model: ollama pull {model}"),
    (
        re.compile(r"does not support tools"),
        "use a model that does (see `ollama show {model}`: capabilities), or offer its tools in the envelope mode",
    ),
    (re.compile(r"does not support thinking"), "leave thinking unset, or set thinking='off'"),
    (
        re.compile(r"requires more system memory|out of memory|cudaMalloc failed"),
        "free some memory, use a smaller model, or a smaller window than context_window={window}",
    ),
)


# --- what goes out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wire:
    """A message as it goes out, and its measures."""

    json: Fragment
    size: int
    words: int

    @classmethod
    def of(cls, message: dict[str, Any]) -> _Wire:
        encoded = dumps(message)
        return cls(Fragment(encoded), len(encoded), len(message["content"].split()))


@dataclass(frozen=True, slots=True)
class _Outgoing:
    messages: Sequence[Fragment]
    tools: Sequence[bytes]
    schema: dict[str, Any] | None
    prompt: Prompt


def _tool(spec: ToolSpec) -> bytes:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return dumps({"type": "function", "function": function})


def _wire_messages(messages: Iterable[Message]) -> Iterator[_Wire]:
    """Every message as it goes out, each translated once; one that says nothing is left out."""
    for message in messages:
        if "ollama" not in message.wire:
            message.wire["ollama"] = [_Wire.of(wire) for wire in _translate(message)]
        yield from message.wire["ollama"]


def _translate(message: Message) -> Iterator[dict[str, Any]]:
    match message:
        case UserMessage():
            yield {"role": "user", "content": message.text}
        case ToolResults():
            for result in message.results:
                yield {"role": "tool", "content": result_text(result), "tool_name": result.name}
        case AssistantMessage():
            calls = [{"function": {"name": c.name, "arguments": sent_arguments(c)}} for c in message.calls]
            if calls:
                yield {"role": "assistant", "content": message.text, "tool_calls": calls}
            elif message.text:
                yield {"role": "assistant", "content": message.text}


# --- what comes back --------------------------------------------------------------------------------------------------


async def _chunks(answer: Reply, collector: _Collector) -> AsyncGenerator[Chunk]:
    """The chunks of a reply until its last line."""
    async with aclosing(answer.lines()) as lines:
        async for line in lines:
            if not line.strip():
                continue
            for chunk in collector.feed(line, answer.peer):
                yield chunk
            if collector.finished:
                return
            if not collector.began:
                answer.waiting()


class _Collector:
    """Gathers one reply."""

    def __init__(self, ref: ModelRef) -> None:
        self.began = False
        self.finished = False
        self.evaluated: int | None = None
        """Prompt tokens that the server evaluated."""
        self._ref = ref
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._tags = ThinkTags()
        self._calls: list[ToolCall] = []
        self._understood = False
        self._model = ""
        self._last: dict[str, Any] = {}

    def feed(self, line: bytes, peer: Peer) -> Iterable[Chunk]:
        """The chunks in one line."""
        try:
            event = _json.loads(line)
            if event.get("error"):
                raise peer.status(_status_of(event), line)
            chunks = list(self._event(event))
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            why = f"a line that cannot be read: {line[:300].decode('utf-8', 'replace')!r}"
            raise (peer.broken(why) if self._understood else peer.protocol(why)) from error
        self._understood = True
        return chunks

    def _event(self, event: dict[str, Any]) -> Iterator[Chunk]:
        message = event.get("message") or {}
        self._model = event.get("model") or self._model
        if thought := message.get("thinking"):
            self.began = True
            self._thinking.append(thought)
            yield ThinkingChunk(thought)
        if text := message.get("content"):
            self.began = True
            yield from self._kept(self._tags.feed(text))
        for call in message.get("tool_calls") or ():
            self.began = True
            arguments, malformed = call_arguments(call["function"].get("arguments"))
            name = call["function"].get("name") or ""
            self._calls.append(ToolCall(name, arguments, wire_id=call.get("id") or "", malformed=malformed))
        if event.get("done"):
            yield from self._kept(self._tags.end())
            self.finished = True
            self.evaluated = event.get("prompt_eval_count")
            self._last = event

    def _kept(self, chunks: Iterable[TextChunk | ThinkingChunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            (self._text if isinstance(chunk, TextChunk) else self._thinking).append(chunk.text)
            yield chunk

    def filled(self, window: int) -> bool:
        """Whether the reply ended because the context window was full."""
        used = (self.evaluated or 0) + (self._last.get("eval_count") or 0)
        return self._last.get("done_reason") == "length" and used >= window - 2

    def message(self, prompt: Prompt, window: int) -> AssistantMessage:
        """The whole reply. A count that the server leaves out (all of the prompt was cached) is estimated."""
        blocks: list[Block] = []
        if self._thinking:
            blocks.append(Thinking("".join(self._thinking), self._ref.provider))
        if self._text:
            blocks.append(Text("".join(self._text)))
        blocks.extend(self._calls)
        stop = _STOPS.get(self._last.get("done_reason") or "stop", StopReason.END)
        if self.filled(window):
            stop = StopReason.CONTEXT
        return AssistantMessage(
            tuple(blocks),
            stop=StopReason.TOOLS if self._calls and stop is StopReason.END else stop,
            usage=Usage(
                prompt.tokens if self.evaluated is None else self.evaluated,
                self._last.get("eval_count") or 0,
            ),
            model=self._model,
        )


def _status_of(event: dict[str, Any]) -> int:
    """The status that an error in a stream would have had; Ollama says it in newer versions only."""
    status = event.get("status_code")
    return status if isinstance(status, int) and status >= 400 else 500
