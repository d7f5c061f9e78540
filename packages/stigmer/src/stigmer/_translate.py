"""graphton's events and the records of proto/stigmer/v1: the same facts, translated both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from graphton import journal as g
from graphton.messages import (
    AssistantMessage,
    Block,
    Opaque,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    Usage,
)

from stigmer.api import event_pb2 as pb

__all__ = ["from_record", "to_live", "to_record"]


_COMPACTED = ("first", "last", "kept", "tokens_before", "tokens_after", "room")


def to_record(event: g.Event, *, execution: str = "", expires_ms: int = 0) -> pb.Event:
    """The record of one event; `expires_ms` is when a question lapses.

    An idempotency key that follows from `execution`, path and call is not stored: it would be two fifths of its record.
    """
    record = pb.Event(path=_clean(event.path))
    match event:
        case g.ModelRequested():
            record.model_requested.step = event.step
            _set_try(record.model_requested, event.try_)
            record.model_requested.model = event.model
            record.model_requested.purpose = event.purpose
            record.model_requested.prompt_tokens_estimate = event.prompt_tokens_estimate
            record.model_requested.digest = bytes.fromhex(event.digest)
            record.model_requested.kept = event.kept
            record.model_requested.tool_mode = event.tool_mode
        case g.ModelReplied():
            return pb.Event(path=record.path, model_replied=_replied(event))
        case g.ToolDispatched():
            record.tool_dispatched.call = event.call
            record.tool_dispatched.name = _clean(event.name)
            record.tool_dispatched.arguments = _json(event.arguments)
            record.tool_dispatched.effect = event.effect
            record.tool_dispatched.digest = bytes.fromhex(event.digest)
            if event.idempotency_key != g.key_of(execution, event.path, event.call):
                record.tool_dispatched.idempotency_key = _clean(event.idempotency_key)
        case g.ProcessStarted():
            record.process_started.call = event.call
            record.process_started.pid = event.pid
            record.process_started.start_time = event.start_time
        case g.ToolFinished():
            record.tool_finished.call = event.call
            record.tool_finished.name = _clean(event.name)
            record.tool_finished.result = _clean(event.result)
            record.tool_finished.is_error = event.is_error
            record.tool_finished.seconds = event.seconds
        case g.ToolOutcomeUnknown():
            record.tool_outcome_unknown.call = event.call
        case g.ApprovalRequested():
            record.approval_requested.call = event.call
            record.approval_requested.name = _clean(event.name)
            record.approval_requested.arguments = _json(event.arguments)
            record.approval_requested.digest = bytes.fromhex(event.digest)
            record.approval_requested.expires_ms = expires_ms
            record.approval_requested.reason = _clean(event.reason)
        case g.ApprovalDecided():
            record.approval_decided.call = event.call
            record.approval_decided.digest = bytes.fromhex(event.digest)
            record.approval_decided.decision = event.decision
            record.approval_decided.by = _clean(event.by)
            record.approval_decided.reason = _clean(event.reason)
        case g.RuleMatched():
            record.rule_matched.call = event.call
            record.rule_matched.digest = bytes.fromhex(event.digest)
            record.rule_matched.verdict = event.verdict
            record.rule_matched.rule = _clean(event.rule)
        case g.SubagentStarted():
            record.subagent_started.call = event.call
            record.subagent_started.name = _clean(event.name)
            share = pb.Budget(steps=event.steps, tokens=event.tokens, usd=event.usd)
            record.subagent_started.budget.CopyFrom(share)
        case g.SubagentFinished():
            record.subagent_finished.call = event.call
        case g.LoopWarned():
            record.loop_warned.step = event.step
            record.loop_warned.times = event.times
        case g.Compacted():
            record.compacted.step = event.step
            _set_try(record.compacted, event.try_)
            for name in _COMPACTED:
                setattr(record.compacted, name, getattr(event, name))
        case g.Retrying():
            record.retrying.step = event.step
            _set_try(record.retrying, event.try_)
            record.retrying.status = event.status
            record.retrying.in_seconds = event.in_seconds
            record.retrying.reason = _clean(event.reason)
        case g.Fallback():
            record.fallback.step = event.step
            setattr(record.fallback, "from", event.from_)  # `from` is a word of Python's own.
            record.fallback.to = event.to
            record.fallback.reason = _clean(event.reason)
        case g.ArgumentsRepaired():
            record.arguments_repaired.call = event.call
            record.arguments_repaired.before = _json(event.before)
            record.arguments_repaired.after = _json(event.after)
        case g.HistoryChanged():
            record.history_changed.step = event.step
        case g.Notice():
            record.notice.code = event.code
            record.notice.text = _clean(event.text)
    return record


def from_record(record: pb.Event) -> g.Event | None:
    """The loop's event of a record; None for those the loop has nothing to do with."""
    kind = record.WhichOneof("kind")
    read = _READ.get(kind or "")
    return read(record.path, getattr(record, kind or "")) if read else None


def to_live(event: g.Live, *, attempt: int) -> pb.Event:
    """The record of an event that is shown and forgotten. Text is taken as it is: the journal cleans and masks it."""
    record = pb.Event(path=_clean(event.path))
    match event:
        case g.TextDelta() | g.ThinkingDelta():
            delta = record.text_delta if isinstance(event, g.TextDelta) else record.thinking_delta
            delta.step, delta.attempt, delta.offset = event.step, attempt, event.offset
            _set_try(delta, event.try_)
            delta.text = _clean(event.text)
        case g.StreamReset():
            record.stream_reset.step, record.stream_reset.attempt = event.step, attempt
            _set_try(record.stream_reset, event.try_)
        case g.Progress():
            progress = record.progress
            progress.what, progress.unit, progress.text = event.what, event.unit, _clean(event.text)
            progress.done, progress.total = event.done, event.total
    return record


def _set_try(record: Any, number: int) -> None:
    setattr(record, "try", number)  # `try` is a word of Python's own.


def _try(record: Any) -> int:
    return int(getattr(record, "try"))


def _clean(text: str) -> str:
    """The text, half surrogate pairs replaced: neither protobuf nor a terminal takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), default=str).encode()


def _replied(event: g.ModelReplied) -> Any:
    """What a reply's record is made of: plain values take a quarter of the time that messages in messages do."""
    message = event.message
    return {
        "step": event.step,
        "try": event.try_,
        "purpose": event.purpose,
        "blocks": list(map(_block, message.blocks)),
        "stop_reason": message.stop.value,
        "usage": {name: getattr(message.usage, name) for name in _USAGE},
        "model": _clean(message.model),
        "asked_again": list(map(_clean, event.asked_again)),
    }


_USAGE = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")


def _block(block: Block) -> dict[str, Any]:
    match block:
        case Text():
            return {"text": _clean(block.text)}
        case Thinking():
            return {"thinking": {"text": _clean(block.text), "provider": block.provider, "raw": block.raw}}
        case Opaque():
            return {"opaque": {"provider": block.provider, "raw": block.raw}}
        case ToolCall():
            call = {
                "call": block.id,
                "name": _clean(block.name),
                "arguments": _json(block.arguments),
                "wire_id": _clean(block.wire_id),
                "malformed": _clean(block.malformed),
            }
            return {"tool_call": call}


def _read_block(block: pb.Block) -> Block:
    match block.WhichOneof("kind"):
        case "thinking":
            return Thinking(block.thinking.text, provider=block.thinking.provider, raw=block.thinking.raw)
        case "opaque":
            return Opaque(block.opaque.provider, raw=block.opaque.raw)
        case "tool_call":
            call = block.tool_call
            return ToolCall(
                call.name,
                json.loads(call.arguments or b"{}"),
                id=call.call,
                wire_id=call.wire_id,
                malformed=call.malformed,
            )
        case _:
            return Text(block.text)


def _read_requested(path: str, r: pb.ModelRequested) -> g.Event:
    return g.ModelRequested(
        path,
        r.step,
        _try(r),
        r.model,
        r.purpose,
        r.digest.hex(),
        r.prompt_tokens_estimate,
        r.kept,
        r.tool_mode,
    )


def _read_compacted(path: str, r: pb.Compacted) -> g.Event:
    return g.Compacted(path, r.step, _try(r), **{name: getattr(r, name) for name in _COMPACTED})


def _read_replied(path: str, r: pb.ModelReplied) -> g.Event:
    u = r.usage
    message = AssistantMessage(
        tuple(map(_read_block, r.blocks)),
        stop=StopReason(r.stop_reason),
        usage=Usage(u.input_tokens, u.output_tokens, u.cached_tokens, u.cache_write_tokens),
        model=r.model,
    )
    return g.ModelReplied(path, r.step, _try(r), r.purpose, message, tuple(r.asked_again))


def _read_dispatched(path: str, r: pb.ToolDispatched) -> g.Event:
    arguments = json.loads(r.arguments)
    return g.ToolDispatched(path, r.call, r.name, arguments, r.digest.hex(), r.effect, r.idempotency_key)


def _read_asked(path: str, r: pb.ApprovalRequested) -> g.Event:
    reason = r.reason or "approval"
    return g.ApprovalRequested(path, r.call, r.name, json.loads(r.arguments), r.digest.hex(), reason)


def _read_child(path: str, r: pb.SubagentStarted) -> g.Event:
    b = r.budget
    return g.SubagentStarted(
        path,
        r.call,
        r.name,
        steps=b.steps if b.HasField("steps") else None,
        tokens=b.tokens if b.HasField("tokens") else None,
        usd=b.usd if b.HasField("usd") else None,
    )


def _read_decided(path: str, r: pb.ApprovalDecided) -> g.Event:
    return g.ApprovalDecided(path, r.call, r.digest.hex(), r.decision, r.by, r.reason)


_READ: dict[str, Callable[[str, Any], g.Event]] = {
    "model_requested": _read_requested,
    "model_replied": _read_replied,
    "tool_dispatched": _read_dispatched,
    "process_started": lambda path, r: g.ProcessStarted(path, r.call, r.pid, r.start_time),
    "tool_finished": lambda path, r: g.ToolFinished(path, r.call, r.name, r.result, r.is_error, r.seconds),
    "tool_outcome_unknown": lambda path, r: g.ToolOutcomeUnknown(path, r.call),
    "approval_requested": _read_asked,
    "approval_decided": _read_decided,
    "rule_matched": lambda path, r: g.RuleMatched(path, r.call, r.digest.hex(), r.verdict, r.rule),
    "subagent_started": _read_child,
    "subagent_finished": lambda path, r: g.SubagentFinished(path, r.call),
    "loop_warned": lambda path, r: g.LoopWarned(path, r.step, r.times),
    "compacted": _read_compacted,
    "retrying": lambda path, r: g.Retrying(path, r.step, _try(r), r.status, r.in_seconds, r.reason),
    "fallback": lambda path, r: g.Fallback(path, r.step, getattr(r, "from"), r.to, r.reason),
    "arguments_repaired": lambda path, r: g.ArgumentsRepaired(
        path, r.call, json.loads(r.before), json.loads(r.after)
    ),
    "history_changed": lambda path, r: g.HistoryChanged(path, r.step),
    "notice": lambda path, r: g.Notice(path, r.code, r.text),
}
