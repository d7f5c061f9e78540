"""Journals of every version so far: they decode, they are shown as they were, and a walk over them asks for nothing.

When one of these fails, a journal of an earlier version no longer replays: fix the reader, never the file. People have
such records in their databases. A new version's own journals are written by `record.py` beside this file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from graphton.chat.base import Chunk, Preview, Request
from graphton.journal import Event, MemoryJournal
from graphton.loop import Result
from graphton.messages import Message
from graphton.models import ModelRef, ModelSettings
from stigmer import __version__
from stigmer._translate import _READ, from_record, to_record
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.events import to_json
from stigmer.journal import StoreJournal, is_paused, open_questions, running_seconds
from stigmer.runner import agent_for, complete, needed_models, said_before
from stigmer.store import Row, Store, new_id

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*/*.journal"))
WHAT_TO_DO = "a journal of an earlier version no longer replays: fix the reader, never the file"
NOT_THE_LOOPS = {
    "created", "config_resolved", "attempt_started", "attempt_ended", "waiting", "resumed", "budget_exceeded",
    "pause_requested", "cancel_requested", "finished", "unknown",
}  # fmt: skip
SPENT = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")


class Asked(Exception):
    """The walk wanted a reply that is not recorded."""


class NobodyHome:
    """A model that must not be asked."""

    def __init__(self, model: pb.ResolvedModel) -> None:
        self.ref = ModelRef(model.provider, model.model)
        self.settings = ModelSettings(
            max_tokens=model.max_tokens, context_window=model.context_window or None
        )
        self.notices: tuple[str, ...] = ()

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        raise Asked
        yield  # Which makes it a stream.

    def preview(self, request: Request) -> Preview:
        raise Asked

    async def close(self) -> None:
        return None


@dataclass(frozen=True)
class Golden:
    """One file."""

    file: Path
    head: dict[str, Any]
    shown: list[dict[str, Any]]
    """Its events as the version that recorded them showed them."""
    records: list[pb.Event]

    @classmethod
    def read(cls, file: Path) -> Golden:
        head, *lines = map(json.loads, file.read_text("utf-8").splitlines())
        records = [pb.Event.FromString(base64.b64decode(line["record"])) for line in lines]
        return cls(file, head, [line["json"] for line in lines], records)

    @property
    def row(self) -> Row:
        request = base64.b64decode(self.head["request"])
        return Row(self.head["no"], self.head["execution"], request, "", 0, len(self.records), 0, None)

    @property
    def events(self) -> list[Event]:
        return [event for event in map(from_record, self.records) if event is not None]

    @property
    def config(self) -> pb.ConfigResolved:
        return next(r.config_resolved for r in self.records if r.HasField("config_resolved"))

    def earlier(self) -> list[Message]:
        """What the session's run before this one said."""
        if not self.head["after"]:
            return []
        before = Golden.read(self.file.parent / f"{self.head['after']}.journal")
        return said_before([(before.row, before.records)], max_tokens=None)


class Walk(MemoryJournal):
    """A journal that holds a record and tells what a walk over it adds."""

    def __init__(self, golden: Golden) -> None:
        super().__init__(golden.head["execution"])
        for event in golden.events:
            self.add(event)

    @property
    def added(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@pytest.fixture(params=FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


async def walk(golden: Golden, journal: Any, workspace: Path) -> Result:
    """The loop over the record, as the runner goes over it, with models that nobody may ask."""
    request = api.CreateExecutionRequest.FromString(golden.row.request)
    request.workspace = str(workspace)
    chats = [NobodyHome(model) for model in golden.config.models]
    agent = agent_for(chats[0], request, closed=(), fallbacks=chats[1:])
    return await agent.run(request.task, journal=journal, earlier=golden.earlier())


async def test_a_walk_over_the_record_asks_for_nothing_and_comes_to_the_same_result(
    golden: Golden, tmp_path: Path
) -> None:
    journal, wanted = Walk(golden), golden.head["result"]
    if wanted["outcome"] == "asks":
        with pytest.raises(Asked):
            await walk(golden, journal, tmp_path)
        asked = {(e.step, e.path) for e in journal.requests.values()}
        assert max(asked) == (wanted["step"], ""), WHAT_TO_DO
        return
    result = await walk(golden, journal, tmp_path)
    assert {"outcome": result.outcome, "text": result.text} == wanted, WHAT_TO_DO
    # Prompts and tools may change, and the next request with them; what was answered stays answered.
    assert set(journal.added) <= {"HistoryChanged"}, WHAT_TO_DO
    assert untouched(tmp_path), WHAT_TO_DO


def untouched(workspace: Path) -> bool:
    return not list(workspace.iterdir())


async def test_the_store_hands_the_record_to_the_next_attempt(golden: Golden, tmp_path: Path) -> None:
    """As after an update of stigmer: the run's row and its events lie in the database, and an attempt begins."""
    store, work = Store(tmp_path / "stigmer.db"), tmp_path / "work"
    work.mkdir()
    try:
        row, _ = await store.accept(new_id(), golden.row.request, events=golden.records)
        epoch = await store.claim(row.no, worker="later", lease=60) or 0
        records = await store.replay(row.no)
        journal = StoreJournal(store, no=row.no, execution=row.id, epoch=epoch, records=records)
        if golden.head["result"]["outcome"] == "asks":
            with pytest.raises(Asked):
                await walk(golden, journal, work)
        else:
            assert (await walk(golden, journal, work)).text == golden.head["result"]["text"], WHAT_TO_DO
        assert journal.failure is None
    finally:
        await store.close()


def test_events_are_shown_with_all_that_they_were_shown_with(golden: Golden) -> None:
    for record, was in zip(golden.records, golden.shown, strict=True):
        now = json.loads(json.dumps(to_json(record, golden.head["execution"])))
        assert of_it(now, was) == was, WHAT_TO_DO


def of_it(now: Any, was: Any) -> Any:
    """What `now` says of all that `was` says; a later version may say more, at any depth."""
    if isinstance(now, dict) and isinstance(was, dict):
        return {name: of_it(now.get(name, "is missing"), value) for name, value in was.items()}
    return now


def test_the_loop_reads_every_event_that_is_for_it_with_all_that_it_says(golden: Golden) -> None:
    for record, was in zip(golden.records, golden.shown, strict=True):
        event = from_record(record)
        assert (event is None) is (was["type"] in NOT_THE_LOOPS), f"{was['type']}: {WHAT_TO_DO}"
        if event is not None:
            now = json.loads(json.dumps(to_json(to_record(event), golden.head["execution"])))
            said = {name: value for name, value in was.items() if name not in ("time", "seq", "expires")}
            assert of_it(now, said) == said, WHAT_TO_DO


def test_what_is_told_of_a_run_is_told_again(golden: Golden) -> None:
    records = golden.records
    finished = next((r.finished for r in records if r.HasField("finished")), None)
    assert bool(open_questions(records)) is (golden.file.stem == "waiting"), WHAT_TO_DO
    assert not is_paused(records), WHAT_TO_DO
    assert [model.model for model in needed_models(golden.config)] == [
        model.model for model in golden.config.models[:1] if model.has_key
    ], WHAT_TO_DO
    if finished is not None:
        again = complete(pb.Finished(), records, now_ms=records[-1].time_ms)
        spent = {name: getattr(finished.usage, name) for name in SPENT}
        assert {name: getattr(again.usage, name) for name in SPENT} == spent, WHAT_TO_DO
        assert running_seconds(records, now_ms=records[-1].time_ms) == pytest.approx(finished.seconds, abs=1)


def test_what_a_later_version_writes_is_passed_over() -> None:
    for file in HERE.glob("*/future.journal"):
        future, today = Golden.read(file), Golden.read(file.parent / "parallel_tools.journal")
        unknown = [record for record in future.records if record.WhichOneof("kind") is None]
        assert len(unknown) == len(future.records) / 2
        assert {to_json(record, "exec_1")["type"] for record in unknown} == {"unknown"}
        assert list(map(type, future.events)) == list(map(type, today.events)), WHAT_TO_DO
        assert all(b"later" in record.SerializeToString() for record in future.records)


def test_this_versions_journals_hold_every_event_of_the_loop() -> None:
    """`history_changed` is missing on purpose: it comes of a version that asks differently, which no version is to itself."""
    here = [Golden.read(file) for file in FILES if file.parent.name == __version__]
    if not here:
        pytest.fail(
            f"no journals of {__version__}: run packages/stigmer/tests/golden/record.py and commit them"
        )
    kinds = {record.WhichOneof("kind") for golden in here for record in golden.records}
    missing = set(_READ) - kinds - {"history_changed"}
    assert not missing, (
        f"no journal of {__version__} holds {missing}: add what leads to it to record.py, and run it"
    )
