"""Sub-agents: own instructions, tools and model, one journal; what they did is never done again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
from graphton._retry import Retry
from graphton.agent import Agent, create_deep_agent
from graphton.approval import Approval
from graphton.budget import Budget
from graphton.chat.base import Request
from graphton.errors import Fenced, SettingError, StatusError
from graphton.journal import (
    ApprovalDecided,
    ApprovalRequested,
    Event,
    MemoryJournal,
    ModelReplied,
    ModelRequested,
    SubagentFinished,
    SubagentStarted,
    TextDelta,
    ToolDispatched,
    ToolFinished,
    ToolOutcomeUnknown,
)
from graphton.messages import AssistantMessage, ToolResults, UserMessage
from graphton.models import ModelRef
from graphton.testing import ScriptedModel, calls, says
from graphton.tools import Effect, Tool, ToolContext
from graphton.toolsets.subagents import Subagent

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ANYTHING = {"type": "object"}


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def agent_of(model: ScriptedModel, *tools: Tool, **more: Any) -> Agent:
    more.setdefault("retry", Retry(sleep=no_sleep, jitter=lambda: 0.0))
    return create_deep_agent(model, tools=tools, tool_mode="native", **more)


def child(name: str = "helper", model: ScriptedModel | None = None, **more: Any) -> Subagent:
    more.setdefault("tool_mode", "native")
    return Subagent(name, f"Does what {name}s do.", f"You are the {name}.", model=model, **more)


def task(agent: str = "helper", text: str = "do it") -> tuple[str, dict[str, Any]]:
    return "task", {"agent": agent, "task": text}


def results_of(model: ScriptedModel, request: int = -1) -> list[tuple[str, bool]]:
    last = model.requests[request].messages[-1]
    assert isinstance(last, ToolResults)
    return [(result.text, result.is_error) for result in last.results]


def events_of(journal: MemoryJournal, kind: type) -> list[Any]:
    return [event for event in journal.events if isinstance(event, kind)]


def answering(name: str, run: Callable[[dict[str, Any]], str], *, asks: bool = False) -> Tool:
    async def work(arguments: dict[str, Any], context: ToolContext) -> str:
        return run(arguments)

    return Tool(name, "", ANYTHING, work, asks=asks)


async def test_a_child_has_its_own_instructions_tools_and_model_and_its_answer_is_the_result() -> None:
    looks = answering("look", lambda arguments: "seen")
    writes = answering("write", lambda arguments: "written")
    inner = ScriptedModel([calls(("look", {})), "it is blue"], ref=ModelRef("scripted", "inner"))
    outer = ScriptedModel([calls(task(text="Which colour?")), "blue, I hear"])
    agent = agent_of(outer, writes, instructions="You lead.", subagents=[child(model=inner, tools=[looks])])
    journal = MemoryJournal()
    result = await agent.run("find out", journal=journal)
    assert result.text == "blue, I hear"
    assert results_of(outer) == [("it is blue", False)]
    assert inner.requests[0].system == "You are the helper."
    assert inner.requests[0].messages == (UserMessage("Which colour?"),)
    assert [spec.name for spec in inner.requests[0].tools] == ["look"]
    assert [spec.name for spec in outer.requests[0].tools] == ["write", "task"]
    assert {(e.path, e.model) for e in events_of(journal, ModelRequested)} == {
        ("", "scripted:model"),
        ("/helper@1.0", "scripted:inner"),
    }


async def test_a_child_that_brings_nothing_has_its_parents_model_and_tools_but_starts_no_children() -> None:
    def reply(request: Request) -> AssistantMessage | str:
        if request.system == "You are the helper.":
            return "helped"
        return calls(task()) if len(request.messages) == 1 else "done"

    model = ScriptedModel(repeat(reply))
    agent = agent_of(model, answering("look", lambda arguments: "seen"), subagents=[child(tool_mode=None)])
    assert (await agent.run("go")).text == "done"
    assert [spec.name for spec in model.requests[1].tools] == ["look"]


async def test_the_model_reads_which_agents_there_are() -> None:
    model = ScriptedModel(["hi"])
    await agent_of(model, subagents=[child("reader"), child("writer")]).run("go")
    [spec] = model.requests[0].tools
    assert "- reader: Does what readers do." in spec.description
    assert spec.parameters["properties"]["agent"]["enum"] == ["reader", "writer"]


async def test_children_of_one_reply_run_side_by_side_and_results_come_in_call_order() -> None:
    other = asyncio.Event()

    async def waits(arguments: dict[str, Any], context: ToolContext) -> str:
        await other.wait()
        return ""

    async def frees(arguments: dict[str, Any], context: ToolContext) -> str:
        other.set()
        return ""

    first = child(
        "first", ScriptedModel([calls(("waits", {})), "one"]), tools=[Tool("waits", "", ANYTHING, waits)]
    )
    second = child(
        "second", ScriptedModel([calls(("frees", {})), "two"]), tools=[Tool("frees", "", ANYTHING, frees)]
    )
    model = ScriptedModel([calls(task("first"), task("second")), "done"])
    journal = MemoryJournal()
    await asyncio.wait_for(agent_of(model, subagents=[first, second]).run("go", journal=journal), 10)
    assert results_of(model) == [("one", False), ("two", False)]
    assert [(e.path, e.call, e.name) for e in events_of(journal, SubagentStarted)] == [
        ("", "1.0", "first"),
        ("", "1.1", "second"),
    ]
    assert {e.call for e in events_of(journal, SubagentFinished)} == {"1.0", "1.1"}
    keys = {(e.path, e.call): e.idempotency_key for e in events_of(journal, ToolDispatched)}
    assert keys["/second@1.1", "1.0"] == "memory:/second@1.1:1.0"


async def test_text_of_a_child_is_shown_live_under_its_path() -> None:
    shown: list[Any] = []
    agent = agent_of(
        ScriptedModel([calls(task()), "done"]), subagents=[child(model=ScriptedModel(["hello"]))]
    )
    await agent.run("go", journal=MemoryJournal(on_event=shown.append))
    deltas = [(e.path, e.text) for e in shown if isinstance(e, TextDelta)]
    assert deltas == [("/helper@1.0", "hello"), ("", "done")]


@pytest.mark.parametrize(
    ("line", "said"),
    [(StatusError("bad key", status=401), "bad key"), (AssistantMessage(()), "empty reply")],
    ids=["provider", "reply"],
)
async def test_a_childs_failure_is_an_error_result_and_its_parent_goes_on(line: Any, said: str) -> None:
    model = ScriptedModel([calls(task()), "too bad"])
    journal = MemoryJournal()
    result = await agent_of(model, subagents=[child(model=ScriptedModel([line] * 3))]).run(
        "go", journal=journal
    )
    assert result.text == "too bad"
    [(text, is_error)] = results_of(model)
    assert is_error
    assert text.startswith("The agent 'helper' failed: ")
    assert said in text
    assert len(events_of(journal, SubagentFinished)) == 1


async def test_a_call_for_an_agent_that_is_not_there_is_answered_not_run() -> None:
    model = ScriptedModel([calls(task("hlper")), calls(task(text=" ")), "ok"])
    await agent_of(model, subagents=[child(model=ScriptedModel([]))]).run("go")
    [(text, is_error)] = results_of(model, 1)
    assert is_error
    assert "helper" in text
    [(text, is_error)] = results_of(model, 2)
    assert (text, is_error) == ("The task is empty: say what the agent is to do.", True)


async def test_a_child_that_waits_parks_only_itself_and_a_decision_lets_it_go_on() -> None:
    done: list[str] = []
    asks = answering("asks", lambda arguments: done.append("asked") or "yes", asks=True)
    free = answering("free", lambda arguments: done.append("free") or "yes")
    waiting = ScriptedModel([calls(("asks", {})), "one"])
    going = ScriptedModel([calls(("free", {})), calls(("free", {"again": 1})), "two"])
    children = [child("waiter", waiting, tools=[asks]), child("goer", going, tools=[free])]
    model = ScriptedModel([calls(task("waiter"), task("goer"), ("free", {"own": 1})), "done"])
    agent = agent_of(model, free, subagents=children)
    journal = MemoryJournal()
    result = await agent.run("go", journal=journal)
    assert result.outcome == "waiting"
    [question] = result.waiting
    assert (question.path, question.call, question.reason) == ("/waiter@1.0", "1.0", "approval")
    assert done == ["free", "free", "free"]
    assert journal.finished("", "1.1") is not None
    journal.append(ApprovalDecided("/waiter@1.0", "1.0", question.digest, "approved", "ann"))
    assert (await agent.run("go", journal=journal)).text == "done"
    assert done == ["free", "free", "free", "asked"]
    assert results_of(model) == [("one", False), ("two", False), ("yes", False)]
    assert len(events_of(journal, SubagentStarted)) == 2


async def test_all_questions_of_the_tree_are_listed_at_once() -> None:
    asks = answering("asks", lambda arguments: "yes", asks=True)
    ask_twice = [calls(("asks", {}), ("asks", {"n": 2}))]
    children = [child(name, ScriptedModel(ask_twice), tools=[asks]) for name in ("a", "b")]
    model = ScriptedModel([calls(task("a"), task("b"), ("asks", {}))])
    result = await agent_of(model, asks, subagents=children).run("go")
    assert {(q.path, q.call) for q in result.waiting} == {
        ("", "1.2"),
        ("/a@1.0", "1.0"),
        ("/a@1.0", "1.1"),
        ("/b@1.1", "1.0"),
        ("/b@1.1", "1.1"),
    }


async def test_a_decision_that_comes_while_a_sibling_works_lets_the_child_go_on_in_the_same_attempt() -> None:
    waiting = asyncio.Event()
    journal = MemoryJournal(on_event=lambda e: waiting.set() if isinstance(e, ApprovalRequested) else None)

    async def decides(arguments: dict[str, Any], context: ToolContext) -> str:
        await waiting.wait()
        asked = events_of(journal, ApprovalRequested)[0]
        journal.append(ApprovalDecided(asked.path, asked.call, asked.digest, "approved", "ann"))
        return "decided"

    asks = answering("asks", lambda arguments: "yes", asks=True)
    waiter = child("waiter", ScriptedModel([calls(("asks", {})), "one"]), tools=[asks])
    model = ScriptedModel([calls(task("waiter"), ("decides", {})), "done"])
    agent = agent_of(model, Tool("decides", "", ANYTHING, decides), subagents=[waiter])
    assert (await asyncio.wait_for(agent.run("go", journal=journal), 10)).text == "done"


async def test_approve_all_and_questions_of_a_function_reach_children() -> None:
    asks = answering("asks", lambda arguments: "yes", asks=True)
    waiter = child("waiter", ScriptedModel([calls(("asks", {})), "one"]), tools=[asks])
    model = ScriptedModel([calls(task("waiter")), "done"])
    agent = agent_of(model, subagents=[waiter], approval=Approval(approve_all=True))
    assert (await agent.run("go")).text == "done"


async def test_cancelling_the_parent_stops_every_child_before_it_returns() -> None:
    running, stopped = [asyncio.Event(), asyncio.Event()], []

    def endless(n: int) -> Tool:
        async def work(arguments: dict[str, Any], context: ToolContext) -> str:
            running[n].set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append(n)
            return ""

        return Tool("endless", "", ANYTHING, work)

    children = [child(f"c{n}", ScriptedModel([calls(("endless", {}))]), tools=[endless(n)]) for n in (0, 1)]
    agent = agent_of(ScriptedModel([calls(task("c0"), task("c1"))]), subagents=children)
    journal = MemoryJournal()
    work = asyncio.create_task(agent.run("go", journal=journal))
    await asyncio.wait_for(asyncio.gather(*(one.wait() for one in running)), 10)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert sorted(stopped) == [0, 1]
    assert events_of(journal, SubagentFinished) == []


async def test_a_fenced_child_ends_the_whole_attempt_as_fenced() -> None:
    class Lost(MemoryJournal):
        async def commit(self) -> None:
            if any(isinstance(e, ToolDispatched) and e.path for e in self.events):
                raise Fenced("another attempt owns it")

    look = answering("look", lambda arguments: "seen")
    inner = child(model=ScriptedModel([calls(("look", {}))]), tools=[look])
    with pytest.raises(Fenced):
        await agent_of(ScriptedModel([calls(task())]), subagents=[inner]).run("go", journal=Lost())


async def test_at_most_so_many_children_run_at_once_and_the_rest_wait_their_turn() -> None:
    running = most = 0

    async def work(arguments: dict[str, Any], context: ToolContext) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return ""

    def reply(request: Request) -> AssistantMessage | str:
        return calls(("work", {})) if len(request.messages) == 1 else "did it"

    inner = child(model=ScriptedModel(repeat(reply)), tools=[Tool("work", "", ANYTHING, work)])
    for limit, budget in ((5, Budget()), (2, Budget(children=2))):
        model = ScriptedModel([calls(*[task()] * 8), "done"])
        running = most = 0
        await agent_of(model, subagents=[inner], budget=budget).run("go")
        assert most == limit
        assert results_of(model) == [("did it", False)] * 8


async def test_children_may_have_children_two_levels_deep_and_no_deeper() -> None:
    third = child("third", ScriptedModel(["deep"]))
    second = child("second", ScriptedModel([calls(task("third")), "middle"]), subagents=[third])
    first = child("first", ScriptedModel([calls(task("second")), "top"]), subagents=[second])
    journal = MemoryJournal()
    two = agent_of(ScriptedModel([calls(task("second")), "done"]), subagents=[second])
    assert (await two.run("go", journal=journal)).text == "done"
    assert "/second@1.0/third@1.0" in {e.path for e in events_of(journal, ModelReplied)}
    with pytest.raises(
        SettingError, match="'third' is 3 levels below the agent, and the limit is 2"
    ) as caught:
        agent_of(ScriptedModel([]), subagents=[first])
    assert "Budget(depth=3)" in caught.value.hint
    agent_of(ScriptedModel([]), subagents=[first], budget=Budget(depth=3))


def test_what_cannot_be_a_sub_agent_is_told_at_once() -> None:
    with pytest.raises(SettingError, match="'a b' is no name for a sub-agent"):
        Subagent("a b", "d", "i")
    with pytest.raises(SettingError, match="sub-agent 'a' has no description"):
        Subagent("a", " ", "i")
    with pytest.raises(SettingError, match="two sub-agents are called 'a'"):
        agent_of(ScriptedModel([]), subagents=[child("a"), child("a")])
    with pytest.raises(SettingError, match="two tools are called 'task'"):
        agent_of(ScriptedModel([]), answering("task", lambda arguments: ""), subagents=[child("a")])
    with pytest.raises(SettingError, match="has settings or fallbacks but no model of its own"):
        agent_of(ScriptedModel([]), subagents=[child("a", fallbacks=[ScriptedModel([])])])


async def test_closing_an_agent_closes_its_childrens_models() -> None:
    inner = ScriptedModel([])
    async with agent_of(ScriptedModel([]), subagents=[child(model=inner)]):
        pass
    assert inner.closed


async def test_replay_of_a_finished_run_asks_nothing_of_children_either() -> None:
    def agent(outer: list[Any], inner: list[Any]) -> Agent:
        return agent_of(ScriptedModel(outer), subagents=[child(model=ScriptedModel(inner))])

    journal = MemoryJournal()
    first = await agent([calls(task()), "done"], ["helped"]).run("go", journal=journal)
    before = list(journal.events)
    assert await agent([], []).run("go", journal=journal) == first
    assert journal.events == before


# --- a crash at every point -----------------------------------------------------------------------------------


class World:
    """An agent whose replies depend on the conversation alone, and what it did: model calls and writes."""

    def __init__(self, *, asks: bool = False) -> None:
        self.asked: list[tuple[str, int]] = []
        self.written: list[str] = []

        async def write(arguments: dict[str, Any], context: ToolContext) -> str:
            await asyncio.sleep(0)
            self.written.append(context.idempotency_key)
            await asyncio.sleep(0)
            return "written"

        async def look(arguments: dict[str, Any], context: ToolContext) -> str:
            await asyncio.sleep(0)
            return "seen"

        tools = [
            Tool("write", "", ANYTHING, write, asks=asks),
            Tool("look", "", ANYTHING, look, effect=Effect.READ),
        ]
        model = ScriptedModel(repeat(self._reply))
        deep = Subagent("deep", "Goes deep.", "deep", model=model, tools=tools, tool_mode="native")
        wide = Subagent(
            "wide", "Goes wide.", "wide", model=model, tools=tools, tool_mode="native", subagents=[deep]
        )
        self.agent = agent_of(model, *tools, subagents=[wide])

    def _reply(self, request: Request) -> AssistantMessage | str:
        first = request.messages[0]
        assert isinstance(first, UserMessage)
        step = (len(request.messages) + 1) // 2
        self.asked.append((first.text, step))
        below = [task("deep", f"{first.text}.deep")] if request.system == "wide" else []
        script = {
            "": [
                calls(task("wide", "left"), task("wide", "right"), ("write", {"who": "top"})),
                calls(("write", {"n": 2})),
            ],
            "wide": [calls(("write", {}), ("look", {}), *below), calls(("write", {"n": 2}))],
            "deep": [calls(("write", {}))],
        }[request.system]
        return script[step - 1] if step <= len(script) else says(f"{first.text} is done")


def cut(journal: MemoryJournal, end: int) -> MemoryJournal:
    rest = MemoryJournal(journal.execution)
    for event in journal.events[:end]:
        rest.append(event)
    return rest


def tasks_by_path(events: list[Event]) -> dict[str, str]:
    tasks = {"": "go"}
    for event in events:
        if isinstance(event, ToolDispatched) and event.name == "task":
            path = f"{event.path}/{event.arguments['agent']}@{event.call}"
            tasks[path] = event.arguments["task"]
    return tasks


async def test_a_crash_after_any_event_repeats_no_model_call_and_no_write() -> None:
    whole = MemoryJournal()
    result = await World().agent.run("go", journal=whole)
    assert result.text == "go is done"
    assert len({e.path for e in events_of(whole, ModelReplied)}) == 5
    for end in range(len(whole.events) + 1):
        journal, world = cut(whole, end), World()
        begun = list(journal.events)
        tasks = tasks_by_path(begun)
        replied = {(tasks[e.path], e.step) for e in begun if isinstance(e, ModelReplied)}
        dispatched = {
            e.idempotency_key for e in begun if isinstance(e, ToolDispatched) and e.effect == "write"
        }
        again = await world.agent.run("go", journal=journal)
        assert again.text == "go is done", end
        assert not replied & set(world.asked), end
        assert max(Counter(world.asked).values(), default=1) == 1, end
        assert not dispatched & set(world.written), end
        assert max(Counter(world.written).values(), default=1) == 1, end
        unknown = {(e.path, e.call) for e in events_of(journal, ToolOutcomeUnknown)}
        lost = {
            (e.path, e.call)
            for e in begun
            if isinstance(e, ToolDispatched)
            and e.effect == "write"
            and cut(whole, end).finished(e.path, e.call) is None
        }
        assert unknown == lost, end
        for kind in (ToolDispatched, ToolFinished, SubagentStarted, SubagentFinished):
            counted = Counter((e.path, e.call) for e in events_of(journal, kind))
            assert set(counted.values()) == {1}, (end, kind)
        assert again.steps == result.steps, end


async def test_a_crash_after_any_event_of_a_run_with_questions_asks_each_once_and_runs_what_was_approved() -> (
    None
):
    async def through(world: World, journal: MemoryJournal) -> str:
        for _ in range(20):
            result = await world.agent.run("go", journal=journal)
            if result.outcome != "waiting":
                return result.text
            for question in result.waiting:
                journal.append(
                    ApprovalDecided(question.path, question.call, question.digest, "approved", "a")
                )
        raise AssertionError("it waits for ever")

    whole = MemoryJournal()
    await through(World(asks=True), whole)
    for end in range(len(whole.events) + 1):
        journal, world = cut(whole, end), World(asks=True)
        done = {e.idempotency_key for e in events_of(journal, ToolDispatched)}
        assert await through(world, journal) == "go is done", end
        asked = Counter((e.path, e.call) for e in events_of(journal, ApprovalRequested))
        assert set(asked.values()) == {1}, end
        assert len(asked) == 8, end
        assert not done & set(world.written), end
