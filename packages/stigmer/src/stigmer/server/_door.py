"""What every call passes on its way to its method: who calls is checked before the request is even read, and the end is told.

A request arrives as bytes. One that cannot be read is the caller's fault, and is refused as such.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from stigmer.api import event_pb2 as pb
from stigmer.server._audit import about
from stigmer.server._sizes import check_sizes
from stigmer.server.status import DETAIL, Refused, status_of

if TYPE_CHECKING:
    from stigmer.server._audit import Audit

__all__ = ["Visit", "end", "guarded"]

_ENDED = pb.Error(
    code="unauthenticated", message="the key that opened this stream holds no more", hint="stigmer key list"
)


class Visit:
    """One call that was let in: of whom, and what is told of it when it ends, or as soon as a stream has begun."""

    def __init__(
        self,
        context: Any,
        *,
        audit: Audit | None = None,
        quiet: bool = True,
        said: dict[str, Any] | None = None,
        streams: AbstractContextManager[None] | None = None,
        still: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """`quiet`: that it went well is not worth a line. `still` says whether the caller may go on."""
        self.request: Any = None
        self.answer: Any = None
        self._context, self._audit, self._quiet, self._said = context, audit, quiet, said or {}
        self._streams = nullcontext() if streams is None else streams
        self._still = still

    async def goes_on(self) -> bool:
        """Whether the caller may hear more."""
        return self._still is None or await self._still()

    def __enter__(self) -> Visit:
        self._streams.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.__exit__(kind, error, trace)
        self.tell(error)

    def tell(self, error: BaseException | None = None) -> None:
        """Writes the line, where there is one to write, and no second one."""
        if self._audit is None:
            return
        outcome = _outcome(self._context, error)
        if self._quiet and outcome in ("ok", "cancelled"):
            return
        found = about(self.request, self.answer)
        if self._said.get("key"):  # We know who it is, whatever he says.
            found.pop("by", None)
        self._audit.tell(outcome, **self._said, **found)
        self._audit = None


def _outcome(context: Any, error: BaseException | None) -> str:
    """`ok`, or the code of the error that the caller was told."""
    if error is None:
        return "ok"
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return "cancelled"
    told = next((value for key, value in context.trailing_metadata() or () if key == DETAIL), None)
    return pb.Error.FromString(told).code if told is not None else "internal"


def guarded(handler: Any, admit: Callable[[Any], Awaitable[Visit]]) -> Any:
    """The same method, whose caller must be admitted first."""
    read, wires = handler.request_deserializer, {"response_serializer": handler.response_serializer}
    if handler.request_streaming:

        async def attend(bodies: Any, context: Any) -> Any:
            with await admit(context) as visit:
                return await handler.stream_stream(_Requests(bodies, read, visit), context)

        return grpc.stream_stream_rpc_method_handler(attend, **wires)
    if handler.response_streaming:

        async def stream(body: bytes, context: Any) -> Any:
            with await admit(context) as visit:
                visit.request = await _read(read, body, context)
                async for answer in handler.unary_stream(visit.request, context):
                    if not await visit.goes_on():
                        await end(context, _ENDED)
                    if visit.answer is None:
                        visit.answer = answer
                        visit.tell()
                    yield answer

        return grpc.unary_stream_rpc_method_handler(stream, **wires)

    async def answer(body: bytes, context: Any) -> Any:
        with await admit(context) as visit:
            visit.request = await _read(read, body, context)
            visit.answer = await handler.unary_unary(visit.request, context)
            return visit.answer

    return grpc.unary_unary_rpc_method_handler(answer, **wires)


class _Requests:
    """The messages of a stream that comes in, read one by one."""

    def __init__(self, bodies: Any, read: Callable[[bytes], Any], visit: Visit) -> None:
        self._bodies, self._read, self._visit = aiter(bodies), read, visit

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        body = await anext(self._bodies)
        if not await self._visit.goes_on():
            raise Refused(_ENDED.message, code=_ENDED.code, hint=_ENDED.hint)
        message = _message(self._read, body)
        if self._visit.request is None:
            self._visit.request = message
        return message


def _message(read: Callable[[bytes], Any], body: bytes) -> Any:
    """The message in these bytes. Raises Refused."""
    try:
        message = read(body)
    except DecodeError as error:
        raise Refused(
            "the request cannot be read: it is no message of this method",
            code="usage",
            hint="the messages are those of proto/stigmer/v1",
        ) from error
    check_sizes(message)
    return message


async def _read(read: Callable[[bytes], Any], body: bytes, context: Any) -> Any:
    try:
        return _message(read, body)
    except Refused as error:
        await end(context, pb.Error(code=error.code, message=error.message, hint=error.hint))


async def end(context: Any, error: pb.Error) -> NoReturn:
    """Ends the call with this error."""
    await context.abort(
        status_of(error.code), error.message, trailing_metadata=((DETAIL, error.SerializeToString()),)
    )
    raise AssertionError("abort() always raises")
