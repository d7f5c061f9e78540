"""STIGMER_DATABASE_URL: the server works on PostgreSQL, two of them share it, and a wrong address is told by the command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.home import Home
from stigmer.server._database import database_of

DEADLINE = 60.0


@pytest.fixture
async def pair(
    idle: Any, postgres: Any, tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Any, Any]]:
    """Two servers with homes of their own and one database; each finds the key in its environment."""
    monkeypatch.setenv("STIGMER_DATABASE_URL", postgres.database())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789abcdef")
    monkeypatch.setenv("OPENAI_BASE_URL", fake.openai_url)
    second = tmp_path / "second"
    second.mkdir()
    other = type(idle)(second, fake)
    await idle.start()
    await other.start()
    yield idle, other
    await other.stop()


def test_the_variable_names_the_database_else_it_is_the_homes_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert database_of(home, {}) == home.database
    assert database_of(home, {"STIGMER_DATABASE_URL": "  "}) == home.database
    assert database_of(home, {"STIGMER_DATABASE_URL": "postgresql://db/x"}) == "postgresql://db/x"


async def test_a_run_through_one_server_is_watched_through_another(
    pair: tuple[Any, Any], fake: FakeProviders
) -> None:
    one, two = pair
    fake.reply("half", stall_after=2)
    events: list[pb.Event] = []
    async with one.client() as here, two.client() as there, asyncio.timeout(DEADLINE):
        created = await here.create(one.request("Wait."))
        id = created.execution.id
        await fake.wait_for_requests(1)

        async def watch() -> None:
            events.extend([event async for event in there.watch(id)])

        watching = asyncio.create_task(watch())
        await two.until(there, id, lambda e: e.HasField("model_requested"))
        shown = await there.cancel(id, by="ann")
        assert shown.execution.state == "cancelled"
        await watching
        whole = [event async for event in here.watch(id)]
    assert [e.seq for e in events] == list(range(1, len(events) + 1)), (
        "another server's text is not shown, its events are"
    )
    assert [e.SerializeToString() for e in whole] == [e.SerializeToString() for e in events]
    assert events[-1].finished.outcome == "cancelled"
    assert not one.home.database.exists()


async def test_a_server_goes_on_with_what_another_handed_over(
    pair: tuple[Any, Any], fake: FakeProviders
) -> None:
    one, two = pair
    fake.reply("half", stall_after=2)
    fake.reply("Done.")
    async with one.client() as here:
        id = (await here.create(one.request("Go."))).execution.id
    await fake.wait_for_requests(1)
    await one.stop()
    async with two.client() as there, asyncio.timeout(DEADLINE):
        last = await two.until(there, id, lambda e: e.HasField("finished"))
    assert last.finished.text == "Done."


@pytest.mark.parametrize(
    ("url", "said", "hint"),
    [
        ("mysql://ann:hunter22@db/x", "'mysql://ann:***@db/x' is no address of a PostgreSQL database", "e.g. STIGMER_DATABASE_URL=postgresql://"),
        ("postgresql://ann:hunter22@127.0.0.1:1/x", "the database 'postgresql://ann:***@127.0.0.1:1/x' cannot be used", "see whether the address, user and password in STIGMER_DATABASE_URL are right"),
    ],
)  # fmt: skip
def test_the_command_tells_what_is_wrong_with_the_address(
    stigmer: Any, url: str, said: str, hint: str
) -> None:
    done = stigmer("list", "execution", STIGMER_DATABASE_URL=url)
    assert done.returncode == 1
    assert said in done.stderr
    assert f"hint: {hint}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter22" not in done.stderr + done.stdout + stigmer.home.log.read_text()


async def test_text_is_shown_once_however_often_the_store_is_looked_at(
    idle: Any, postgres: Any, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGMER_DATABASE_URL", postgres.database())
    monkeypatch.setattr("stigmer.store._news.LOOK", 0.02)
    fake.reply("one two three four five six", pieces=8, stall_after=5, stall=0.6)
    await idle.start()
    events = await idle.run("Count.")
    shown = [event.text_delta for event in events if event.HasField("text_delta")]
    assert "".join(delta.text for delta in shown) == "one two three four five six"
    assert len(shown) > 1
    stored = [event.seq for event in events if event.seq]
    assert stored == list(range(1, len(stored) + 1))
