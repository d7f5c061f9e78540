"""Folders of deleted runs: they go where they lie, once the run's record has gone, and nothing else goes with them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.places import PlaceError
from stigmer.server._tidy import tidy
from stigmer.store import new_id
from stigmer.worker import _tidied, plane_at

DEADLINE = 30.0


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """This machine's own disk, and the volume."""
    for name in ("disk", "volume"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("STIGMER_WORKSPACE_DIR", str(tmp_path / "disk"))
    monkeypatch.setenv("STIGMER_WORKSPACE_VOLUME", str(tmp_path / "volume"))
    return tmp_path / "disk", tmp_path / "volume"


def folder(root: Path, name: str) -> Path:
    """A folder with a file of a run, and one below it."""
    (root / name / "below").mkdir(parents=True)
    (root / name / "below" / "a.txt").write_text("kept")
    return root / name


def left(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


async def every(place: str, names: Sequence[str]) -> list[str]:
    """A control plane that gives up whatever it is asked of, and more."""
    return [*names, "..", "precious", "../precious"]


async def test_only_folders_that_are_called_as_ours_are_can_go(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    precious = folder(tmp_path, "precious")
    ours = new_id(), new_id(kind="ses")
    for root, name in zip(roots, ours, strict=True):
        gone = folder(root, name)
        (gone / "link").symlink_to(precious)
        (gone / "file").symlink_to(precious / "below" / "a.txt")
        os.link(precious / "below" / "a.txt", gone / "hard")
        for other in ("precious", "exec_1", f"{name}x", name.upper(), f"x{name}"):
            folder(root, other)
        (root / new_id()).write_text("no folder")
        (root / new_id()).symlink_to(precious)
    before = [left(root) for root in roots]
    assert await tidy(every) == 2
    assert [left(root) for root in roots] == [
        names - {name} for names, name in zip(before, ours, strict=True)
    ]
    assert (precious / "below" / "a.txt").read_text() == "kept"


async def test_each_folder_is_asked_of_under_its_place_and_what_is_not_given_up_stays(
    roots: tuple[Path, Path],
) -> None:
    disk, volume = roots
    names = [new_id() for _ in range(3)]
    for name in names:
        folder(disk, name)
        folder(volume, name)

    async def one_each(place: str, asked: Sequence[str]) -> list[str]:
        assert sorted(asked) == sorted(names)
        return [names[0] if place == "worker" else names[1]]

    assert await tidy(one_each) == 2
    assert (left(disk), left(volume)) == ({names[1], names[2]}, {names[0], names[2]})


async def test_many_folders_are_asked_of_in_pages(roots: tuple[Path, Path]) -> None:
    disk, _ = roots
    for _ in range(1200):
        (disk / new_id()).mkdir()
    pages: list[int] = []

    async def count(place: str, asked: Sequence[str]) -> list[str]:
        pages.append(len(asked))
        return list(asked)

    assert await tidy(count) == 1200
    assert pages == [500, 500, 200]


async def test_a_volume_that_is_not_there_is_no_trouble_and_one_that_is_a_file_is_told(
    roots: tuple[Path, Path],
) -> None:
    _, volume = roots
    volume.rmdir()
    assert await tidy(every) == 0
    volume.write_text("")
    with pytest.raises(PlaceError, match="cannot be read: Not a directory"):
        await tidy(every)


async def deleted(idle: Any, session: str) -> None:
    """The session is deleted, and its grace over."""
    async with idle.client() as client:
        await client.delete_session(session)
    with sqlite3.connect(idle.home.path / "stigmer.db") as db:
        assert db.execute("UPDATE folders_gone SET gone_ms = gone_ms - 61000").rowcount == 1


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await asyncio.to_thread(wanted):
            pass


async def test_a_server_that_runs_them_itself_deletes_the_folder_of_a_deleted_session(
    idle: Any, fake: FakeProviders, roots: tuple[Path, Path]
) -> None:
    _, volume = roots
    await idle.start()
    sessions = []
    for _ in range(2):
        fake.call("write_file", {"path": "a.txt", "content": "kept"})
        fake.reply("Written.")
        events = await idle.run("Go.", workspace="", place="volume", session="new", approve_all=True)
        sessions.append(events[0].created.session)
    assert left(volume) == set(sessions)
    await deleted(idle, sessions[0])
    await idle.restart()
    await until(lambda: left(volume) == {sessions[1]})


async def test_a_worker_deletes_on_its_own_disk_what_the_control_plane_gives_up(
    idle: Any, roots: tuple[Path, Path]
) -> None:
    disk, _ = roots
    await idle.start(engine="temporal")
    sessions = []
    async with idle.client() as client:
        for _ in range(2):
            request = idle.request("Go.", workspace="", place="worker", session="new")
            made = (await client.create(request)).execution
            sessions.append(made.session)
            folder(disk, made.session)
            await client.cancel(made.id)
            await idle.until(client, made.id, lambda event: event.HasField("finished"))
    await deleted(idle, sessions[0])
    plane, channel = plane_at(idle.address, idle.token)
    async with _tidied(plane):
        await until(lambda: left(disk) == {sessions[1]})
    await channel.close(None)
