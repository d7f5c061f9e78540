"""What every call passes on its way to its method: who calls is checked before the request is even read, and the end is told.

A request arrives as bytes. One that cannot be read is the caller's fault, and is refused as such.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
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

__all__ = ["LOOK_SECONDS", "Visit", "end", "guarded"]

LOOK_SECONDS = 15.0
"""So often it is looked whether whoever opened a stream may still hear, where nothing is said on it."""


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
        over: Callable[[], Awaitable[pb.Error | None]] | None = None,
        look: float = LOOK_SECONDS,
    ) -> None:
        """`quiet`: that it went well is not worth a line. `over` says why the caller may not go on; None where he may."""
        self.request: Any = None
        self.answer: Any = None
        self._context, self._audit, self._quiet, self._said = context, audit, quiet, said or {}
        self._streams = nullcontext() if streams is None else streams
        self._over, self._look = over, look

    async def over(self) -> pb.Error | None:
        """Why the caller may hear no more; None where he may."""
        return None if self._over is None else await self._over()

    @asynccontextmanager
    async def welcome(self) -> AsyncIterator[None]:
        """What is done within it ends with the caller's right to it, even where nothing is said for long."""
        if self._over is None:
            yield
            return
        try:
            async with asyncio.timeout(None) as stay:
                looking = asyncio.create_task(self._until_over(stay), name="is the caller still welcome")
                try:
                    yield
                finally:
                    looking.cancel()
                    with suppress(asyncio.CancelledError):
                        await looking
        except TimeoutError:
            if not stay.expired():
                raise
            await end(self._context, looking.result())

    async def _until_over(self, stay: asyncio.Timeout) -> pb.Error:
        """Ends the stay as soon as the caller is not welcome any more, and says why."""
        why = None
        while why is None:
            await asyncio.sleep(self._look)
            why = await self.over()
        stay.reschedule(0)
        return why

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
                async with visit.welcome():
                    return await handler.stream_stream(_Requests(bodies, read, visit), context)

        return grpc.stream_stream_rpc_method_handler(attend, **wires)
    if handler.response_streaming:

        async def stream(body: bytes, context: Any) -> Any:
            with await admit(context) as visit:
                visit.request = await _read(read, body, context)
                async with visit.welcome():
                    async for answer in handler.unary_stream(visit.request, context):
                        if why := await visit.over():
                            await end(context, why)
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
        if why := await self._visit.over():
            raise Refused(why.message, code=why.code, hint=why.hint)
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
