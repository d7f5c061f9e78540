"""Who may call: whoever shows the token of the home, on every method."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio

from stigmer.api import event_pb2 as pb
from stigmer.server.status import DETAIL

__all__ = ["TokenCheck", "by_unix_socket", "token_of"]


def token_of(path: Path) -> str:
    """The token in this file; made, for its owner alone, where there is none."""
    try:
        found = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        found = ""
    if len(found) >= 32 and found.isascii():
        path.chmod(0o600)
        return found
    token = secrets.token_hex(32)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(token + "\n")
    new.replace(path)
    return token


def by_unix_socket(context: Any) -> bool:
    """Whether the call came over a Unix socket: the only way for secrets and the caller's own files."""
    return str(context.peer()).startswith("unix:")


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Lets a call in that says `authorization: Bearer <token>`; compared in constant time."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Hands on what is allowed; anything else meets a handler that refuses it."""
        handler = await continuation(handler_call_details)
        if handler is None or self._allowed(handler_call_details.invocation_metadata):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_refuse_stream)
        return grpc.unary_unary_rpc_method_handler(_refuse)

    def _allowed(self, metadata: Any) -> bool:
        shown = [value for key, value in metadata or () if key == "authorization"]
        given = shown[0] if len(shown) == 1 else ""
        data = given if isinstance(given, bytes) else given.encode("utf-8", "replace")
        return hmac.compare_digest(data, self._expected)


_UNKNOWN = pb.Error(
    code="unauthenticated",
    message="the server does not know this token",
    hint="the token is in the file `token` of the server's STIGMER_HOME; is STIGMER_HOME the same here?",
)


async def _refuse(request: Any, context: Any) -> NoReturn:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        _UNKNOWN.message,
        trailing_metadata=((DETAIL, _UNKNOWN.SerializeToString()),),
    )
    raise AssertionError("abort() always raises")


async def _refuse_stream(request: Any, context: Any) -> Any:
    await _refuse(request, context)
    yield  # Never reached; it makes this a stream.
