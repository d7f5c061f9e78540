"""The audit log of a server for others: who did what, how it ended; and nothing that anybody said."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.client import RemoteError
from stigmer.errors import ConfigError
from stigmer.server._audit import Audit, audit_of
from stigmer.server.auth import LOOKS, SCOPES, new_key

DEADLINE = 30.0
TASK = "a task that is nobody's business"


@pytest.fixture
async def file(idle: Any, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The audit log's own file, of a server that takes calls over TCP at `idle.tcp` too."""
    path = short_folder / "audit.jsonl"
    monkeypatch.setenv("STIGMER_AUDIT_LOG", str(path))
    monkeypatch.setenv("STIGMER_MODE", "local")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        idle.tcp = f"127.0.0.1:{probe.getsockname()[1]}"
    await idle.start(listen=[idle.tcp])
    return path


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def put_aside(file: Path) -> None:
    file.rename(file.with_suffix(".1"))


def put_a_folder_in_place_of(file: Path) -> None:
    file.unlink()
    file.mkdir()


def rights(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


async def test_what_changes_something_is_told_with_who_and_what(
    idle: Any, file: Path, fake: FakeProviders
) -> None:
    fake.call("run_command", {"command": "true"})
    fake.reply("the answer of the model")
    async with idle.client() as owner:
        made = await owner.create_key("ci", scopes=["run"], by="ann")
        execution = (await owner.create(idle.request(TASK, session="new", caller="ann"))).execution
        await idle.until(owner, execution.id, lambda event: event.HasField("waiting"))
    async with idle.client(token=made.secret, address=idle.tcp) as ci:
        await ci.decide(
            execution.id, "1.0", approve=True, reason="a reason that is nobody's business", by="the king"
        )
        await idle.until(ci, execution.id, lambda event: event.HasField("finished"))
        await ci.delete_session(execution.session)
    async with idle.client() as owner:
        await owner.revoke_key(made.key.id)
    await idle.stop()
    told = lines(file)
    peers = [line.pop("peer") for line in told]
    assert [peer.partition(":")[0] for peer in peers] == ["unix", "unix", "ipv4", "ipv4", "unix"]
    assert all(line.pop("time").endswith("Z") for line in told)
    ci_did = {"who": "key ci", "key": made.key.id, "organisation": "default", "outcome": "ok"}
    owner_did = {"who": "owner", "organisation": "default", "outcome": "ok"}
    assert told == [
        {**owner_did, "method": "KeyService/CreateKey", "id": made.key.id, "scopes": "run", "by": "ann"},
        {**owner_did, "method": "ExecutionService/CreateExecution", "execution": execution.id, "session": execution.session},
        {**ci_did, "method": "ExecutionService/DecideApproval", "execution": execution.id, "call": "1.0", "decision": "approved"},
        {**ci_did, "method": "SessionService/DeleteSession", "session": execution.session},
        {**owner_did, "method": "KeyService/RevokeKey", "id": made.key.id},
    ]  # fmt: skip


async def test_who_is_refused_is_told_whatever_he_wanted(
    idle: Any, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with idle.client() as owner:
        made = await owner.create_key("ci", scopes=["read"], organisation="acme")
        execution = (await owner.create(idle.request(TASK))).execution.id
    async with idle.client(token=made.secret, address=idle.tcp) as ci:
        for method in (ci.cancel, ci.get):
            with pytest.raises(RemoteError):
                await method(execution)
        await ci.list()
    stranger, no = new_key()[1], "no key of ours, or one that holds no more"
    for token, _ in ((stranger, no), ("", "nothing was shown")):
        async with idle.client(token=token, address=idle.tcp) as nobody:
            with pytest.raises(RemoteError):
                await nobody.list()
    await idle.stop()
    told = [(line["outcome"], line["method"].partition("/")[2], line.get("who", ""), line.get("reason", "")) for line in lines(file)]  # fmt: skip
    assert told[2:] == [
        ("forbidden", "CancelExecution", "key ci", "the key 'ci' may read, and this needs run"),
        ("not_found", "GetExecution", "key ci", ""),
        ("unauthenticated", "ListExecutions", "", no),
        ("unauthenticated", "ListExecutions", "", "nothing was shown"),
    ]
    whole = json.dumps(lines(file)) + caplog.text
    for secret in (made.secret, stranger, idle.token, TASK):
        assert secret not in whole


async def test_a_stream_is_told_when_it_has_begun_and_not_again(
    idle: Any, file: Path, fake: FakeProviders
) -> None:
    fake.reply("half", stall_after=2)
    async with idle.client() as owner:
        run = asyncio.create_task(anext(aiter(owner.run(idle.request(TASK, session="new")))))
        event = await asyncio.wait_for(run, DEADLINE)
        assert event.seq == 1
        (told,) = lines(file)
        assert (told["method"], told["outcome"]) == ("ExecutionService/RunExecution", "ok")
        (execution,) = await owner.list()
        assert told["execution"] == execution.id
        await owner.cancel(execution.id)
    await idle.stop()
    assert [line["method"].partition("/")[2] for line in lines(file)] == ["RunExecution", "CancelExecution"]


async def test_a_file_that_is_put_aside_is_begun_anew_for_its_owner_alone(idle: Any, file: Path) -> None:
    async with idle.client() as owner:
        await owner.create_key("one", scopes=["read"])
        put_aside(file)
        await owner.create_key("two", scopes=["read"])
    assert len(lines(file)) == len(lines(file.with_suffix(".1"))) == 1
    assert rights(file) == 0o600


async def test_a_line_that_the_file_does_not_take_is_in_the_log(
    idle: Any, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put_a_folder_in_place_of(file)
    async with idle.client() as owner:
        await owner.create_key("one", scopes=["read"])
        await owner.create_key("two", scopes=["read"])
    told = [record.getMessage() for record in caplog.records if record.name == "stigmer.audit"]
    assert sum("KeyService/CreateKey" in line for line in told) == 2
    assert sum("audit file not written" in line for line in told) == 1


def test_a_file_that_cannot_be_written_keeps_a_server_from_starting(short_folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"STIGMER_AUDIT_LOG '.*none/audit' cannot be written: No such file"
    ):
        audit_of({"STIGMER_AUDIT_LOG": str(short_folder / "none" / "audit")})


def test_nobody_writes_a_line_of_his_own_or_a_key_into_one(
    short_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    audit = Audit(short_folder / "audit")
    audit.tell(
        "ok",
        method="X/Y",
        who="key a\ncalled outcome='ok'",
        execution="e" * 9000,
        key="sk-ant-0123456789abcdef",
    )
    (line,) = lines(short_folder / "audit")
    assert line["who"] == "key a\ncalled outcome='ok'"
    assert len(line["execution"]) == 201
    assert line["key"] == "***"
    assert all("\n" not in record.getMessage() for record in caplog.records)


async def test_a_daemon_on_a_socket_alone_writes_none(
    idle: Any, short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("STIGMER_AUDIT_LOG", str(short_folder / "audit"))
    await idle.start()
    async with idle.client() as owner:
        await owner.create_key("one", scopes=["read"])
    assert not (short_folder / "audit").exists()
    assert [record for record in caplog.records if record.name == "stigmer.audit"] == []


def test_what_only_looks_is_a_method_that_there_is() -> None:
    assert set(SCOPES) >= LOOKS
    assert not any(SCOPES[method] == "read" for method in LOOKS)
