"""What is PostgreSQL's alone: a database that goes away, answers that are lost, other servers, addresses that are wrong."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from stigmer import redact
from stigmer.api import event_pb2 as pb
from stigmer.store import Row, Store, StoreError, new_id
from stigmer.store import _postgres as dialect

DEADLINE = 60.0
PASSWORD = "pa%40ss-w0rd"


def notice(text: str) -> pb.Event:
    return pb.Event(notice=pb.Notice(code="test", text=text))


async def accept(store: Store) -> Row:
    row, _ = await store.accept(new_id(), b"", events=[pb.Event(created=pb.Created(task="t"))])
    return row


async def texts(store: Store, row: Row) -> list[str]:
    events = await store.replay(row.no)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.notice.text for event in events if event.HasField("notice")]


@pytest.fixture
async def stores(postgres: Any) -> AsyncIterator[Any]:
    """Opens stores on one database; `stores.url` is its address."""

    class Stores:
        url = postgres.database()

        async def __call__(self, url: str = "") -> Store:
            store = await Store.open(url or self.url)
            opened.append(store)
            return store

    opened: list[Store] = []
    yield Stores()
    await asyncio.gather(*(store.close() for store in opened))


# A database that goes away


async def test_a_transaction_of_which_a_killed_server_knows_nothing_did_not_happen(stores: Any) -> None:
    database = await asyncio.to_thread(dialect.Postgres, stores.url)
    writer = database._connect()
    # Its number has not been given out, as after the kill.
    assert not database._happened(writer, dialect._Transaction(writer, 0, str(1 << 40)))
    assert writer.execute("SELECT 1").fetchone() == (1,)
    writer.close()
    database.close()


@pytest.mark.parametrize("theirs", [None, b"theirs"], ids=["no such event", "another event"])
async def test_a_lost_transaction_whose_number_another_server_has_now_did_not_happen(
    stores: Any, theirs: bytes | None
) -> None:
    """A killed server gives the numbers out again that its disk did not know of."""
    database = await asyncio.to_thread(dialect.Postgres, stores.url)
    writer = database._connect()
    number = str(writer.execute("SELECT CAST(pg_current_xact_id() AS TEXT)").fetchone()[0])
    lost = dialect._Transaction(writer, 0, number)
    lost.run_many("insert_event", [{"key": 1, "body": b"ours"}])
    assert database._happened(writer, lost)
    writer.execute("DELETE FROM events")
    if theirs is not None:
        writer.execute("INSERT INTO events VALUES (1, %s)", [theirs])
    assert not database._happened(writer, lost)
    writer.close()
    database.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_writers_go_on_when_the_database_comes_back_with_nothing_lost_or_doubled(
    postgres: Any, stores: Any, how: str
) -> None:
    store = await stores()
    rows = [await accept(store) for _ in range(3)]
    under_way = asyncio.Event()

    async def write(row: Row) -> None:
        await store.claim(row.no, worker="w", lease=600)
        for n in range(1, 201):
            await store.append(row.no, 1, batch=n, events=[notice(str(n))])
            if n == 50:
                under_way.set()

    async def read() -> None:
        while not all(task.done() for task in writing):
            assert await store.get(rows[0].id) is not None
            await store.events(rows[0].no, 1)

    writing = [asyncio.create_task(write(row)) for row in rows]
    reading = asyncio.create_task(read())
    await under_way.wait()
    await asyncio.to_thread(getattr(postgres, how))
    await asyncio.sleep(0)
    await asyncio.to_thread(postgres.start)
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*writing, reading)
    for row in rows:
        assert await texts(store, row) == [str(n) for n in range(1, 201)]


async def test_a_database_that_stays_away_is_an_error_and_not_for_ever(
    postgres: Any, stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialect, "PATIENCE", 0.5)
    store = await stores()
    row = await accept(store)
    await asyncio.to_thread(postgres.kill)
    try:
        with pytest.raises(StoreError, match="refused a write") as refused:
            await store.control(row.no, [notice("x")])
        with pytest.raises(StoreError, match="cannot be read"):
            await store.get(row.id)
    finally:
        await asyncio.to_thread(postgres.start)
    assert "hint: see whether it is up and has room: pg_isready -d 'postgresql://" in str(refused.value)
    assert await store.control(row.no, [notice("y")]) == 2
    assert await texts(store, row) == ["y"]


async def test_a_server_ends_though_its_database_is_away(postgres: Any, stores: Any) -> None:
    store = await stores()
    row = await accept(store)
    await asyncio.to_thread(postgres.kill)
    try:
        writing = store.control(row.no, [notice("x")])
        reading = asyncio.create_task(store.get(row.id))
        await asyncio.sleep(0)
        async with asyncio.timeout(dialect.PATIENCE / 2):
            await store.close()
        for waiting in (writing, reading):
            with pytest.raises(StoreError):
                await waiting
    finally:
        await asyncio.to_thread(postgres.start)


# Answers that are lost


class Wire:
    """Stands between a store and its server; `cut` breaks the connection at the next COMMIT, before or after it is done."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.port = 0
        self.cut = ""
        self.cuts = 0
        self.carried = asyncio.Semaphore(0)
        """One for each connection that has ended."""

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        swallowing = False

        async def there() -> None:
            nonlocal swallowing
            while data := await reader.read(1 << 16):
                if self.cut and b"COMMIT\0" in data:
                    self.cuts += 1
                    if self.cut == "before":
                        break
                    swallowing = True
                there_writer.write(data)

        async def back() -> None:
            while (data := await there_reader.read(1 << 16)) and not swallowing:
                writer.write(data)

        ways = [asyncio.create_task(there()), asyncio.create_task(back())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self.cut = ""
        for way in ways:
            way.cancel()
        for end in (writer, there_writer):
            end.close()
        await asyncio.gather(*ways, writer.wait_closed(), there_writer.wait_closed(), return_exceptions=True)
        self.carried.release()


@asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    between = Wire(port)
    connections = 0

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await between.carry(reader, writer)

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    between.port = server.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        server.close()
        async with asyncio.timeout(DEADLINE):
            for _ in range(connections):
                await between.carried.acquire()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_happens_once(postgres: Any, stores: Any, moment: str) -> None:
    async with wire(postgres.port) as between:
        store = await stores(stores.url.replace(f":{postgres.port}/", f":{between.port}/"))
        row, other = await accept(store), await accept(store)
        await store.claim(row.no, worker="w", lease=600)
        watcher = store.feed.join(row.no)
        between.cut = moment
        # One commit: two batches of one attempt, an event that has no batch, and a new execution.
        answers = await asyncio.gather(
            store.append(row.no, 1, batch=1, events=[notice("a")]),
            store.append(row.no, 1, batch=2, events=[notice("b")]),
            store.control(other.no, [notice("c")]),
            accept(store),
        )
        assert between.cuts == 1
        assert answers[:3] == [3, 4, 2]
        assert await texts(store, row) == ["a", "b"]
        assert await texts(store, other) == ["c"]
        assert [seq for seq, _ in watcher.take()] == [3, 4]
        assert await store.append(row.no, 1, batch=3, events=[notice("d")]) == 5
        assert len(await store.page(organisation="default", limit=9)) == 3
        await store.close()


# Other servers


async def test_a_watcher_sees_what_another_server_appends(stores: Any) -> None:
    one, two = await stores(), await stores()
    heard: list[Any] = []
    listening = asyncio.Event()

    def hear(nos: Any) -> None:
        heard.append(nos)
        listening.set()

    two.listen(hear)
    async with asyncio.timeout(DEADLINE):
        await listening.wait()
        row, other = await accept(one), await accept(one)
        watcher = two.feed.join(row.no)
        await one.control(row.no, [notice("x")])
        await watcher.news()
        assert watcher.stale
        assert [seq for seq, _ in await two.events(row.no, 2)] == [2]
        mine = len(heard)
        await two.control(other.no, [notice("own")])
        await one.control(other.no, [notice("x")])
        while not any(nos and other.no in nos for nos in heard[mine:]):
            listening.clear()
            await listening.wait()
    two.feed.leave(row.no, watcher)


async def test_messages_carry_numbers_only_and_are_apart(postgres: Any, stores: Any) -> None:
    import psycopg

    store = await stores()
    rows = [await accept(store) for _ in range(3)]
    got: list[tuple[float, str]] = []

    def listen() -> None:
        with psycopg.connect(stores.url, autocommit=True) as db:
            db.execute("LISTEN stigmer_events")
            ready.set()
            for message in db.notifies(timeout=20):
                if message.payload == "end":
                    return
                got.append((time.monotonic(), message.payload))

    ready = threading.Event()
    listening = asyncio.create_task(asyncio.to_thread(listen))
    await asyncio.to_thread(ready.wait, DEADLINE)
    begin = time.monotonic()
    for n in range(200):
        await store.control(rows[n % 3].no, [notice("secret words")])
    took = time.monotonic() - begin
    await store.close()
    postgres.run("NOTIFY stigmer_events, 'end'", on=stores.url.rpartition("/")[2])
    await listening
    ids = {str(row.no) for row in rows}
    assert {no for _, payload in got for no in payload.partition(":")[2].split(",")} == ids
    assert len(got) <= took / 0.05 + 2


async def test_a_new_connection_looks_at_everything(postgres: Any, stores: Any) -> None:
    store = await stores()
    heard = asyncio.Event()
    store.listen(lambda nos: heard.set() if nos is None else None)
    row = await accept(store)
    async with asyncio.timeout(DEADLINE):
        await heard.wait()
        watcher = store.feed.join(row.no)
        await asyncio.to_thread(postgres.stop)
        heard.clear()
        await asyncio.to_thread(postgres.start)
        await heard.wait()
        await watcher.news()
    assert watcher.stale
    store.feed.leave(row.no, watcher)


async def test_a_jump_of_this_machines_clock_expires_no_lease(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await stores(), await stores()
    row = await accept(one)
    await one.claim(row.no, worker="one", lease=60)
    before = two.now_ms
    real = time.time
    for jump in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert await two.claim(row.no, worker="two", lease=60) is None
        assert await two.abandoned(idle=0) == []
        assert not await two.lose(await two.get(row.id))
        assert abs(two.now_ms - before) < 30_000
        assert await one.renew([(row.no, 1)], lease=60) == []


STOPPED = """
import sys
import psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as db:
    db.execute("SET idle_in_transaction_session_timeout = '500ms'")
    db.execute("BEGIN")
    db.execute("UPDATE executions SET seq = seq + 0")
    print("held", flush=True)
    sys.stdin.read()
"""


async def test_a_server_that_stopped_in_a_transaction_holds_others_up_only_for_a_while(stores: Any) -> None:
    store = await stores()
    row = await accept(store)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STOPPED, stores.url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    await process.stdout.readline()
    assert await store.control(row.no, [notice("x")]) == 2
    process.kill()
    await process.communicate()
    with store._dialect._connect() as db:  # type: ignore[attr-defined]  # PostgreSQL's own
        limit = db.execute("SHOW idle_in_transaction_session_timeout").fetchone()
    assert limit == ("5s",)


async def test_two_servers_that_meet_in_their_transactions_both_get_through(stores: Any) -> None:
    one, two = await stores(), await stores()
    rows = [await accept(one) for _ in range(8)]
    for _ in range(15):
        await asyncio.gather(
            *(one.control(row.no, [notice("1")]) for row in rows),
            *(two.control(row.no, [notice("2")]) for row in reversed(rows)),
        )
    for row in rows:
        assert sorted(await texts(one, row)) == ["1"] * 15 + ["2"] * 15


# Addresses that are wrong


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://ann:hunter22@db/x", "'mysql://ann:***@db/x' is no address of a PostgreSQL database"),
        ("postgresql://", "'postgresql://' is no address of a PostgreSQL database"),
        ("ann:hunter22@db", "'***' is no address of a PostgreSQL database"),
        ("postgresql://ann:hunter22@x@db/x", "'postgresql://ann:***@db/x' has more than one '@' before its path"),
        ("postgresql://ann:hunter22@db/x?frob=1", "'postgresql://ann:***@db/x?frob=1' cannot be read"),
        ("postgresql://db/x?password=hunter22&frob=1", "'postgresql://db/x?password=***&frob=1' cannot be read"),
        ("postgresql://ann:hunter22@127.0.0.1:1/x", "'postgresql://ann:***@127.0.0.1:1/x' cannot be used"),
        ("postgresql://ann:hunter22@no.such.host.invalid/x", "cannot be used: "),
    ],
)  # fmt: skip
async def test_a_wrong_address_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(StoreError) as caught:
        await Store.open(url)
    assert said in caught.value.message
    assert caught.value.hint
    assert "hunter22" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_wrong_password_is_told_and_not_shown(postgres: Any) -> None:
    postgres.run("CREATE ROLE ann LOGIN PASSWORD 'right-password'")
    for said in (PASSWORD, "right-password"):
        url = f"postgresql://ann:{said}@127.0.0.1:{postgres.port}/postgres"
        with pytest.raises(StoreError) as caught:
            await Store.open(url)
        text = str(caught.value)
        assert said not in text
        assert "pa@ss-w0rd" not in text
        assert f"postgresql://ann:***@127.0.0.1:{postgres.port}/postgres" in text
        if said == PASSWORD:
            assert "password authentication failed" in text
        else:
            assert "cannot be set up: permission denied" in text
            assert "hint: the user in STIGMER_DATABASE_URL must own the database" in text


async def test_a_database_that_does_not_exist_is_told(postgres: Any) -> None:
    with pytest.raises(StoreError, match='database "nowhere" does not exist') as caught:
        await Store.open(postgres.url("nowhere"))
    assert "hint: see whether the address, user and password in STIGMER_DATABASE_URL are right" in str(
        caught.value
    )


async def test_a_missing_driver_is_told(postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match="its driver is missing") as caught:
        await Store.open(postgres.url("postgres"))
    assert "hint: pip install 'stigmer[postgres]'" in str(caught.value)


async def test_the_password_is_masked_in_whatever_this_process_says(postgres: Any) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://ann:{PASSWORD}@127.0.0.1:{nobody.getsockname()[1]}/x"
        with pytest.raises(StoreError):
            await Store.open(url)
    assert redact.mask(f"{url} pa@ss-w0rd") == f"{url.replace(PASSWORD, '***')} ***"


async def test_sqlite_needs_no_driver_of_postgresql(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys; from stigmer.store import Store\n"
        "asyncio.run(Store(pathlib.Path(sys.argv[1])).close())\n"
        "assert 'psycopg' not in sys.modules and 'stigmer.store._postgres' not in sys.modules"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path / "s.db"))
    assert await process.wait() == 0
