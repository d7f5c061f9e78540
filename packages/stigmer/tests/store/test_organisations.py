"""Organisations in the store: the same words name different things in each, on both databases."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from stigmer.api import event_pb2 as pb
from stigmer.organisations import is_organisation
from stigmer.store import Busy, Gone, KeyTable, Row, Store, new_id
from stigmer.store._dialect import migrations, query

LATER = 1 << 61
"""After every moment: whatever has ended is old enough."""


async def accept(store: Store, organisation: str, *, ended: bool = False, **named: Any) -> Row:
    created = pb.Event(created=pb.Created(task=f"of {organisation}"))
    row, _ = await store.accept(new_id(), b"request", events=[created], organisation=organisation, **named)
    if ended:
        await store.control(row.no, [pb.Event(finished=pb.Finished(outcome="completed"))])
    return row


async def ids(store: Store, organisation: str, **wanted: Any) -> list[str]:
    return [row.id for row in await store.page(organisation=organisation, limit=10, **wanted)]


async def test_an_execution_is_found_in_its_organisation_only(store: Store) -> None:
    ours = await accept(store, "ours")
    assert ours.organisation == "ours"
    assert await store.find(ours.id, organisation="ours") == ours
    assert await store.find(ours.id, organisation="theirs") is None
    assert await store.find(ours.id, organisation="") is None
    assert await store.get(ours.id) == ours  # For those who serve all.


async def test_an_idempotency_key_names_one_execution_in_each_organisation(store: Store) -> None:
    ours = await accept(store, "ours", idempotency_key="once")
    theirs = await accept(store, "theirs", idempotency_key="once")
    assert ours.id != theirs.id
    assert (await accept(store, "ours", idempotency_key="once")).id == ours.id
    for row in (ours, theirs):
        assert (await store.by_idempotency_key("once", organisation=row.organisation)) == row
    assert await store.by_idempotency_key("once", organisation="nobody's") is None


async def test_pages_hold_one_organisation_whatever_lies_between(store: Store) -> None:
    ours, theirs = [], []
    for n in range(4):
        ours.append(await accept(store, "ours", ended=n % 2 == 0))
        theirs.append(await accept(store, "theirs"))
    assert await ids(store, "ours") == [row.id for row in reversed(ours)]
    assert await ids(store, "ours", before=theirs[2].no) == [row.id for row in reversed(ours[:3])]
    assert await ids(store, "ours", state="completed") == [ours[2].id, ours[0].id]
    assert await ids(store, "theirs", state="completed") == []
    assert await store.count("queued", organisation="ours") == 2
    assert await store.count("queued") == 6
    assert (await store.count("queued", organisation=""), await ids(store, "")) == (0, [])


async def test_what_is_in_a_state_is_walked_through_organisation_by_organisation(store: Store) -> None:
    rows = [await accept(store, name) for name in ("b", "a", "b", "c", "a")]
    await accept(store, "a", ended=True)
    seen: list[str] = []
    last: Row | None = None
    while page := await store.in_state("queued", limit=2, after=last):
        last = page[-1]
        seen += [row.id for row in page]
    assert seen == [rows[n].id for n in (1, 4, 0, 2, 3)]


async def test_a_session_is_the_organisations_own(store: Store) -> None:
    ours = [await accept(store, "ours", session="ses_1") for _ in range(2)]
    theirs = await accept(store, "theirs", session="ses_1", alone=True)  # Ours are open, and none of theirs.
    assert [row.id for row in await store.of_session("ses_1", organisation="ours")] == [r.id for r in ours]
    (found,) = await store.sessions(organisation="ours", limit=9)
    assert (found.id, found.count, found.last.id) == ("ses_1", 2, ours[1].id)
    assert await store.earlier(theirs.no) == []
    assert (await store.next_of_session(theirs.no)) == theirs
    assert await store.claim(theirs.no, worker="w", lease=10) == 1  # It stands in no line of ours.
    assert [row.id for row in await store.abandoned(idle=0)] == [ours[0].id]
    with pytest.raises(Gone):
        await accept(store, "a third", session="ses_1", joins=True)
    with pytest.raises(Busy, match=ours[0].id):
        await accept(store, "ours", session="ses_1", alone=True)


async def test_a_session_is_deleted_by_its_own_organisation_only(store: Store) -> None:
    ours = await accept(store, "ours", session="ses_1", ended=True)
    assert await store.delete_session("ses_1", organisation="theirs") == 0
    open_ = await accept(store, "theirs", session="ses_1")
    assert await store.delete_session("ses_1", organisation="ours") == 1
    assert await store.get(ours.id) is None
    assert await store.get(open_.id) == open_


async def test_a_prune_takes_of_its_organisation_and_keeps_the_newest_of_each(store: Store) -> None:
    ours = [await accept(store, "ours", ended=True) for _ in range(2)]
    theirs = [await accept(store, "theirs", session=f"ses_{n % 2}", ended=True) for n in range(4)]
    await accept(store, "ours", session="ses_0")  # Open; theirs of that name is not.
    for_ours = await store.expendable(before_ms=LATER, organisation="ours")
    assert [age.no for one in for_ours for age in one.ages] == [row.no for row in ours]
    for_all = await store.expendable(before_ms=LATER, keep=1)
    assert [age.no for one in for_all for age in one.ages] == [ours[0].no, theirs[0].no, theirs[2].no]
    assert await store.prune(for_all) == 3
    assert await ids(store, "theirs") == [theirs[3].id, theirs[1].id]


async def test_keys_are_listed_and_ended_within_an_organisation(store: Store) -> None:
    keys = KeyTable(store)
    for name in ("ours", "theirs"):
        made = await keys.add(
            f"stk_{name}", name="ci", digest="d", scopes="run", by="ann", expires_ms=None, organisation=name
        )
        assert made.organisation == name
    assert [key.id for key in await keys.all(organisation="ours")] == ["stk_ours"]
    assert {key.id for key in await keys.all()} == {"stk_ours", "stk_theirs"}
    assert not await keys.revoke("stk_ours", organisation="theirs")
    held = await keys.get("stk_ours")
    assert held is not None
    assert held.revoked_ms is None
    assert await keys.revoke("stk_ours", organisation="ours")
    assert await keys.revoke("stk_theirs")


async def test_what_was_there_before_organisations_is_the_default_ones(database: Any) -> None:
    database.migrate(4)
    empty = "x''" if database.kind == "sqlite" else "''"
    body = pb.Event(seq=1, created=pb.Created(task="old")).SerializeToString().hex()
    blob = f"x'{body}'" if database.kind == "sqlite" else f"'\\x{body}'"
    for id in ("exec_old", "exec_pruned"):
        database.run(
            "INSERT INTO executions (id, request, state, seq, created_ms, idempotency_key, session, worker)"
            f" VALUES ('{id}', {empty}, 'running', 1, 5, 'key of {id}', 'ses_old', 'host:1')"
        )
    database.run("DELETE FROM executions WHERE id = 'exec_pruned'")
    database.run(f"INSERT INTO events (key, body) VALUES ({1 << 24 | 1}, {blob})")
    database.run(
        "INSERT INTO api_keys (id, name, digest, scopes, created_by, created_ms)"
        " VALUES ('stk_old', 'ci', 'd', 'run', 'ann', 5)"
    )
    store = await database.open()
    assert database.version() == len(migrations())
    (old,) = await store.page(organisation="default", limit=9)
    assert (old.id, old.no, old.state, old.seq, old.created_ms) == ("exec_old", 1, "running", 1, 5)
    assert await store.by_idempotency_key("key of exec_old", organisation="default") == old
    assert await store.of_session("ses_old", organisation="default") == [old]
    assert await store.driven("host:") == [(old, "host:1")]
    assert [event.created.task for event in await store.replay(old.no)] == ["old"]
    key = await KeyTable(store).get("stk_old")
    assert key is not None
    assert key.organisation == "default"
    new = await accept(store, "new", idempotency_key="key of exec_old")
    assert new.no == 3  # Number 2 was given out before it was pruned.
    database.check()


async def test_a_page_is_read_where_it_stands(tmp_path: Path) -> None:
    """No list looks at executions that are not on its page: SQLite searches an index and sorts nothing."""
    await Store(tmp_path / "stigmer.db").close()
    db = sqlite3.connect(tmp_path / "stigmer.db")
    for name in ("list", "list_in_state", "find", "by_idempotency_key", "of_session", "ages_of_session"):
        text = query(name)
        values = dict.fromkeys(re.findall(r":([a-z_]+)", re.sub("--.*", "", text)), 1)
        for *_, step in db.execute(f"EXPLAIN QUERY PLAN {text}", values):
            assert re.match(r"SEARCH executions USING INDEX \w+ \(.*=\?", step), (name, step)
    db.close()


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("default", True),
        ("Acme-7.eu_west", True),
        ("a" * 100, True),
        ("a" * 101, False),
        ("", False),
        ("-a", False),
        ("a b", False),
        ("ä", False),
        ("a\n", False),
    ],
)
def test_names_of_organisations_are_plain_words(name: str, may: bool) -> None:
    assert is_organisation(name) is may
