"""What a retry takes over: the request of an execution that came to nothing, and what of its journal still holds."""

from __future__ import annotations

from collections.abc import Sequence

from graphton.journal import key_of

from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.server.status import Refused
from stigmer.store import Row

__all__ = ["carried", "request_again"]

_ANEW = (
    "flags",
    "shell",
    "project_file",
    "budget",
    "idempotency_key",
    "caller",
    "approvals",
    "on_unknown",
    "interactive",
    "retry_of",
    "if_running",
    "traceparent",
)
"""What is this request's own; task, agent, session, workspace and execution_config are the first one's."""
_WHOLE = {
    "model_requested",
    "model_replied",
    "tool_outcome_unknown",
    "tool_finished",
    "subagent_finished",
    "arguments_repaired",
    "history_changed",
    "loop_warned",
    "compacted",
    "workspace_placed",
}
"""Events that hold whatever follows."""
_LEADS_NOWHERE = {"refused", "context", "length", "empty", "loop"}
"""Failures by the last reply of the model: going over it again would fail again, so it alone is asked for anew."""


def request_again(row: Row, request: api.CreateExecutionRequest) -> api.CreateExecutionRequest:
    """The request of a retry. Raises Refused when the execution has not come to nothing."""
    if row.finished_ms is None:
        raise Refused(
            f"execution {row.id} is {row.state}: only one that has ended can be retried",
            code="not_finished",
            hint=f"stigmer attach {row.id}, or stigmer cancel {row.id} first",
        )
    if row.state == "completed":
        raise Refused(
            f"execution {row.id} has completed: there is nothing to retry",
            code="completed",
            hint=f"to see it: stigmer get execution {row.id}; for a new run: stigmer run …",
        )
    again = api.CreateExecutionRequest.FromString(row.request)
    own = [rule for rule in again.approvals if not rule.source]  # The caller's; those of files are read anew.
    approve_all = again.approve_all or request.approve_all
    for name in _ANEW:
        again.ClearField(name)  # type: ignore[arg-type]  # a field's name
    given = api.CreateExecutionRequest()
    given.CopyFrom(request)
    for field in given.DESCRIPTOR.fields:
        if field.name not in _ANEW:
            given.ClearField(field.name)  # type: ignore[arg-type]  # a field's name
    again.MergeFrom(given)
    again.approvals.extend(own)
    again.approve_all = approve_all
    return again


def carried(records: Sequence[pb.Event], *, execution: str) -> list[pb.Event]:
    """The events of an ended execution that a retry begins with: nothing that they record is asked or run again.

    What belonged to its attempts, its settings and its end stays behind. Of a call that has no result yet only its
    dispatch is kept: whether it may run is judged and asked anew, with the rules and the limits of now.
    """
    records = _before_what_failed(records)
    done = {(r.path, r.tool_finished.call) for r in records if r.HasField("tool_finished")}
    return [_with_key(record, execution) for record in records if _holds(record, done)]


def _with_key(record: pb.Event, execution: str) -> pb.Event:
    """The same record; a call that follows its execution into another one keeps its idempotency key, written out."""
    dispatched = record.tool_dispatched
    if record.HasField("tool_dispatched") and not dispatched.idempotency_key:
        dispatched.idempotency_key = key_of(execution, record.path, dispatched.call)
    return record


def _holds(record: pb.Event, done: set[tuple[str, str]]) -> bool:
    kind = record.WhichOneof("kind") or ""
    match kind:
        case "tool_dispatched":
            return True
        case "approval_requested" | "rule_matched" | "subagent_started":
            return (record.path, getattr(record, kind).call) in done
        case "approval_decided":
            decided = record.approval_decided
            return decided.decision != "cancelled" and (record.path, decided.call) in done
        case "notice":
            return record.notice.code not in ("model", "setting", "retry")
        case _:
            return kind in _WHOLE


def _before_what_failed(records: Sequence[pb.Event]) -> Sequence[pb.Event]:
    """The records without the reply, of the agent itself, that the run failed by, and what came of it.

    Only of a reply that repeated itself anything can have come; else one with calls that ran is not what it failed by.
    """
    code = records[-1].finished.error.code
    if code not in _LEADS_NOWHERE:
        return records
    last = max((n for n, record in enumerate(records) if _is_turn(record)), default=len(records))
    ran = any(record.HasField("tool_dispatched") and not record.path for record in records[last:])
    return records if ran and code != "loop" else records[:last]


def _is_turn(record: pb.Event) -> bool:
    replied = record.model_replied
    return record.HasField("model_replied") and not record.path and replied.purpose in ("", "turn")
