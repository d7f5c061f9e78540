"""Events as JSON: exactly the objects that scripts rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stigmer.api import event_pb2 as pb
from stigmer.events import time_text, to_json

EXAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "created": (
        pb.Created(
            task="t", agent="a", agent_revision="1f2e", workspace="/w", budget=pb.Budget(steps=5, children=3), approve_all=True,
            rules=["deny run_command"], on_unknown="ask", place="volume",
        ),
        {
            "task": "t", "agent": "a", "agent_revision": "1f2e", "session": "", "workspace": "/w", "place": "volume", "parent": "",
            "budget": {
                "steps": 5, "tokens": None, "usd": None, "seconds": None, "children": 3, "depth": None,
            },
            "approve_all": True,
            "retry_of": None, "rules": ["deny run_command"], "on_unknown": "ask",
        },
    ),
    "workspace_placed": (
        pb.WorkspacePlaced(worker="host", disk="1f2e"),
        {"worker": "host", "disk": "1f2e"},
    ),
    "config_resolved": (
        pb.ConfigResolved(
            settings=[
                pb.Setting(
                    name="model", value='"m"', source="flag --model",
                    shadowed=[pb.Shadowed(value='"n"', source="env STIGMER_LLM_MODEL")],
                ),
                pb.Setting(name="api_key", value='"***"', source="env K"),
            ],
            notices=["n"],
            subagents=[
                pb.SubagentConfig(name="r", settings=[pb.Setting(name="model", value='"s"', source="agent a/r@1")])
            ],
        ),
        {
            "settings": {
                "model": {
                    "value": "m", "source": "flag --model",
                    "shadowed": [{"value": "n", "source": "env STIGMER_LLM_MODEL"}],
                },
                "api_key": {"value": "***", "source": "env K", "shadowed": []},
            },
            "notices": ["n"],
            "subagents": {"r": {"model": {"value": "s", "source": "agent a/r@1", "shadowed": []}}},
        },
    ),
    "attempt_started": (pb.AttemptStarted(attempt=2, worker="h:1"), {"attempt": 2, "worker": "h:1"}),
    "attempt_ended": (pb.AttemptEnded(attempt=2, outcome="waiting"), {"attempt": 2, "outcome": "waiting"}),
    "model_requested": (
        pb.ModelRequested(**{"step": 1, "try": 2}, model="o:m", purpose="turn", prompt_tokens_estimate=9),
        {"step": 1, "try": 2, "model": "o:m", "purpose": "turn", "prompt_tokens_estimate": 9},
    ),
    "model_replied": (
        pb.ModelReplied(
            **{"step": 1, "try": 2}, purpose="turn", stop_reason="tools", model="m",
            blocks=[
                pb.Block(thinking=pb.Thinking(text="hm")),
                pb.Block(text="a"),
                pb.Block(text="b"),
                pb.Block(tool_call=pb.ToolCall(call="1.0", name="t", arguments=b'{"x": 1}')),
            ],
            usage=pb.Usage(input_tokens=1, output_tokens=2, cached_tokens=3),
        ),
        {
            "step": 1, "try": 2, "purpose": "turn", "model": "m", "text": "ab", "stop_reason": "tools",
            "tool_calls": [{"call": "1.0", "name": "t", "arguments": {"x": 1}}],
            "usage": {"input_tokens": 1, "output_tokens": 2, "cached_tokens": 3, "cache_write_tokens": 0},
        },
    ),
    "tool_dispatched": (
        pb.ToolDispatched(call="1.0", name="t", arguments=b'{"x": 1}', effect="read"),
        {"call": "1.0", "name": "t", "arguments": {"x": 1}, "effect": "read"},
    ),
    "process_started": (pb.ProcessStarted(call="1.0", pid=7), {"call": "1.0", "pid": 7}),
    "tool_finished": (
        pb.ToolFinished(call="1.0", name="t", result="r", is_error=True, seconds=0.5),
        {"call": "1.0", "name": "t", "result": "r", "is_error": True, "seconds": 0.5},
    ),
    "tool_outcome_unknown": (pb.ToolOutcomeUnknown(call="1.0"), {"call": "1.0"}),
    "arguments_repaired": (
        pb.ArgumentsRepaired(call="1.0", before=b'{"x":"1"}', after=b'{"x":1}'),
        {"call": "1.0", "before": {"x": "1"}, "after": {"x": 1}},
    ),
    "approval_requested": (
        pb.ApprovalRequested(call="1.0", name="t", arguments=b"{}", digest=b"\xab", expires_ms=1),
        {"call": "1.0", "name": "t", "arguments": {}, "digest": "ab", "expires": "1970-01-01T00:00:00.001Z",
         "reason": "approval"},
    ),
    "rule_matched": (
        pb.RuleMatched(call="1.0", digest=b"\xab", verdict="allow", rule="allow run_command (command: git *)"),
        {"call": "1.0", "verdict": "allow", "rule": "allow run_command (command: git *)"},
    ),
    "subagent_started": (
        pb.SubagentStarted(call="1.0", name="r", budget=pb.Budget(steps=33)),
        {
            "call": "1.0", "name": "r",
            "budget": {
                "steps": 33, "tokens": None, "usd": None, "seconds": None, "children": None, "depth": None,
            },
        },
    ),
    "subagent_finished": (pb.SubagentFinished(call="1.0"), {"call": "1.0"}),
    "loop_warned": (pb.LoopWarned(step=3, times=3), {"step": 3, "times": 3}),
    "compacted": (
        pb.Compacted(
            **{"step": 3, "try": 1}, last=9, kept=2, tokens_before=9000, tokens_after=2000, room=8000
        ),
        {
            "step": 3, "try": 1, "first": 0, "last": 9, "kept": 2,
            "tokens_before": 9000, "tokens_after": 2000, "room": 8000,
        },
    ),
    "approval_decided": (
        pb.ApprovalDecided(call="1.0", digest=b"\xab", decision="rejected", by="ann", reason="no"),
        {"call": "1.0", "digest": "ab", "decision": "rejected", "by": "ann", "reason": "no", "rule": None},
    ),
    "waiting": (pb.Waiting(reason="key"), {"reason": "key", "call": "", "expires": None}),
    "resumed": (pb.Resumed(by="ann"), {"by": "ann"}),
    "retrying": (
        pb.Retrying(**{"step": 1, "try": 2}, status=529, in_seconds=0.5, reason="busy"),
        {"step": 1, "try": 2, "status": 529, "in_seconds": 0.5, "reason": "busy"},
    ),
    "fallback": (
        pb.Fallback(**{"step": 2, "from": "a:b", "to": "c:d", "reason": "down"}),
        {"from": "a:b", "to": "c:d", "reason": "down"},
    ),
    "history_changed": (pb.HistoryChanged(step=3), {"step": 3}),
    "budget_exceeded": (pb.BudgetExceeded(limit="steps", value=3), {"limit": "steps", "value": 3}),
    "pause_requested": (pb.PauseRequested(by="ann"), {"by": "ann"}),
    "cancel_requested": (pb.CancelRequested(by="ann"), {"by": "ann"}),
    "notice": (pb.Notice(code="c", text="t"), {"code": "c", "text": "t"}),
    "finished": (
        pb.Finished(
            outcome="failed", error=pb.Error(code="c", message="m", hint="h"),
            usage=pb.Usage(input_tokens=1, unpriced_calls=2), carried=pb.Usage(output_tokens=7), seconds=1.5,
        ),
        {
            "outcome": "failed", "text": "", "error": {"code": "c", "message": "m", "hint": "h"}, "seconds": 1.5,
            "usage": {
                "input_tokens": 1, "output_tokens": 0, "cached_tokens": 0, "cache_write_tokens": 0, "usd": None,
                "unpriced_calls": 2,
            },
            "carried_usage": {
                "input_tokens": 0, "output_tokens": 7, "cached_tokens": 0, "cache_write_tokens": 0, "usd": None,
                "unpriced_calls": 0,
            },
        },
    ),
    "text_delta": (
        pb.TextDelta(**{"step": 1, "try": 2}, attempt=3, offset=4, text="t"),
        {"step": 1, "try": 2, "attempt": 3, "offset": 4, "text": "t"},
    ),
    "thinking_delta": (
        pb.ThinkingDelta(**{"step": 1, "try": 2}, attempt=3, offset=4, text="t"),
        {"step": 1, "try": 2, "attempt": 3, "offset": 4, "text": "t"},
    ),
    "stream_reset": (
        pb.StreamReset(**{"step": 1, "try": 2}, attempt=3),
        {"step": 1, "try": 2, "attempt": 3},
    ),
    "progress": (
        pb.Progress(what="load", done=1, total=2, unit="MB", text="x"),
        {"what": "load", "done": 1, "total": 2, "unit": "MB", "text": "x"},
    ),
}  # fmt: skip


def test_every_kind_of_event_has_its_json() -> None:
    assert set(EXAMPLES) == {field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["kind"].fields}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_event_is_the_json_object_that_scripts_rely_on(kind: str) -> None:
    record, expected = EXAMPLES[kind]
    event = pb.Event(seq=7, time_ms=1_795_570_923_456, path="/r@1.0", **{kind: record})
    head = {
        "type": kind,
        "time": "2026-11-25T01:42:03.456Z",
        "execution": "exec_1",
        "path": "/r@1.0",
        "seq": 7,
    }
    shown = to_json(event, "exec_1")
    assert shown == {**head, **expected}
    assert list(shown)[:5] == list(head)
    assert json.loads(json.dumps(shown)) == shown


def test_a_live_event_has_no_number() -> None:
    assert to_json(pb.Event(text_delta=pb.TextDelta()), "e")["seq"] is None


def test_an_event_that_this_program_does_not_know_is_no_error() -> None:
    assert to_json(pb.Event(seq=1), "e")["type"] == "unknown"


def test_time_is_utc_with_milliseconds() -> None:
    assert time_text(0) == "1970-01-01T00:00:00.000Z"
    assert time_text(1_795_570_923_007) == "2026-11-25T01:42:03.007Z"
