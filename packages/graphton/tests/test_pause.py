"""Pause: what runs may end, nothing new starts, and the run goes on where it rested. And answers given for always."""

from __future__ import annotations

import asyncio
from typing import Any

from graphton._retry import Retry
from graphton.agent import Agent, create_deep_agent
from graphton.approval import Approval, Rule
from graphton.errors import StatusError
from graphton.journal import (
    ApprovalDecided,
    ApprovalRequested,
    MemoryJournal,
    ModelRequested,
    RuleMatched,
    ToolDispatched,
    ToolFinished,
)
from graphton.messages import ToolCall, ToolResults
from graphton.testing import ScriptedModel, calls
from graphton.tools import Effect, Tool, ToolContext
from graphton.toolsets.subagents import Subagent

ANYTHING = {"type": "object"}


def agent_of(model: ScriptedModel, *tools: Tool, **more: Any) -> Agent:
    return create_deep_agent(model, tools=tools, tool_mode="native", **more)


def pausing(journal: MemoryJournal, name: str = "look") -> tuple[Tool, list[str]]:
    """A tool during whose run somebody asks for a pause."""
    ran: list[str] = []

    async def work(arguments: dict[str, Any], context: ToolContext) -> str:
        journal.pausing = True
        ran.append(context.call)
        await asyncio.sleep(0)
        return "seen"

    return Tool(name, "", ANYTHING, work), ran


def count(journal: MemoryJournal, kind: type) -> int:
    return sum(isinstance(event, kind) for event in journal.events)


async def test_a_pause_lets_running_tools_end_and_asks_no_model() -> None:
    journal = MemoryJournal()
    tool, ran = pausing(journal)
    model = ScriptedModel([calls(("look", {}), ("look", {})), "done"])
    agent = agent_of(model, tool)
    result = await agent.run("go", journal=journal)
    assert (result.outcome, result.paused, result.waiting) == ("waiting", True, ())
    assert ran == ["1.0", "1.1"]
    assert count(journal, ToolFinished) == 2
    assert len(model.requests) == 1
    again = await agent.run("go", journal=journal)
    assert (again.outcome, again.paused, len(model.requests)) == ("waiting", True, 1)
    journal.pausing = False
    assert (await agent.run("go", journal=journal)).text == "done"
    assert ran == ["1.0", "1.1"]
    assert len(model.requests) == 2


async def test_no_tool_starts_while_a_run_is_to_rest() -> None:
    journal = MemoryJournal()
    tool, ran = pausing(journal)

    def reply(request: Any) -> Any:
        journal.pausing = True  # While the model was answering.
        return calls(("look", {}))

    model = ScriptedModel([reply, "done"])
    agent = agent_of(model, tool)
    result = await agent.run("go", journal=journal)
    assert result.paused
    assert ran == []
    assert count(journal, ToolDispatched) == 0
    journal.pausing = False
    assert (
        await agent.run("go", journal=journal)
    ).outcome != "completed"  # The tool asked for a pause again.
    journal.pausing = False
    assert (await agent.run("go", journal=journal)).text == "done"
    assert ran == ["1.0"]
    assert len(model.requests) == 2


async def test_a_pause_reaches_sub_agents_and_they_go_on_where_they_were() -> None:
    journal = MemoryJournal()
    tool, ran = pausing(journal)
    inner = ScriptedModel([calls(("look", {})), "it is blue"])
    outer = ScriptedModel([calls(("task", {"agent": "helper", "task": "look"})), "blue, I hear"])
    helper = Subagent("helper", "Helps.", "", model=inner, tool_mode="native")
    agent = agent_of(outer, tool, subagents=[helper])
    result = await agent.run("go", journal=journal)
    assert result.paused
    assert (len(outer.requests), len(inner.requests)) == (1, 1)
    journal.pausing = False
    assert (await agent.run("go", journal=journal)).text == "blue, I hear"
    assert ran == ["1.0"]
    assert (len(outer.requests), len(inner.requests)) == (2, 2)


async def test_a_pause_ends_the_wait_for_the_next_try() -> None:
    journal = MemoryJournal()

    async def sleep(seconds: float) -> None:
        journal.pausing = True

    model = ScriptedModel([StatusError("busy", status=503, provider="scripted", retryable=True), "done"])
    agent = agent_of(model, retry=Retry(sleep=sleep, jitter=lambda: 0.0))
    assert (await agent.run("go", journal=journal)).paused
    assert count(journal, ModelRequested) == 1
    journal.pausing = False
    assert (await agent.run("go", journal=journal)).text == "done"


async def test_open_questions_are_told_with_a_pause() -> None:
    journal = MemoryJournal()
    tool, _ = pausing(journal)
    asks = Tool("danger", "", ANYTHING, tool.run, asks=True)

    def reply(request: Any) -> Any:
        journal.pausing = True
        return calls(("danger", {}), ("look", {}))

    agent = agent_of(ScriptedModel([reply, "done"]), tool, asks)
    result = await agent.run("go", journal=journal)
    assert result.paused
    assert [q.call for q in result.waiting] == ["1.0"]


# --- answers for always ---------------------------------------------------------------------------------------


def rule(verdict: str, **when: str) -> Rule:
    return Rule.parse({"tool": "danger", "when": when, "verdict": verdict})


def verdict(rules: list[Rule], always: list[Rule], *, asks: bool = True, **arguments: Any) -> str:
    async def nothing(arguments: dict[str, Any], context: ToolContext) -> str:
        return ""

    tool = Tool("danger", "", ANYTHING, nothing, asks=asks)
    approval = Approval(rules=tuple(rules), always=tuple(always))
    return approval.ruling(tool, ToolCall("danger", arguments)).verdict


def test_an_answer_for_always_answers_questions_and_never_a_deny() -> None:
    always = [rule("allow", path="a.txt")]
    assert verdict([], always, path="a.txt") == "allow"
    assert verdict([], always, path="b.txt") == "ask"
    assert verdict([rule("ask")], always, path="a.txt") == "allow"
    assert verdict([rule("deny")], always, path="a.txt") == "deny"
    assert verdict([], always, asks=False, path="b.txt") == "allow"


async def test_an_answer_for_always_is_recorded_and_leaves_open_questions_to_people() -> None:
    ran: list[str] = []

    async def work(arguments: dict[str, Any], context: ToolContext) -> str:
        ran.append(context.call)
        return "did"

    tool = Tool("danger", "", ANYTHING, work, asks=True)
    journal = MemoryJournal()
    model = ScriptedModel(
        [
            calls(("danger", {"path": "a"}), ("danger", {"path": "a"})),
            calls(("danger", {"path": "a"})),
            "done",
        ]
    )
    assert (await agent_of(model, tool).run("go", journal=journal)).outcome == "waiting"
    answered = agent_of(model, tool, approval=Approval(always=(rule("allow", path="a"),)))
    assert (await answered.run("go", journal=journal)).outcome == "waiting"
    assert ran == []
    for asked in [event for event in journal.events if isinstance(event, ApprovalRequested)]:
        journal.append(ApprovalDecided("", asked.call, asked.digest, "approved", "ann"))
    assert (await answered.run("go", journal=journal)).text == "done"
    assert ran == ["1.0", "1.1", "2.0"]
    matched = [event for event in journal.events if isinstance(event, RuleMatched)]
    assert [(one.call, one.verdict) for one in matched] == [("2.0", "allow")]


async def test_a_question_that_nobody_answered_in_time_is_told_as_that() -> None:
    async def work(arguments: dict[str, Any], context: ToolContext) -> str:
        return "did"

    tool = Tool("danger", "", ANYTHING, work, asks=True)
    journal = MemoryJournal()
    model = ScriptedModel([calls(("danger", {})), "done"])
    await agent_of(model, tool).run("go", journal=journal)
    asked = next(event for event in journal.events if isinstance(event, ApprovalRequested))
    journal.append(ApprovalDecided("", asked.call, asked.digest, "expired", "stigmer"))
    await agent_of(model, tool).run("go", journal=journal)
    last = model.requests[-1].messages[-1]
    assert isinstance(last, ToolResults)
    assert last.results[0].text == "Nobody answered in time whether this call may run; it was not run."


async def test_a_call_that_is_run_again_in_another_execution_keeps_its_idempotency_key() -> None:
    keys: list[str] = []

    async def work(arguments: dict[str, Any], context: ToolContext) -> str:
        keys.append(context.idempotency_key)
        return "did"

    tool = Tool("danger", "", ANYTHING, work, Effect.IDEMPOTENT)
    first = MemoryJournal("first")
    await agent_of(ScriptedModel([calls(("danger", {})), "done"]), tool).run("go", journal=first)
    second = MemoryJournal("second")
    for event in first.events[:3]:
        second.append(event)
    assert isinstance(second.events[-1], ToolDispatched)
    await agent_of(ScriptedModel(["done"]), tool).run("go", journal=second)
    assert keys == ["first::1.0", "first::1.0"]
