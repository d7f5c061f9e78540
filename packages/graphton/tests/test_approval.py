"""Approval rules: deny beats ask beats allow, shell commands are never let through by a simpler rule, lost writes wait."""

from __future__ import annotations

import string
from typing import Any

import pytest
from graphton.agent import Agent, create_deep_agent
from graphton.approval import Answer, Approval, Rule
from graphton.errors import OutcomeUnknown, SettingError
from graphton.journal import (
    ApprovalDecided,
    ApprovalRequested,
    MemoryJournal,
    RuleMatched,
    ToolDispatched,
    ToolOutcomeUnknown,
)
from graphton.messages import ToolCall, ToolResults
from graphton.testing import ScriptedModel, calls
from graphton.tools import Tool, ToolContext
from graphton.toolsets.subagents import Subagent
from hypothesis import given
from hypothesis import strategies as st


class Shell:
    """A tool that asks, and keeps what it ran."""

    def __init__(self, name: str = "run_command", *, asks: bool = True) -> None:
        self.ran: list[str] = []
        schema = {"type": "object", "properties": {"command": {"type": "string"}}}
        self.tool = Tool(name, "Run.", schema, self._run, asks=asks)

    async def _run(self, arguments: dict[str, Any], context: ToolContext) -> str:
        self.ran.append(arguments["command"])
        return "ran"


def rule(verdict: str, tool: str = "run_command", **when: str) -> Rule:
    return Rule.parse({"tool": tool, "when": when, "verdict": verdict})


def verdict(rules: list[Rule], name: str = "run_command", *, asks: bool = True, **arguments: Any) -> str:
    tool = Shell(name, asks=asks).tool
    return Approval(rules=tuple(rules)).ruling(tool, ToolCall(name, arguments)).verdict


def agent_of(model: ScriptedModel, *tools: Tool, **more: Any) -> Agent:
    return create_deep_agent(model, tools=tools, tool_mode="native", **more)


def results_of(model: ScriptedModel) -> list[tuple[str, bool]]:
    last = model.requests[-1].messages[-1]
    assert isinstance(last, ToolResults)
    return [(result.text, result.is_error) for result in last.results]


def events_of(journal: MemoryJournal, kind: type) -> list[Any]:
    return [event for event in journal.events if isinstance(event, kind)]


def run(command: str) -> tuple[str, dict[str, Any]]:
    return "run_command", {"command": command}


# --- which rule fits ------------------------------------------------------------------------------------------


def test_deny_beats_ask_beats_allow_in_any_order() -> None:
    allow, ask, deny = rule("allow", command="git *"), rule("ask", command="git push*"), rule("deny", "run_*")
    assert verdict([allow], command="git push") == "allow"
    assert verdict([allow, ask], command="git push") == "ask"
    assert verdict([ask, allow], command="git push") == "ask"
    assert verdict([allow, ask], command="git log") == "allow"
    assert verdict([allow, deny, ask], command="git log") == "deny"


def test_the_tools_default_applies_where_no_rule_fits() -> None:
    other = [rule("deny", "write_*"), rule("deny", command="rm *")]
    assert verdict(other, command="ls") == "ask"
    assert verdict(other, asks=False, command="ls") == "allow"
    assert verdict([]) == "ask"


def test_tools_are_named_by_patterns() -> None:
    assert verdict([rule("deny", "*_file")], "write_file", asks=False, path="a") == "deny"
    assert verdict([rule("deny", "*_file")], "list_files", asks=False, path="a") == "allow"
    assert verdict([rule("deny", "mcp_?_*")], "mcp_x_y", asks=False) == "deny"


def test_every_argument_must_fit_and_be_there() -> None:
    both = [rule("allow", command="ls", timeout_seconds="10")]
    assert verdict(both, command="ls", timeout_seconds=10) == "allow"
    assert verdict(both, command="ls", timeout_seconds=11) == "ask"
    assert verdict(both, command="ls") == "ask"
    assert verdict([rule("deny", "t", on="true")], "t", asks=False, on=True) == "deny"


@pytest.mark.parametrize(
    "command",
    [
        "git status; rm -rf x",
        "git status && rm x",
        "git status || rm x",
        "git status | sh",
        "git status & rm x",
        "git log `rm x`",
        "git log $(rm x)",
        "git log > ~/.bashrc",
        "git log >> f",
        "git apply < patch",
        "git diff <(rm x)",
        "git status\nrm x",
        "git status\r\nrm x",
        'git log --format="a;b"',
        "git log 2>&1",
    ],
)
def test_a_command_that_is_more_than_one_is_never_allowed_by_a_rule_for_a_simpler_one(command: str) -> None:
    patterns = ["git *", "*", "git status*", "git log*", "git*;*", "*x", "git ?*", command[:-1] + "*"]
    assert verdict([rule("allow", command=pattern) for pattern in patterns], command=command) == "ask"
    assert verdict([rule("allow", command=command)], command=command) == "allow"
    assert verdict([rule("allow")], command=command) == "allow"


@given(
    st.text(string.ascii_letters + " -./*?[]", max_size=20),
    st.sampled_from([";", "|", "&", "`", "$(", "\n", ">", "<", "\r"]),
    st.text(string.printable, max_size=20),
    st.sampled_from(["git *", "*", "git*", "?*", "[a-z]* *", "*;*", "*|*", "*\n*"]),
)
def test_no_glob_lets_an_operator_through(head: str, operator: str, tail: str, pattern: str) -> None:
    command = f"git {head}{operator}{tail} x"
    assert verdict([rule("allow", command=pattern)], command=command) == "ask"


def test_a_pattern_without_stars_is_that_command() -> None:
    exact = [rule("allow", command="git status")]
    assert verdict(exact, command="git status") == "allow"
    assert verdict(exact, command="  git status ") == "allow"
    assert verdict(exact, command="git status -s") == "ask"
    assert verdict([rule("allow", command="git *")], command="github-cli x") == "ask"


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf x",
        "cd /tmp && rm -rf x",
        "ls; rm x",
        "echo $(rm x)",
        "echo `rm x`",
        "true\nrm x",
        "A=1 rm x",
        "/bin/rm x",
        "rm\t-rf x",
        "(rm x)",
        "ls | rm x",
        "  rm   x",
    ],
)
def test_a_deny_rule_looks_at_each_part_of_a_command(command: str) -> None:
    assert verdict([rule("allow"), rule("deny", command="rm *")], command=command) == "deny"


def test_a_deny_rule_does_not_see_what_is_not_there() -> None:
    for command in ("ls rmdir", "echo warm x", "rmx y"):
        assert verdict([rule("deny", command="rm *")], command=command) == "ask"


@pytest.mark.parametrize(
    "path", ["secrets/a", "./secrets/a", "x/../secrets/a", "/home/me/secrets/a", "../w/secrets/a"]
)
def test_a_deny_rule_for_a_path_finds_its_other_spellings(path: str) -> None:
    for pattern in ("secrets/*", "./secrets/*"):
        assert (
            verdict([rule("deny", "read_file", path=pattern)], "read_file", asks=False, path=path) == "deny"
        )


@pytest.mark.parametrize("path", ["docs/../secrets", "docs/../../x", "../docs/a", "..", "docs/./../a"])
def test_an_allow_rule_for_a_path_does_not_reach_outside_it(path: str) -> None:
    allowed = [rule("allow", "write_file", path=pattern) for pattern in ("docs/*", "*docs/*")]
    assert verdict(allowed, "write_file", path=path) == "ask"
    assert verdict(allowed, "write_file", path="docs/./a/b") == "allow"


# --- rules from plain data -------------------------------------------------------------------------------------


def test_a_rule_is_read_from_plain_data_and_told_in_words() -> None:
    parsed = Rule.parse({"tool": "run_command", "when": {"command": "git *"}, "verdict": "allow"})
    assert parsed == Rule("run_command", {"command": "git *"}, "allow")
    assert str(parsed) == "allow run_command (command: git *)"
    assert str(Rule.parse({"tool": "*", "verdict": "deny"})) == "deny *"
    assert Rule.parse_all([{"tool": "*", "verdict": "deny"}, {"tool": "t", "when": None, "verdict": "ask"}])[
        1
    ] == (Rule("t", {}, "ask"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("git *", "must have keys and values, not 'git *'"),
        ({"tol": "x", "verdict": "ask"}, "has no key 'tol', only tool, when, verdict"),
        ({"verdict": "ask"}, "`tool` of an approval rule is None"),
        ({"tool": 3, "verdict": "ask"}, "`tool` of an approval rule is 3"),
        ({"tool": "x"}, "`verdict` of an approval rule is None, not allow, ask or deny"),
        ({"tool": "x", "verdict": "maybe"}, "`verdict` of an approval rule is 'maybe'"),
        ({"tool": "x", "verdict": ["ask"]}, "`verdict` of an approval rule is ['ask']"),
        ({"tool": "x", "when": "git *", "verdict": "ask"}, "`when` of an approval rule is 'git *'"),
        (
            {"tool": "x", "when": {"n": 3}, "verdict": "ask"},
            "the pattern for argument 'n' of an approval rule is 3",
        ),
    ],
)
def test_a_rule_that_cannot_be_read_is_told_with_its_place_and_an_example(given: Any, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        Rule.parse_all([given], where="agent.yaml: approvals")
    assert said in caught.value.message
    assert caught.value.message.startswith("agent.yaml: approvals[0]: ")
    assert '"verdict": "allow"' in caught.value.hint
    with pytest.raises(SettingError, match="must be a list"):
        Rule.parse_all(given)


# --- in a run ---------------------------------------------------------------------------------------------------


async def test_an_allow_rule_runs_without_a_question_and_a_deny_rule_tells_the_model() -> None:
    shell, journal = Shell(), MemoryJournal()
    rules = (rule("allow", command="ls *"), rule("deny", command="rm *"))
    model = ScriptedModel([calls(run("ls -l"), run("rm x")), "done"])
    await agent_of(model, shell.tool, approval=Approval(rules=rules)).run("go", journal=journal)
    assert shell.ran == ["ls -l"]
    [ran, denied] = results_of(model)
    assert ran == ("ran", False)
    assert denied == (
        "A rule forbids this call; it was not run. The rule: deny run_command (command: rm *)", True
    )  # fmt: skip
    matched = events_of(journal, RuleMatched)
    assert [(e.call, e.verdict, e.rule) for e in matched] == [
        ("1.0", "allow", "allow run_command (command: ls *)"),
        ("1.1", "deny", "deny run_command (command: rm *)"),
    ]
    assert events_of(journal, ApprovalRequested) == []


async def test_approve_all_answers_ask_but_never_deny() -> None:
    shell = Shell()
    rules = (rule("ask", command="ls*"), rule("deny", command="rm *"))
    model = ScriptedModel([calls(run("ls"), run("rm x"), run("date")), "done"])
    await agent_of(model, shell.tool, approval=Approval(approve_all=True, rules=rules)).run("go")
    assert shell.ran == ["ls", "date"]


async def test_what_a_rule_said_is_recorded_and_holds_when_the_rules_have_changed() -> None:
    shell, journal = Shell(asks=False), MemoryJournal()
    script = [calls(run("ls")), "done"]
    asking = Approval(rules=(rule("ask", command="ls"),))
    result = await agent_of(ScriptedModel(script), shell.tool, approval=asking).run("go", journal=journal)
    [question] = result.waiting
    allowing = Approval(rules=(rule("allow", command="ls"),))
    result = await agent_of(ScriptedModel([]), shell.tool, approval=allowing).run("go", journal=journal)
    assert (result.outcome, shell.ran) == ("waiting", [])
    journal.append(ApprovalDecided("", "1.0", question.digest, "approved", "ann"))
    denying = Approval(rules=(rule("deny", command="ls"),))
    await agent_of(ScriptedModel(["done"]), shell.tool, approval=denying).run("go", journal=journal)
    assert shell.ran == ["ls"]
    assert len(events_of(journal, RuleMatched)) == 1


async def test_rules_hold_for_sub_agents() -> None:
    shell = Shell()
    inner = ScriptedModel([calls(run("rm x")), "no luck"])
    helper = Subagent("helper", "Helps.", "", model=inner, tools=[shell.tool], tool_mode="native")
    model = ScriptedModel([calls(("task", {"agent": "helper", "task": "clean"})), "done"])
    approval = Approval(approve_all=True, rules=(rule("deny", command="rm *"),))
    await agent_of(model, subagents=[helper], approval=approval).run("go")
    assert shell.ran == []
    assert results_of(inner)[0][1]


# --- a write whose outcome was lost -----------------------------------------------------------------------------


async def lost(shell: Shell, *, approval: Approval | None = None) -> MemoryJournal:
    """A journal as a crash leaves it while the shell runs."""
    whole = MemoryJournal()
    agent = agent_of(ScriptedModel([calls(run("ls")), "done"]), shell.tool, approval=approval)
    await agent.run("go", journal=whole)
    return crashed(whole)


def crashed(whole: MemoryJournal) -> MemoryJournal:
    journal = MemoryJournal()
    end = max(n for n, event in enumerate(whole.events) if isinstance(event, ToolDispatched))
    for event in whole.events[: end + 1]:
        journal.append(event)
    return journal


async def test_on_unknown_stop_ends_the_run_with_a_clear_error() -> None:
    shell = Shell(asks=False)
    journal = await lost(shell)
    with pytest.raises(
        OutcomeUnknown, match=r"run_command \(call 1\.0\) was running when the program stopped"
    ) as caught:
        await agent_of(ScriptedModel([]), shell.tool, on_unknown="stop").run("go", journal=journal)
    assert caught.value.code == "outcome_unknown"
    assert 'on_unknown "tell" or "ask"' in caught.value.hint
    assert shell.ran == ["ls"]
    assert len(events_of(journal, ToolOutcomeUnknown)) == 1


async def test_on_unknown_stop_in_a_sub_agent_ends_the_whole_run() -> None:
    shell, journal = Shell(asks=False), MemoryJournal()

    def agent() -> Agent:
        inner = ScriptedModel([calls(run("ls")), "ok"])
        helper = Subagent("helper", "Helps.", "", model=inner, tools=[shell.tool], tool_mode="native")
        outer = ScriptedModel([calls(("task", {"agent": "helper", "task": "go"})), "done"])
        return agent_of(outer, subagents=[helper], on_unknown="stop")

    await agent().run("go", journal=journal)
    with pytest.raises(OutcomeUnknown):
        await agent().run("go", journal=crashed(journal))


@pytest.mark.parametrize("before", [False, True], ids=["never asked before", "was approved before"])
async def test_on_unknown_ask_waits_and_a_yes_runs_the_call_again_with_the_same_key(before: bool) -> None:
    shell = Shell(asks=before)

    async def yes(asked: ApprovalRequested) -> Answer:
        return Answer(True, by="bob")

    journal = await lost(shell, approval=Approval(ask=yes))
    agent = agent_of(ScriptedModel([]), shell.tool, on_unknown="ask", approval=Approval(approve_all=True))
    result = await agent.run("go", journal=journal)
    assert shell.ran == ["ls"]
    [question] = result.waiting
    assert (question.path, question.call, question.reason) == ("", "1.0", "outcome")
    asked = events_of(journal, ApprovalRequested)[-1]
    assert (asked.reason, asked.digest, asked.arguments) == ("outcome", question.digest, {"command": "ls"})
    journal.append(ApprovalDecided("", "1.0", question.digest, "approved", "ann"))
    again = agent_of(ScriptedModel(["done"]), shell.tool, on_unknown="ask")
    assert (await again.run("go", journal=journal)).text == "done"
    assert shell.ran == ["ls", "ls"]
    first, second = events_of(journal, ToolDispatched)
    assert first.idempotency_key == second.idempotency_key
    # A crash right then asks anew: the old yes was for one run.
    twice = crashed(journal)
    result = await agent_of(ScriptedModel([]), shell.tool, on_unknown="ask").run("go", journal=twice)
    assert [q.reason for q in result.waiting] == ["outcome"]
    assert result.waiting[0].digest != question.digest
    assert shell.ran == ["ls", "ls"]


async def test_on_unknown_ask_and_a_no_tells_the_model_and_gives_the_reason() -> None:
    shell = Shell(asks=False)
    journal = await lost(shell)
    result = await agent_of(ScriptedModel([]), shell.tool, on_unknown="ask").run("go", journal=journal)
    journal.append(ApprovalDecided("", "1.0", result.waiting[0].digest, "rejected", "ann", "it had worked"))
    model = ScriptedModel(["good"])
    await agent_of(model, shell.tool, on_unknown="ask").run("go", journal=journal)
    [(text, is_error)] = results_of(model)
    assert is_error
    assert "not known whether it did its work" in text
    assert text.endswith("said not to run the call again. it had worked")
    assert shell.ran == ["ls"]


def test_on_unknown_must_be_one_of_three() -> None:
    with pytest.raises(SettingError, match="on_unknown 'retry' is not tell, ask or stop"):
        agent_of(ScriptedModel([]), on_unknown="retry")
