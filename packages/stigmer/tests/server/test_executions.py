"""The execution service over a real Unix socket: accept, watch, ask, cancel, decide."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from graphton.testing import Call, FakeProviders, Reply
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.client import RemoteError
from stigmer.events import to_json

DEADLINE = 30.0
KEY = "sk-sentinel-0123456789abcdef"


def stored(events: list[pb.Event]) -> list[pb.Event]:
    return [event for event in events if event.seq]


def kinds(events: list[pb.Event]) -> list[str]:
    return [str(event.WhichOneof("kind")) for event in events]


def files_with(text: str, folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


async def test_a_run_streams_every_event_once_and_in_order(serving: Any, fake: FakeProviders) -> None:
    (serving.workspace / "a.txt").write_text("42")
    fake.call("read_file", {"path": "a.txt"})
    fake.reply("It is 42.", pieces=6)
    events = await serving.run("What is in a.txt?")
    assert [e.seq for e in stored(events)] == list(range(1, len(stored(events)) + 1))
    assert kinds(stored(events)) == [
        "created", "config_resolved", "notice", "attempt_started", "model_requested", "model_replied",
        "tool_dispatched", "tool_finished", "model_requested", "model_replied", "attempt_ended", "finished",
    ]  # fmt: skip
    assert "".join(e.text_delta.text for e in events) == "It is 42."
    assert events[-1].finished.text == "It is 42."
    assert events[2].notice.code == "model"
    assert events[2].notice.text == "gpt-4.1 on openai (flag --model)"


async def test_the_configuration_is_recorded_with_its_sources_and_no_key(
    serving: Any, fake: FakeProviders
) -> None:
    fake.reply("Hi.")
    events = await serving.run("Hello", flags={"model": "openai:gpt-4.1", "temperature": "0.5"})
    shown = to_json(events[1], "exec_1")
    assert shown["settings"]["temperature"] == {"value": 0.5, "source": "flag --temperature", "shadowed": []}
    assert shown["settings"]["api_key"]["source"] == "env OPENAI_API_KEY (your shell)"
    assert KEY not in json.dumps(shown)
    assert fake.chats[0].json["temperature"] == 0.5
    assert fake.chats[0].headers["authorization"] == f"Bearer {KEY}"


async def test_watching_from_a_number_gives_exactly_the_rest(serving: Any, fake: FakeProviders) -> None:
    fake.reply("Hi.")
    events = stored(await serving.run("Hello"))
    async with serving.client() as client:
        (listed,) = await client.list()
        for first in range(1, len(events) + 1):
            rest = [e async for e in client.watch(listed.id, from_seq=first)]
            assert [e.SerializeToString() for e in rest] == [
                e.SerializeToString() for e in events[first - 1 :]
            ]


async def test_a_late_watcher_sees_the_text_so_far_and_then_the_rest(
    serving: Any, fake: FakeProviders
) -> None:
    fake.rule(lambda request: Reply(text="one two three four five six", pieces=6, stall_after=5, stall=1.0))
    async with serving.client() as client:
        created = await client.create(serving.request("Count."))
        id = created.execution.id
        await serving.until(client, id, lambda e: e.text_delta.offset > 0)
        text = ""
        async with asyncio.timeout(DEADLINE):
            async for event in client.watch(id):
                if event.HasField("text_delta"):
                    assert event.text_delta.offset == len(text)
                    text += event.text_delta.text
        assert text == "one two three four five six"


async def test_an_event_says_whether_the_next_one_is_here_already(serving: Any, fake: FakeProviders) -> None:
    fake.reply("Hi.")
    async with serving.client() as client:
        first = [e async for e in client.run(serving.request("Hello"))]
        id = (await client.list(limit=1))[0].id
        events = client.watch(id)
        more = [events.more async for event in events]
        assert more == [True] * (len([e for e in first if e.seq]) - 1) + [False]


async def test_two_watchers_see_the_same(serving: Any, fake: FakeProviders) -> None:
    fake.reply("Hi.", delay=0.2)
    async with serving.client() as client:
        created = await client.create(serving.request("Hello"))

        async def watch() -> list[bytes]:
            return [e.SerializeToString() async for e in client.watch(created.execution.id) if e.seq]

        one, two = await asyncio.gather(watch(), watch())
        assert one == two


async def test_a_watcher_that_leaves_is_forgotten_and_the_run_goes_on(
    serving: Any, fake: FakeProviders
) -> None:
    fake.reply("Hi.", delay=0.3)
    async with serving.client() as client:
        created = await client.create(serving.request("Hello"))
        await serving.until(client, created.execution.id, lambda e: e.HasField("model_requested"))
        await serving.until(client, created.execution.id, lambda e: e.HasField("finished"))


async def test_the_same_idempotency_key_is_the_same_execution(serving: Any, fake: FakeProviders) -> None:
    fake.reply("Once.")
    async with serving.client() as client:
        first = await client.create(serving.request("Hello", idempotency_key="k1"))
        again = await client.create(serving.request("Hello", idempotency_key="k1"))
        assert (first.created, again.created) == (True, False)
        assert first.execution.id == again.execution.id
        await serving.until(client, first.execution.id, lambda e: e.HasField("finished"))
    assert len(fake.chats) == 1


async def test_an_idempotency_key_with_another_task_is_refused(serving: Any, fake: FakeProviders) -> None:
    fake.reply("Once.")
    async with serving.client() as client:
        first = await client.create(serving.request("Hello", idempotency_key="k1"))
        with pytest.raises(RemoteError) as caught:
            await client.create(serving.request("Goodbye", idempotency_key="k1"))
        assert len(await client.list()) == 1
    assert caught.value.code == "usage"
    assert f"'k1' belongs to {first.execution.id}, whose task is another" in caught.value.message
    assert "take a new key" in caught.value.hint


async def test_get_and_list_show_what_happened(serving: Any, fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="Hi."))
    for n in range(3):
        await serving.run(f"Task {n}")
    async with serving.client() as client:
        page = await client.list(limit=2)
        assert [e.task for e in page] == ["Task 2", "Task 1"]
        assert [e.task for e in await client.list(limit=200)] == ["Task 2", "Task 1", "Task 0"]
        assert await client.list(state="failed") == []
        got = await client.get(page[0].id)
        assert got.state == "completed"
        assert got.finished.text == "Hi."
        assert got.attempt == 1
        assert got.config.models[0].model == "gpt-4.1"
        with pytest.raises(RemoteError, match="there is no execution 'exec_none'") as caught:
            await client.get("exec_none")
        assert (caught.value.code, caught.value.status) == ("not_found", "NOT_FOUND")


async def test_cancel_answers_when_the_run_has_stopped(serving: Any, fake: FakeProviders) -> None:
    fake.reply("never", stall_after=1)
    async with serving.client() as client:
        created = await client.create(serving.request("Wait."))
        await fake.wait_for_requests(1)
        answer = await client.cancel(created.execution.id, by="ann")
        assert (answer.execution.state, answer.already_finished) == ("cancelled", False)
        again = await client.cancel(created.execution.id, by="ann")
        assert again.already_finished


async def test_an_approval_is_decided_once_and_says_by_whom(serving: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Done.")
    async with serving.client() as client:
        created = await client.create(serving.request("Write."))
        id = created.execution.id
        await serving.until(client, id, lambda e: e.HasField("attempt_ended"))
        waiting = await client.get(id)
        assert waiting.state == "waiting"
        (question,) = waiting.approvals
        assert json.loads(question.arguments) == {"command": "echo done > out.txt"}
        with pytest.raises(RemoteError, match="now has other arguments") as caught:
            await client.decide(id, question.call, approve=True, digest=b"another")
        assert caught.value.code == "changed"
        with pytest.raises(RemoteError, match=r"no open question about call '9\.9'"):
            await client.decide(id, "9.9", approve=True)
        answers = await asyncio.gather(
            *(client.decide(id, question.call, approve=True, by=who) for who in ("ann", "bob")),
            return_exceptions=True,
        )
        (refused,) = [a for a in answers if isinstance(a, RemoteError)]
        assert (refused.code, refused.status) == ("decided", "FAILED_PRECONDITION")
        assert "was approved by" in refused.message
        events = [e async for e in client.watch(id)]
    assert events[-1].finished.text == "Done."
    assert kinds(events).count("approval_decided") == 1
    assert kinds(events).count("resumed") == 1
    assert (serving.workspace / "out.txt").read_text() == "done\n"


async def test_a_waiting_execution_survives_the_server(serving: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Done.")
    async with serving.client() as client:
        id = (await client.create(serving.request("Write."))).execution.id
        await serving.until(client, id, lambda e: e.HasField("attempt_ended"))
    await serving.restart()
    async with serving.client() as client:
        assert (await client.status()).waiting == 1
        # The key was only in the first shell: the run waits for it until a command brings it again.
        await client.decide(id, "1.0", approve=True, by="ann")
        await serving.until(client, id, lambda e: e.waiting.reason == "key")
        fake.rule(lambda request: Reply(text="Hi.") if request.last_user_text == "Hello" else None)
        await serving.run("Hello")
        events = [e async for e in client.watch(id)]
    assert events[-1].finished.text == "Done."
    assert (serving.workspace / "out.txt").read_text() == "done\n"


ENVIRONMENT = {"OPENAI_API_KEY": KEY}


async def waits_for_its_key(serving: Any, fake: FakeProviders) -> str:
    """A run with an open question, and a server that knows no key any more."""
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Done.")
    async with serving.client() as client:
        id: str = (await client.create(serving.request("Write."))).execution.id
        await serving.until(client, id, lambda e: e.HasField("attempt_ended"))
    await serving.restart()
    return id


@pytest.mark.parametrize("approve", [True, False], ids=["approve", "reject"])
async def test_whoever_decides_gives_the_key_that_the_run_lacks(
    serving: Any, fake: FakeProviders, approve: bool
) -> None:
    id = await waits_for_its_key(serving, fake)
    shell = {**ENVIRONMENT, "OPENAI_BASE_URL": fake.openai_url, "ANTHROPIC_API_KEY": "sk-ant-sentinel-99999"}
    async with serving.client() as client:
        await client.decide(id, "1.0", approve=approve, by="ann", shell=shell)
        events = [event async for event in client.watch(id)]
    assert events[-1].finished.text == "Done."
    assert not [e for e in events if e.HasField("waiting") and e.waiting.reason == "key"]
    assert KEY not in str(events)
    assert KEY.encode() not in serving.home.database.read_bytes()


async def test_resume_gives_the_key_that_the_run_waits_for(serving: Any, fake: FakeProviders) -> None:
    id = await waits_for_its_key(serving, fake)
    async with serving.client() as client:
        await client.decide(id, "1.0", approve=True, by="ann")
        await serving.until(client, id, lambda e: e.waiting.reason == "key")
        for shell in (
            {},
            {"ANTHROPIC_API_KEY": KEY},
            # Bound to OpenAI's own address, and to no other that stands beside it.
            ENVIRONMENT,
            ENVIRONMENT | {"OPENAI_BASE_URL": "https://elsewhere.example/v1"},
        ):
            with pytest.raises(RemoteError) as refused:
                await client.resume(id, by="ann", shell=shell)
            assert refused.value.code == "no_key"
            assert str(refused.value).startswith(
                f"execution {id} waits for its key of openai at {fake.openai_url}, and this shell has none"
            )
        assert (await client.get(id)).waits_for == "key"
        await client.resume(id, by="ann", shell=ENVIRONMENT | {"OPENAI_BASE_URL": fake.openai_url})
        events = [event async for event in client.watch(id)]
    assert events[-1].finished.text == "Done."
    assert len(fake.requests) == 2


async def test_preview_shows_the_request_and_sends_and_stores_nothing(
    serving: Any, fake: FakeProviders
) -> None:
    async with serving.client() as client:
        shown = await client.preview(serving.request("Hello"))
        assert await client.list() == []
    assert shown.method == "POST"
    assert shown.url == f"{fake.openai_url}/chat/completions"
    body = json.loads(shown.body)
    assert body["messages"][-1] == {"role": "user", "content": "Hello"}
    assert {tool["function"]["name"] for tool in body["tools"]} >= {"read_file", "run_command"}
    assert KEY not in str(shown)
    assert not fake.requests


REFUSALS: list[tuple[str, dict[str, Any], str, str]] = [
    ("an empty task", {"task": " \n"}, "empty_task", "the task is empty"),
    ("an unknown agent", {"agent": "zed"}, "agent_unknown", "there is no agent 'zed'"),
    ("a session", {"session": "s1"}, "not_found", "there is no session 's1'"),
    ("a relative workspace", {"workspace": "work"}, "workspace", "workspace 'work' is not an absolute path"),
    ("a missing workspace", {"workspace": "/no/such/folder"}, "setting", "/no/such/folder"),
    ("a budget of nothing", {"budget": pb.Budget(steps=0)}, "usage", "budget steps 0 is not above 0"),
    ("a bad number", {"flags": {"max_tokens": "8k"}}, "config", "'8k'"),
    ("an unknown provider", {"flags": {"provider": "antropic"}}, "config", "anthropic"),
    ("a missing key", {"shell": {}, "flags": {"model": "openai:gpt-4.1"}}, "config", "OPENAI_API_KEY"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "words"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
async def test_what_cannot_run_is_refused_before_anything_is_stored(
    serving: Any, fields: dict[str, Any], code: str, words: str
) -> None:
    request = serving.request(fields.pop("task", "Hello"), **fields)
    async with serving.client() as client:
        with pytest.raises(RemoteError) as caught:
            await client.create(request)
        assert caught.value.code == code
        assert words in str(caught.value)
        assert caught.value.status in ("INVALID_ARGUMENT", "NOT_FOUND")
        assert "Traceback" not in str(caught.value)
        with pytest.raises(RemoteError):
            _ = [e async for e in client.run(request)]
        assert await client.list() == []


async def test_all_problems_of_a_configuration_are_told_together(serving: Any) -> None:
    flags = {"max_tokens": "8k", "temperature": "99"}
    async with serving.client() as client:
        with pytest.raises(RemoteError) as caught:
            await client.create(serving.request("Hello", flags=flags))
    assert len(caught.value.problems) == 2


async def test_a_missing_model_file_is_refused_with_what_a_caller_needs_to_fetch_it(
    serving: Any, fake: FakeProviders
) -> None:
    flags = {"provider": "llamacpp", "model": "qwen2.5-coder:0.5b"}
    async with serving.client() as client:
        with pytest.raises(RemoteError) as caught:
            await client.create(serving.request("Hello", flags=flags, shell={}))
        assert await client.list() == []
    assert caught.value.code == "model_missing"
    assert caught.value.details["name"] == "qwen2.5-coder:0.5b"
    assert caught.value.details["size"] == "491400064"
    assert caught.value.details["source"].startswith("https://")
    assert "stigmer models pull qwen2.5-coder:0.5b" in caught.value.hint


async def test_a_caller_with_another_folder_of_models_is_told_which_one_counts(
    serving: Any, short_folder: Path
) -> None:
    shell = {"STIGMER_MODELS": str(short_folder / "other")}
    ours = str(short_folder / "models")
    missing = {"provider": "llamacpp", "model": "qwen2.5-coder:0.5b"}
    file = short_folder / "own.gguf"
    file.write_bytes(b"no model")
    async with serving.client() as client:
        with pytest.raises(RemoteError) as caught:
            await client.create(serving.request("Hello", flags=missing, shell=shell))
        own = {"provider": "llamacpp", "model": str(file)}
        made = await client.create(serving.request("Hello", flags=own, shell=shell))
        resolved = await serving.until(client, made.execution.id, lambda e: e.HasField("config_resolved"))
    assert caught.value.code == "model_missing"
    assert f"is not in {ours!r}" in caught.value.message
    assert not caught.value.details, "nothing is fetched into a folder where it would not be found"
    told = f"STIGMER_MODELS={shell['STIGMER_MODELS']!r} of this shell does not count: the running daemon looks in {ours!r}"
    assert caught.value.hint.startswith(told)
    assert [text for text in resolved.config_resolved.notices if text.startswith(told)]


async def test_a_fallback_takes_over_with_its_own_key(serving: Any, fake: FakeProviders) -> None:
    def rule(request: Any) -> Reply:
        if request.provider == "openai":
            return (
                Reply(status=400, error="gone") if not request.tools else Reply(status=529, retry_after=3600)
            )
        return Reply(text="From the other one.")

    fake.rule(rule)
    shell = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": fake.openai_url,
        "ANTHROPIC_API_KEY": "sk-ant-of-the-fallback-00",
        "ANTHROPIC_BASE_URL": fake.anthropic_url,
    }
    flags = {"model": "openai:gpt-4.1", "fallbacks": "anthropic:claude-haiku-4.5"}
    events = await serving.run("Hello", shell=shell, flags=flags)
    assert events[-1].finished.text == "From the other one."
    assert "fallback" in kinds(events)
    anthropic = [request for request in fake.chats if request.provider == "anthropic"]
    assert {request.headers["x-api-key"] for request in anthropic} == {"sk-ant-of-the-fallback-00"}
    assert not [request for request in anthropic if KEY in str(request.headers)]


async def test_the_project_file_of_the_caller_counts(serving: Any, fake: FakeProviders) -> None:
    fake.reply("Hi.")
    project = api.ProjectFile(
        path=str(serving.workspace / ".stigmer/config.yaml"), text="llm:\n  max_tokens: 77\n"
    )
    events = await serving.run("Hello", project_file=project)
    shown = to_json(events[1], "")
    assert shown["settings"]["max_tokens"]["value"] == 77
    assert shown["settings"]["max_tokens"]["source"] == "file .stigmer/config.yaml:2"


async def test_the_user_file_counts_and_is_read_for_each_run(serving: Any, fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="Hi."))
    for tokens in (55, 66):
        serving.home.config.write_text(f"llm:\n  max_tokens: {tokens}\n")
        events = await serving.run("Hello")
        assert to_json(events[1], "")["settings"]["max_tokens"]["value"] == tokens


async def test_process_flags_rank_below_the_shell_and_say_so(idle: Any, fake: FakeProviders) -> None:
    fake.reply("Hi.")
    await idle.start(flags={"max_tokens": "88"})
    events = await idle.run("Hello")
    shown = to_json(events[1], "")["settings"]["max_tokens"]
    assert (shown["value"], shown["source"]) == (88, "flag --max-tokens (stigmer up)")


async def test_a_key_is_in_no_event_answer_file_or_log(
    serving: Any, fake: FakeProviders, caplog: pytest.LogCaptureFixture
) -> None:
    """A hostile model server says the key that we sent it, in text, thinking, calls and errors."""
    (serving.workspace / "key.txt").write_text(f"the key is {KEY}")
    fake.call("read_file", {"path": "key.txt"})
    fake.reply(f"Your key is {KEY}, is it not?", thinking=f"{KEY}", pieces=40)
    fake.fail(400, f"bad key {KEY}")
    with caplog.at_level("DEBUG"):
        events = await serving.run(f"Say {KEY}")
        events += await serving.run("Fail")
        async with serving.client() as client:
            answers = [str(await client.list())]
            for flags in ({"model": KEY}, {"base_url": f"http://{KEY}.example"}, {"max_tokens": KEY}):
                with pytest.raises(RemoteError) as caught:
                    await client.create(serving.request("x", flags=flags, agent=KEY))
                answers.append(str(caught.value))
    text = "".join(e.text_delta.text for e in events)
    assert "Your key is ***, is it not?" in text
    assert KEY not in text
    assert fake.chats[1].tool_results[0].text.endswith("***") or "***" in fake.chats[1].tool_results[0].text
    everything = [*map(str, events), *answers, caplog.text]
    assert not [part for part in everything if KEY in part]
    await serving.stop()
    assert not files_with(KEY, serving.home.path)


async def test_large_texts_stop_nothing(serving: Any, fake: FakeProviders) -> None:
    (serving.workspace / "big.txt").write_text("x" * 3_000_000)
    fake.call("read_file", {"path": "big.txt"})
    fake.reply("y" * 600_000)
    events = await serving.run("z" * 500_000)
    assert events[-1].finished.outcome == "completed"
    assert all(len(e.SerializeToString()) <= 256 * 1024 for e in stored(events))
    assert "[cut: 600000 characters in all]" in events[-1].finished.text
    assert len(fake.chats[0].last_user_text) == 500_000


async def test_many_large_events_are_streamed_in_frames_that_fit(serving: Any, fake: FakeProviders) -> None:
    (serving.workspace / "big.txt").write_text("line\n" * 12_000)

    def rule(request: Any) -> Reply:
        if len(request.tool_results) >= 30:
            return Reply(text="Done.")
        return Reply(calls=(Call("read_file", {"path": "big.txt"}),))

    fake.rule(rule)
    await serving.run("Read much.")
    async with serving.client() as client:
        (listed,) = await client.list()
        events = [e async for e in client.watch(listed.id)]
    assert [e.seq for e in events] == list(range(1, listed.last_seq + 1))


async def test_a_surrogate_in_a_reply_stops_nothing(serving: Any, fake: FakeProviders) -> None:
    fake.call("read_file", '{"path": "\\ud800.txt"}')
    fake.reply("Done.")
    events = await serving.run("Hello")
    assert events[-1].finished.outcome == "completed"


async def test_the_database_stays_sound(serving: Any, fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="Hi."))
    await serving.run("Hello")
    await serving.stop()
    with sqlite3.connect(serving.home.database) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


async def listed(serving: Any, **fields: Any) -> api.ListExecutionsResponse:
    """The raw answer, tokens and all."""
    async with serving.client() as client:
        metadata = (("authorization", f"Bearer {serving.token}"),)
        request = api.ListExecutionsRequest(**fields)
        stub: Any = service_pb2_grpc
        answer = await stub.ExecutionServiceStub(client._channel).ListExecutions(request, metadata=metadata)
        assert isinstance(answer, api.ListExecutionsResponse)
        return answer


async def test_a_list_comes_in_pages_with_long_texts_cut(serving: Any, fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="Hi."))
    for n in range(3):
        await serving.run(f"Task {n} " + "x" * 5000)
    first = await listed(serving, limit=2)
    assert [e.task[:6] for e in first.executions] == ["Task 2", "Task 1"]
    assert {len(e.task) for e in first.executions} == {1000}
    second = await listed(serving, limit=2, page_token=first.next_page_token)
    assert [e.task[:6] for e in second.executions] == ["Task 0"]
    assert second.next_page_token == ""
    with pytest.raises(grpc.aio.AioRpcError, match="'x' is no page token"):
        await listed(serving, page_token="x")


async def test_a_database_that_cannot_be_read_is_a_clear_error(serving: Any, fake: FakeProviders) -> None:
    with sqlite3.connect(serving.home.database) as db:
        db.execute("ALTER TABLE events RENAME TO elsewhere")
    db.close()
    async with serving.client() as client:
        with pytest.raises(RemoteError, match="refused a write: no such table: events") as caught:
            await client.create(serving.request("Hello"))
        assert (caught.value.code, caught.value.status) == ("store", "RESOURCE_EXHAUSTED")
        assert await client.list() == []
