"""Budgets hold for the whole tree of sub-agents, also after a resume; a run that repeats itself is told, then ended."""

from __future__ import annotations

import asyncio
from itertools import count, repeat
from typing import Any

import pytest
from graphton._retry import Retry
from graphton.agent import Agent, create_deep_agent
from graphton.budget import Budget, Repeats, Tree
from graphton.chat.base import Request
from graphton.errors import BrokenStream
from graphton.journal import (
    LoopWarned,
    MemoryJournal,
    ModelRequested,
    Notice,
    SubagentFinished,
    SubagentStarted,
    ToolDispatched,
    scopes,
)
from graphton.loop import ReplyError
from graphton.messages import AssistantMessage, ToolResult, ToolResults, Usage
from graphton.models import ModelRef
from graphton.testing import ScriptedModel, calls, says
from graphton.tools import Tool, ToolContext
from graphton.toolsets.subagents import Subagent

ANYTHING = {"type": "object"}
PRICED = ModelRef("openai", "gpt-4.1")


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


async def _step(arguments: dict[str, Any], context: ToolContext) -> str:
    await asyncio.sleep(0)  # As every tool that does something: others get their turn.
    return "stepped"


STEP = Tool("step", "", ANYTHING, _step)


def busy(usage: Usage | None = None, ref: ModelRef | None = None) -> ScriptedModel:
    """A model that never stops calling its tool, each time with another argument."""
    numbers = count()
    return ScriptedModel(repeat(lambda request: calls(("step", {"n": next(numbers)}), usage=usage)), ref=ref)


def child(model: ScriptedModel, name: str = "helper", **more: Any) -> Subagent:
    return Subagent(name, "Helps.", "", model=model, tools=[STEP], tool_mode="native", **more)


def agent_of(model: ScriptedModel, *tools: Tool, **more: Any) -> Agent:
    more.setdefault("retry", Retry(tries=2, sleep=no_sleep, jitter=lambda: 0.0))
    return create_deep_agent(model, tools=tools, tool_mode="native", **more)


def task(agent: str = "helper", text: str = "go") -> tuple[str, dict[str, Any]]:
    return "task", {"agent": agent, "task": text}


def events_of(journal: MemoryJournal, kind: type) -> list[Any]:
    return [event for event in journal.events if isinstance(event, kind)]


def results_of(model: ScriptedModel, request: int = -1) -> list[tuple[str, bool]]:
    last = model.requests[request].messages[-1]
    assert isinstance(last, ToolResults)
    return [(result.text, result.is_error) for result in last.results]


# --- the tree ---------------------------------------------------------------------------------------------------


async def test_a_run_counts_what_its_children_used() -> None:
    inner = ScriptedModel([calls(("step", {}), usage=Usage(100, 10)), says("ok", usage=Usage(200, 20))])
    model = ScriptedModel([calls(task(), usage=Usage(1, 2)), says("done", usage=Usage(3, 4))])
    result = await agent_of(model, subagents=[child(inner)]).run("go")
    assert (result.steps, result.usage) == (4, Usage(304, 36))


async def test_a_child_gets_an_equal_part_of_what_is_left_and_it_is_recorded() -> None:
    journal = MemoryJournal()
    model = ScriptedModel([calls(*[task()] * 4, usage=Usage(900, 100)), "done"])
    inner = ScriptedModel(repeat(lambda r: calls(("step", {})) if len(r.messages) == 1 else "ok"))
    budget = Budget(steps=101, tokens=11_000)
    await agent_of(model, subagents=[child(inner)], budget=budget).run("go", journal=journal)
    shares = [(e.steps, e.tokens, e.usd) for e in events_of(journal, SubagentStarted)]
    assert shares == [(20, 2000, None)] * 4


async def test_a_child_that_used_its_share_is_an_error_result_and_its_parent_goes_on() -> None:
    journal = MemoryJournal()
    inner = busy()
    model = ScriptedModel([calls(task()), "it took too long"])
    agent = agent_of(model, subagents=[child(inner)], budget=Budget(steps=11))
    result = await agent.run("go", journal=journal)
    assert (result.outcome, result.text) == ("completed", "it took too long")
    assert results_of(model) == [
        ("The agent 'helper' was stopped by its limit of 5 steps, its part of yours.", True)
    ]
    assert len(inner.requests) == 5
    assert len(events_of(journal, SubagentFinished)) == 1


async def test_what_a_child_leaves_over_goes_back() -> None:
    journal = MemoryJournal()
    model = ScriptedModel([calls(task()), calls(task()), "done"])
    agent = agent_of(model, subagents=[child(ScriptedModel(["ok", "ok"]))], budget=Budget(steps=21))
    await agent.run("go", journal=journal)
    assert [e.steps for e in events_of(journal, SubagentStarted)] == [10, 9]


async def test_a_share_may_not_be_given_away_twice() -> None:
    """Grandchildren share what their parent was given, not what the root has."""
    journal = MemoryJournal()
    deep = child(busy(), "deep")
    wide = Subagent(
        "wide",
        "Wide.",
        "",
        model=ScriptedModel([calls(task("deep"), task("deep")), "ok"]),
        tools=[],
        tool_mode="native",
        subagents=[deep],
    )
    model = ScriptedModel([calls(task("wide")), "done"])
    await agent_of(model, subagents=[wide], budget=Budget(steps=41)).run("go", journal=journal)
    shares = {(e.path, e.call): e.steps for e in events_of(journal, SubagentStarted)}
    assert shares == {("", "1.0"): 20, ("/wide@1.0", "1.0"): 6, ("/wide@1.0", "1.1"): 6}


async def test_the_next_call_anywhere_is_refused_once_the_trees_limit_is_reached() -> None:
    """All children ask at the same time: what is under way counts already."""
    children = [child(busy(), f"c{n}") for n in range(5)]
    model = ScriptedModel([calls(*[task(f"c{n}") for n in range(5)]), "never"])
    agent = agent_of(model, subagents=children, budget=Budget(steps=4))
    journal = MemoryJournal()
    result = await agent.run("go", journal=journal)
    assert (result.outcome, result.limit, result.value, result.limit_path) == (
        "budget_exceeded",
        "steps",
        4,
        "",
    )
    assert len(events_of(journal, ModelRequested)) == 4
    assert len(model.requests) == 1


async def test_a_child_cut_off_by_the_trees_limit_goes_on_when_the_limit_is_raised() -> None:
    journal = MemoryJournal()

    def agent(outer: list[Any], first: list[Any], second: list[Any], steps: int) -> Agent:
        children = [child(ScriptedModel(first), "first"), child(ScriptedModel(second), "second")]
        return agent_of(ScriptedModel(outer), subagents=children, budget=Budget(steps=steps))

    both = calls(task("first"), task("second"))
    stopped = await agent([both], [calls(("step", {}))] * 2, ["two"], 2).run("go", journal=journal)
    assert (stopped.outcome, stopped.limit, stopped.value) == ("budget_exceeded", "steps", 2)
    went_on = await agent(["done"], [], ["two"], 20).run("go", journal=journal)
    assert (went_on.outcome, went_on.text) == ("completed", "done")


async def test_limits_count_from_the_journal_after_a_resume_too() -> None:
    whole = MemoryJournal()
    script = [calls(task()), calls(("step", {})), "done"]

    def agent(outer: list[Any], inner: list[Any], steps: int) -> tuple[Agent, ScriptedModel]:
        model = ScriptedModel(outer)
        made = agent_of(model, STEP, subagents=[child(ScriptedModel(inner))], budget=Budget(steps=steps))
        return made, model

    made, _ = agent(script, [calls(("step", {"n": n})) for n in range(3)] + ["ok"], 20)
    assert (await made.run("go", journal=whole)).steps == 7
    journal = MemoryJournal()
    end = max(n for n, e in enumerate(whole.events) if isinstance(e, ToolDispatched))
    for event in whole.events[:end]:
        journal.append(event)
    made, model = agent(["never"], [], 6)
    result = await made.run("go", journal=journal)
    assert (result.outcome, result.limit, result.steps) == ("budget_exceeded", "steps", 6)
    assert model.requests == []


async def test_a_request_that_was_lost_in_a_crash_may_be_made_again_within_its_step() -> None:
    journal = MemoryJournal()
    journal.append(ModelRequested("", 1, 1, "scripted:model", "turn", "", 10))
    result = await agent_of(ScriptedModel(["done"]), budget=Budget(steps=1)).run("go", journal=journal)
    assert result.text == "done"


async def test_tokens_and_dollars_of_children_count() -> None:
    inner = busy(Usage(1000, 0))
    model = ScriptedModel([calls(task(), usage=Usage(0, 0)), "done"])
    result = await agent_of(model, subagents=[child(inner)], budget=Budget(tokens=5000)).run("go")
    assert result.outcome == "completed"
    assert len(inner.requests) == 3  # Half of 5000 is 2500: the third call passes it, the fourth is refused.

    paid = busy(Usage(500_000, 0), PRICED)  # One dollar a call, at two a million.
    outer = ScriptedModel([calls(task()), "done"])
    journal = MemoryJournal()
    result = await agent_of(outer, subagents=[child(paid)], budget=Budget(usd=5.0)).run("go", journal=journal)
    [share] = events_of(journal, SubagentStarted)
    assert share.usd == pytest.approx(2.5)
    assert result.usd == pytest.approx(len(paid.requests) * 1.0)
    assert len(paid.requests) == 3
    assert result.unpriced_calls == 0


async def test_calls_without_a_price_are_counted_and_a_limit_in_dollars_says_that_it_cannot_see_them() -> (
    None
):
    inner = ScriptedModel([calls(("step", {})), "ok"], ref=ModelRef("openai", "mystery"))
    journal = MemoryJournal()
    model = ScriptedModel([calls(task()), "done"])
    agent = agent_of(model, subagents=[child(inner)], budget=Budget(usd=5.0))
    assert (await agent.run("go", journal=journal)).unpriced_calls == 2
    [notice] = events_of(journal, Notice)
    assert (notice.code, notice.path) == ("unpriced", "/helper@1.0")
    assert (
        notice.text == "the price of openai:mystery is not known: its calls do not count for the limit of $5"
    )


async def test_time_is_one_clock_for_all_and_stops_children() -> None:
    stopped = asyncio.Event()

    async def endless(arguments: dict[str, Any], context: ToolContext) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    inner = Subagent(
        "helper",
        "Helps.",
        "",
        model=ScriptedModel([calls(("endless", {}))]),
        tools=[Tool("endless", "", ANYTHING, endless)],
        tool_mode="native",
    )
    agent = agent_of(ScriptedModel([calls(task())]), subagents=[inner], budget=Budget(seconds=0.05))
    result = await asyncio.wait_for(agent.run("go"), 30)
    assert (result.outcome, result.limit) == ("budget_exceeded", "seconds")
    assert stopped.is_set()


async def test_calls_that_never_came_back_count_for_the_tree_at_their_estimate() -> None:
    journal = MemoryJournal()
    inner = ScriptedModel([BrokenStream("cut")] * 2)
    model = ScriptedModel([calls(task(text="word " * 400), usage=Usage(0, 0)), "done"])
    await agent_of(model, subagents=[child(inner)]).run("go", journal=journal)
    assert journal.lost("").input_tokens == journal.lost("/helper@1.0").input_tokens > 1000
    assert journal.spent("").asking == 1


def test_a_share_takes_back_what_running_children_were_promised() -> None:
    journal = MemoryJournal()
    tree = Tree(journal, {"": Budget(steps=90, seconds=None)})
    for call in ("1.0", "1.1"):
        journal.append(ToolDispatched("", call, "task", {}, "", "idempotent", ""))
    first = tree.share("", "1.0", "a", "task")
    journal.append(first)
    second = tree.share("", "1.1", "a", "task")
    assert (first.steps, second.steps) == (30, 30)
    unlimited = Tree(journal, {"": Budget(steps=None, seconds=None)}).share("", "1.1", "a", "task")
    assert (unlimited.steps, unlimited.tokens, unlimited.usd) == (None, None, None)


def test_the_scopes_of_a_path_are_all_that_stand_above_it() -> None:
    assert scopes("") == [""]
    assert scopes("/a@1.0/b@2.1") == ["", "/a@1.0", "/a@1.0/b@2.1"]


# --- loops ------------------------------------------------------------------------------------------------------


def stubborn(times: int = 99) -> ScriptedModel:
    return ScriptedModel([*[calls(("step", {"n": 1}))] * times, "done"])


async def test_the_model_is_told_after_three_equal_turns_and_the_run_ends_after_two_more() -> None:
    model, journal = stubborn(), MemoryJournal()
    with pytest.raises(
        ReplyError, match="made the same call with the same result 5 times in a row"
    ) as caught:
        await agent_of(model, STEP).run("go", journal=journal)
    assert caught.value.code == "loop"
    assert "try another model" in caught.value.hint
    assert len(model.requests) == 5
    assert [(e.step, e.times) for e in events_of(journal, LoopWarned)] == [(3, 3), (4, 4)]
    told = [results_of(model, n)[0][0] for n in (1, 2, 3, 4)]
    assert told[:2] == ["stepped", "stepped"]
    assert "same result 3 times in a row. Do something else" in told[2]
    assert "4 times" in told[3]


async def test_a_model_that_listens_goes_on() -> None:
    model = stubborn(3)
    assert (await agent_of(model, STEP).run("go")).text == "done"


async def test_another_call_or_another_result_is_progress() -> None:
    numbers = count()

    async def counts(arguments: dict[str, Any], context: ToolContext) -> str:
        return str(next(numbers))

    polling = ScriptedModel([*[calls(("counts", {}))] * 8, "done"])
    assert (await agent_of(polling, Tool("counts", "", ANYTHING, counts)).run("go")).text == "done"
    between = [calls(("step", {"n": n % 3})) for n in range(9)]
    assert (await agent_of(ScriptedModel([*between, "done"]), STEP).run("go")).text == "done"
    beside = [calls(("step", {"n": 1}), ("step", {"n": n})) for n in range(2, 9)]
    assert (await agent_of(ScriptedModel([*beside, "done"]), STEP).run("go")).text == "done"


async def test_a_loop_of_a_child_is_its_error_result() -> None:
    model = ScriptedModel([calls(task()), "done"])
    await agent_of(model, subagents=[child(stubborn())]).run("go")
    [(text, is_error)] = results_of(model)
    assert is_error
    assert "5 times in a row" in text


async def test_replay_tells_the_model_the_same_and_decides_nothing_again() -> None:
    journal = MemoryJournal()
    first = stubborn(3)
    await agent_of(first, STEP).run("go", journal=journal)
    before = list(journal.events)
    assert (await agent_of(ScriptedModel([]), STEP).run("go", journal=journal)).text == "done"
    assert journal.events == before  # No HistoryChanged: every request would be the same, warning and all.
    for end in range(len(before)):
        cut = MemoryJournal()
        for event in before[:end]:
            cut.append(event)

        def reply(request: Request) -> AssistantMessage | str:
            return calls(("step", {"n": 1})) if len(request.messages) < 7 else "done"

        idempotent = Tool("step", "", ANYTHING, _step, effect=STEP.effect.IDEMPOTENT)
        again = agent_of(ScriptedModel(repeat(reply)), idempotent)
        if any(isinstance(e, ToolDispatched) and cut.finished(e.path, e.call) is None for e in cut.events):
            continue  # The result of a lost write is another one: no loop.
        await again.run("go", journal=cut)
        assert [e.times for e in events_of(cut, LoopWarned)] == [3], end


def test_the_order_and_number_of_equal_calls_do_not_hide_a_loop() -> None:
    repeats = Repeats()

    def turn(*numbers: int) -> int:
        message = calls(*[("step", {"n": n}) for n in numbers])
        results = ToolResults(tuple(ToolResult("", "", "step", f"r{n}") for n in numbers))
        return repeats.count(message, results)

    assert [turn(1, 2), turn(2, 1), turn(1, 2, 1), turn(1), turn(1)] == [1, 2, 3, 1, 2]


# --- calls that are repeated --------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [Budget(tokens=250), Budget(usd=0.0005)], ids=["tokens", "usd"])
async def test_a_retry_that_a_limit_forbids_is_not_made(budget: Budget) -> None:
    """What broken tries have cost counts at its estimate; the run ends by its limit, not by the failure."""
    system = "long " * 100
    model = ScriptedModel(repeat(BrokenStream("cut", provider="openai")), ref=PRICED)
    agent = agent_of(model, instructions=system, budget=budget, retry=Retry(tries=6, sleep=no_sleep))
    journal = MemoryJournal()
    result = await agent.run("go", journal=journal)
    assert result.outcome == "budget_exceeded"
    (limit,) = {"tokens", "usd"} & {result.limit}
    used = journal.spent("")
    assert used.lost >= 250 if limit == "tokens" else used.lost_usd >= 0.0005
    before = journal.spent("").lost - events_of(journal, ModelRequested)[0].prompt_tokens_estimate
    assert before < 250 if limit == "tokens" else before * 2e-6 < 0.0005, "the last one was still allowed"
    assert 1 < len(model.requests) < 6


async def test_a_fallback_that_a_limit_forbids_is_not_asked() -> None:
    model = ScriptedModel(repeat(BrokenStream("cut", provider="openai")), ref=PRICED)
    other = ScriptedModel([says("never")], ref=ModelRef("openai", "gpt-4.1-mini"))
    agent = agent_of(model, fallbacks=[other], budget=Budget(tokens=1), retry=Retry(tries=1, sleep=no_sleep))
    result = await agent.run("go")
    assert (result.outcome, result.limit) == ("budget_exceeded", "tokens")
    assert (len(model.requests), len(other.requests)) == (1, 0)


async def test_steps_do_not_forbid_the_retry_of_the_step_that_they_allowed() -> None:
    model = ScriptedModel([BrokenStream("cut", provider="openai"), says("done")], ref=PRICED)
    result = await agent_of(model, budget=Budget(steps=1)).run("go")
    assert (result.outcome, result.text) == ("completed", "done")
