"""Records journals as this version writes them: scripted agents through the real store, engine and loop.

    .venv/bin/python packages/stigmer/tests/golden/record.py

Writes VERSION/NAME.journal beside this file, and leaves alone what is there: a journal of a version is never edited, for
somebody's database holds it as it is. A line of such a file is one event, as JSON for people and as its bytes in base64;
the first line says what was asked and what a walk over the record must come to.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from graphton.testing import Call, FakeProviders, FakeRequest, Reply
from stigmer import __version__
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.events import to_json
from stigmer.journal import open_questions
from stigmer.server._retry import carried
from stigmer.store import Row, new_id

HERE = Path(__file__).parent
WORKER = api.Agent(name="worker", description="Does a part of the work.", instructions="You work.")
READER = api.Agent(name="reader", instructions="You read.", tools=api.ToolChoice(names=["read_file"]))
LEAD = api.Agent(name="lead", instructions="You lead.", subagents=[WORKER])
SUMMARY = "The pages are about herons."
SESSION = "ses_golden"
FUTURE = b"\xa2\x8a\x03\x05later"
"""A field with a number that no message has: 6308, and text in it."""


# What happens: each function drives one run to its end (or to where it rests) and gives its row


async def plain(house: Any, fake: FakeProviders) -> Row:
    config = house.config()
    shadowed = [pb.Shadowed(value='"gpt-5"', source="file config.yaml:3")]
    config.settings.add(name="model", value='"gpt-4.1"', source="flag --model", shadowed=shadowed)
    config.notices.append("something to know")
    house.config = lambda: config
    fake.reply("Hello. Grüße, \U0001f600.", input_tokens=100, output_tokens=9, cached_tokens=40)
    return await ended(house, "Say hello.")


async def parallel_tools(house: Any, fake: FakeProviders) -> Row:
    fake.calls(read("a"), read("b"), read("c"), text="I look at all three.")
    fake.reply("Heron, owl and wren.")
    return await ended(house, "Which birds?")


async def tool_error(house: Any, fake: FakeProviders) -> Row:
    fake.calls(read("missing"), Call("no_such_tool", {"x": 1}), Call("read_file", '{"path": "a.'))
    fake.calls(Call("read_file", {"path": "a.txt", "end_line": "5"}))
    fake.reply("There is no such file.")
    return await ended(house, "Read it.")


async def approved(house: Any, fake: FakeProviders) -> Row:
    fake.call("run_command", {"command": "echo done"})
    fake.reply("It is done.")
    return await decided(house, "approved")


async def rejected(house: Any, fake: FakeProviders) -> Row:
    fake.call("run_command", {"command": "echo done"})
    fake.reply("Then I leave it.")
    return await decided(house, "rejected", reason="not now")


async def waiting(house: Any, fake: FakeProviders) -> Row:
    fake.call("run_command", {"command": "echo done"})
    row: Row = await house.accept("Do it.")
    await house.waiting(row)
    return row


async def rules(house: Any, fake: FakeProviders) -> Row:
    fake.calls(*(Call("run_command", {"command": command}) for command in ("echo yes", "touch no")))
    fake.reply("One of them.")
    said = [("allow", "echo *"), ("deny", "touch *")]
    found = [api.ApprovalRule(tool="run_command", when={"command": w}, verdict=v) for v, w in said]
    return await ended(house, "Do both.", approvals=found)


async def lost_write(house: Any, fake: FakeProviders) -> Row:
    """A copy of the database in the middle of a command is what kill -9 leaves; the run goes on from the copy."""
    fake.call("run_command", {"command": "sleep 600"})
    fake.reply("I do not know whether it was done.")
    row: Row = await house.accept("Do it.", approve_all=True)
    await house.until(row, lambda r: r.HasField("process_started"))
    copy = house.home / "killed.db"
    with closing(sqlite3.connect(house.database)) as there, closing(sqlite3.connect(copy)) as here:
        there.backup(here)
    await house.close()
    house.database = copy
    house.open()
    await house.engine.start()
    await house.finished(row)
    return row


async def subagents(house: Any, fake: FakeProviders) -> Row:
    def answer(request: FakeRequest) -> Reply:
        if request.last_user_text.startswith("part"):
            return Reply(text="Seen.") if request.tool_results else Reply(calls=(read("a"),))
        if request.tool_results:
            return Reply(text="Both parts are done.")
        return Reply(
            calls=tuple(Call("task", {"agent": "worker", "task": f"part {n}"}) for n in ("one", "two"))
        )

    fake.rule(answer)
    return await ended(house, "Share the work.", agent_record=LEAD)


async def fallback(house: Any, fake: FakeProviders) -> Row:
    config = house.config()
    gone = pb.ResolvedModel(provider="ollama", model="qwen3:8b", base_url="http://127.0.0.1:1")
    config.models.insert(0, gone)
    house.config = lambda: config
    fake.calls(read("a"))
    fake.reply("A heron, said by the second.")
    return await ended(house, "Which bird?")


async def retries(house: Any, fake: FakeProviders) -> Row:
    fake.fail(529, "overloaded")
    fake.reply("one two three four", break_after_events=3)
    fake.reply("one two three four")
    return await ended(house, "Count.")


async def compaction(house: Any, fake: FakeProviders) -> Row:
    config = house.config()
    config.models[0].context_window, config.models[0].max_tokens = 2000, 400
    house.config = lambda: config
    asked = iter(range(100))

    def answer(request: FakeRequest) -> Reply:
        if request.system.startswith("You summarise"):
            return Reply(text=SUMMARY)
        number = next(asked)
        return Reply(text="All about herons.") if number == 8 else Reply(calls=(read(f"page{number}"),))

    fake.rule(answer)
    return await ended(house, "Read all pages.", agent_record=READER)


async def first_turn(house: Any, fake: FakeProviders) -> Row:
    fake.calls(read("a"))
    fake.reply("It is a heron.")
    return await ended(house, "Which bird?", session=SESSION)


async def second_turn(house: Any, fake: FakeProviders) -> Row:
    fake.reply("You asked for the bird.")
    return await ended(house, "What did I ask?", session=SESSION)


async def cancelled(house: Any, fake: FakeProviders) -> Row:
    fake.calls(read("a"))
    fake.reply("never whole", stall_after=2)
    row: Row = await house.accept("Wait.")
    await fake.wait_for_requests(2)
    await house.engine.cancel(row.id, by="ann")
    return row


async def budget_exceeded(house: Any, fake: FakeProviders) -> Row:
    fake.calls(read("a"))
    fake.calls(read("b"))
    return await ended(house, "Read on.", budget=pb.Budget(steps=2))


async def paused(house: Any, fake: FakeProviders) -> Row:
    fake.call("run_command", {"command": "until [ -e go ]; do sleep 0.02; done; echo line"})
    fake.reply("It is written.")
    row: Row = await house.accept("Write.", approve_all=True)
    await house.until(row, lambda r: r.HasField("process_started"))
    await house.store.control(row.no, [pb.Event(pause_requested=pb.PauseRequested(by="ann"))])
    house.engine.wake(row.id)
    await house.until(row, lambda r: r.HasField("pause_requested"))
    (house.workspace / "go").touch()
    await house.waiting(row)
    await house.store.control(row.no, [pb.Event(resumed=pb.Resumed(by="ann"))])
    house.engine.wake(row.id)
    await house.finished(row)
    return row


async def paused_with_a_question(house: Any, fake: FakeProviders) -> Row:
    """Somebody lets it rest while it waits for an answer, the answer comes meanwhile, and it goes on later."""
    fake.call("run_command", {"command": "echo done"})
    fake.reply("It is done.")
    row: Row = await house.accept("Do it.")
    await house.waiting(row)
    asked = open_questions(await house.records(row))
    expires = asked[0].approval_requested.expires_ms
    rests = pb.Event(waiting=pb.Waiting(reason="pause", expires_ms=expires))
    await house.store.control(row.no, [pb.Event(pause_requested=pb.PauseRequested(by="ann")), rests])
    answer = pb.ApprovalDecided(
        call=asked[0].approval_requested.call,
        digest=asked[0].approval_requested.digest,
        decision="approved",
        by="ann",
    )
    decided_ = pb.Event(approval_decided=answer)
    await house.store.control(row.no, [decided_, pb.Event(waiting=pb.Waiting(reason="pause"))])
    await house.store.control(row.no, [pb.Event(resumed=pb.Resumed(by="bob"))])
    house.engine.wake(row.id)
    await house.finished(row)
    return row


async def retried(house: Any, fake: FakeProviders) -> Row:
    """What a retry begins with: the calls of a run that failed, with their keys written out, then its own."""
    fake.calls(read("a"), input_tokens=100, output_tokens=9)
    fake.fail(400, "no")
    first = await ended(house, "Which bird?")
    fake.reply("It is a heron.", input_tokens=200, output_tokens=5)
    before = carried(await house.records(first), execution=first.id)
    request = api.CreateExecutionRequest(
        task="Which bird?", workspace=str(house.workspace), retry_of=first.id
    )
    created = pb.Created(task="Which bird?", retry_of=first.id, parent=first.id)
    notice = pb.Notice(code="retry", text=f"goes on from {first.id}")
    house.keys.put(
        "any",
        "sk-golden-0000000000",
        organisation="default",
        provider="openai",
        base_url=house.fake.openai_url,
    )
    row, _ = await house.store.accept(
        new_id(),
        request.SerializeToString(),
        events=[
            pb.Event(created=created),
            pb.Event(config_resolved=house.config()),
            *before,
            pb.Event(notice=notice),
        ],
    )
    house.engine.submit(row.id)
    await house.finished(row)
    return row  # type: ignore[no-any-return]  # a Row


async def going_in_circles(house: Any, fake: FakeProviders) -> Row:
    for _ in range(3):
        fake.calls(read("a"))
    fake.reply("It stays a heron.")
    return await ended(house, "Read it.")


SCENARIOS: list[Callable[[Any, FakeProviders], Awaitable[Row]]] = [
    plain, parallel_tools, tool_error, approved, rejected, waiting, rules, lost_write, subagents, fallback, retries,
    compaction, cancelled, budget_exceeded, paused, paused_with_a_question, retried, going_in_circles,
]  # fmt: skip


# The parts of them


def read(name: str) -> Call:
    return Call("read_file", {"path": f"{name}.txt"})


async def ended(house: Any, task: str, **more: Any) -> Row:
    """Accepts the run and waits for its end."""
    session = more.get("session", "")
    if not session:
        row: Row = await house.accept(task, **more)
    else:
        request = api.CreateExecutionRequest(task=task, workspace=str(house.workspace), **more)
        house.keys.put(
            "any",
            "sk-golden-0000000000",
            organisation="default",
            provider="openai",
            base_url=house.fake.openai_url,
        )
        events = [
            pb.Event(created=pb.Created(task=task, session=session)),
            pb.Event(config_resolved=house.config()),
        ]
        row, _ = await house.store.accept(
            new_id(), request.SerializeToString(), events=events, session=session
        )
        house.engine.submit(row.id)
    await house.finished(row)
    return row


async def decided(house: Any, decision: str, *, reason: str = "") -> Row:
    row: Row = await house.accept("Do it.")
    await house.waiting(row)
    await house.decide(row, decision, reason=reason)
    await house.finished(row)
    return row


# Writing


def journal(row: Row, records: list[pb.Event], *, after: str = "") -> str:
    """The text of one file. What is recorded of a workspace is left out: a walk brings its own."""
    request = api.CreateExecutionRequest.FromString(row.request)
    request.workspace = ""
    head = {
        "version": __version__,
        "no": row.no,
        "execution": row.id,
        "task": request.task,
        "after": after,
        "result": result(records),
        "request": base64.b64encode(request.SerializeToString()).decode(),
    }
    lines = [head]
    for record in records:
        shown = to_json(record, row.id)
        lines.append({"json": shown, "record": base64.b64encode(record.SerializeToString()).decode()})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def result(records: list[pb.Event]) -> dict[str, Any]:
    """What a walk over the record comes to: its outcome and text, or the step that was asked for and not answered."""
    last = next((r.finished for r in records if r.HasField("finished")), pb.Finished())
    if last.outcome == "cancelled":
        asked = [r.model_requested.step for r in records if r.HasField("model_requested")]
        return {"outcome": "asks", "step": max(asked)}
    return {"outcome": last.outcome or "waiting", "text": last.text}


def of_the_future(records: list[pb.Event]) -> list[pb.Event]:
    """The same records as a later version may write them: fields and a kind of event that nobody here knows."""
    changed: list[pb.Event] = []
    for record in records:
        later = pb.Event.FromString(record.SerializeToString())
        inner: Message = getattr(later, later.WhichOneof("kind") or "")
        inner.MergeFromString(FUTURE)
        later.MergeFromString(FUTURE)
        unknown = pb.Event(time_ms=record.time_ms)
        unknown.MergeFromString(FUTURE)
        changed += [later, unknown]
    for seq, record in enumerate(changed, 1):
        record.seq = seq
    return changed


def write(folder: Path, name: str, text: str) -> None:
    file = folder / f"{name}.journal"
    if file.exists():
        print(f"{name}: is there and stays as it is")
        return
    file.write_text(text, "utf-8")
    print(f"{name}: {len(text)} bytes")


def houses() -> Any:
    """The tests' own home with its engine: there is one place for that."""
    spec = importlib.util.spec_from_file_location("engines_conftest", HERE.parent / "engines" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def record(house: Any, fake: FakeProviders, folder: Path, names: Mapping[str, Any]) -> None:
    """Runs these scenarios in one home, one after the other; each goes on from the one before it, if sessions say so."""
    after = ""
    for name, scenario in names.items():
        row = await scenario(house, fake)
        row = await house.store.get(row.id)
        records = await house.records(row)
        write(folder, name, journal(row, records, after=after))
        if name == "parallel_tools":
            write(folder, "future", journal(row, of_the_future(records)))
        after = name


async def main() -> None:
    folder = HERE / __version__
    folder.mkdir(exist_ok=True)
    homes: list[dict[str, Any]] = [{scenario.__name__: scenario} for scenario in SCENARIOS]
    homes.append({"first_turn": first_turn, "second_turn": second_turn})
    for names in homes:
        with tempfile.TemporaryDirectory(prefix="stg-") as place:
            async with FakeProviders() as fake:
                house = houses().House(Path(place) / "home", fake)
                birds = {"a": "heron", "b": "owl", "c": "wren"}
                pages = {f"page{n}": "heron " * 200 + str(n) for n in range(8)}
                for file, text in (birds | pages).items():
                    (house.workspace / f"{file}.txt").write_text(text + "\n")
                await house.engine.start()
                try:
                    await record(house, fake, folder, names)
                finally:
                    await house.close()


if __name__ == "__main__":
    asyncio.run(main())
