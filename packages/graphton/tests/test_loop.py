"""The loop's promises: what is recorded is never done again, and a reply is looked at before it is believed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from graphton._retry import Retry
from graphton.agent import Agent, create_deep_agent
from graphton.approval import Answer, Approval
from graphton.budget import Budget
from graphton.errors import BrokenStream, ProviderError, SettingError, StatusError, ToolError
from graphton.journal import (
    ApprovalDecided,
    ApprovalRequested,
    Event,
    Fallback,
    HistoryChanged,
    Live,
    MemoryJournal,
    ModelReplied,
    ModelRequested,
    Notice,
    Retrying,
    StreamReset,
    TextDelta,
    ToolDispatched,
    ToolFinished,
    ToolOutcomeUnknown,
)
from graphton.loop import ReplyError
from graphton.messages import (
    AssistantMessage,
    StopReason,
    Thinking,
    ToolCall,
    ToolResults,
    Usage,
    UserMessage,
)
from graphton.models import ModelRef
from graphton.testing import ScriptedModel, calls, says
from graphton.tools import Effect, Tool, ToolContext, ToolOutput

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Counter:
    """A tool that keeps what it was called with."""

    def __init__(self, name: str = "count", *, effect: Effect = Effect.WRITE, asks: bool = False) -> None:
        self.seen: list[int] = []
        self.keys: list[str] = []
        self.tool = Tool(name, "Count.", NUMBER, self._run, effect=effect, asks=asks)

    async def _run(self, arguments: dict[str, Any], context: ToolContext) -> str:
        self.seen.append(arguments["n"])
        self.keys.append(context.idempotency_key)
        return f"counted {arguments['n']}"


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def agent_of(model: ScriptedModel, *tools: Tool, **more: Any) -> Agent:
    more.setdefault("retry", Retry(sleep=no_sleep, jitter=lambda: 0.0))
    return create_deep_agent(model, tools=tools, tool_mode="native", **more)


def results_of(model: ScriptedModel, request: int = -1) -> list[tuple[str, bool]]:
    last = model.requests[request].messages[-1]
    assert isinstance(last, ToolResults)
    return [(result.text, result.is_error) for result in last.results]


def events_of(journal: MemoryJournal, kind: type) -> list[Any]:
    return [event for event in journal.events if isinstance(event, kind)]


async def test_a_plain_answer_ends_the_run() -> None:
    model = ScriptedModel(["hello"])
    result = await agent_of(model).run("hi")
    assert (result.outcome, result.text, result.steps) == ("completed", "hello", 1)
    assert result.usage == Usage(10, 5)


async def test_tool_results_go_back_in_call_order_whatever_ends_first() -> None:
    second_done = asyncio.Event()

    async def slow(arguments: dict[str, Any], context: ToolContext) -> str:
        await second_done.wait()
        return "slow"

    async def quick(arguments: dict[str, Any], context: ToolContext) -> str:
        second_done.set()
        return "quick"

    tools = [Tool("slow", "", {"type": "object"}, slow), Tool("quick", "", {"type": "object"}, quick)]
    model = ScriptedModel([calls(("slow", {}), ("quick", {})), "done"])
    await asyncio.wait_for(agent_of(model, *tools).run("go"), 10)
    assert results_of(model) == [("slow", False), ("quick", False)]


async def test_call_ids_are_ours_and_the_key_names_execution_path_and_call() -> None:
    counter = Counter()
    model = ScriptedModel([calls(("count", {"n": 1}), ("count", {"n": 2})), "done"])
    await agent_of(model, counter.tool).run("go", journal=MemoryJournal("exec_1"), path="/child@3.0")
    assert sorted(counter.keys) == ["exec_1:/child@3.0:1.0", "exec_1:/child@3.0:1.1"]


async def test_a_call_cut_by_max_tokens_is_never_executed_and_the_model_is_told() -> None:
    counter = Counter()
    model = ScriptedModel([calls(("count", {"n": 1}), stop=StopReason.LENGTH), "sorry"])
    result = await agent_of(model, counter.tool).run("go")
    assert counter.seen == []
    assert result.text == "sorry"
    [(text, is_error)] = results_of(model)
    assert is_error
    assert "cut at the limit of 1024 output tokens" in text


async def test_three_cut_replies_in_a_row_end_the_run() -> None:
    cut = calls(("count", {"n": 1}), stop=StopReason.LENGTH)
    with pytest.raises(ReplyError, match="used all of its 1024 output tokens") as caught:
        await agent_of(ScriptedModel([cut, cut, cut]), Counter().tool).run("go")
    assert caught.value.code == "length"
    assert "--max-tokens" in caught.value.hint


async def test_a_model_that_only_thinks_is_told_apart_from_one_that_says_nothing() -> None:
    thought = Thinking("Hm. " * 50, "ollama")
    all_thought = AssistantMessage((thought,), stop=StopReason.LENGTH, usage=Usage(10, 1024))
    with pytest.raises(
        ReplyError, match="thought for all of its 1,024 output tokens and wrote no answer"
    ) as caught:
        await agent_of(ScriptedModel([all_thought])).run("go")
    assert caught.value.code == "length"
    assert "--thinking off" in caught.value.hint
    journal = MemoryJournal()
    await agent_of(ScriptedModel([AssistantMessage((thought,)), "done"])).run("go", journal=journal)
    assert [notice.text for notice in events_of(journal, Notice)] == [
        "the reply held thoughts and no answer; the model is asked again"
    ]


async def test_a_cut_answer_is_kept_with_a_notice() -> None:
    journal = MemoryJournal()
    model = ScriptedModel([says("half an ans", stop=StopReason.LENGTH)])
    result = await agent_of(model).run("go", journal=journal)
    assert result.text == "half an ans"
    assert [notice.code for notice in events_of(journal, Notice)] == ["answer_cut"]


@pytest.mark.parametrize(("stop", "code"), [(StopReason.REFUSED, "refused"), (StopReason.CONTEXT, "context")])
async def test_a_refusal_or_a_full_window_fails_and_runs_no_call(stop: StopReason, code: str) -> None:
    counter = Counter()
    with pytest.raises(ReplyError) as caught:
        await agent_of(ScriptedModel([calls(("count", {"n": 1}), stop=stop)]), counter.tool).run("go")
    assert caught.value.code == code
    assert counter.seen == []


async def test_an_empty_reply_is_asked_again_twice_then_fails() -> None:
    model = ScriptedModel([AssistantMessage(()), "here"])
    assert (await agent_of(model).run("go")).text == "here"
    assert isinstance(model.requests[1].messages[-1], UserMessage)
    with pytest.raises(ReplyError, match="empty reply 3 times"):
        await agent_of(ScriptedModel([AssistantMessage(())] * 3)).run("go")


async def test_asking_again_after_a_useless_reply_is_noted_once_however_often_it_is_replayed() -> None:
    journal = MemoryJournal()
    cut_off = calls(("count", {"n": 1}), stop=StopReason.LENGTH)
    model = ScriptedModel([AssistantMessage(()), cut_off, "here"])
    await agent_of(model, Counter().tool).run("go", journal=journal)
    await agent_of(ScriptedModel([]), Counter().tool).run("go", journal=journal)
    assert [(notice.code, notice.text) for notice in events_of(journal, Notice)] == [
        ("asked_again", "the reply was empty; the model is asked again"),
        ("asked_again", "the reply was cut by max_tokens inside a tool call, so the call was not run; the model is asked again"),
    ]  # fmt: skip


async def test_a_paused_turn_is_sent_back_as_it_is() -> None:
    model = ScriptedModel([says("thinking…", stop=StopReason.PAUSED), "done"])
    assert (await agent_of(model).run("go")).text == "done"
    assert isinstance(model.requests[1].messages[-1], AssistantMessage)


async def test_tool_errors_go_back_to_the_model() -> None:
    async def broken(arguments: dict[str, Any], context: ToolContext) -> str:
        raise ValueError("no such thing")

    async def polite(arguments: dict[str, Any], context: ToolContext) -> str:
        raise ToolError("try another file")

    async def says_so(arguments: dict[str, Any], context: ToolContext) -> ToolOutput:
        return ToolOutput("exit code 1", is_error=True)

    anything = {"type": "object"}
    tools = [Tool(f.__name__, "", anything, f) for f in (broken, polite, says_so)]
    model = ScriptedModel([calls(("broken", {}), ("polite", {}), ("says_so", {})), "ok"])
    await agent_of(model, *tools).run("go")
    assert results_of(model) == [
        ("ValueError: no such thing", True),
        ("try another file", True),
        ("exit code 1", True),
    ]


async def test_calls_that_do_not_fit_are_answered_not_run() -> None:
    counter = Counter()
    malformed = AssistantMessage(
        (ToolCall("count", {}, malformed='{"n": 1'),), stop=StopReason.TOOLS, usage=Usage(1, 1)
    )
    model = ScriptedModel([calls(("cuont", {"n": 1}), ("count", {})), malformed, "ok"])
    await agent_of(model, counter.tool).run("go")
    assert counter.seen == []
    (unknown, _), (missing, _) = results_of(model, 1)
    assert "no tool 'cuont'" in unknown
    assert "count" in unknown
    assert "n" in missing
    [(no_json, is_error)] = results_of(model, 2)
    assert is_error
    assert "no JSON object" in no_json


async def test_long_results_lose_their_middle_and_say_so() -> None:
    async def long(arguments: dict[str, Any], context: ToolContext) -> str:
        return "a" * 50_000 + "b" * 50_000

    model = ScriptedModel([calls(("long", {})), "ok"])
    await agent_of(model, Tool("long", "", {"type": "object"}, long)).run("go")
    [(text, _)] = results_of(model)
    assert len(text) < 61_000
    assert "40000 characters left out" in text


async def test_replay_asks_and_runs_nothing_again() -> None:
    counter = Counter()
    journal = MemoryJournal()
    script = [calls(("count", {"n": 1})), calls(("count", {"n": 2})), "done"]
    first = await agent_of(ScriptedModel(script), counter.tool).run("go", journal=journal)
    silent = ScriptedModel([])
    again = await agent_of(silent, counter.tool).run("go", journal=journal)
    assert again == first
    assert silent.requests == []
    assert counter.seen == [1, 2]


def cut_after(journal: MemoryJournal, kind: type) -> MemoryJournal:
    """The journal as a crash right after the last event of `kind` leaves it."""
    end = max(i for i, event in enumerate(journal.events) if isinstance(event, kind))
    rest = MemoryJournal(journal.execution)
    for event in journal.events[: end + 1]:
        rest.append(event)
    return rest


@pytest.mark.parametrize("effect", [Effect.READ, Effect.IDEMPOTENT])
async def test_a_lost_harmless_call_runs_again_with_the_same_key(effect: Effect) -> None:
    counter = Counter(effect=effect)
    journal = MemoryJournal("exec_1")
    await agent_of(ScriptedModel([calls(("count", {"n": 1})), "done"]), counter.tool).run(
        "go", journal=journal
    )
    lost = cut_after(journal, ToolDispatched)
    result = await agent_of(ScriptedModel(["done"]), counter.tool).run("go", journal=lost)
    assert result.text == "done"
    assert counter.keys == ["exec_1::1.0", "exec_1::1.0"]
    assert len(events_of(lost, ToolDispatched)) == 1


async def test_a_lost_harmless_call_runs_again_with_the_arguments_it_was_begun_with() -> None:
    """An earlier version mended them in another way; the same key must not mean another call."""
    counter = Counter(effect=Effect.IDEMPOTENT)
    journal = MemoryJournal()
    given = {"n": 1, "extra": True}
    journal.append(ModelRequested("", 1, 1, "scripted:model", "turn", "", 1))
    reply = AssistantMessage((ToolCall("count", given, id="1.0"),), stop=StopReason.TOOLS)
    journal.append(ModelReplied("", 1, 1, "turn", reply))
    journal.append(ToolDispatched("", "1.0", "count", {"n": 1}, "", "idempotent", "key"))
    result = await agent_of(ScriptedModel(["done"]), counter.tool).run("go", journal=journal)
    assert result.text == "done"
    assert (counter.seen, counter.keys) == ([1], ["key"])


async def test_a_lost_write_is_unknown_never_repeated_and_the_model_is_told() -> None:
    counter = Counter()
    journal = MemoryJournal()
    await agent_of(ScriptedModel([calls(("count", {"n": 1})), "done"]), counter.tool).run(
        "go", journal=journal
    )
    lost = cut_after(journal, ToolDispatched)
    model = ScriptedModel(["I will look"])
    await agent_of(model, counter.tool).run("go", journal=lost)
    assert counter.seen == [1]
    assert [event.call for event in events_of(lost, ToolOutcomeUnknown)] == ["1.0"]
    [(text, is_error)] = results_of(model)
    assert is_error
    assert "not known whether" in text


async def test_changed_instructions_keep_the_record_and_are_an_event() -> None:
    journal = MemoryJournal()
    await agent_of(ScriptedModel(["done"]), instructions="Be brief.").run("go", journal=journal)
    changed = agent_of(ScriptedModel([]), instructions="Be long.")
    for _ in range(2):
        assert (await changed.run("go", journal=journal)).text == "done"
    assert [event.step for event in events_of(journal, HistoryChanged)] == [1]


async def test_dispatch_is_committed_before_the_tool_starts() -> None:
    class Strict(MemoryJournal):
        committed = 0

        async def commit(self) -> None:
            self.committed = len(self.events)

    journal = Strict()
    seen: list[bool] = []

    async def look(arguments: dict[str, Any], context: ToolContext) -> str:
        durable = journal.events[: journal.committed]
        seen.append(any(isinstance(event, ToolDispatched) for event in durable))
        return "looked"

    await agent_of(
        ScriptedModel([calls(("look", {})), "ok"]), Tool("look", "", {"type": "object"}, look)
    ).run("go", journal=journal)
    assert seen == [True]
    assert isinstance(journal.events[journal.committed - 1], ModelReplied)


async def test_broken_streams_and_overload_are_tried_again_once_each_and_shown() -> None:
    shown: list[Event | Live] = []
    journal = MemoryJournal(on_event=shown.append)
    errors: list[Any] = [
        BrokenStream("cut"),
        StatusError("overloaded", status=529, retryable=True, retry_after=7),
    ]
    result = await agent_of(ScriptedModel([*errors, "ok"])).run("go", journal=journal)
    assert result.text == "ok"
    retries = events_of(journal, Retrying)
    assert [(r.try_, r.status, r.in_seconds) for r in retries] == [(2, 0, 0.25), (3, 529, 7)]
    assert [event.try_ for event in shown if isinstance(event, StreamReset)] == [2, 3]


async def test_an_error_that_will_not_pass_is_raised_at_once() -> None:
    model = ScriptedModel([StatusError("bad key", status=401)])
    with pytest.raises(StatusError, match="bad key"):
        await agent_of(model).run("go")
    assert len(model.requests) == 1


async def test_a_retry_after_beyond_patience_ends_the_run() -> None:
    error = StatusError("limit", status=429, retryable=True, retry_after=3600)
    with pytest.raises(StatusError):
        await agent_of(ScriptedModel([error, "never"])).run("go")


async def test_tries_are_bounded() -> None:
    model = ScriptedModel([BrokenStream("cut")] * 10)
    with pytest.raises(ProviderError):
        await agent_of(model).run("go")
    assert len(model.requests) == 6


async def test_the_step_budget_refuses_the_next_call_before_it_is_made() -> None:
    counter = Counter()
    model = ScriptedModel([calls(("count", {"n": 1})), calls(("count", {"n": 2})), "never"])
    result = await agent_of(model, counter.tool, budget=Budget(steps=2)).run("go")
    assert (result.outcome, result.limit, result.value) == ("budget_exceeded", "steps", 2)
    assert len(model.requests) == 2


async def test_the_token_budget_counts_lost_calls_at_their_estimate() -> None:
    journal = MemoryJournal()
    with pytest.raises(ProviderError):
        await agent_of(ScriptedModel([BrokenStream("cut")] * 6)).run("word " * 400, journal=journal)
    result = await agent_of(ScriptedModel(["never"]), budget=Budget(tokens=1000)).run(
        "word " * 400, journal=journal
    )
    assert (result.outcome, result.limit) == ("budget_exceeded", "tokens")


async def test_the_time_budget_stops_a_running_tool() -> None:
    stopped = asyncio.Event()

    async def endless(arguments: dict[str, Any], context: ToolContext) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    model = ScriptedModel([calls(("endless", {})), "never"])
    agent = agent_of(model, Tool("endless", "", {"type": "object"}, endless), budget=Budget(seconds=100.05))
    result = await asyncio.wait_for(agent.run("go", spent_seconds=100.0), 30)
    assert (result.outcome, result.limit) == ("budget_exceeded", "seconds")
    assert stopped.is_set()


async def test_cancelling_stops_every_tool_before_it_returns() -> None:
    running = asyncio.Event()
    stopped: list[int] = []

    async def endless(arguments: dict[str, Any], context: ToolContext) -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(arguments["n"])
        return ""

    model = ScriptedModel([calls(("endless", {"n": 1}), ("endless", {"n": 2}))])
    task = asyncio.create_task(agent_of(model, Tool("endless", "", NUMBER, endless)).run("go"))
    await asyncio.wait_for(running.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(stopped) == [1, 2]


async def test_an_asking_tool_parks_the_run_and_a_decision_lets_it_go_on() -> None:
    asking, free = Counter("asking", asks=True), Counter("free")
    journal = MemoryJournal()
    script = [calls(("asking", {"n": 1}), ("free", {"n": 2})), "done"]
    tools = (asking.tool, free.tool)
    result = await agent_of(ScriptedModel(script), *tools).run("go", journal=journal)
    assert (result.outcome, [(q.path, q.call) for q in result.waiting]) == ("waiting", [("", "1.0")])
    assert (asking.seen, free.seen) == ([], [2])
    [asked] = events_of(journal, ApprovalRequested)
    journal.append(ApprovalDecided("", "1.0", asked.digest, "approved", "ann"))
    model = ScriptedModel(["done"])
    result = await agent_of(model, *tools).run("go", journal=journal)
    assert result.text == "done"
    assert (asking.seen, free.seen) == ([1], [2])


async def test_a_rejected_call_is_not_run_and_the_model_sees_the_reason() -> None:
    counter = Counter(asks=True)

    async def no(asked: ApprovalRequested) -> Answer:
        return Answer(False, by="ann", reason="too risky")

    model = ScriptedModel([calls(("count", {"n": 1})), "fine"])
    await agent_of(model, counter.tool, approval=Approval(ask=no)).run("go")
    assert counter.seen == []
    [(text, is_error)] = results_of(model)
    assert is_error
    assert "rejected" in text
    assert "too risky" in text


async def test_a_decision_about_other_arguments_counts_for_nothing() -> None:
    counter = Counter(asks=True)
    journal = MemoryJournal()
    journal.append(ApprovalDecided("", "1.0", "another digest", "approved", "ann"))
    model = ScriptedModel([calls(("count", {"n": 1}))])
    result = await agent_of(model, counter.tool).run("go", journal=journal)
    assert result.outcome == "waiting"
    assert counter.seen == []


async def test_approve_all_answers_every_question_with_yes() -> None:
    counter = Counter(asks=True)
    model = ScriptedModel([calls(("count", {"n": 1})), "done"])
    await agent_of(model, counter.tool, approval=Approval(approve_all=True)).run("go")
    assert counter.seen == [1]


async def test_stream_yields_deltas_events_and_the_result() -> None:
    items = [item async for item in agent_of(ScriptedModel(["one\ntwo\n"])).stream("go")]
    deltas = [item for item in items if isinstance(item, TextDelta)]
    assert [(delta.offset, delta.text) for delta in deltas] == [(0, "one\n"), (4, "two\n")]
    assert items[-1].text == "one\ntwo\n"  # type: ignore[union-attr]  # the last item is the Result


async def test_stream_raises_what_ended_the_run() -> None:
    with pytest.raises(StatusError):
        async for _ in agent_of(ScriptedModel([StatusError("bad key", status=401)])).stream("go"):
            pass


async def test_an_empty_task_is_refused() -> None:
    with pytest.raises(SettingError, match="the task is empty"):
        await agent_of(ScriptedModel([])).run("  \n")


async def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(SettingError, match="two tools are called 'count'"):
        agent_of(ScriptedModel([]), Counter().tool, Counter().tool)


async def test_tool_finished_is_recorded_as_each_tool_ends() -> None:
    journal = MemoryJournal()
    first = asyncio.Event()

    async def waits(arguments: dict[str, Any], context: ToolContext) -> str:
        await first.wait()
        assert [event.call for event in events_of(journal, ToolFinished)] == ["1.1"]
        return "saw it"

    async def goes(arguments: dict[str, Any], context: ToolContext) -> str:
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(first.set))
        return "went"

    anything = {"type": "object"}
    tools = [Tool("waits", "", anything, waits), Tool("goes", "", anything, goes)]
    model = ScriptedModel([calls(("waits", {}), ("goes", {})), "ok"])
    await asyncio.wait_for(agent_of(model, *tools).run("go", journal=journal), 10)
    assert results_of(model) == [("saw it", False), ("went", False)]


async def test_a_model_that_cannot_be_reached_hands_over_to_its_fallback_for_good() -> None:
    counter = Counter()
    journal = MemoryJournal()
    first = ScriptedModel([BrokenStream("cut")] * 2, ref=ModelRef("scripted", "first"))
    second = ScriptedModel([calls(("count", {"n": 1})), "done"], ref=ModelRef("scripted", "second"))
    agent = agent_of(first, counter.tool, fallbacks=[second], retry=Retry(tries=2, sleep=no_sleep))
    assert (await agent.run("go", journal=journal)).text == "done"
    [change] = events_of(journal, Fallback)
    assert (change.from_, change.to, change.reason) == ("scripted:first", "scripted:second", "cut")
    assert [(r.model, r.try_) for r in events_of(journal, ModelRequested)] == [
        ("scripted:first", 1),
        ("scripted:first", 2),
        ("scripted:second", 3),
        ("scripted:second", 1),
    ]


async def test_a_wrong_key_is_no_reason_for_a_fallback() -> None:
    second = ScriptedModel(["never"])
    agent = agent_of(ScriptedModel([StatusError("bad key", status=401)]), fallbacks=[second])
    with pytest.raises(StatusError):
        await agent.run("go")
    assert second.requests == []


async def test_a_resumed_run_goes_on_with_the_fallback_that_was_in_use() -> None:
    journal = MemoryJournal()
    journal.append(Fallback("", 1, "scripted:first", "scripted:second", "cut"))
    first = ScriptedModel([], ref=ModelRef("scripted", "first"))
    second = ScriptedModel(["done"], ref=ModelRef("scripted", "second"))
    assert (await agent_of(first, fallbacks=[second]).run("go", journal=journal)).text == "done"


async def test_refused_reasoning_is_left_out_once_and_the_run_goes_on() -> None:
    counter = Counter()
    thought = AssistantMessage(
        (Thinking("hm", "scripted", b'{"signature":"s"}'), ToolCall("count", {"n": 1})), stop=StopReason.TOOLS
    )
    refused = StatusError("thinking blocks in the latest message cannot be modified", status=400)
    model = ScriptedModel([thought, refused, "done"])
    assert (await agent_of(model, counter.tool).run("go")).text == "done"
    sent, again = (request.messages[1] for request in model.requests[1:])
    assert isinstance(sent, AssistantMessage)
    assert isinstance(again, AssistantMessage)
    assert len(sent.blocks) == 2
    assert again.calls == sent.calls
    assert len(again.blocks) == 1


async def test_a_400_that_reasoning_cannot_explain_is_raised() -> None:
    with pytest.raises(StatusError, match="thinking"):
        await agent_of(ScriptedModel([StatusError("thinking is not known", status=400)])).run("go")
