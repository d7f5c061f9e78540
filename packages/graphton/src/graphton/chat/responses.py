"""OpenAI's Responses API, without anything stored there: what goes out to /responses, and how it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from graphton.chat import _json
from graphton.chat._openai_stream import Gathering
from graphton.chat._responses_stream import ResponseGathering
from graphton.chat._wire import (
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
from graphton.chat.base import Request, ToolSpec
from graphton.chat.openai import OpenAIChat
from graphton.errors import ProviderError, StatusError
from graphton.messages import (
    AssistantMessage,
    Block,
    Message,
    Opaque,
    Text,
    Thinking,
    ToolCall,
    ToolResults,
    UserMessage,
)

__all__ = ["ResponsesChat"]

_ID_FORM = r".{1,64}"
"""Ids of calls that the API takes back; calls of another provider's model may have others."""


class ResponsesChat(OpenAIChat):
    """One model behind OpenAI's Responses API. Create it with `create_chat`.

    Every request holds the whole conversation and `store: false`: the server keeps nothing, so it hands out its
    reasoning encrypted, and gets it back unchanged with the next request.
    """

    dialect = "responses"
    path = "/responses"
    tokens_field = "max_output_tokens"
    ending = "response.completed"

    def _stream_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"store": False, "stream": True}
        if self._model.thinking == "none":  # models that do not reason refuse to encrypt
            return fields
        return {"include": ["reasoning.encrypted_content"], **fields}

    def _thinking_fields(self, level: str) -> dict[str, Any]:
        self._check_thinking(level)
        effort = level if self._model.thinking == "think" and level != "off" else self._effort(level)
        if not effort:
            return {}
        # The reasoning itself stays encrypted; a summary is what there is to see of it.
        return {"reasoning": {"effort": effort} if level == "off" else {"effort": effort, "summary": "auto"}}

    def _collector(self, prompt_bytes: int) -> Gathering:
        return ResponseGathering(self.ref.provider, prompt_bytes=prompt_bytes)

    def _explained(self, error: StatusError, request: Request) -> ProviderError:
        if error.status == 400 and "reasoning summaries" in error.message:
            error.hint = "verify the organisation at OpenAI, or leave out thinking, which asks for a summary"
        elif error.status == 404 and not error.kind:
            error.hint = (
                f"if this host speaks chat completions only, say dialect='chat'; else check {self.base_url!r}"
            )
        else:
            return super()._explained(error, request)
        return error

    def _pieces(self, request: Request) -> Sequence[bytes | bytearray]:
        # Always in this order, so that prompts cached by their beginning stay cached.
        body: dict[str, Any] = {"model": self.ref.model}
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.system.strip():
            body["instructions"] = Fragment(dumps(request.system))
        provider = self.ref.provider
        key = f"responses:{provider}"
        messages = joined(request, key, lambda message: _translate(message, provider))
        body["input"] = None
        if request.schema is not None:
            body["text"] = {"format": _format(request.schema)}
        return around({**body, **self._fixed, **self.extra_body}, "input", messages)


# --- what goes out ------------------------------------------------------------------------------------------------


def _tool(spec: ToolSpec) -> Fragment:
    # Strict is what the API takes a missing word for, and refuses most schemas then.
    wire = {"type": "function", "name": spec.name, "description": spec.description}
    return Fragment(dumps({**wire, "parameters": spec.parameters, "strict": False}))


def _format(schema: dict[str, Any]) -> Fragment:
    named = {"type": "json_schema", "name": "reply", "schema": schema, "strict": is_strict(schema)}
    return Fragment(dumps(named))


def _translate(message: Message, provider: str) -> Iterator[bytes]:
    """A message as input items; none where it says nothing to this provider."""
    match message:
        case UserMessage():
            yield dumps({"role": "user", "content": message.text})
        case ToolResults():
            for r in message.results:
                item = {"type": "function_call_output", "call_id": fit_id(r.wire_id, r.call, _ID_FORM)}
                yield dumps({**item, "output": result_text(r)})
        case AssistantMessage():
            yield from _replied(message.blocks, provider)


def _replied(blocks: Iterable[Block], provider: str) -> Iterator[bytes]:
    """The items of a reply. Reasoning is refused where nothing that it led to follows, as after a cut."""
    reasoning: list[bytes] = []
    phase: dict[str, Any] = {}
    for block in blocks:
        match block:
            case Thinking():
                if block.raw and block.provider == provider:
                    reasoning.append(block.raw)
                continue
            case Opaque():
                if block.provider != provider:
                    continue
                kept = _json.loads(block.raw)
                if "type" not in kept:  # a note of ours: a phase, or what belongs to chat completions
                    phase = {name: kept[name] for name in ("phase",) if name in kept}
                    continue
                item = block.raw
            case Text():
                item, phase = dumps({"role": "assistant", "content": block.text, **phase}), {}
            case ToolCall():
                item = _call(block)
        yield from reasoning
        reasoning.clear()
        yield item


def _call(call: ToolCall) -> bytes:
    # Without the item's own id, by which the server would look for what it has not stored.
    return dumps(
        {
            "type": "function_call",
            "call_id": fit_id(call.wire_id, call.id, _ID_FORM),
            "name": fit_name(call.name),
            "arguments": dumps(sent_arguments(call)).decode(),
        }
    )
