"""Events as JSON objects: what `run --json`, `attach --json`, the API and the console show of a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from stigmer.api import event_pb2 as pb

__all__ = ["budget_json", "settings_json", "time_text", "to_json", "usage_json"]


def to_json(event: pb.Event, execution: str) -> dict[str, Any]:
    """The JSON object of one event.

    `type`, `time`, `execution`, `path` and `seq` (null for live events) come first, then the fields of its type.
    """
    kind = event.WhichOneof("kind")
    fields = _FIELDS.get(kind or "")
    return {
        "type": kind or "unknown",
        "time": time_text(event.time_ms),
        "execution": execution,
        "path": event.path,
        "seq": event.seq or None,
        **(fields(getattr(event, kind or "")) if fields else {}),
    }


def time_text(ms: int) -> str:
    """UTC with milliseconds: `2026-11-25T01:02:03.456Z`."""
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=8)
def _second(second: int) -> str:
    """Events come many in a second, and writing a time takes longer than writing the rest of most."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def usage_json(usage: pb.Usage) -> dict[str, Any]:
    """Tokens and cost; `usd` is null where no price is known."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "usd": usage.usd if usage.HasField("usd") else None,
        "unpriced_calls": usage.unpriced_calls,
    }


def settings_json(config: pb.ConfigResolved | pb.SubagentConfig) -> dict[str, Any]:
    """The resolved settings by name, each with its source and what it shadows, as `config show --json` prints them.

    A model that goes to its provider by another name has that `id` too.
    """
    shown: dict[str, Any] = {}
    for setting in config.settings:
        row: dict[str, Any] = {"value": _value(setting.value), "source": setting.source}
        if setting.name == "model" and config.models and row["value"] != config.models[0].model:
            row["id"] = config.models[0].model
        row["shadowed"] = [{"value": _value(s.value), "source": s.source} for s in setting.shadowed]
        shown[setting.name] = row
    return shown


def _value(text: str) -> Any:
    """A setting's value is JSON; `***` stands for a secret and is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _object(data: bytes) -> Any:
    return _value(data.decode("utf-8", "replace")) if data else {}


def budget_json(budget: pb.Budget) -> dict[str, Any]:
    """Limits by name; null is none, or not said."""
    return {
        name: getattr(budget, name) if budget.HasField(name) else None
        for name in ("steps", "tokens", "usd", "seconds", "children", "depth")
    }


def _created(e: pb.Created) -> dict[str, Any]:
    return {
        "task": e.task,
        "agent": e.agent,
        "agent_revision": e.agent_revision,
        "session": e.session,
        "workspace": e.workspace,
        "place": e.place or None,
        "parent": e.parent,
        "budget": budget_json(e.budget),
        "approve_all": e.approve_all,
        "retry_of": e.retry_of or None,
        "rules": list(e.rules),
        "on_unknown": e.on_unknown or "tell",
    }


def _tool_calls(blocks: Any) -> list[dict[str, Any]]:
    calls = [block.tool_call for block in blocks if block.WhichOneof("kind") == "tool_call"]
    return [{"call": c.call, "name": c.name, "arguments": _object(c.arguments)} for c in calls]


def _replied(e: pb.ModelReplied) -> dict[str, Any]:
    return {
        "step": e.step,
        "try": _try(e),
        "purpose": e.purpose,
        "model": e.model,
        "text": "".join(block.text for block in e.blocks if block.WhichOneof("kind") == "text"),
        "tool_calls": _tool_calls(e.blocks),
        "stop_reason": e.stop_reason,
        "usage": {
            "input_tokens": e.usage.input_tokens,
            "output_tokens": e.usage.output_tokens,
            "cached_tokens": e.usage.cached_tokens,
            "cache_write_tokens": e.usage.cache_write_tokens,
        },
        **({"asked_again": list(e.asked_again)} if e.asked_again else {}),
    }


def _asked(e: pb.ApprovalRequested) -> dict[str, Any]:
    return {
        "call": e.call,
        "name": e.name,
        "arguments": _object(e.arguments),
        "digest": e.digest.hex(),
        "expires": time_text(e.expires_ms),
        "reason": e.reason or "approval",
    }


def _decided(e: pb.ApprovalDecided) -> dict[str, Any]:
    return {
        "call": e.call,
        "decision": e.decision,
        "by": e.by,
        "reason": e.reason,
        "digest": e.digest.hex(),
        "rule": e.rule or None,
    }


def _waiting(e: pb.Waiting) -> dict[str, Any]:
    expires = time_text(e.expires_ms) if e.expires_ms else None
    return {"reason": e.reason, "call": e.call, "expires": expires}


def _finished(e: pb.Finished) -> dict[str, Any]:
    error = {"code": e.error.code, "message": e.error.message, "hint": e.error.hint}
    return {
        "outcome": e.outcome,
        "text": e.text,
        "error": error if e.HasField("error") else None,
        "usage": usage_json(e.usage),
        "carried_usage": usage_json(e.carried) if e.HasField("carried") else None,
        "seconds": e.seconds,
    }


def _delta(e: Any) -> dict[str, Any]:
    return {"step": e.step, "attempt": e.attempt, "try": _try(e), "offset": e.offset, "text": e.text}


def _try(e: Any) -> int:
    return int(getattr(e, "try"))  # `try` is a word of Python's own.


_FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "created": _created,
    "config_resolved": lambda e: {
        "settings": settings_json(e),
        "notices": list(e.notices),
        "subagents": {child.name: settings_json(child) for child in e.subagents},
    },
    "attempt_started": lambda e: {"attempt": e.attempt, "worker": e.worker},
    "workspace_placed": lambda e: {"worker": e.worker, "disk": e.disk},
    "attempt_ended": lambda e: {"attempt": e.attempt, "outcome": e.outcome},
    "model_requested": lambda e: {
        "step": e.step,
        "try": _try(e),
        "model": e.model,
        "purpose": e.purpose,
        "prompt_tokens_estimate": e.prompt_tokens_estimate,
        **({"tool_mode": e.tool_mode} if e.tool_mode else {}),
    },
    "model_replied": _replied,
    "tool_dispatched": lambda e: {
        "call": e.call,
        "name": e.name,
        "arguments": _object(e.arguments),
        "effect": e.effect,
    },
    "process_started": lambda e: {"call": e.call, "pid": e.pid},
    "tool_finished": lambda e: {
        "call": e.call,
        "name": e.name,
        "result": e.result,
        "is_error": e.is_error,
        "seconds": e.seconds,
    },
    "tool_outcome_unknown": lambda e: {"call": e.call},
    "arguments_repaired": lambda e: {
        "call": e.call,
        "before": _object(e.before),
        "after": _object(e.after),
    },
    "approval_requested": _asked,
    "approval_decided": _decided,
    "rule_matched": lambda e: {"call": e.call, "verdict": e.verdict, "rule": e.rule},
    "subagent_started": lambda e: {"call": e.call, "name": e.name, "budget": budget_json(e.budget)},
    "subagent_finished": lambda e: {"call": e.call},
    "loop_warned": lambda e: {"step": e.step, "times": e.times},
    "compacted": lambda e: {
        "step": e.step,
        "try": _try(e),
        "first": e.first,
        "last": e.last,
        "kept": e.kept,
        "tokens_before": e.tokens_before,
        "tokens_after": e.tokens_after,
        "room": e.room,
    },
    "waiting": _waiting,
    "resumed": lambda e: {"by": e.by},
    "retrying": lambda e: {
        "step": e.step,
        "try": _try(e),
        "status": e.status,
        "in_seconds": e.in_seconds,
        "reason": e.reason,
    },
    "fallback": lambda e: {"from": getattr(e, "from"), "to": e.to, "reason": e.reason},
    "history_changed": lambda e: {"step": e.step},
    "budget_exceeded": lambda e: {"limit": e.limit, "value": e.value},
    "pause_requested": lambda e: {"by": e.by},
    "cancel_requested": lambda e: {"by": e.by},
    "notice": lambda e: {"code": e.code, "text": e.text},
    "finished": _finished,
    "text_delta": _delta,
    "thinking_delta": _delta,
    "stream_reset": lambda e: {"step": e.step, "attempt": e.attempt, "try": _try(e)},
    "progress": lambda e: {
        "what": e.what,
        "done": e.done,
        "total": e.total,
        "unit": e.unit,
        "text": e.text,
    },
}
