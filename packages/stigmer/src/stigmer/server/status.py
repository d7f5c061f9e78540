"""What goes wrong, as gRPC tells it: a status by a table, and the whole error in the trailing metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import grpc
from graphton.errors import GraphtonError

from stigmer import redact
from stigmer.api import event_pb2 as pb
from stigmer.errors import StigmerError
from stigmer.runner import failure

__all__ = ["DETAIL", "Refused", "abort", "status_of"]

DETAIL = "stigmer-error-bin"
"""The trailing metadata that holds an encoded stigmer.v1.Error."""

_STATUS = {
    "config": grpc.StatusCode.INVALID_ARGUMENT,
    "setting": grpc.StatusCode.INVALID_ARGUMENT,
    "model_name": grpc.StatusCode.INVALID_ARGUMENT,
    "usage": grpc.StatusCode.INVALID_ARGUMENT,
    "empty_task": grpc.StatusCode.INVALID_ARGUMENT,
    "task_too_long": grpc.StatusCode.INVALID_ARGUMENT,
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "workspace": grpc.StatusCode.INVALID_ARGUMENT,
    "agent": grpc.StatusCode.INVALID_ARGUMENT,
    "agent_unknown": grpc.StatusCode.NOT_FOUND,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "model_missing": grpc.StatusCode.FAILED_PRECONDITION,
    "decided": grpc.StatusCode.FAILED_PRECONDITION,
    "changed": grpc.StatusCode.FAILED_PRECONDITION,
    "session_busy": grpc.StatusCode.FAILED_PRECONDITION,
    "busy": grpc.StatusCode.FAILED_PRECONDITION,
    "fenced": grpc.StatusCode.ABORTED,
    "store": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too_many_calls": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "internal": grpc.StatusCode.INTERNAL,
}


class Refused(StigmerError):
    """The server does not do what was asked; `code` says why, `details` more for programs."""

    def __init__(
        self, message: str, *, code: str, hint: str = "", details: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.details = details or {}


def status_of(code: str) -> grpc.StatusCode:
    """The gRPC status of an error code."""
    return _STATUS.get(code, grpc.StatusCode.FAILED_PRECONDITION)


async def abort(context: Any, error: Exception, *, home: Path, about: str) -> NoReturn:
    """Ends the call with this error. Secrets are masked; a defect leaves a report, and no trace goes out."""
    told = detail(error, home=home, about=about)
    await context.abort(
        status_of(told.code), told.message, trailing_metadata=((DETAIL, told.SerializeToString()),)
    )
    raise AssertionError("abort() always raises")


def detail(error: Exception, *, home: Path, about: str) -> pb.Error:
    """The record of an error, with its problems and details."""
    told = failure(error, home=home, about=about)
    if isinstance(error, (StigmerError, GraphtonError)):
        told.problems.extend(redact.scrub(problem) for problem in getattr(error, "problems", ()))
        told.details.update(getattr(error, "details", {}))
    return told
