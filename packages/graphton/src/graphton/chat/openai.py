"""OpenAI chat completions, for OpenAI itself and for every host that speaks like it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from graphton.chat import _json
from graphton.chat._http import HEADERS, Reply, endpoint, limits_for, post
from graphton.chat._keys import check_key
from graphton.chat._openai_stream import Collector, Gathering, stream_error
from graphton.chat._sse import events
from graphton.chat._wire import (
    THINKING_LEVELS,
    Fragment,
    around,
    dumps,
    fit_id,
    fit_name,
    is_strict,
    joined,
    result_text,
    sent_arguments,
)
from graphton.chat.base import Chunk, Done, Preview, Request, ToolSpec, WaitChunk
from graphton.errors import (
    BrokenStream,
    PromptTooLong,
    ProviderError,
    ProviderTimeout,
    SettingError,
    StatusError,
)
from graphton.messages import AssistantMessage, Message, Opaque, Thinking, ToolCall, ToolResults, UserMessage
from graphton.models import ModelRef, ModelSettings, find_provider, lookup, with_defaults

__all__ = ["OpenAIChat"]

_TOO_LONG = re.compile(
    r"maximum context length|context_length_exceeded|exceeds the (context window|available context)"
)

_ID_FORMS = {"mistral-api": r"[0-9A-Za-z]{9}", "openai": r".{1,40}", "azure": r".{1,40}"}
"""Hosts that refuse call ids of another form, which calls of another provider's model may have."""


class OpenAIChat:
    """One model behind an OpenAI-compatible chat completions API. Create it with `create_chat`.

    The Responses API is a subclass: another path, other words, the same guarantees. A server that we start ourselves is a subclass: `prepare` starts it and sets `base_url`, `extra_body` adds
    fields to every request, and without an `api_key` no Authorization header goes out.
    """

    extra_body: Mapping[str, Any] = {}
    """More fields of the request body, after ours."""

    pending_url = ""
    """What `preview` shows as the URL as long as `prepare` has set no `base_url`."""

    dialect = "chat"
    path = "/chat/completions"
    tokens_field = ""
    """The field that limits the output; "" for the one that the model table names."""
    ending = "finish_reason"
    """What says that a reply is whole."""

    def __init__(self, ref: ModelRef, settings: ModelSettings) -> None:
        self.ref = ref
        self.settings = with_defaults(ref, settings)
        self.notices: tuple[str, ...] = ()
        self.base_url = self._single_v1((self.settings.base_url or "").strip().rstrip("/"))
        self._model = lookup(ref)
        self._limits = limits_for(self.settings.timeouts, local=find_provider(ref.provider).local)
        self._fixed = self._fixed_fields(settings)

    # --- settings -----------------------------------------------------------------------------------------------

    def notice(self, text: str) -> None:
        """Say something about the settings that the user should know."""
        self.notices = (*self.notices, text)

    def _single_v1(self, url: str) -> str:
        if not url.endswith("/v1/v1"):
            return url
        self.notice(f"base URL {url!r} ends in /v1 twice: one is left out")
        return url.removesuffix("/v1")

    def _fixed_fields(self, said: ModelSettings) -> dict[str, Any]:
        """The part of the body that is the same for every request; what was said and is not sent is a notice."""
        fields: dict[str, Any] = {}
        if self.settings.max_tokens is not None:
            fields[self.tokens_field or self._model.tokens_field] = self.settings.max_tokens
        if self.settings.temperature is not None:
            if self._model.sampling:
                fields["temperature"] = self.settings.temperature
            else:
                self.notice(
                    f"temperature {self.settings.temperature:g} is not sent: {self.ref.model} takes none"
                )
        if said.thinking is not None:
            fields |= self._thinking_fields(said.thinking)
        if said.context_window is not None and self.ref.provider != "llamacpp":
            self.notice(f"context_window {said.context_window} is not sent: the window is the server's")
        return fields | self._stream_fields()

    def _stream_fields(self) -> dict[str, Any]:
        """How the reply is asked for as a stream, with its usage."""
        fields: dict[str, Any] = {"stream": True}
        if self.ref.provider != "mistral-api":  # which refuses the field, and sends usage unasked
            fields["stream_options"] = {"include_usage": True}
        # llama.cpp then says how far it has read the prompt.
        return fields | {"return_progress": True} if self.ref.provider == "llamacpp" else fields

    def _thinking_fields(self, level: str) -> dict[str, Any]:
        """How this model is told to think so much."""
        self._check_thinking(level)
        if self._model.thinking == "think":  # local models: their chat templates have a switch and no levels
            return {"chat_template_kwargs": {"enable_thinking": level != "off"}}
        if (
            self.ref.provider == "deepseek-api"
        ):  # thinks unless told not to: api-docs.deepseek.com/guides/thinking_mode
            off_or_on = {"thinking": {"type": "disabled" if level == "off" else "enabled"}}
            return off_or_on if level == "off" else {**off_or_on, "reasoning_effort": level}
        effort = self._effort(level)
        return {"reasoning_effort": effort} if effort else {}

    def _check_thinking(self, level: str) -> None:
        if level not in THINKING_LEVELS:
            raise SettingError(
                f"thinking {level!r} is not known",
                hint=f"one of {', '.join(THINKING_LEVELS)}, for example thinking='low'",
            )

    def _effort(self, level: str) -> str:
        """The word for so much reasoning; "" with a notice where there is none."""
        off = self._model.thinking_off
        if self._model.thinking == "none":
            if level != "off":
                self.notice(f"thinking {level} is not sent: {self.ref.model} does not think")
            return ""
        if level != "off":
            return level
        if off in ("", "never"):
            why = (
                f"{self.ref.model} always thinks"
                if off
                else f"nothing is known that turns it off at {self.ref.provider}"
            )
            self.notice(f"thinking off is not sent: {why}")
            return ""
        return off

    # --- what a subclass may change -----------------------------------------------------------------------------

    async def prepare(self) -> AsyncGenerator[WaitChunk]:
        """What must happen before each request goes out: a subclass starts its server, tells, and sets `base_url`."""
        nothing: tuple[WaitChunk, ...] = ()
        for wait in nothing:
            yield wait

    async def close(self) -> None:
        """Nothing is held: connections belong to the event loop, and close with it."""

    # --- the call -----------------------------------------------------------------------------------------------

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Send the request once; text and thinking as they come, then the whole message."""
        async with aclosing(self.prepare()) as waits:
            async for wait in waits:
                yield wait
        url, body = self._url(), self._pieces(request)
        key = check_key(self.ref.provider, url, self.settings.api_key)
        key.require()
        reply = self._collector(sum(map(len, body)))
        try:
            async with post(
                url,
                body,
                headers=self._headers(key.value),
                provider=self.ref.provider,
                limits=self._limits,
                secrets=key.secrets,
            ) as answer:
                async with aclosing(_chunks(answer, reply)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if not reply.finished:
                    raise answer.peer.broken(f"the stream ended without a {self.ending}")
        except StatusError as error:
            raise self._explained(error, request) from error
        except (BrokenStream, ProviderTimeout):
            # With the stop reason the reply is whole: what got lost is its end mark, or its usage.
            if not reply.finished:
                raise
        yield Done(reply.message())

    def preview(self, request: Request) -> Preview:
        """The exact request, its key masked."""
        url = self.pending_url if self.pending_url and not self.base_url else self._url()
        masked = check_key(self.ref.provider, url, self.settings.api_key).masked
        return Preview("POST", url, self._headers(masked), b"".join(self._pieces(request)))

    def _collector(self, prompt_bytes: int) -> Gathering:
        return Collector(self.ref.provider, prompt_bytes=prompt_bytes)

    def _explained(self, error: StatusError, request: Request) -> ProviderError:
        """The same error with a hint that works; "too long" as an error of its own."""
        if _TOO_LONG.search(error.message) and self.ref.provider != "llamacpp":
            return PromptTooLong(
                error.message,
                hint="shorten the conversation, or use a model with a larger window",
                provider=error.provider,
                url=error.url,
            )
        if error.kind == "insufficient_quota":
            error.hint, error.retryable = (
                "the account has no credit left: add some, or use another key",
                False,
            )
        if error.status == 400 and request.tools and self._model.dialect not in ("", self.dialect):
            error.hint = (
                f"{self.ref.model} may take tools through the Responses API only: dialect='responses'; "
                "gpt-4.1 takes them here"
            )
        return error

    def _url(self) -> str:
        if not self.base_url:
            raise SettingError(
                f"provider {self.ref.provider!r} has no address of its own",
                hint="set base_url, for example base_url='https://HOST/v1'",
            )
        return endpoint(self.base_url, self.path)

    def _headers(self, key: str) -> dict[str, str]:
        if not key:
            return {**HEADERS, "accept": "text/event-stream"}
        name, value = ("api-key", key) if self.ref.provider == "azure" else ("authorization", f"Bearer {key}")
        return {**HEADERS, "accept": "text/event-stream", name: value}

    def _pieces(self, request: Request) -> Sequence[bytes | bytearray]:
        """The body, its messages as they are kept."""
        # Always in this order, so that prompts cached by their beginning stay cached.
        body: dict[str, Any] = {"model": self.ref.model}
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        provider = self.ref.provider
        head = b"".join(map(dumps, _system(request.system)))
        messages = joined(request, f"openai:{provider}", _wire(provider), head=head)
        body["messages"] = None
        if request.schema is not None:
            body["response_format"] = _response_format(request.schema)
        return around({**body, **self._fixed, **self.extra_body}, "messages", messages)


async def _chunks(answer: Reply, reply: Gathering) -> AsyncGenerator[Chunk]:
    """The chunks of a reply until it is whole; a host that does not stream is understood too."""
    peer = answer.peer
    if answer.content_type == "application/json":
        for chunk in reply.feed(await answer.body(), peer):
            yield chunk
        return
    if answer.content_type.startswith("text/html"):
        raise peer.protocol("a web page instead of a stream of events")
    async with aclosing(events(answer)) as stream:
        async for event in stream:
            if event.data.strip() == b"[DONE]":
                return
            if event.name == "error":
                raise stream_error(event.data, peer)
            for chunk in reply.feed(event.data, peer):
                yield chunk
            if reply.closed:
                return
            if not reply.began:
                answer.waiting(progress=reply.progressed)


# --- what goes out ------------------------------------------------------------------------------------------------


def _tool(spec: ToolSpec) -> Fragment:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return Fragment(dumps({"type": "function", "function": function}))


def _system(text: str) -> list[Fragment]:
    return [Fragment(dumps({"role": "system", "content": text}))] if text.strip() else []


def _response_format(schema: dict[str, Any]) -> Fragment:
    named = {"name": "reply", "schema": schema, "strict": is_strict(schema)}
    return Fragment(dumps({"type": "json_schema", "json_schema": named}))


def _wire(provider: str) -> Callable[[Message], Iterator[bytes]]:
    """How a message goes out; one that says nothing to this provider is left out."""
    return lambda message: map(dumps, _translate(message, provider))


def _translate(message: Message, provider: str) -> Iterator[dict[str, Any]]:
    match message:
        case UserMessage():
            yield {"role": "user", "content": message.text}
        case ToolResults():
            for r in message.results:
                yield {
                    "role": "tool",
                    "tool_call_id": _call_id(r.wire_id, r.call, provider),
                    "content": result_text(r),
                }
        case AssistantMessage():
            extras = _extras(message, provider)
            calls = [_call(call, extras, provider) for call in message.calls]
            if calls:
                thought = _thought(message) if provider == "deepseek-api" else {}
                yield {"role": "assistant", "content": message.text or None, **thought, "tool_calls": calls}
            elif message.text:
                yield {"role": "assistant", "content": message.text}


def _thought(message: AssistantMessage) -> dict[str, Any]:
    """DeepSeek refuses a conversation whose calls have lost the thinking that led to them, be it empty."""
    thoughts = (b.text for b in message.blocks if isinstance(b, Thinking) and b.provider == "deepseek-api")
    return {"reasoning_content": "".join(thoughts)}


def _call_id(wire_id: str, ours: str, provider: str) -> str:
    return fit_id(wire_id, ours, _ID_FORMS.get(provider))


def _call(call: ToolCall, extras: Mapping[str, Any], provider: str) -> dict[str, Any]:
    function = {"name": fit_name(call.name), "arguments": dumps(sent_arguments(call)).decode()}
    wire = {"id": _call_id(call.wire_id, call.id, provider), "type": "function", "function": function}
    return {**wire, "extra_content": extras[call.wire_id]} if call.wire_id in extras else wire


def _extras(message: AssistantMessage, provider: str) -> dict[str, Any]:
    """What this host added to its calls and wants back with them."""
    kept = (_json.loads(b.raw) for b in message.blocks if isinstance(b, Opaque) and b.provider == provider)
    return {k["tool_call"]: k["extra_content"] for k in kept if isinstance(k, dict) and "tool_call" in k}
