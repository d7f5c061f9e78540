"""Where a run's files are: what a server gives, what it refuses in plain words, and that every attempt finds the same."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.client import Client, RemoteError
from stigmer.errors import ConfigError
from stigmer.places import PlaceError, disk, folder_of, own, volume
from stigmer.server._places import patience

KEY = "sk-server-0123456789abcdefgh"


@pytest.fixture
async def at_tcp(idle: Any, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts a server for others, with these variables in its environment; gives its address."""

    async def start(**environment: str) -> str:
        said = {"STIGMER_MODE": "local", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": fake.openai_url}
        for name, value in {**said, **environment}.items():
            monkeypatch.setenv(name, value)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        await idle.start(listen=[address])
        return address

    return start


def asked(**fields: Any) -> api.CreateExecutionRequest:
    """A request as it comes from another machine."""
    return api.CreateExecutionRequest(task="Go.", flags={"model": "openai:gpt-4.1"}, **fields)


def agent(**fields: Any) -> dict[str, Any]:
    return {"agent": "a", "agent_record": api.Agent(name="a", trusted=True, **fields)}


async def run(client: Client, request: api.CreateExecutionRequest) -> list[pb.Event]:
    return [event async for event in client.run(request)]


def tools(fake: FakeProviders, call: int = -1) -> set[str]:
    """The tools that a model was offered."""
    return {tool.name for tool in fake.chats[call].tools}


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_over_tcp_a_run_has_no_files_unless_a_place_is_named(
    idle: Any, at_tcp: Any, fake: FakeProviders
) -> None:
    address = await at_tcp()
    fake.reply("Hello.")
    async with idle.client(address=address) as client:
        events = await run(client, asked())
        with pytest.raises(RemoteError, match="is a path, and over TCP none is taken") as refused:
            await client.create(asked(workspace="/etc"))
        for call in (client.create, client.preview):
            with pytest.raises(RemoteError, match="has no volume that workers share") as lacking:
                await call(asked(place="volume"))
    assert refused.value.code == lacking.value.code == "workspace"
    assert (events[0].created.workspace, events[0].created.place) == ("", "")
    assert tools(fake) == set()


@pytest.mark.parametrize("by_agent", [False, True])
async def test_a_volume_gives_each_session_a_folder_and_no_shell(
    idle: Any, at_tcp: Any, fake: FakeProviders, tmp_path: Path, by_agent: bool
) -> None:
    address = await at_tcp(STIGMER_WORKSPACE_VOLUME=str(tmp_path))
    wish = agent(workspace="volume") if by_agent else {"place": "volume"}
    fake.call("write_file", {"path": "a.txt", "content": "kept"})
    fake.reply("Written.")
    fake.call("read_file", {"path": "a.txt"})
    fake.reply("Read.")
    fake.reply("Alone.")
    async with idle.client(address=address) as client:
        first = (await run(client, asked(session="new", **wish)))[0].created
        second = await run(client, asked(session=first.session, **wish))
        alone = (await run(client, asked(**wish)))[0].created
        shown = (await client.list())[0]
    assert "run_command" not in tools(fake, 0)
    assert "write_file" in tools(fake, 0)
    assert (tmp_path / first.session / "a.txt").read_text() == "kept"
    assert any("kept" in event.tool_finished.result for event in second)
    assert (first.place, first.workspace) == ("volume", first.session)
    assert (alone.place, alone.workspace) == ("volume", shown.id)
    assert (shown.place, shown.workspace) == ("volume", shown.id)
    assert names(tmp_path / shown.id) == []


async def test_what_an_agent_wants_of_a_shell_is_left_out_and_told(
    idle: Any, at_tcp: Any, fake: FakeProviders, tmp_path: Path
) -> None:
    address = await at_tcp(STIGMER_WORKSPACE_VOLUME=str(tmp_path))
    wish = agent(workspace="volume", tools=api.ToolChoice(names=["read_file", "run_command"]))
    async with idle.client(address=address) as client:
        shown = await client.preview(asked(**wish))
        fake.reply("Hello.")
        events = await run(client, asked(**wish))
    assert b"read_file" in shown.body
    assert b"run_command" not in shown.body
    assert tools(fake) == {"read_file"}
    for notices in (shown.config.notices, events[1].config_resolved.notices):
        assert "run_command is left out: at a server commands are not confined" in notices
    assert len(names(tmp_path)) == 1  # Looking at a request makes no folder.


async def test_a_volume_that_is_not_there_ends_the_run_with_the_reason(
    idle: Any, at_tcp: Any, tmp_path: Path
) -> None:
    address = await at_tcp(STIGMER_WORKSPACE_VOLUME=str(tmp_path / "not-mounted"))
    async with idle.client(address=address) as client:
        finished = (await run(client, asked(place="volume")))[-1].finished
    assert (finished.outcome, finished.error.code) == ("failed", "workspace")
    assert "of this run's files cannot be made: No such file or directory" in finished.error.message
    assert not (tmp_path / "not-mounted").exists()


async def test_a_workers_disk_holds_a_run_and_without_it_the_run_fails(
    idle: Any, at_tcp: Any, fake: FakeProviders, tmp_path: Path
) -> None:
    ours = {"STIGMER_WORKSPACE_DIR": str(tmp_path / "disk")}
    address = await at_tcp(**ours)
    fake.call("write_file", {"path": "a.txt", "content": "kept"})
    fake.reply("Written.")
    async with idle.client(address=address) as client:
        events = await run(client, asked(place="worker", session="new"))
        created = events[0].created
        (placed,) = [event.workspace_placed for event in events if event.HasField("workspace_placed")]
        assert placed.disk == (tmp_path / "disk" / "id").read_text().strip()
        assert placed.worker == socket.gethostname()
        assert (tmp_path / "disk" / created.session / "a.txt").read_text() == "kept"
        shutil.rmtree(tmp_path / "disk")  # The machine comes back with another disk.
        finished = (await run(client, asked(place="worker", session=created.session)))[-1].finished
    assert (finished.outcome, finished.error.code) == ("failed", "worker_gone")
    assert f"on worker '{socket.gethostname()}', which is gone" in finished.error.message
    assert not (tmp_path / "disk" / created.session).exists()


async def test_a_retry_finds_the_files_of_the_run_that_it_is_taken_from(
    idle: Any, at_tcp: Any, fake: FakeProviders, tmp_path: Path
) -> None:
    address = await at_tcp(STIGMER_WORKSPACE_DIR=str(tmp_path))
    fake.call("write_file", {"path": "a.txt", "content": "kept"})
    fake.reply("I will not.", stop="refused")
    fake.call("read_file", {"path": "a.txt"})
    fake.reply("Read.")
    async with idle.client(address=address) as client:
        first = (await run(client, asked(place="worker")))[0].created
        (failed,) = await client.list()
        assert failed.state == "failed", failed
        again = await run(client, asked(retry_of=failed.id))
    assert (again[0].created.place, again[0].created.workspace) == ("worker", first.workspace)
    assert any("kept" in event.tool_finished.result for event in again)
    assert again[-1].finished.outcome == "completed"
    assert len([event for event in again if event.HasField("workspace_placed")]) == 1


async def test_a_retry_without_those_files_fails_like_the_run_itself(
    idle: Any, at_tcp: Any, fake: FakeProviders, tmp_path: Path
) -> None:
    address = await at_tcp(STIGMER_WORKSPACE_DIR=str(tmp_path / "disk"))
    fake.reply("I will not.", stop="refused")
    async with idle.client(address=address) as client:
        await run(client, asked(place="worker"))
        (failed,) = await client.list()
        shutil.rmtree(tmp_path / "disk")
        again = await run(client, asked(retry_of=failed.id))
    assert again[-1].finished.error.code == "worker_gone"


async def test_at_home_the_folder_is_the_workspace_and_none_is_none(
    serving: Any, fake: FakeProviders
) -> None:
    fake.reply("One.")
    fake.reply("Two.")
    at_folder = await serving.run("Go.", **agent(workspace="volume"))
    assert (at_folder[0].created.place, at_folder[0].created.workspace) == ("", str(serving.workspace))
    assert "run_command" in tools(fake)
    without = await serving.run("Go.", **agent(workspace="none"))
    assert (without[0].created.place, without[0].created.workspace) == ("none", "")
    assert tools(fake) == set()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"place": "moon"}, "place 'moon' is not none, worker or volume"),
        (agent(workspace="moon"), "the agent's workspace 'moon' is not none, worker or volume"),
        ({"place": "volume", "workspace": "/x"}, "the workspace '/x' and the place 'volume' are both named"),
    ],
)
async def test_a_place_that_makes_no_sense_is_refused(serving: Any, fields: dict[str, Any], why: str) -> None:
    async with serving.client() as client:
        with pytest.raises(RemoteError, match=why):
            await client.create(asked(**fields))


def test_the_variables_are_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert volume({}) is None
    assert volume({"STIGMER_WORKSPACE_VOLUME": "/mnt/w "}) == Path("/mnt/w")
    assert own({}) == tmp_path / ".local" / "state" / "stigmer" / "workspaces"
    assert own({"XDG_STATE_HOME": "/state"}) == Path("/state/stigmer/workspaces")
    for variable, read in (("STIGMER_WORKSPACE_VOLUME", volume), ("STIGMER_WORKSPACE_DIR", own)):
        with pytest.raises(PlaceError, match=f"{variable} 'w' is not an absolute path"):
            read({variable: "w"})


async def test_a_server_does_not_start_with_such_a_variable_that_is_wrong(at_tcp: Any) -> None:
    wrong = {"STIGMER_WORKSPACE_VOLUME": "w", "STIGMER_WORKSPACE_DIR": "d", "STIGMER_WORKER_PATIENCE": "soon"}
    with pytest.raises(ConfigError) as refused:
        await at_tcp(**wrong)
    for variable, value in wrong.items():
        assert f"{variable} '{value}' is not" in str(refused.value)
    assert patience({}) == 300
    assert patience({"STIGMER_WORKER_PATIENCE": "0.5"}) == 0.5
    for text in ("0", "-1", "nan", "86401"):
        with pytest.raises(ConfigError, match="is not a number of seconds"):
            patience({"STIGMER_WORKER_PATIENCE": text})


def test_a_disk_is_known_by_its_word_whoever_asks(tmp_path: Path) -> None:
    word = disk({"STIGMER_WORKSPACE_DIR": str(tmp_path)})
    assert word == disk({"STIGMER_WORKSPACE_DIR": str(tmp_path)})
    assert word != disk({"STIGMER_WORKSPACE_DIR": str(tmp_path / "other")})
    (tmp_path / "file").write_text("")
    with pytest.raises(PlaceError, match="can keep no files of runs"):
        disk({"STIGMER_WORKSPACE_DIR": str(tmp_path / "file")})


def test_without_its_variable_a_worker_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STIGMER_WORKSPACE_VOLUME", raising=False)
    with pytest.raises(PlaceError, match="STIGMER_WORKSPACE_VOLUME is not set on"):
        folder_of(api.CreateExecutionRequest(place="volume", workspace="exec_1"))
