"""Servers that share a database: what is being written is watched at the server that holds the worker's line.

The row of a lease names that server: its address for the others (STIGMER_RELAY) and a word that lets them in, new with each
process. A server that is asked to watch follows the stream there; where that cannot be, or breaks, it goes on from the
database, without live text. Nothing else is answered at that address.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
import grpc.aio

from stigmer import redact
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.errors import ConfigError
from stigmer.server.tls import CERTIFICATE, KEY, credentials
from stigmer.store import Row, Store

if TYPE_CHECKING:
    from stigmer.store._dialect import Session

__all__ = ["Holder", "Relay", "relay_at"]

log = logging.getLogger("stigmer.server")

VARIABLE = "STIGMER_RELAY"
METHOD, SERVICE = "Follow", "stigmer.v1.Relay"
TICKET = "stigmer-ticket"
CONNECT_SECONDS = 2.0
"""A server that does not answer so soon is not waited for: the database has all but the live text."""
LOOK_SECONDS = 5.0
"""Whoever watches from the database looks again for the holder so often, while something happens."""
STOP_SECONDS = 1.0
OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
Watch = Callable[[Row, int], AsyncGenerator[api.Frame, None]]


class Holder(NamedTuple):
    """A server that holds workers' lines, as a lease names it."""

    at: str
    """HOST:PORT for other servers."""
    name: str
    """The name in its certificate; "" without TLS."""
    ticket: str

    def __str__(self) -> str:
        return json.dumps({"relay": list(self)})

    @classmethod
    def of(cls, text: str) -> Self | None:
        """The server that a lease names; None where it names another kind of holder."""
        if not text.startswith('{"relay"'):
            return None
        return cls(*json.loads(text)["relay"])


class Relay:
    """This server's part in it: it answers at an address of its own, and follows others."""

    def __init__(self, store: Store, watch: Watch, *, at: str, plaintext: bool) -> None:
        """`at` is what `relay_at` gave."""
        self._store, self._watch = store, watch
        self._secure = credentials(at, plaintext=plaintext)
        name = "" if self._secure is None else _certified(os.environ)
        self.here = Holder(at, name, secrets.token_hex(32))
        redact.remember([self.here.ticket])
        self._grpc: Any = None
        self._channels: dict[Holder, grpc.aio.Channel] = {}

    async def start(self) -> None:
        """Raises ConfigError where nobody can listen at the address."""
        self._grpc = grpc.aio.server(options=OPTIONS)
        handler = grpc.unary_stream_rpc_method_handler(
            self._answer,
            request_deserializer=api.WatchExecutionRequest.FromString,
            response_serializer=api.Frame.SerializeToString,
        )
        self._grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        try:
            if self._secure is None:
                self._grpc.add_insecure_port(self.here.at)
            else:
                self._grpc.add_secure_port(self.here.at, self._secure)
        except RuntimeError as error:
            raise ConfigError([f"nobody can listen at {VARIABLE} {self.here.at!r}: {error}"]) from error
        await self._grpc.start()

    async def stop(self) -> None:
        if self._grpc is not None:
            await self._grpc.stop(STOP_SECONDS)
            self._grpc = None
        for channel in self._channels.values():
            await channel.close(None)

    # For other servers

    async def _answer(
        self, request: api.WatchExecutionRequest, context: Any
    ) -> AsyncGenerator[api.Frame, None]:
        """What WatchExecution streams. Who asks has checked who may see it."""
        shown = dict(context.invocation_metadata() or ()).get(TICKET, "")
        if not hmac.compare_digest(str(shown), self.here.ticket):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the ticket is not of this server")
        row = await self._store.get(request.execution)
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such execution")
            return
        async with aclosing(self._watch(row, request.from_seq)) as frames:
            async for frame in frames:
                yield frame

    # For watchers here

    async def hold(self, row: Row, attempt: int) -> None:
        """The line of this attempt, which another server held, is here now."""
        values = {"no": row.no, "epoch": attempt, "holder": str(self.here)}

        def named(db: Session) -> None:
            db.run("hold", values)

        await self._store.change(named)

    async def watch(self, row: Row, from_seq: int) -> AsyncGenerator[api.Frame, None]:
        """The execution's events, at its holder while there is another than this server, else from the database."""
        place = _Place(max(1, from_seq))
        while True:
            holder = await self._elsewhere(row)
            if holder is not None:
                async with aclosing(self._follow(holder, row, place)) as frames:
                    async for frame in frames:
                        yield frame
                if place.ended:
                    return
            async with aclosing(self._watch(row, place.next)) as frames:
                async for frame in frames:
                    place.take(frame)
                    yield frame
                    if place.may_have_moved() and await self._elsewhere(row) not in (None, holder):
                        break
                else:
                    return

    async def _elsewhere(self, row: Row) -> Holder | None:
        """The other server that holds the line just now."""
        found = await self._store.rows("holder", {"no": row.no})
        holder = Holder.of(str(found[0][0] or "")) if found else None
        return None if holder == self.here else holder

    async def _follow(self, holder: Holder, row: Row, place: _Place) -> AsyncGenerator[api.Frame, None]:
        """The stream there, as long as it lasts."""
        channel = self._channels.get(holder) or self._connect(holder)
        ask: Any = channel.unary_stream(
            f"/{SERVICE}/{METHOD}",
            request_serializer=api.WatchExecutionRequest.SerializeToString,
            response_deserializer=api.Frame.FromString,
        )
        request = api.WatchExecutionRequest(execution=row.id, from_seq=place.next)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await channel.channel_ready()
            async for frame in ask(request, metadata=((TICKET, holder.ticket),)):
                place.take(frame)
                yield frame
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            told = error.details() if isinstance(error, grpc.aio.AioRpcError) else "no answer"
            log.info("no live text execution=%s holder=%s reason=%r", row.id, holder.at, told)
            if (
                channel.get_state() is not grpc.ChannelConnectivity.READY
                and self._channels.get(holder) is channel
            ):
                del self._channels[holder]
                await channel.close(None)

    def _connect(self, holder: Holder) -> grpc.aio.Channel:
        if not holder.name:
            channel = grpc.aio.insecure_channel(holder.at, options=OPTIONS)
        else:
            secure = grpc.ssl_channel_credentials(*_trusted(os.environ))
            options = (*OPTIONS, ("grpc.ssl_target_name_override", holder.name))
            channel = grpc.aio.secure_channel(holder.at, secure, options=options)
        self._channels[holder] = channel
        return channel


class _Place:
    """How far a watcher has come."""

    def __init__(self, from_seq: int) -> None:
        self.next = from_seq
        self.ended = False
        self._began = False
        self._looked = asyncio.get_running_loop().time()

    def take(self, frame: api.Frame) -> None:
        for body in frame.events:
            event = pb.Event.FromString(body)
            if event.seq:
                self.next = event.seq + 1
                self._began = self._began or event.HasField("attempt_started")
                self.ended = self.ended or (event.HasField("finished") and not event.path)

    def may_have_moved(self) -> bool:
        """Whether it is time to look who holds the line: an attempt has begun, or a while has passed."""
        now = asyncio.get_running_loop().time()
        if self.ended or not (self._began or now - self._looked >= LOOK_SECONDS):
            return False
        self._began, self._looked = False, now
        return True


def relay_at(environ: Mapping[str, str], *, plaintext: bool) -> str:
    """STIGMER_RELAY, the address by which the other servers reach this one; "" where there is none.

    TLS is as for callers (`credentials`). Raises ConfigError.
    """
    at = environ.get(VARIABLE, "").strip()
    if not at:
        return ""
    host, _, port = at.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError([f"{VARIABLE} {at!r} is not HOST:PORT, by which the other servers reach this one"])
    if credentials(at, plaintext=plaintext, environ=environ) is not None:
        _certified(environ)
    return at


def _certified(environ: Mapping[str, str]) -> str:
    """The name that this server's certificate is for: the others, who share it or its authority, know it by that."""
    from cryptography import x509

    path = environ[CERTIFICATE].strip()
    certificate = x509.load_pem_x509_certificate(Path(path).expanduser().read_bytes())
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        found = None
    names = found.get_values_for_type(x509.DNSName) if found is not None else []
    if not names:
        raise ConfigError(
            [f"{VARIABLE} needs a certificate with a DNS name; {CERTIFICATE} {path!r} has none"]
        )
    return names[0].replace("*", "server")


def _trusted(environ: Mapping[str, str]) -> tuple[bytes, bytes, bytes]:
    """What a server of ours is trusted by, and what we show it: STIGMER_TLS_CA, else our own certificate."""
    authority, key, certificate = (
        Path(environ[name].strip()).expanduser().read_bytes()
        for name in ("STIGMER_TLS_CA" if environ.get("STIGMER_TLS_CA") else CERTIFICATE, KEY, CERTIFICATE)
    )
    return authority, key, certificate
