"""Whatever a caller sends to any method, the server answers in words, has no fault of its own, and goes on.

Requests are made from the protocol's descriptors: every field, extreme values, real ids, and bytes that are no message.
STIGMER_FUZZ_EXAMPLES=2000 tries more of them, and other ones each time.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from graphton.testing import Call, FakeProviders, Reply
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2, worker_pb2
from stigmer.server.status import DETAIL

DEADLINE = 30.0
STREAM_SECONDS = 0.3
"""So long a stream is listened to: one may last for hours."""
EXAMPLES = int(os.environ.get("STIGMER_FUZZ_EXAMPLES", "25"))
DEPTH = 3

METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in (service_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}

STRINGS = (
    "", " ", "\0", "a\0b", "\n", "\x7f", "\ufeff", "\u202e", "😀" * 40, "é", "ﬃ", "a" * 5000, "9" * 5000, "-1", "0", "1",
    "٣", "1e999", "%s%n{}", "'; DROP TABLE execution; --", "../../etc/passwd", "/", "/proc/self/fd", "~", "/none",
    "new", "default", "a", "read", "run", "worker", "admin", "reject", "interrupt", "enqueue", "tell", "ask", "stop",
    "allow", "deny", "*", "[", "(?", "local", "cloud", "model", "mode", "temperature", "max_tokens", "openai",
    "openai:gpt-4.1", "ollama:none", "anthropic:claude-haiku-4.5", "http://[", "http://127.0.0.1:9", "read_file",
    "run_command", "waiting", "running", "none", "volume", "1.0", "/a@1.0:2.0", "llm: [", "llm: {model: 1}", "&a [*a]",
)  # fmt: skip
FLOATS = (0.0, -0.0, -1.0, 0.5, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan"))
KINDS = [field for field in pb.Event.DESCRIPTOR.fields if field.containing_oneof is not None]
EVENTS = (
    b"",
    b"\xff",
    pb.Event(seq=1, path="/a@1.0").SerializeToString(),
    *(pb.Event(**{kind.name: GetMessageClass(kind.message_type)()}).SerializeToString() for kind in KINDS),
)
"""What a worker may send as events: nothing in them, but one of each kind; and what is none."""


def scalars(field: FieldDescriptor, known: Iterable[str]) -> st.SearchStrategy[Any]:
    """Values of a field that holds no message."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.sampled_from(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_STRING and field.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.sampled_from(EVENTS), st.binary(max_size=40))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.one_of(st.sampled_from([*known, *STRINGS]), st.text(max_size=30))
    bits = 64 if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
    signed = kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return st.one_of(st.sampled_from([low, 0, 1, 2, 1000, high]), st.integers(low, high))


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, known: tuple[str, ...], depth: int = DEPTH) -> Message:
    """A message of this kind with some of its fields set."""
    made = GetMessageClass(kind)()
    if not kind.fields:
        return made
    for field in draw(
        st.lists(st.sampled_from(list(kind.fields)), max_size=6, unique_by=lambda one: one.name)
    ):
        nested = field.message_type
        if nested is not None and nested.GetOptions().map_entry:
            for name, value in draw(st.dictionaries(_entry(nested, "key", known), _entry(nested, "value", known), max_size=3)).items():  # fmt: skip
                getattr(made, field.name)[name] = value
        elif nested is not None:
            if depth:
                one = messages(nested, known, depth - 1)
                if field.is_repeated:
                    getattr(made, field.name).extend(draw(st.lists(one, max_size=3)))
                else:
                    getattr(made, field.name).CopyFrom(draw(one))
        elif field.is_repeated:
            getattr(made, field.name).extend(draw(st.lists(scalars(field, known), max_size=3)))
        else:
            setattr(made, field.name, draw(scalars(field, known)))
    return made


def _entry(pair: Descriptor, part: str, known: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return scalars(pair.fields_by_name[part], known)


@st.composite
def bodies(draw: st.DrawFn, kind: Descriptor, known: tuple[str, ...], good: Message | None) -> bytes:
    """What goes over the wire: a message, or one that would do with some of its fields changed; sometimes one that was
    cut, or anything."""
    made = draw(messages(kind, known))
    if good is not None and draw(st.integers(0, 3)):
        few = draw(st.lists(st.sampled_from(list(kind.fields)), max_size=2, unique_by=lambda one: one.name))
        for field in kind.fields:
            if field not in few:
                made.ClearField(field.name)
        rest = copy.copy(good)
        for field in few:
            rest.ClearField(field.name)
        made.MergeFrom(rest)
    body = made.SerializeToString()
    shape = draw(st.sampled_from(["whole"] * 10 + ["cut", "anything"]))
    if shape == "cut":
        return body[: draw(st.integers(0, len(body)))]
    return draw(st.binary(max_size=60)) if shape == "anything" else body


def requests(method: MethodDescriptor, known: tuple[str, ...], good: Message | None) -> list[list[bytes]]:
    """What is sent to a method, call by call. It is made beforehand: a request may change what the next one meets."""
    made: list[list[bytes]] = []
    first, more = bodies(method.input_type, known, good), bodies(method.input_type, known, None)
    rest = st.lists(more, max_size=3 if method.client_streaming else 0)

    @settings(
        max_examples=3 if method.name == "Shutdown" else EXAMPLES if method.input_type.fields else 5,
        deadline=None,
        derandomize="STIGMER_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(first, rest)
    def make(one: bytes, others: list[bytes]) -> None:
        made.append([one, *others])

    make()
    return made


def extremes(method: MethodDescriptor, good: Message | None) -> Iterator[list[bytes]]:
    """Requests that would do, with one field at a time at its end: so much is tried whatever chance does."""
    for field in method.input_type.fields:
        kind = field.cpp_type
        values: Iterable[Any] = ()
        if kind == FieldDescriptor.CPPTYPE_STRING and field.type != FieldDescriptor.TYPE_BYTES:
            values = ("a\0b", "x" * 5000, "9" * 5000, "\ufffe")
        elif kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32):
            bits = 63 if kind == FieldDescriptor.CPPTYPE_INT64 else 31
            values = (-(1 << bits), (1 << bits) - 1)
        elif kind in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32):
            values = (
                ((1 << 64) - 1, 1 << 63, (1 << 63) - 1)
                if kind == FieldDescriptor.CPPTYPE_UINT64
                else ((1 << 32) - 1,)
            )
        for value in values:
            made = GetMessageClass(method.input_type)()
            if good is not None:
                made.CopyFrom(good)
            if field.is_repeated:
                getattr(made, field.name).append(value)
            else:
                setattr(made, field.name, value)
            yield [made.SerializeToString()]


class Door:
    """One way into the server: an address, and what is shown there."""

    def __init__(self, target: str, token: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=[("grpc.default_authority", "localhost")])
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def close(self) -> None:
        await self._channel.close(None)

    async def call(self, path: str, sent: list[bytes]) -> tuple[str, str]:
        """How a call ended, and all the words that came with that."""
        method = METHODS[path]
        many = "stream" if method.client_streaming else "unary"
        more = "stream" if method.server_streaming else "unary"
        make = getattr(self._channel, f"{many}_{more}")(path)
        limit = STREAM_SECONDS if method.server_streaming else DEADLINE
        call = make(
            iter(sent) if method.client_streaming else sent[0], metadata=self._metadata, timeout=limit
        )
        try:
            if method.server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            told = [
                str(pb.Error.FromString(value))
                for key, value in error.trailing_metadata() or ()
                if key == DETAIL
            ]
            return error.code().name, " ".join([error.details() or "", *told])
        return "OK", ""


@asynccontextmanager
async def doors(idle: Any, worker: bool) -> AsyncIterator[list[Door]]:
    """The Unix socket with the home's token, and TCP with a key."""
    async with idle.client() as client:
        scope = "worker" if worker else "admin"
        key = (await client.create_key("fuzz", scopes=[scope], by="test")).secret
    opened = [Door(idle.address, idle.token), Door(idle.tcp, key)]
    try:
        yield opened
    finally:
        await asyncio.gather(*(door.close() for door in opened))


async def started(idle: Any, monkeypatch: pytest.MonkeyPatch, *, worker: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        idle.tcp = f"127.0.0.1:{probe.getsockname()[1]}"
    variables = {
        "STIGMER_MODE": "local", "STIGMER_RATE_LIMIT": "0", "OLLAMA_HOST": "http://127.0.0.1:9",
        "TEMPORAL_ADDRESS": "127.0.0.1:9", "STIGMER_STREAM_LIMIT": "10000",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    await idle.start(listen=[idle.tcp], engine="temporal" if worker else "embedded", stays=True)


def would_do(idle: Any, method: MethodDescriptor, known: tuple[str, ...]) -> Message | None:
    """A request that the method answers; None where any does."""
    execution, session, key = known
    kind = method.input_type.name
    if kind == "CreateExecutionRequest":
        return cast(Message, idle.request("Go on.", session=session, workspace="", shell={}))
    said: dict[str, Any] = {
        "execution": execution,
        "session": session,
        "id": key,
        "call": "1.0",
        "name": "new",
    }
    if kind == "FromWorker":
        return worker_pb2.FromWorker(begin=worker_pb2.Begin(execution=execution, worker="fuzz:1"))
    named = {name: said[name] for name in said if name in method.input_type.fields_by_name}
    if kind == "CreateKeyRequest":
        named["scopes"] = ["read"]
    made: Any = GetMessageClass(method.input_type)
    return cast(Message, made(**named)) if named else None


async def furnished(idle: Any) -> tuple[str, ...]:
    """Ids of what is there: an execution of a session that waits for an answer, and a key."""
    async with idle.client() as client:
        made = (await client.create(idle.request("Go.", session="new"))).execution
        key = (await client.create_key("other", scopes=["read"], by="test")).key.id
        if (await client.status()).engine == "embedded":
            await idle.until(client, made.id, lambda event: event.HasField("waiting"))
    return made.id, made.session, key


@pytest.mark.parametrize("path", METHODS)
async def test_no_request_is_a_fault_of_the_server(
    idle: Any,
    fake: FakeProviders,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    fake.rule(lambda seen: Reply(calls=(Call("run_command", {"command": "true"}),)))
    worker = "WorkerService" in path
    await started(idle, monkeypatch, worker=worker)
    known = await furnished(idle)
    method = METHODS[path]
    wrong: list[str] = []

    async with doors(idle, worker) as opened:
        good = would_do(idle, method, known)
        for sent in [*extremes(method, good), *requests(method, known, good)]:
            wrong += await told_in_words(idle, opened, path, sent)
        if method.name == "Attend":
            wrong += await still_read(idle, opened[0], known)
    async with idle.client() as client:
        assert (await client.status()).pid == os.getpid()
    await idle.stop()
    assert [file.read_text() for file in idle.home.reports.glob("*")] == []
    assert wrong == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_no_request_is_a_fault_of_the_server_on_postgresql(
    idle: Any,
    postgres: Any,
    fake: FakeProviders,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake.rule(lambda seen: Reply(calls=(Call("run_command", {"command": "true"}),)))
    monkeypatch.setenv("STIGMER_DATABASE_URL", postgres.database())
    await started(idle, monkeypatch, worker=False)
    known = await furnished(idle)
    wrong: list[str] = []
    async with doors(idle, False) as opened:
        for path, method in METHODS.items():
            if "WorkerService" not in path and method.name != "Shutdown":
                good = would_do(idle, method, known)
                for sent in [*extremes(method, good), *requests(method, known, good)[:5]]:
                    wrong += await told_in_words(idle, opened, path, sent)
    await idle.stop()
    assert [file.read_text() for file in idle.home.reports.glob("*")] == []
    assert wrong == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def told_in_words(idle: Any, opened: list[Door], path: str, sent: list[bytes]) -> list[str]:
    """What was wrong with the answers to this request; nothing, where the server said what it wanted to say."""
    wrong = []
    for door in opened:
        status, words = await door.call(path, sent)
        # gRPC's client says so itself, where the server has answered before all was sent.
        of_the_client = words.strip() == "Internal error from Core"
        if (status in ("INTERNAL", "UNKNOWN", "DATA_LOSS") and not of_the_client) or "Traceback" in words:
            wrong.append(f"{sent!r}: {status} {words}")
        if path.endswith("Shutdown") and (idle.task is None or idle.task.done() or status == "OK"):
            await idle.restart(listen=[idle.tcp], stays=True)
    return wrong


async def still_read(idle: Any, owner: Door, known: tuple[str, ...]) -> list[str]:
    """What is wrong with answers about an execution of which a worker wrote whatever it liked."""
    wrong = []
    for path, method in METHODS.items():
        # Cancelling waits for the worker, which is gone.
        if "WorkerService" not in path and method.name not in ("Shutdown", "CancelExecution"):
            request = would_do(idle, method, known)
            status, words = await owner.call(path, [request.SerializeToString() if request else b""])
            if status in ("INTERNAL", "UNKNOWN"):
                wrong.append(f"{path}: {status} {words}")
    return wrong
