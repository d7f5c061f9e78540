"""What one attempt does, as spans and metrics: derived from its records, as they are written.

The attempt is a span below its execution; model calls, tools and sub-agents are spans below it, questions to people are
events. Whichever process drives the attempt tells of it, so a trace shows which worker did what.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from graphton import models
from graphton.messages import Usage
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from stigmer.api import event_pb2 as pb
from stigmer.api.service_pb2 import CreateExecutionRequest
from stigmer.store import Row
from stigmer.telemetry import _conventions as genai
from stigmer.telemetry._sdk import Telemetry, attempt_span

__all__ = ["AttemptWatch"]

log = logging.getLogger("stigmer.telemetry")

_FAILED = Status(StatusCode.ERROR)


@dataclass(slots=True)
class _Open:
    """Something under way: a model call or a tool."""

    span: Span
    began: int
    """Nanoseconds since the epoch."""
    labels: dict[str, str] = field(default_factory=dict)
    model: str = ""
    first: int = 0
    """When the first word came."""


class AttemptWatch:
    """Hears of everything that an attempt records. Nothing that goes wrong here reaches the run."""

    def __init__(self, telemetry: Telemetry, row: Row, attempt: int, records: Sequence[pb.Event]) -> None:
        self._telemetry, self._count = telemetry, telemetry.instruments
        self._models: dict[str, _Open] = {}
        """The model call under way, by path: there is one at a time."""
        self._tools: dict[tuple[str, str], _Open] = {}
        self._steps: dict[str, tuple[int, int]] = {}
        """The step that each path is at, and when it began."""
        self._batches: dict[int, tuple[int, int]] = {}
        """Batches that are not stored yet: when they began, and their events so far."""
        self._outcome = self._error = ""
        self._broken = False
        now = time.time_ns()
        request = CreateExecutionRequest.FromString(row.request)
        self._asked = {f"{m.provider}:{m.model}": m for m in _models(records)}
        if attempt == 1:
            self._count.queue_duration.record(max(0.0, now / 1e9 - row.created_ms / 1e3))
        agent = request.agent or "default"
        attributes = {
            genai.OPERATION: genai.INVOKE_AGENT,
            genai.AGENT: agent,
            "stigmer.execution.id": row.id,
            "stigmer.attempt": attempt,
        }
        if request.session:
            attributes[genai.CONVERSATION] = request.session
        span = telemetry.start(
            f"{genai.INVOKE_AGENT} {agent}",
            telemetry.execution(row.id, request.traceparent),
            attributes=attributes,
            at=now,
            span_id=attempt_span(row.id, attempt),
        )
        self._agents: dict[str, Span] = {"": span}

    # What the journal tells

    def wrote(self, batch: int, records: Iterable[pb.Event]) -> None:
        """These records were given to the store, as a part of that batch."""
        if not self._broken:
            self._guarded(self._wrote, batch, list(records))

    def stored(self, batch: int) -> None:
        """All of that batch is stored, or was refused."""
        began, events = self._batches.pop(batch, (0, 0))
        if began:
            self._count.append_duration.record((time.time_ns() - began) / 1e9)
            self._count.batch_size.record(events)

    def shown(self, path: str) -> None:
        """A piece of a reply has come."""
        asked = self._models.get(path)
        if asked is not None and not asked.first:
            asked.first = time.time_ns()
            self._count.first_chunk.record((asked.first - asked.began) / 1e9, asked.labels)

    def heard(self, record: pb.Event) -> None:
        """Somebody else appended this: a decision, a request to pause or cancel."""
        if not self._broken:
            self._guarded(self._heard, record)

    def close(self) -> None:
        """The attempt has ended; what is still open was cut off. Nothing is heard after it."""
        if not self._broken:
            self._guarded(self._close)
        self._broken = True

    def _close(self) -> None:
        now = time.time_ns()
        for opened in (*self._models.values(), *self._tools.values()):
            opened.span.set_status(_FAILED)
            opened.span.set_attribute(genai.ERROR, "cut_off")
            opened.span.end(now)
        for path in list(self._steps):
            self._step(path, 0, now)
        self._models.clear()
        self._tools.clear()
        own = self._agents.pop("")
        for span in self._agents.values():
            span.end(now)
        self._agents.clear()
        own.set_attribute("stigmer.attempt.outcome", self._outcome or "lost")
        if self._error or not self._outcome:
            own.set_attribute(genai.ERROR, self._error or "lost")
            own.set_status(_FAILED)
        own.end(now)

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception:  # A run must not end of what watches it.
            self._broken = True
            log.exception("telemetry of an attempt is given up")

    def _wrote(self, batch: int, records: list[pb.Event]) -> None:
        now = time.time_ns()
        began, events = self._batches.get(batch, (now, 0))
        self._batches[batch] = began, events + len(records)
        for record in records:
            kind = record.WhichOneof("kind") or ""
            handle = _HANDLERS.get(kind)
            if handle is not None:
                handle(self, record.path, getattr(record, kind), now)

    def _heard(self, record: pb.Event) -> None:
        kind = record.WhichOneof("kind")
        if kind == "approval_decided":
            decided = record.approval_decided
            said = {"stigmer.call": decided.call, "stigmer.decision": decided.decision}
            self._agent(record.path).add_event("approval decided", said)
        elif kind in ("cancel_requested", "pause_requested"):
            self._agents[""].add_event(kind.replace("_", " "))

    # Agents

    def _agent(self, path: str) -> Span:
        """The span of the agent at a path. One that an earlier attempt began has a span of its own in this one."""
        found = self._agents.get(path)
        if found is None:
            parent, _, last = path.rpartition("/")
            name, _, call = last.partition("@")
            found = self._begin_agent(parent, name, call, time.time_ns())
        return found

    def _begin_agent(self, parent: str, name: str, call: str, now: int) -> Span:
        tool = self._tools.get((parent, call))
        above = tool.span if tool is not None else self._agent(parent)
        path = f"{parent}/{name}@{call}"
        attributes = {genai.OPERATION: genai.INVOKE_AGENT, genai.AGENT: name, "stigmer.path": path}
        span = self._telemetry.start(
            f"{genai.INVOKE_AGENT} {name}", _below(above), attributes=attributes, at=now
        )
        self._agents[path] = span
        return span

    def _subagent_started(self, path: str, started: pb.SubagentStarted, now: int) -> None:
        self._begin_agent(path, started.name, started.call, now)

    def _subagent_finished(self, path: str, finished: pb.SubagentFinished, now: int) -> None:
        for child in [
            p for p in self._agents if p.startswith(path + "/") and p.endswith("@" + finished.call)
        ]:
            if "/" not in child[len(path) + 1 :]:
                self._end_model(child, now, error="no_answer")
                self._step(child, 0, now)
                self._agents.pop(child).end(now)

    # Model calls

    def _step(self, path: str, step: int, now: int) -> None:
        """The path is at this step now; 0 where it has ended."""
        before, began = self._steps.pop(path, (0, now))
        if step == before:
            self._steps[path] = before, began
            return
        if before:
            self._count.step_duration.record((now - began) / 1e9)
        if step:
            self._steps[path] = step, now

    def _model_requested(self, path: str, asked: pb.ModelRequested, now: int) -> None:
        if asked.purpose == "turn":
            self._step(path, asked.step, now)
        self._end_model(path, now, error="no_answer")
        provider, _, model = asked.model.partition(":")
        attributes: dict[str, Any] = {
            genai.OPERATION: genai.CHAT,
            genai.PROVIDER: genai.provider(provider),
            genai.REQUEST_MODEL: model,
            "stigmer.step": asked.step,
            "stigmer.try": getattr(asked, "try"),
            "stigmer.purpose": asked.purpose,
            **_settings(self._asked.get(asked.model)),
        }
        above = _below(self._agent(path))
        span = self._telemetry.start(
            f"{genai.CHAT} {model}", above, attributes=attributes, kind=SpanKind.CLIENT, at=now
        )
        labels = {
            genai.OPERATION: genai.CHAT,
            genai.PROVIDER: genai.provider(provider),
            genai.REQUEST_MODEL: self._count.models.label(model),
        }
        self._models[path] = _Open(span, now, labels, model=asked.model)

    def _model_replied(self, path: str, reply: pb.ModelReplied, now: int) -> None:
        asked = self._models.get(path)
        if asked is None:
            return
        self._used(asked, reply.usage)
        reason = genai.finish_reason(reply.stop_reason)
        used = reply.usage
        said: dict[str, Any] = {
            genai.RESPONSE_MODEL: reply.model,
            genai.FINISH_REASONS: [reason],
            genai.USAGE_INPUT: used.input_tokens,
            genai.USAGE_OUTPUT: used.output_tokens,
            genai.USAGE_CACHE_READ: used.cached_tokens,
            genai.USAGE_CACHE_WRITE: used.cache_write_tokens,
        }
        if asked.first:
            said[genai.TIME_TO_FIRST_CHUNK] = (asked.first - asked.began) / 1e9
        if self._telemetry.content and asked.span.is_recording():
            said[genai.OUTPUT_MESSAGES] = self._telemetry.said(_message(reply.blocks, reason))
        asked.span.set_attributes(said)
        self._end_model(path, now)

    def _used(self, asked: _Open, used: pb.Usage) -> None:
        """Tokens and money of one reply."""
        count, labels = self._count, asked.labels
        model = {name: labels[name] for name in (genai.PROVIDER, genai.REQUEST_MODEL)}
        for kind in ("input", "output", "cached", "cache_write"):
            tokens = getattr(used, f"{kind}_tokens")
            if tokens:
                count.tokens.add(tokens, {**model, "kind": kind})
            if kind in ("input", "output"):
                count.token_usage.record(tokens, {**labels, genai.TOKEN_TYPE: kind})
        provider, _, name = asked.model.partition(":")
        usage = Usage(used.input_tokens, used.output_tokens, used.cached_tokens, used.cache_write_tokens)
        usd = models.cost(models.ModelRef(provider, name), usage)
        if usd is None:
            count.unpriced.add(1, model)
        else:
            count.cost.add(usd, model)
            asked.span.set_attribute("stigmer.cost.usd", usd)

    def _end_model(self, path: str, now: int, *, error: str = "") -> None:
        asked = self._models.pop(path, None)
        if asked is None:
            return
        labels = {**asked.labels, genai.ERROR: error} if error else asked.labels
        self._count.operation_duration.record((now - asked.began) / 1e9, labels)
        if error:
            asked.span.set_attribute(genai.ERROR, error)
            asked.span.set_status(_FAILED)
        asked.span.end(now)

    def _retrying(self, path: str, again: pb.Retrying, now: int) -> None:
        status = str(again.status) if again.status else "no_answer"
        asked = self._models.get(path)
        known: dict[str, str] = {}
        if asked is not None:
            known = {name: asked.labels[name] for name in (genai.PROVIDER, genai.REQUEST_MODEL)}
        self._count.retries.add(1, {**known, "status": self._count.codes.label(status)})
        self._end_model(path, now, error=self._count.codes.label(status))
        self._agent(path).add_event(
            "waits before the next try", {"seconds": again.in_seconds, "status": status}
        )

    def _fallback(self, path: str, change: pb.Fallback, now: int) -> None:
        self._count.fallbacks.add(1)
        self._end_model(path, now, error="no_answer")
        self._agent(path).add_event("next model", {"from": getattr(change, "from"), "to": change.to})

    # Tools

    def _tool_dispatched(self, path: str, call: pb.ToolDispatched, now: int) -> None:
        attributes = {
            genai.OPERATION: genai.EXECUTE_TOOL,
            genai.TOOL: call.name,
            genai.TOOL_CALL: call.call,
            genai.TOOL_TYPE: "function",
            "stigmer.effect": call.effect,
        }
        above = _below(self._agent(path))
        span = self._telemetry.start(
            f"{genai.EXECUTE_TOOL} {call.name}", above, attributes=attributes, at=now
        )
        if self._telemetry.content and span.is_recording():
            span.set_attribute(
                genai.TOOL_ARGUMENTS, self._telemetry.said(call.arguments.decode("utf-8", "replace"))
            )
        self._tools[path, call.call] = _Open(span, now, {genai.TOOL: self._count.tools.label(call.name)})

    def _tool_finished(self, path: str, done: pb.ToolFinished, now: int) -> None:
        call = self._tools.pop((path, done.call), None)
        if call is None:  # It never ran: a rule or a person said no, or its arguments were wrong.
            labels = {genai.TOOL: self._count.tool(done.name), "outcome": "refused"}
            self._count.tool_calls.add(1, labels)
            self._agent(path).add_event("tool call refused", {"stigmer.call": done.call})
            return
        outcome = "error" if done.is_error else "ok"
        self._count.tool_calls.add(1, {**call.labels, "outcome": outcome})
        self._count.tool_duration.record((now - call.began) / 1e9, call.labels)
        if self._telemetry.content and call.span.is_recording():
            call.span.set_attribute(genai.TOOL_RESULT, self._telemetry.said(done.result))
        if done.is_error:
            call.span.set_attribute(genai.ERROR, "tool_error")
            call.span.set_status(_FAILED)
        call.span.end(now)

    def _tool_unknown(self, path: str, lost: pb.ToolOutcomeUnknown, now: int) -> None:
        self._count.tool_calls.add(1, {genai.TOOL: "other", "outcome": "unknown"})
        self._agent(path).add_event("tool outcome unknown", {"stigmer.call": lost.call})

    # People, and the end

    def _approval_requested(self, path: str, asked: pb.ApprovalRequested, now: int) -> None:
        said = {"stigmer.call": asked.call, genai.TOOL: asked.name, "stigmer.reason": asked.reason}
        self._agent(path).add_event("approval requested", said)

    def _waiting(self, path: str, waiting: pb.Waiting, now: int) -> None:
        self._agents[""].add_event("waiting", {"stigmer.reason": waiting.reason})

    def _attempt_ended(self, path: str, ended: pb.AttemptEnded, now: int) -> None:
        self._outcome = ended.outcome

    def _finished(self, path: str, finished: pb.Finished, now: int) -> None:
        self._outcome = finished.outcome
        if finished.outcome == "failed":
            self._error = finished.error.code or "failed"
            for open_ in list(self._models):
                self._end_model(open_, now, error=self._count.codes.label(self._error))


_HANDLERS: Mapping[str, Callable[[AttemptWatch, str, Any, int], None]] = {
    "model_requested": AttemptWatch._model_requested,
    "model_replied": AttemptWatch._model_replied,
    "retrying": AttemptWatch._retrying,
    "fallback": AttemptWatch._fallback,
    "tool_dispatched": AttemptWatch._tool_dispatched,
    "tool_finished": AttemptWatch._tool_finished,
    "tool_outcome_unknown": AttemptWatch._tool_unknown,
    "subagent_started": AttemptWatch._subagent_started,
    "subagent_finished": AttemptWatch._subagent_finished,
    "approval_requested": AttemptWatch._approval_requested,
    "waiting": AttemptWatch._waiting,
    "attempt_ended": AttemptWatch._attempt_ended,
    "finished": AttemptWatch._finished,
}


def _models(records: Sequence[pb.Event]) -> Iterable[pb.ResolvedModel]:
    """The models that the execution was resolved to, those of its sub-agents too."""
    for record in records:
        if record.HasField("config_resolved"):
            config = record.config_resolved
            return [*config.models, *(model for child in config.subagents for model in child.models)]
    return []


def _settings(model: pb.ResolvedModel | None) -> dict[str, Any]:
    """What of a model's settings belongs on the span of a call."""
    if model is None:
        return {}
    said: dict[str, Any] = {}
    if model.HasField("max_tokens"):
        said[genai.REQUEST_MAX_TOKENS] = model.max_tokens
    if model.HasField("temperature"):
        said[genai.REQUEST_TEMPERATURE] = model.temperature
    where = urlsplit(model.base_url)
    if where.hostname:
        said[genai.SERVER_ADDRESS] = where.hostname
        if where.port:
            said[genai.SERVER_PORT] = where.port
    return said


def _message(blocks: Iterable[pb.Block], reason: str) -> str:
    """A reply as the conventions write it. What the model thought is left out."""
    parts: list[dict[str, Any]] = []
    for block in blocks:
        if block.HasField("text"):
            parts.append({"type": "text", "content": block.text})
        elif block.HasField("tool_call"):
            call = block.tool_call
            parts.append(
                {
                    "type": "tool_call",
                    "id": call.call,
                    "name": call.name,
                    "arguments": call.arguments.decode("utf-8", "replace"),
                }
            )
    return json.dumps([{"role": "assistant", "parts": parts, "finish_reason": reason}], ensure_ascii=False)


def _below(span: Span) -> Context:
    return trace.set_span_in_context(span, Context())
