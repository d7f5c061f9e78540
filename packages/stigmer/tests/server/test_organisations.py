"""Organisations on a real server: a key sees, changes and hears of nothing that is another organisation's.

The crossing test calls every method of every service with whatever can name something of somebody else. A method or a field
that is new must be told to it (`ADDRESSES`, `HARMLESS`), or it fails.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from graphton.testing import Call, FakeProviders, FakeRequest, Reply
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2, worker_pb2
from stigmer.api import service_pb2 as api
from stigmer.approvals import Answer, Answers
from stigmer.client import Client, RemoteError
from stigmer.secrets import Keys
from stigmer.server.auth import ORGANISATION, SCOPES, Caller, may
from stigmer.server.status import DETAIL
from stigmer.store import Row
from stigmer.worker import Hands, plane_at
from stigmer.worker._line import Line

DEADLINE = 30.0
MARK = b"amber"
"""In everything that the organisation `amber` wrote or was answered."""
NOBODYS = "exec_00000000000000000000000000"
NO_PAGE = "999999"
ADDRESSES = {
    "execution": "executions",
    "retry_of": "executions",
    "session": "sessions",
    "idempotency_key": "idempotency_keys",
    "page_token": "numbers",
    "id": "keys",
    "organisation": "organisations",
}
"""Fields that may name what is another organisation's: which of its things they can name."""
NESTED = {"begin"}
"""Messages within a request that have such fields."""
HARMLESS = {
    "task", "agent", "workspace", "execution_config", "flags", "shell", "project_file", "budget", "approve_all",
    "workspace_named", "caller", "agent_record", "approvals", "on_unknown", "interactive", "if_running", "from_seq",
    "limit", "state", "by", "call", "path", "digest", "approve", "reason", "always", "older_than_days", "keep", "dry_run",
    "place", "traceparent", "if_idle", "name", "scopes", "expires_days", "worker", "attempt", "seen", "disk", "alone", "appends", "live", "earlier",
    "folders",
}  # fmt: skip
"""Fields that mean something only together with one of those, or say what the caller himself brings along; workers' own."""
UNREAD = {
    ("ResolveConfig", "session"), ("ResolveConfig", "retry_of"), ("ResolveConfig", "idempotency_key"),
    ("PreloadModel", "session"), ("PreloadModel", "retry_of"), ("PreloadModel", "idempotency_key"),
    ("PreviewExecution", "retry_of"), ("PreviewExecution", "idempotency_key"),
    ("CreateKey", "organisation"), ("ListExecutions", "page_token"),
}  # fmt: skip
"""Where such a field makes no difference to its own organisation either."""


def methods(*files: Any) -> list[Any]:
    return [
        method for file in files for service in file.services_by_name.values() for method in service.methods
    ]


def path(method: Any) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


EVERY = methods(service_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR)
WORKERS = [method for method in EVERY if SCOPES[path(method)] == "worker"]
FOR_CALLERS = [method for method in EVERY if method not in WORKERS]


def addresses(message: Any, within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of the fields that may name something of others."""
    for field in message.fields:
        if field.name in NESTED:
            yield from addresses(field.message_type, (*within, field.name))
        elif field.name in ADDRESSES:
            yield (*within, field.name)
        else:
            where = f"{message.full_name}.{field.name}"
            assert field.name in HARMLESS, f"{where} is new: may it name something of another organisation?"


@dataclass(frozen=True)
class Outcome:
    """What a caller heard: everything of it, as bytes."""

    status: str
    heard: bytes

    def without(self, *words: str) -> Outcome:
        """The same where these words are said in one way."""
        heard = self.heard
        for word in words:
            heard = heard.replace(word.encode(), b"*") if word else heard
        return Outcome(self.status, heard)


class Stranger:
    """Calls any method, on one connection, with one key."""

    def __init__(self, channel: grpc.aio.Channel, token: str, organisation: str = "") -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)
        if organisation:
            self._metadata += ((ORGANISATION, organisation),)

    async def call(self, method: Any, request: Message) -> Outcome:
        """What is answered. Of a call that is refused while it is being written, gRPC's client may lose the reason."""
        for _ in range(20):
            outcome, lost = await self._once(method, request)
            if not lost:
                return outcome
        raise AssertionError(f"{path(method)} is never answered: {outcome}")

    async def _once(self, method: Any, request: Message) -> tuple[Outcome, bool]:
        heard: list[bytes] = []
        try:
            async with asyncio.timeout(DEADLINE):
                heard += [answer.SerializeToString() async for answer in self._answers(method, request)]
        except grpc.aio.AioRpcError as error:
            trailing: Any = error.trailing_metadata()
            told = [str(pb.Error.FromString(value)) for key, value in trailing or () if key == DETAIL]
            heard += [text.encode() for text in (error.details() or "", *told)]
            lost = method.client_streaming and error.code() is grpc.StatusCode.INTERNAL and not told
            return Outcome(error.code().name, b" ".join(heard)), lost
        return Outcome("OK", b" ".join(heard)), False

    async def _answers(self, method: Any, request: Message) -> AsyncIterator[Message]:
        kinds = (method.client_streaming, method.server_streaming)
        make = getattr(self._channel, "_".join("stream" if many else "unary" for many in kinds))(
            path(method),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        if method.client_streaming:
            call = make(metadata=self._metadata)
            with suppress(
                grpc.aio.AioRpcError, asyncio.InvalidStateError
            ):  # It may be refused before it is written.
                await call.write(request)
                await call.done_writing()
        else:
            call = make(request, metadata=self._metadata)
        if method.server_streaming:
            async for answer in call:
                yield answer
        else:
            yield await call


@dataclass
class Amber:
    """What the organisation `amber` has, by kind."""

    executions: list[str]
    sessions: list[str]
    keys: list[str]
    idempotency_keys: tuple[str, ...] = ("amber-key",)
    organisations: tuple[str, ...] = ("amber",)
    numbers: tuple[str, ...] = ("1000000",)

    @property
    def names(self) -> list[str]:
        return [*self.executions, *self.sessions, *self.keys]

    def kind(self, field: str) -> list[str]:
        return list(getattr(self, ADDRESSES[field]))


@asynccontextmanager
async def strangers(idle: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(idle.address) as channel:
        yield channel


async def key_of(idle: Any, organisation: str, *scopes: str, name: str = "ci") -> str:
    async with idle.client() as client:
        made = await client.create_key(name, scopes=scopes or ["run", "admin"], organisation=organisation)
        return str(made.secret)


def model(request: FakeRequest) -> Reply:
    """The model of the tests, by what it is asked to do."""
    text = request.last_user_text
    if "command" in text:
        return Reply(calls=(Call("run_command", {"command": "echo amber"}),))
    return Reply(status=400, error="amber fails") if "fail" in text else Reply(text=f"answer to {text}")


async def run_to_rest(idle: Any, client: Client, request: api.CreateExecutionRequest) -> str:
    """The execution that a request makes, when it has ended or waits."""
    made = (await client.create(request)).execution.id
    await idle.until(client, made, lambda event: event.HasField("finished") or event.HasField("waiting"))
    return str(made)


async def furnish(idle: Any, secret: str) -> Amber:
    """Runs of amber in every state that they can rest in, in a session and without."""
    async with idle.client(token=secret) as amber:
        done = await run_to_rest(
            idle, amber, idle.request("amber: one", session="new", idempotency_key="amber-key")
        )
        session = (await amber.get(done)).session
        waits = await run_to_rest(idle, amber, idle.request("amber: a command", session=session))
        fails = await run_to_rest(idle, amber, idle.request("amber: fail"))
        keyless = await run_to_rest(idle, amber, idle.request("amber: a command, then no key"))
        await idle.restart()  # The keys of the callers' shells are forgotten with it.
    async with idle.client(token=secret) as amber:
        (question,) = (await amber.get(keyless)).approvals
        await amber.decide(keyless, question.call, approve=False, by="amber")
        await idle.until(amber, keyless, lambda event: event.waiting.reason == "key")
        spare = (await amber.create_key("amber's spare", scopes=["read"])).key.id
    return Amber([done, waits, fails, keyless], [session], [spare])


def of_amber(idle: Any) -> list[Any]:
    """Everything of amber in the database."""
    with closing(sqlite3.connect(idle.home.database)) as db:
        rows = db.execute("SELECT * FROM executions WHERE organisation = 'amber' ORDER BY no").fetchall()
        events = "SELECT * FROM events WHERE key >= ? << 24 AND key < ? << 24 ORDER BY key"
        found = [event for no, *_ in rows for event in db.execute(events, (no, no + 1))]
        return [*rows, *found, *db.execute("SELECT * FROM api_keys WHERE organisation = 'amber' ORDER BY id")]


def filled(idle: Any, method: Any, address: tuple[str, ...], value: str) -> Message:
    """A request that is right but for the one address in it."""
    request = GetMessageClass(method.input_type)()
    if isinstance(request, api.CreateExecutionRequest):
        request.MergeFrom(idle.request("blue: hello"))
        request.if_running = "reject" if address == ("session",) else ""
    if isinstance(request, api.CreateKeyRequest):
        request.MergeFrom(api.CreateKeyRequest(name="mine", scopes=["read"]))
    if isinstance(request, api.DecideApprovalRequest):
        request.MergeFrom(api.DecideApprovalRequest(call="1.0", approve=True))
    if isinstance(request, api.PruneExecutionsRequest):
        request.keep = 0
    below: Any = request
    for name in address[:-1]:
        below = getattr(below, name)
    if address:
        setattr(below, address[-1], value)
    return request


async def test_no_method_crosses_into_another_organisation(idle: Any, fake: FakeProviders) -> None:
    fake.rule(model)
    await idle.start()
    ours, theirs = await key_of(idle, "amber"), await key_of(idle, "blue")
    amber = await furnish(idle, ours)
    before = of_amber(idle)
    assert len(before) > 30
    async with strangers(idle) as channel:
        tried = 0
        for method in FOR_CALLERS:
            for address in [*addresses(method.input_type), ()]:
                for value in amber.kind(address[-1]) if address else [""]:
                    await find_nothing(idle, Stranger(channel, theirs), amber, method, address, value)
                    tried += 1
        assert tried > 60
        assert of_amber(idle) == before
        for method in FOR_CALLERS:
            for address in addresses(method.input_type):
                if (method.name, address[-1]) not in UNREAD:
                    await find_something(idle, Stranger(channel, ours), amber, method, address)


async def find_nothing(
    idle: Any, stranger: Stranger, amber: Amber, method: Any, address: tuple[str, ...], value: str
) -> None:
    """What is amber's is as unknown to a stranger as what never was, and nothing of amber is in his answer."""
    unknown = NO_PAGE if address[-1:] == ("page_token",) else NOBODYS
    heard = await stranger.call(method, filled(idle, method, address, value))
    other = await stranger.call(method, filled(idle, method, address, unknown))
    where = f"{path(method)} {address} {value}: {heard}"
    assert heard.status not in ("INTERNAL", "UNKNOWN"), where
    assert heard.status == other.status, where
    if heard.status != "OK":
        assert heard.without(value) == other.without(unknown), where
    assert MARK not in heard.without(value).heard, where
    assert not [name for name in amber.names if name != value and name.encode() in heard.heard], where


async def find_something(
    idle: Any, own: Stranger, amber: Amber, method: Any, address: tuple[str, ...]
) -> None:
    """The same words in amber's own mouth do name something: a stranger was not refused for another reason."""
    value = amber.kind(address[-1])[0]
    heard = await own.call(method, filled(idle, method, address, value))
    other = await own.call(method, filled(idle, method, address, NOBODYS))
    assert heard.without(value) != other.without(NOBODYS), f"{path(method)} {address} {value}: {heard}"


async def test_workers_are_the_operators_and_no_organisation_has_one(idle: Any, fake: FakeProviders) -> None:
    await idle.start(engine="temporal")
    secret = await key_of(idle, "amber")
    async with idle.client(token=secret) as amber:
        execution = (await amber.create(idle.request("amber: one"))).execution.id
    async with strangers(idle) as channel:
        for token in (await key_of(idle, "blue"), await key_of(idle, "default")):
            for method in WORKERS:
                for address in [*addresses(method.input_type), ()]:
                    heard = await Stranger(channel, token).call(
                        method, filled(idle, method, address, execution)
                    )
                    assert heard.status == "PERMISSION_DENIED"
                    assert MARK not in heard.heard
        worker = Stranger(channel, await key_of(idle, "default", "worker"))
        (read,) = [method for method in WORKERS if method.name == "ReadEvents"]
        heard = await worker.call(read, filled(idle, read, ("execution",), execution))
        assert heard.status == "OK"
        assert MARK in heard.heard
    for organisation, made in (("blue", False), ("default", True)):
        assert may(Caller("key w", frozenset({"worker"}), organisation, "key"), "worker") is made


async def test_a_worker_is_told_what_counts_in_an_executions_organisation(idle: Any) -> None:
    await idle.start(engine="temporal")
    Answers(idle.home.path).add(Answer("default", "write_file", {"path": "a.txt"}, "key ci", 1, "amber"))
    plane, channel = plane_at(idle.address, idle.token)
    for organisation, tools in (("amber", ["write_file"]), ("blue", [])):
        async with idle.client(token=await key_of(idle, organisation)) as client:
            execution = (await client.create(idle.request("Go."))).execution.id
        line = Line(plane, execution, worker="test:1")
        began = await asyncio.wait_for(line.begin(), DEADLINE)
        assert isinstance(began, worker_pb2.Began)
        assert (began.organisation, [rule.tool for rule in began.always]) == (organisation, tools)
        await line.close()
    await channel.close(None)


async def test_a_worker_shares_no_key_and_no_answer_between_organisations(idle: Any) -> None:
    plane, channel = plane_at(idle.address, "t")
    hands = Hands(idle.home, plane, key_for=lambda provider, base_url: None)
    where = {"provider": "openai", "base_url": "https://api.openai.com/v1"}
    model = pb.ResolvedModel(model="gpt-4.1", has_key=True, **where)
    records = [pb.Event(config_resolved=pb.ConfigResolved(models=[model]))]
    told = {
        "always": [api.ApprovalRule(tool="write_file", verdict="allow")],
        "keys": [worker_pb2.ModelKey(key="sk-of-amber", **where)],
    }
    for organisation, given in (("blue", {}), ("amber", told)):
        began = worker_pb2.Began(attempt=1, organisation=organisation, **given)
        hands.attempt(hands.take(f"exec_{organisation}"), began, records)
    for organisation, shared in (("amber", True), ("blue", False)):
        row = Row(9, "exec_9", b"", "running", 1, 1, 0, None, organisation)
        assert hands._runner.can_go_on(row, records) is shared
        assert bool(hands._runner._answers("default", organisation)) is shared
    await channel.close(None)


# --- Keys


async def test_a_key_makes_sees_and_ends_keys_of_its_own_organisation_only(serving: Any) -> None:
    amber, blue = await key_of(serving, "amber", name="root"), await key_of(serving, "blue", name="root")
    async with serving.client(token=amber) as ours, serving.client(token=blue) as theirs:
        made = await ours.create_key("of ours", scopes=["read"])
        assert made.key.organisation == "amber"
        assert [key.name for key in await ours.keys()] == ["root", "of ours"]
        assert {key.organisation for key in await theirs.keys()} == {"blue"}
        with pytest.raises(RemoteError, match=f"there is no key '{made.key.id}'"):
            await theirs.revoke_key(made.key.id)
        with pytest.raises(RemoteError, match="key root makes keys of its own organisation, 'blue', only"):
            await theirs.create_key("x", scopes=["read"], organisation="amber")
        assert await ours.revoke_key(made.key.id)
    async with serving.client() as owner:
        assert sorted(key.organisation for key in await owner.keys()) == ["amber", "amber", "blue"]
        for name in ("", "b a"):
            if name:
                with pytest.raises(RemoteError, match="no organisation can be called 'b a'"):
                    await owner.create_key("x", scopes=["read"], organisation=name)
        assert (await owner.create_key("x", scopes=["read"])).key.organisation == "default"


async def test_a_workers_key_is_made_by_the_owner_of_the_machine_in_no_organisation(serving: Any) -> None:
    root = await key_of(serving, "default", name="root")
    async with serving.client() as owner, serving.client(token=root) as admin:
        for client, organisation in ((owner, "amber"), (admin, "")):
            with pytest.raises(
                RemoteError, match="a worker serves all organisations: its key is made on the"
            ):
                await client.create_key("w", scopes=["worker"], organisation=organisation)
        made = await owner.create_key("w", scopes=["worker"])
        assert (list(made.key.scopes), made.key.organisation) == (["worker"], "default")


# --- What concerns the whole server


async def test_the_owner_acts_in_the_organisation_that_he_names_and_in_the_default_one_else(
    serving: Any, fake: FakeProviders
) -> None:
    fake.rule(model)
    async with serving.client(token=await key_of(serving, "amber")) as amber:
        execution = await run_to_rest(serving, amber, serving.request("amber: one"))
    (get,) = [method for method in EVERY if method.name == "GetExecution"]
    asked = api.GetExecutionRequest(execution=execution)
    async with strangers(serving) as channel:
        in_amber = await Stranger(channel, serving.token, "amber").call(get, asked)
        assert api.Execution.FromString(in_amber.heard).task == "amber: one"
        assert (await Stranger(channel, serving.token).call(get, asked)).status == "NOT_FOUND"
        assert (
            await Stranger(channel, serving.token, "no name").call(get, asked)
        ).status == "INVALID_ARGUMENT"
        blue = await key_of(serving, "blue")
        heard = await Stranger(channel, blue, "amber").call(get, asked)
        assert heard.status == "PERMISSION_DENIED"
        assert b"key ci belongs to the organisation 'blue', and the call names another" in heard.heard
        assert (await Stranger(channel, blue, "blue").call(get, asked)).status == "NOT_FOUND"


async def test_no_key_ends_the_server_that_others_use_too(serving: Any) -> None:
    for organisation in ("blue", "default"):
        async with serving.client(token=await key_of(serving, organisation)) as admin:
            with pytest.raises(
                RemoteError, match="only the owner of the server's machine may end it"
            ) as refused:
                await admin.shutdown()
            assert refused.value.code == "forbidden"
            assert (await admin.status()).pid > 0


async def test_a_key_counts_the_runs_of_its_own_organisation(serving: Any, fake: FakeProviders) -> None:
    fake.rule(model)
    async with serving.client(token=await key_of(serving, "amber")) as amber:
        await run_to_rest(serving, amber, serving.request("amber: a command"))
        assert (await amber.status()).waiting == 1
    async with serving.client(token=await key_of(serving, "blue")) as blue, serving.client() as owner:
        assert (await blue.status()).waiting == 0
        assert (await owner.status()).waiting == 1


async def test_a_key_wakes_the_runs_of_its_own_organisation(idle: Any, fake: FakeProviders) -> None:
    fake.rule(model)
    await idle.start()
    amber = await key_of(idle, "amber")
    execution = (await furnish(idle, amber)).executions[-1]  # It waits for its key.
    llm = f"llm: {{provider: openai, base_url: {fake.openai_url}, api_key: sk-servers-own-00000}}\n"
    idle.home.config.write_text(llm)
    idle.home.config.chmod(0o600)
    async with idle.client(token=await key_of(idle, "blue")) as blue, idle.client(token=amber) as ours:
        assert await blue.wake() == 0
        found = await ours.get(execution)
        assert (found.state, found.waits_for) == ("waiting", "key")
        assert await ours.wake() == 1
        await idle.until(ours, execution, lambda event: event.attempt_started.attempt > found.attempt)


async def test_a_prune_by_key_takes_of_its_own_organisation(serving: Any, fake: FakeProviders) -> None:
    fake.rule(model)
    clients = [await key_of(serving, name) for name in ("amber", "blue")]
    async with serving.client(token=clients[0]) as amber, serving.client(token=clients[1]) as blue:
        kept = await run_to_rest(serving, amber, serving.request("one"))
        await run_to_rest(serving, blue, serving.request("two"))
        assert (await blue.prune(keep=0)).executions == 1
        assert [one.id for one in await amber.list()] == [kept]
        assert await blue.list() == []


# --- What counts for all runs of an agent, and keys that callers brought


def test_an_answer_for_always_counts_in_its_own_organisation(idle: Any) -> None:
    answers = Answers(idle.home.path)
    answers.add(Answer("default", "write_file", {"path": "a.txt"}, "key ci", 1, "amber"))
    assert answers.rules("default", "blue") == ()
    assert [rule.tool for rule in answers.rules("default", "amber")] == ["write_file"]
    answers.add(Answer("default", "write_file", {"path": "a.txt"}, "key ci", 2, "blue"))
    assert len(answers.all()) == 2
    assert [rule.tool for rule in answers.rules("default", "blue")] == ["write_file"]


async def test_an_answer_for_always_is_kept_for_the_organisation_that_gave_it(
    serving: Any, fake: FakeProviders
) -> None:
    for _ in range(3):
        fake.call("write_file", {"path": "a.txt", "content": "x"})
        fake.reply("done")
    rules = [api.ApprovalRule(tool="write_file", verdict="ask")]
    amber, blue = await key_of(serving, "amber"), await key_of(serving, "blue")
    async with serving.client(token=amber) as ours:
        first = await run_to_rest(serving, ours, serving.request("write", approvals=rules))
        (question,) = (await ours.get(first)).approvals
        assert question.always
        await ours.decide(first, question.call, approve=True, always=True)
        await serving.until(ours, first, lambda event: event.HasField("finished"))
        again = await run_to_rest(serving, ours, serving.request("write", approvals=rules))
        assert (await ours.get(again)).state == "completed"
    assert [one.organisation for one in Answers(serving.home.path).all()] == ["amber"]
    async with serving.client(token=blue) as theirs:
        asked = await run_to_rest(serving, theirs, serving.request("write", approvals=rules))
        assert (await theirs.get(asked)).state == "waiting"


def test_a_key_that_a_caller_brought_serves_his_own_organisation() -> None:
    keys = Keys()
    where = {"provider": "openai", "base_url": "https://api.openai.com/v1"}
    keys.put("exec_1", "sk-of-amber", organisation="amber", **where)
    assert keys.find("exec_2", organisation="amber", **where) == "sk-of-amber"
    assert keys.find("exec_3", organisation="blue", **where) is None
