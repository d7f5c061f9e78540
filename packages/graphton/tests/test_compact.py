"""Compaction: a conversation that outgrows its window goes on, is summarised once, and says so when nothing helps."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import repeat
from typing import Any

import pytest
from graphton._retry import Retry
from graphton.agent import Agent, create_deep_agent
from graphton.budget import Budget
from graphton.chat.base import Request
from graphton.conversation import conversation, stands_alone
from graphton.errors import BrokenStream, PromptTooLong, StatusError
from graphton.history import History
from graphton.journal import Compacted, MemoryJournal, ModelReplied, ModelRequested
from graphton.loop import ReplyError
from graphton.messages import (
    AssistantMessage,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    ToolResults,
    Usage,
    UserMessage,
)
from graphton.models import ModelSettings
from graphton.testing import ScriptedModel, calls, says
from graphton.tools import Effect, Tool, ToolContext

ANYTHING = {"type": "object"}
WINDOW = 2000
SETTINGS = ModelSettings(max_tokens=400, context_window=WINDOW)
SUMMARY = "SUMMARY: the pages were read; page 1 says heron."


def is_compaction(request: Request) -> bool:
    return request.system.startswith("You summarise")


def page_tool(size: int = 1200, *, seen: list[int] | None = None) -> Tool:
    async def work(arguments: dict[str, Any], context: ToolContext) -> str:
        if seen is not None:
            seen.append(arguments["n"])
        return f"page {arguments['n']}: " + "heron " * (size // 6)

    return Tool("page", "Reads a page.", ANYTHING, work, effect=Effect.READ)


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def agent_of(model: ScriptedModel, *tools: Tool, **more: Any) -> Agent:
    more.setdefault("retry", Retry(sleep=no_sleep, jitter=lambda: 0.0))
    return create_deep_agent(model, tools=tools, tool_mode="native", **more)


class Reader:
    """A model that reads `pages` pages, one after the other, and answers; it summarises when it is asked to."""

    def __init__(self, pages: int = 12, *, summary: str = SUMMARY) -> None:
        self.pages, self.summary = pages, summary
        self.read = 0
        self.model = ScriptedModel(repeat(self.reply), settings=SETTINGS)
        self.seen: list[int] = []

    def reply(self, request: Request) -> AssistantMessage | str:
        if is_compaction(request):
            return self.summary
        last = request.messages[-1]
        done = 0
        for message in request.messages:
            if isinstance(message, ToolResults):
                done = int(message.results[0].text.split(":")[0].split()[1])
        self.read = max(self.read, done)
        assert isinstance(last, ToolResults) or done == 0
        return calls(("page", {"n": done + 1})) if done < self.pages else f"{done} pages"

    @property
    def agent(self) -> Agent:
        return agent_of(self.model, page_tool(seen=self.seen), instructions="You read.")


def events_of(journal: MemoryJournal, kind: type) -> list[Any]:
    return [event for event in journal.events if isinstance(event, kind)]


def cut(journal: MemoryJournal, end: int) -> MemoryJournal:
    rest = MemoryJournal(journal.execution)
    for event in journal.events[:end]:
        rest.append(event)
    return rest


async def test_a_conversation_that_outgrows_its_window_is_summarised_and_goes_on() -> None:
    reader, journal = Reader(), MemoryJournal()
    result = await reader.agent.run("read all pages", journal=journal)
    assert result.text == "12 pages"
    assert reader.seen == list(range(1, 13))
    compacted = events_of(journal, Compacted)
    assert compacted
    assert all(one.tokens_after < one.tokens_before and one.enough for one in compacted)
    turns = [e for e in events_of(journal, ModelRequested) if e.purpose == "turn"]
    assert max(e.prompt_tokens_estimate for e in turns) + 400 <= WINDOW
    summaries = [e for e in events_of(journal, ModelRequested) if e.purpose == "compaction"]
    assert len(summaries) == len(compacted)
    assert max(e.prompt_tokens_estimate for e in summaries) + 400 <= WINDOW


async def test_system_text_task_and_latest_groups_stay_and_the_summary_stands_between() -> None:
    reader = Reader()
    await reader.agent.run("read all pages")
    asked = next(n for n, request in enumerate(reader.model.requests) if is_compaction(request))
    compaction, after = reader.model.requests[asked], reader.model.requests[asked + 1]
    assert compaction.tools == ()
    assert "page 1: heron" in compaction.messages[0].text  # type: ignore[union-attr]
    assert after.system == "You read."
    task, summary, *rest = after.messages
    assert task == UserMessage("read all pages")
    assert isinstance(summary, UserMessage)
    assert SUMMARY in summary.text
    assert isinstance(rest[0], AssistantMessage)
    assert isinstance(rest[1], ToolResults)
    assert rest[1].results[0].call == rest[0].calls[0].id
    assert len(rest) % 2 == 0


async def test_no_summary_is_asked_for_while_everything_fits() -> None:
    reader = Reader(pages=2)
    await reader.agent.run("go")
    assert not any(map(is_compaction, reader.model.requests))


async def test_a_crash_after_any_event_asks_no_model_twice_and_ends_the_same() -> None:
    whole = MemoryJournal()
    result = await Reader().agent.run("read all pages", journal=whole)
    for end in range(len(whole.events) + 1):
        journal, reader = cut(whole, end), Reader()
        replied = {(e.step, e.purpose) for e in events_of(journal, ModelReplied)}
        dispatched = len(journal.dispatches)
        agent = reader.agent
        again = await agent.run("read all pages", journal=journal)
        counted = Counter((e.step, e.purpose, e.try_) for e in events_of(journal, ModelReplied))
        assert set(counted.values()) == {1}, end
        assert len(events_of(journal, ModelReplied)) >= len(replied), end
        assert len(reader.model.requests) == len(events_of(journal, ModelReplied)) - len(
            events_of(cut(whole, end), ModelReplied)
        ), end
        assert len(reader.seen) <= 12 - dispatched + 1, end
        assert again.outcome == result.outcome, end
        compactions = Counter((e.step, e.try_) for e in events_of(journal, Compacted))
        assert set(compactions.values()) <= {1}, end
        assert not [e for e in journal.events if type(e).__name__ == "HistoryChanged"], end


async def test_a_run_that_has_ended_replays_without_a_request() -> None:
    whole = MemoryJournal()
    await Reader().agent.run("read all pages", journal=whole)
    count = len(whole.events)
    model = ScriptedModel([], settings=SETTINGS)
    result = await agent_of(model, page_tool(), instructions="You read.").run("read all pages", journal=whole)
    assert (result.text, len(whole.events)) == ("12 pages", count)


@pytest.mark.parametrize(
    "error",
    [
        PromptTooLong("the prompt does not fit"),
        StatusError("prompt is too long: 9000 tokens > 8000 maximum", status=400),
        StatusError("This model's maximum context length is 8192 tokens", status=400),
        StatusError("does not fit the window", status=400, kind="context"),
    ],
    ids=["ours", "anthropic", "openai", "llamacpp"],
)
async def test_a_provider_that_finds_the_prompt_too_long_is_asked_once_more_with_a_summary(
    error: Exception,
) -> None:
    model = ScriptedModel([calls(("page", {"n": 1})), calls(("page", {"n": 2})), error, SUMMARY, "done"])
    journal = MemoryJournal()
    result = await agent_of(model, page_tool()).run("go", journal=journal)
    assert result.text == "done"
    assert [is_compaction(request) for request in model.requests] == [False, False, False, True, False]
    assert [e.try_ for e in events_of(journal, ModelRequested) if e.step == 3 and e.purpose == "turn"] == [
        1,
        2,
    ]
    assert len(model.requests[-1].messages) == 4


async def test_a_second_refusal_ends_the_run_with_the_budget_by_part() -> None:
    error = StatusError("prompt is too long", status=400)
    model = ScriptedModel([calls(("page", {"n": 1})), calls(("page", {"n": 2})), error, SUMMARY, error])
    with pytest.raises(PromptTooLong) as caught:
        await agent_of(model, page_tool()).run("go")
    assert caught.value.code == "context"
    for part in ("system text", "tools (1)", "history (4 messages)", "room for the reply", "needed"):
        assert part in caught.value.message
    assert "--context-window" in caught.value.hint


async def test_other_errors_are_not_taken_for_a_long_prompt() -> None:
    error = StatusError("max_tokens is too large", status=400)
    model = ScriptedModel([calls(("page", {"n": 1})), error])
    with pytest.raises(StatusError, match="max_tokens is too large"):
        await agent_of(model, page_tool()).run("go")
    assert len(model.requests) == 2


async def test_a_task_that_exceeds_the_window_by_itself_is_refused_unsent_with_the_budget_by_part() -> None:
    model = ScriptedModel(["never"], settings=SETTINGS)
    with pytest.raises(PromptTooLong) as caught:
        await agent_of(model, page_tool()).run("word " * WINDOW)
    assert model.requests == []
    assert caught.value.code == "context"
    for part in ("system text", "tools (1)", "history (1 messages)", "context window", f"{WINDOW:,}"):
        assert part in caught.value.message


async def test_a_task_that_only_may_exceed_the_window_is_left_to_the_server() -> None:
    model = ScriptedModel(["fits"], settings=SETTINGS)
    assert (await agent_of(model).run("word " * (WINDOW * 9 // 10))).text == "fits"


async def test_two_compactions_that_make_too_little_room_end_the_run() -> None:
    reader = Reader(summary="word " * 1200)
    journal = MemoryJournal()
    with pytest.raises(PromptTooLong, match="does not fit the context window of scripted:model") as caught:
        await reader.agent.run("read all pages", journal=journal)
    assert "summarised 2 times" in caught.value.message
    assert f"context window             {WINDOW:,}" in " ".join(caught.value.message.split("  ")) or (
        "2,000" in caught.value.message
    )
    assert [one.enough for one in events_of(journal, Compacted)] == [False, False]
    requests = len(reader.model.requests)
    with pytest.raises(PromptTooLong):
        await reader.agent.run("read all pages", journal=journal)
    assert len(reader.model.requests) == requests


async def test_an_empty_summary_replaces_nothing_and_counts_as_failed() -> None:
    reader = Reader(summary="  ")
    journal = MemoryJournal()
    with pytest.raises(PromptTooLong):
        await reader.agent.run("read all pages", journal=journal)
    assert [(one.last, one.enough) for one in events_of(journal, Compacted)] == [(0, False), (0, False)]


async def test_what_only_the_window_ended_is_asked_again_with_a_summary() -> None:
    ended = says("half an ans", stop=StopReason.CONTEXT)
    model = ScriptedModel([calls(("page", {"n": 1})), calls(("page", {"n": 2})), ended, SUMMARY, "whole"])
    journal = MemoryJournal()
    result = await agent_of(model, page_tool()).run("go", journal=journal)
    assert result.text == "whole"
    assert not any(
        isinstance(m, AssistantMessage) and m.text == "half an ans" for m in model.requests[-1].messages
    )
    quiet = ScriptedModel([])
    assert (await agent_of(quiet, page_tool()).run("go", journal=journal)).text == "whole"


async def test_a_reply_that_the_window_ends_with_nothing_to_summarise_fails() -> None:
    model = ScriptedModel([says("half", stop=StopReason.CONTEXT)])
    with pytest.raises(ReplyError) as caught:
        await agent_of(model).run("go")
    assert caught.value.code == "context"


async def test_the_servers_count_corrects_the_estimate() -> None:
    """Where the server counts twice the tokens, half the messages fill the window."""

    def doubled(request: Request) -> AssistantMessage:
        if is_compaction(request):
            return says(SUMMARY)
        size = History()
        size.extend(request.messages)
        read = sum(isinstance(m, ToolResults) for m in request.messages)
        return calls(("page", {"n": read}), usage=Usage(size.tokens * 2, 5))

    model = ScriptedModel(repeat(doubled), settings=SETTINGS)
    journal = MemoryJournal()
    await agent_of(model, page_tool(), budget=Budget(steps=6)).run("go", journal=journal)
    first = events_of(journal, Compacted)[0]
    assert first.tokens_before < WINDOW - 400


async def test_a_compaction_counts_for_the_token_budget_and_is_refused_by_it() -> None:
    reader, journal = Reader(), MemoryJournal()
    agent = agent_of(reader.model, page_tool(), instructions="You read.", budget=Budget(tokens=75))
    result = await agent.run("read all pages", journal=journal)
    assert (result.outcome, result.limit) == ("budget_exceeded", "tokens")
    assert journal.spent("").usage.input_tokens + journal.spent("").usage.output_tokens <= 75 + 15


async def test_a_conversation_goes_on_from_its_summary() -> None:
    reader, journal = Reader(), MemoryJournal()
    await reader.agent.run("read all pages", journal=journal)
    said = conversation(journal, "read all pages", mark="1_")
    last = reader.model.requests[-1]
    assert len(said) == len(last.messages) + 1
    assert [type(m) for m in said[:-1]] == [type(m) for m in last.messages]
    assert SUMMARY in said[1].text  # type: ignore[union-attr]
    model = ScriptedModel(["more"], settings=SETTINGS)
    await agent_of(model).run("and now?", earlier=said)
    assert model.requests[0].messages[:-1] == tuple(said)
    assert model.requests[0].messages[-1] == UserMessage("and now?")


async def test_a_long_earlier_conversation_is_summarised_before_the_first_request() -> None:
    earlier = [UserMessage("hi"), AssistantMessage((Text("word " * 2000),))]
    model = ScriptedModel([SUMMARY, "done"], settings=SETTINGS)
    journal = MemoryJournal()
    assert (await agent_of(model).run("and now?", journal=journal, earlier=earlier)).text == "done"
    summary, task = model.requests[1].messages
    assert SUMMARY in summary.text  # type: ignore[union-attr]
    assert task == UserMessage("and now?")
    assert (
        [
            m.text
            for m in conversation(journal, "and now?", earlier=earlier)  # type: ignore[union-attr]
        ][1:]
        == ["and now?", "done"]
    )


@pytest.mark.parametrize("said", [0, 1, 4])
async def test_what_a_summary_took_the_place_of_need_not_be_read_again(said: int) -> None:
    """And where some of it was kept, it must: then nothing stands alone."""
    earlier = [UserMessage("hi"), AssistantMessage((Text("word " * 40),))] * said
    reader, journal = Reader(), MemoryJournal()
    await reader.agent.run("read all pages", journal=journal, earlier=earlier)
    assert any(done.last for done in journal.compactions(""))
    assert stands_alone(journal, "read all pages")
    whole = conversation(journal, "read all pages", earlier=earlier)
    assert conversation(journal, "read all pages") == whole
    assert not any(message in whole for message in earlier)


async def test_a_run_whose_summary_kept_what_was_said_before_it_does_not_stand_alone() -> None:
    earlier = [UserMessage("old"), AssistantMessage((Text("word " * 2000),)), UserMessage("x"), says("fresh")]
    model = ScriptedModel([SUMMARY, "done"], settings=SETTINGS)
    journal = MemoryJournal()
    assert (await agent_of(model).run("and now?", journal=journal, earlier=earlier)).text == "done"
    assert any(done.last for done in journal.compactions(""))
    assert not stands_alone(journal, "and now?")
    plain = MemoryJournal()
    await agent_of(ScriptedModel(["done"])).run("short", journal=plain)
    assert not stands_alone(plain, "short")


async def test_an_interrupted_run_is_mended_by_the_next_one() -> None:
    journal = MemoryJournal()
    journal.append(ModelRequested("", 1, 1, "m", "turn", "", 1))
    message = calls(("page", {"n": 1}))
    message = AssistantMessage((ToolCall("page", {"n": 1}, id="1.0", wire_id="w"),), stop=message.stop)
    journal.append(ModelReplied("", 1, 1, "turn", message))
    said = conversation(journal, "read", mark="1_")
    model = ScriptedModel(["fine"])
    await agent_of(model, page_tool()).run("go on", earlier=said)
    results = model.requests[0].messages[2]
    assert isinstance(results, ToolResults)
    assert (results.results[0].call, results.results[0].is_error) == ("1_1.0", True)
    assert "interrupted" in results.results[0].text


def test_a_summary_keeps_whole_groups_and_the_task_wherever_it_stands() -> None:
    history = History(system="s")
    call = ToolCall("t", {}, id="1.0", wire_id="w")
    results = ToolResults((ToolResult("1.0", "w", "t", "ok"),))
    history.extend([UserMessage("old"), AssistantMessage((Text("a"),))])
    history.add(UserMessage("task"), task=True)
    history.extend([AssistantMessage((call,)), results, AssistantMessage((Text("b"),))])
    assert history.latest(0) == 1
    assert history.latest(10_000) == 6
    history.compact(2, "short")  # Two would begin with results: they go with their call.
    assert history.messages[0] == UserMessage("task")
    assert len(history.messages) == 3
    fresh = History(system="s")
    fresh.extend(history.messages)
    assert (fresh.tokens, fresh.digest) == (history.tokens, history.digest)
    assert history.older(1) == []  # Nothing but the summary is left to replace.


async def test_a_compaction_is_not_tried_again_when_a_limit_forbids_it() -> None:
    numbers = iter(range(1, 9))

    def answer(request: Request) -> Any:
        if is_compaction(request):
            raise BrokenStream("cut", provider="scripted")
        return calls(("page", {"n": next(numbers)}), usage=Usage(10, 10))

    model = ScriptedModel(repeat(answer), settings=SETTINGS)
    journal = MemoryJournal()
    agent = agent_of(model, page_tool(), budget=Budget(tokens=200))
    result = await agent.run("Read all pages.", journal=journal)
    assert (result.outcome, result.limit) == ("budget_exceeded", "tokens")
    asked = [e for e in journal.events if isinstance(e, ModelRequested) and e.purpose == "compaction"]
    assert len(asked) == 1, "the first one was allowed, and used the limit up"
