"""API keys: what lets callers in from elsewhere, what each may do, and that its text is kept nowhere."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from graphton.testing import FakeProviders
from stigmer.api import service_pb2, worker_pb2
from stigmer.client import Client, RemoteError
from stigmer.errors import ConfigError
from stigmer.server.auth import SCOPES, allows, digest_of, new_key
from stigmer.server.tls import credentials
from stigmer.store import KeyRow
from stigmer.worker import plane_at
from stigmer.worker._line import Line

DEADLINE = 30.0
KEY = "sk-sentinel-0123456789abcdef"
"""The one that `Serving.request` sends."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def at_tcp(idle: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server that takes calls over TCP too."""
    monkeypatch.setenv("STIGMER_MODE", "local")
    monkeypatch.setenv("STIGMER_RATE_LIMIT", "0")  # Tests ask as fast as they can.
    address = f"127.0.0.1:{free_port()}"
    await idle.start(listen=[address])
    return address


async def made(idle: Any, *scopes: str, name: str = "ci") -> str:
    async with idle.client() as client:
        return str((await client.create_key(name, scopes=scopes, by="ann")).secret)


def test_every_method_says_what_it_needs() -> None:
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in (service_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert methods == set(SCOPES)


@pytest.mark.parametrize(
    ("scopes", "may"),
    [("read", "read"), ("run", "read run"), ("worker", "worker"), ("admin", "read run admin"), ("x", "")],
)
def test_a_scope_holds_what_lies_below_it(scopes: str, may: str) -> None:
    assert {need for need in ("read", "run", "worker", "admin") if allows(scopes, need)} == set(may.split())


async def test_a_key_may_do_what_its_scope_says_and_no_more(idle: Any, at_tcp: str) -> None:
    async with idle.client(token=await made(idle, "read"), address=at_tcp) as client:
        assert await client.list() == []
        with pytest.raises(RemoteError, match="the key 'ci' may read, and this needs run") as refused:
            await client.create(idle.request("Hi.", shell={}))
        assert refused.value.hint == "stigmer key create --scope run"
        with pytest.raises(RemoteError, match="this needs admin") as higher:
            await client.create_key("mine", scopes=["admin"])
        assert higher.value.hint == "stigmer key create --admin"
        with pytest.raises(RemoteError, match="this needs admin"):
            await client.shutdown()


async def test_a_key_that_is_not_ours_is_unknown(idle: Any, at_tcp: str) -> None:
    secret = await made(idle, "admin")
    _, other = new_key()
    for shown in (
        other,
        secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        secret[:16],
        "stk_",
        "",
        "x" * 64,
    ):
        async with idle.client(token=shown, address=at_tcp) as client:
            with pytest.raises(RemoteError, match="the server does not know this token"):
                await client.list()


async def answered(client: Client) -> bool:
    try:
        await client.list()
    except RemoteError:
        return False
    return True


async def test_a_revoked_key_lets_nobody_in(idle: Any, at_tcp: str) -> None:
    secret = await made(idle, "run")
    async with idle.client() as ours, idle.client(token=secret, address=at_tcp) as theirs:
        await theirs.list()
        (key,) = await ours.keys()
        assert await ours.revoke_key(key.id)
        assert not await ours.revoke_key(key.id)
        async with asyncio.timeout(DEADLINE):
            while await answered(theirs):
                pass
        with pytest.raises(RemoteError, match="the server does not know this token"):
            await theirs.list()
        with pytest.raises(RemoteError, match="there is no key 'stk_none'"):
            await ours.revoke_key("stk_none")


def test_a_key_ends_when_its_time_has_come() -> None:
    row = KeyRow("stk_1", "ci", digest_of("k"), "run", "ann", 0, 1000, None)
    assert row.holds(999)
    assert not row.holds(1000)


def files_holding(folder: Path, text: str) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if text.encode() in file.read_bytes()]


async def test_the_text_of_a_key_is_kept_nowhere(
    idle: Any, at_tcp: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = await made(idle, "run")
    async with idle.client(token=secret, address=at_tcp) as client:
        await client.list()
    await idle.stop()
    assert files_holding(idle.home.path, secret) == []
    assert secret not in caplog.text


async def test_what_a_key_steers_is_recorded_under_its_name(
    idle: Any, at_tcp: str, fake: FakeProviders
) -> None:
    fake.call("run_command", {"command": "true"})
    async with idle.client() as ours:
        execution = (await ours.create(idle.request("Go."))).execution.id
        await idle.until(ours, execution, lambda event: event.HasField("waiting"))
    async with idle.client(token=await made(idle, "run"), address=at_tcp) as theirs:
        await theirs.cancel(execution, by="the king")
        events = [event async for event in theirs.watch(execution)]
    (cancelled,) = [event.cancel_requested.by for event in events if event.HasField("cancel_requested")]
    assert cancelled == "key ci"


@pytest.mark.parametrize(
    ("name", "scopes", "why"),
    [
        ("", ["run"], "the key's name '' is not"),
        ("a\nb", ["run"], "is not 1 to 200 printable"),
        ("ci", [], "a key needs a scope"),
        ("ci", ["root"], "scope 'root' is none of read, run, worker, admin"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(
    idle: Any, at_tcp: str, name: str, scopes: list[str], why: str
) -> None:
    async with idle.client() as client:
        with pytest.raises(RemoteError, match=why):
            await client.create_key(name, scopes=scopes)
        assert list(await client.keys()) == []


# --- TLS


@pytest.fixture
def certificate(certificate_for: Any) -> dict[str, str]:
    """What a server for 127.0.0.1 shows, as its variables."""
    cert, key = certificate_for("127.0.0.1")
    return {"STIGMER_TLS_CERT": str(cert), "STIGMER_TLS_KEY": str(key)}


async def test_a_worker_comes_in_over_tls_with_its_key(
    idle: Any, certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {**certificate, "STIGMER_MODE": "local"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("STIGMER_TLS_CA", certificate["STIGMER_TLS_CERT"])
    address = f"127.0.0.1:{free_port()}"
    await idle.start(listen=[address], engine="temporal")
    for scope, said in (("worker", "there is no execution 'exec_none'"), ("run", "this needs worker")):
        plane, channel = plane_at(f"https://{address}", await made(idle, scope))
        line = Line(plane, "exec_none", worker="test:1")
        with pytest.raises(Exception, match=said):
            await asyncio.wait_for(line.begin(), DEADLINE)
        await line.close()
        await channel.close(None)


async def test_a_worker_shows_its_certificate_where_the_server_wants_one(
    idle: Any, certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = certificate["STIGMER_TLS_CERT"]
    named = {"STIGMER_TLS_CLIENT_CA": authority, "STIGMER_TLS_CA": authority, "STIGMER_MODE": "local"}
    for variable, value in {**certificate, **named}.items():
        monkeypatch.setenv(variable, value)
    address = f"127.0.0.1:{free_port()}"
    await idle.start(listen=[address], engine="temporal")
    async with idle.client() as client:
        execution = (await client.create(idle.request("Go."))).execution.id
    assert (await begun(f"https://{address}", idle.token, execution)).attempt == 1
    monkeypatch.delenv("STIGMER_TLS_KEY")
    with pytest.raises(ConfigError, match="own certificate needs STIGMER_TLS_CERT and STIGMER_TLS_KEY"):
        plane_at(f"https://{address}", idle.token)
    monkeypatch.delenv("STIGMER_TLS_CERT")
    plane, channel = plane_at(f"https://{address}", idle.token)
    with pytest.raises(grpc.aio.AioRpcError):
        await plane.stub.Attend(metadata=plane.metadata).read()
    await channel.close(None)


async def begun(target: str, token: str, execution: str) -> worker_pb2.Began:
    """What a worker is told at the beginning of an attempt."""
    plane, channel = plane_at(target, token)
    line = Line(plane, execution, worker="test:1")
    try:
        began = await asyncio.wait_for(line.begin(), DEADLINE)
        assert isinstance(began, worker_pb2.Began)
        return began
    finally:
        await line.close()
        await channel.close(None)


async def test_a_callers_key_goes_to_workers_only_where_nobody_else_can_read_it(
    idle: Any, certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGMER_MODE", "local")
    plain = f"127.0.0.1:{free_port()}"
    await idle.start(listen=[plain], engine="temporal")
    async with idle.client() as client:
        execution = (await client.create(idle.request("Go."))).execution.id
    assert [key.key for key in (await begun(idle.address, idle.token, execution)).keys] == [KEY]
    assert list((await begun(plain, idle.token, execution)).keys) == []

    for variable, value in certificate.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("STIGMER_TLS_CA", certificate["STIGMER_TLS_CERT"])
    secure = f"127.0.0.1:{free_port()}"
    await idle.restart(listen=[secure], engine="temporal")
    async with idle.client() as client:
        execution = (await client.create(idle.request("Go on."))).execution.id
    assert [key.key for key in (await begun(f"https://{secure}", idle.token, execution)).keys] == [KEY]


async def test_an_attempt_whose_worker_sends_nonsense_is_left(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.start(engine="temporal")
    async with idle.client() as client:
        execution = (await client.create(idle.request("Go."))).execution.id
        before = (await client.status()).running
        plane, channel = plane_at(idle.address, idle.token)
        call = plane.stub.Attend(metadata=plane.metadata)
        await call.write(worker_pb2.FromWorker(begin=worker_pb2.Begin(execution=execution)))
        assert (await call.read()).HasField("began")
        async with asyncio.timeout(DEADLINE):
            while (await client.status()).running <= before:
                pass
        await call.write(worker_pb2.FromWorker(live=[b"\xff"]))
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(call.read(), DEADLINE)
        async with asyncio.timeout(DEADLINE):
            while (await client.status()).running > before:
                pass
        await channel.close(None)


async def test_a_worker_sends_its_key_in_the_clear_only_where_somebody_says_so() -> None:
    for target in ("10.0.0.7:7244", "127.0.0.1.example.org:7244", "plane:7244"):
        with pytest.raises(
            ConfigError, match=f"'{target}' is another machine: write https://{target}, or http"
        ):
            plane_at(target, "k")
    for target in ("http://10.0.0.7:7244", "127.0.0.1:7244", "[::1]:7244", "localhost:7244", "unix:/x"):
        _, channel = plane_at(target, "k")
        await channel.close(None)


def test_what_others_can_reach_needs_tls_or_a_word(certificate: dict[str, str]) -> None:
    for loopback in ("127.0.0.1:1", "[::1]:1", "localhost:1"):
        assert credentials(loopback, plaintext=False, environ={}) is None
    assert credentials("0.0.0.0:1", plaintext=True, environ={}) is None
    assert credentials("0.0.0.0:1", plaintext=False, environ=certificate) is not None
    with pytest.raises(ConfigError, match="has no TLS"):
        credentials("127.0.0.1.example.org:1", plaintext=False, environ={})
    with pytest.raises(ConfigError, match=r"'0.0.0.0:1' can be reached from elsewhere and has no TLS"):
        credentials("0.0.0.0:1", plaintext=False, environ={})
    with pytest.raises(ConfigError, match="STIGMER_TLS_KEY is not set"):
        credentials("127.0.0.1:1", plaintext=False, environ={"STIGMER_TLS_CERT": "/x"})
    with pytest.raises(ConfigError, match="STIGMER_TLS_KEY '/none' cannot be read"):
        credentials("127.0.0.1:1", plaintext=False, environ={**certificate, "STIGMER_TLS_KEY": "/none"})
