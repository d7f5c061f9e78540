"""What a server tells beside its attempts: executions from their beginning to their end, levels, gRPC calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
from graphton.errors import JournalError
from opentelemetry.trace import SpanKind, Status, StatusCode

from stigmer.api import event_pb2 as pb
from stigmer.api.service_pb2 import CreateExecutionRequest
from stigmer.store import Row, Store
from stigmer.telemetry import _conventions as genai
from stigmer.telemetry._sdk import Telemetry, attempt_span, context_of, execution_span, trace_of

__all__ = ["Calls", "Drives", "ServerWatch", "tell"]

log = logging.getLogger("stigmer.telemetry")

LOOK_SECONDS = 5.0
"""So often the store is asked how many executions are in which state."""
_STATES = ("queued", "running", "waiting")
_FAILED = Status(StatusCode.ERROR)
_TOLD = {
    "approval_requested": "approval requested",
    "approval_decided": "approval decided",
    "waiting": "waiting",
    "resumed": "resumed",
    "pause_requested": "pause requested",
    "cancel_requested": "cancel requested",
}
"""Records that are events of an execution's span, and how they are called there."""


class Drives(Protocol):
    """The engine, as far as it is looked at here."""

    @property
    def name(self) -> str:
        """embedded | temporal"""
        ...

    @property
    def running(self) -> int:
        """How many attempts are driven just now."""
        ...


class ServerWatch:
    """Hears of every event that this server commits; each one is committed by one server."""

    def __init__(self, telemetry: Telemetry, store: Store, engine: Drives) -> None:
        self._telemetry, self._count, self._store = telemetry, telemetry.instruments, store
        self._states: dict[str, int] = {}
        self._telling: set[asyncio.Task[None]] = set()
        levels = self._count.levels
        levels["stigmer.executions"] = lambda: [(n, {"state": state}) for state, n in self._states.items()]
        if engine.name == "embedded":  # Else workers drive them, and say so.
            levels["stigmer.attempts.running"] = lambda: [(engine.running, {})]
        levels["stigmer.watch.streams"] = lambda: [(store.feed.watchers, {})]
        store.feed.tap = self.published
        self._looking = asyncio.create_task(self._look(), name="telemetry")

    async def stop(self) -> None:
        """The spans of what has ended are made; nothing more is heard."""
        self._store.feed.tap = None
        self._looking.cancel()
        await asyncio.gather(self._looking, return_exceptions=True)
        await asyncio.gather(*self._telling, return_exceptions=True)
        self._count.levels.clear()

    async def _look(self) -> None:
        while True:
            try:
                for state in _STATES:
                    self._states[state] = await self._store.count(state)
            except (
                JournalError
            ):  # Whoever needs the database says so; a level that nobody knows is not shown.
                self._states.clear()
            await asyncio.sleep(LOOK_SECONDS)

    def published(self, no: int, committed: Sequence[tuple[int, pb.Event, bytes]]) -> None:
        """These events of an execution are stored. Nothing that goes wrong here reaches the store."""
        try:
            self._published(no, committed)
        except Exception:
            self._store.feed.tap = None
            log.exception("telemetry of the executions is given up")

    def _published(self, no: int, committed: Sequence[tuple[int, pb.Event, bytes]]) -> None:
        for seq, event, _ in committed:
            kind = event.WhichOneof("kind")
            if kind == "created":
                self._count.executions_accepted.add(1)
                if event.created.retry_of:
                    return  # What follows in this batch is counted where it happened first.
            elif kind == "attempt_ended":
                self._count.attempts.add(1, {"outcome": event.attempt_ended.outcome})
            elif kind == "approval_requested":
                self._count.approvals.add(1, {"decision": "requested"})
            elif kind == "approval_decided":
                self._count.approvals.add(1, {"decision": event.approval_decided.decision})
            elif kind == "finished" and seq:
                self._finished(no, event.finished)

    def _finished(self, no: int, finished: pb.Finished) -> None:
        labels = {"outcome": finished.outcome}
        self._count.execution_duration.record(finished.seconds, labels)
        if finished.error.code:
            labels[genai.ERROR] = self._count.codes.label(finished.error.code)
        self._count.executions_finished.add(1, labels)
        if self._telemetry.traces:
            telling = asyncio.create_task(self._tell(no), name="span of an execution")
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _tell(self, no: int) -> None:
        """The span of an execution that has ended, made of its records."""
        try:
            rows = await self._store.rows("by_no", {"no": no})
            if rows:
                tell(self._telemetry, Row(*rows[0]), await self._store.replay(no))
        except JournalError as error:
            log.warning("no span of an execution number=%d reason=%r", no, error.message)


def tell(telemetry: Telemetry, row: Row, records: Sequence[pb.Event]) -> None:
    """The span of an execution from accepted to finished, and those of attempts that were lost with their process."""
    request = CreateExecutionRequest.FromString(row.request)
    end = records[-1].finished
    agent = request.agent or "default"
    attributes: dict[str, Any] = {
        genai.AGENT: agent,
        "stigmer.execution.id": row.id,
        "stigmer.organisation": row.organisation,
        "stigmer.outcome": end.outcome,
        "stigmer.attempts": row.epoch,
        "stigmer.usage.input_tokens": end.usage.input_tokens,
        "stigmer.usage.output_tokens": end.usage.output_tokens,
        "stigmer.running.seconds": end.seconds,
    }
    if end.usage.HasField("usd"):
        attributes["stigmer.cost.usd"] = end.usage.usd
    if request.session:
        attributes[genai.CONVERSATION] = request.session
    if request.retry_of:
        attributes["stigmer.retry_of"] = request.retry_of
    if telemetry.content:
        attributes[genai.INPUT_MESSAGES] = telemetry.said(request.task)
        attributes[genai.OUTPUT_MESSAGES] = telemetry.said(end.text)
    span = telemetry.start(
        f"execution {agent}",
        context_of(request.traceparent),
        attributes=attributes,
        kind=SpanKind.SERVER,
        at=_nanoseconds(records[0]),
        trace_id=0 if request.traceparent else trace_of(row.id),
        span_id=execution_span(row.id),
    )
    for record in _own(records):
        kind = record.WhichOneof("kind") or ""
        if kind in _TOLD:
            span.add_event(_TOLD[kind], _said(record), timestamp=_nanoseconds(record))
    if end.outcome == "failed":
        span.set_attribute(genai.ERROR, end.error.code or "failed")
        span.set_status(_FAILED)
    _tell_lost(telemetry, row, request, records)
    span.end(_nanoseconds(records[-1]))


def _own(records: Sequence[pb.Event]) -> Iterable[pb.Event]:
    """The records of this execution itself, without those that it took over from the one that it retries."""
    began = next((n for n, record in enumerate(records) if record.HasField("attempt_started")), 0)
    return records[began:]


def _said(record: pb.Event) -> dict[str, str]:
    """What of a record is told: words of ours, names of tools, numbers of calls."""
    match record.WhichOneof("kind"):
        case "approval_requested":
            asked = record.approval_requested
            return {"stigmer.path": record.path, "stigmer.call": asked.call, genai.TOOL: asked.name}
        case "approval_decided":
            decided = record.approval_decided
            return {
                "stigmer.path": record.path, "stigmer.call": decided.call, "stigmer.decision": decided.decision,
            }  # fmt: skip
        case "waiting":
            return {"stigmer.reason": record.waiting.reason}
        case _:
            return {}


def _tell_lost(
    telemetry: Telemetry, row: Row, request: CreateExecutionRequest, records: Sequence[pb.Event]
) -> None:
    """Attempts whose process was killed could not tell of themselves."""
    started = {r.attempt_started.attempt: r for r in records if r.HasField("attempt_started")}
    above = telemetry.execution(row.id, request.traceparent)
    for record in records:
        ended = record.attempt_ended
        if ended.outcome == "lost" and ended.attempt in started:
            attributes = {
                genai.OPERATION: genai.INVOKE_AGENT,
                genai.AGENT: request.agent or "default",
                "stigmer.execution.id": row.id,
                "stigmer.attempt": ended.attempt,
                "stigmer.attempt.outcome": "lost",
                genai.ERROR: "lost",
            }
            span = telemetry.start(
                f"{genai.INVOKE_AGENT} {request.agent or 'default'}",
                above,
                attributes=attributes,
                at=_nanoseconds(started[ended.attempt]),
                span_id=attempt_span(row.id, ended.attempt),
            )
            span.set_status(_FAILED)
            span.end(_nanoseconds(record))


def _nanoseconds(record: pb.Event) -> int:
    return record.time_ms * 1_000_000


class Calls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it is generic in the stubs alone
    """Counts the calls of a server, by method and by how they ended."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._count = telemetry.instruments

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The same method, counted. What is no method of ours is counted as one."""
        handler = await continuation(handler_call_details)
        method = "other" if handler is None else str(handler_call_details.method).rpartition("/")[2]
        if handler is None:
            self._count.rpc_calls.add(1, {"method": method, "status": "UNIMPLEMENTED"})
            return None
        return _counted(handler, _Counts(self._count, method))


class _Counts:
    """One method's calls."""

    def __init__(self, count: Any, method: str) -> None:
        self._count, self._method = count, method

    def ended(self, context: Any, began: float | None, error: BaseException | None) -> None:
        """A call has ended, with this error or with an answer; `began` where its time says something."""
        left = isinstance(error, (asyncio.CancelledError, GeneratorExit))
        status = "CANCELLED" if left else _status(context, error)
        self._count.rpc_calls.add(1, {"method": self._method, "status": status})
        if began is not None:
            self._count.rpc_duration.record(time.monotonic() - began, {"method": self._method})


def _status(context: Any, error: BaseException | None) -> str:
    code = context.code()
    if isinstance(code, int):
        code = next((known for known in grpc.StatusCode if known.value[0] == code), None)
    return code.name if code is not None else "UNKNOWN" if error is not None else "OK"


def _counted(handler: Any, counts: _Counts) -> Any:
    wires = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.request_streaming:

        async def attend(requests: Any, context: Any) -> Any:
            try:
                answer = await handler.stream_stream(requests, context)
            except BaseException as error:
                counts.ended(context, None, error)
                raise
            counts.ended(context, None, None)
            return answer

        return grpc.stream_stream_rpc_method_handler(attend, **wires)
    if handler.response_streaming:

        async def stream(request: Any, context: Any) -> Any:
            try:
                async for answer in handler.unary_stream(request, context):
                    yield answer
            except BaseException as error:
                counts.ended(context, None, error)
                raise
            counts.ended(context, None, None)

        return grpc.unary_stream_rpc_method_handler(stream, **wires)

    async def answered(request: Any, context: Any) -> Any:
        began = time.monotonic()
        try:
            answer = await handler.unary_unary(request, context)
        except BaseException as error:
            counts.ended(context, began, error)
            raise
        counts.ended(context, began, None)
        return answer

    return grpc.unary_unary_rpc_method_handler(answered, **wires)
