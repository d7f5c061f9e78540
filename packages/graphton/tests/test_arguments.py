"""Arguments against schemas: what can be meant in one way only is mended, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphton._arguments import fit
from graphton.agent import create_deep_agent
from graphton.approval import Answer, Approval
from graphton.journal import (
    ApprovalDecided,
    ApprovalRequested,
    ArgumentsRepaired,
    MemoryJournal,
    ModelReplied,
    ToolDispatched,
    ToolFinished,
)
from graphton.testing import ScriptedModel, calls
from graphton.tools import Effect, Tool, ToolContext, check_arguments, tool
from hypothesis import given
from hypothesis import strategies as st

PERSON = {
    "type": "object",
    "properties": {"first_name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["first_name"],
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"Person": PERSON, "Tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Tree"}}}},
    "properties": {
        "file_path": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "counts": {"type": "array", "items": {"type": "integer"}},
        "people": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
        "owner": {"$ref": "#/$defs/Person"},
        "tree": {"$ref": "#/$defs/Tree"},
        "kind": {"const": "file"},
        "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "both": {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]},
    },
    "required": ["file_path"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("given_", "mended"),
    [
        ({"filePath": "a"}, {"file_path": "a"}),
        ({"File-Path": "a"}, {"file_path": "a"}),
        ({"FILE_PATH": "a"}, {"file_path": "a"}),
        ({"file_path": "a", "tags": "red"}, {"file_path": "a", "tags": ["red"]}),
        ({"file_path": "a", "counts": "3"}, {"file_path": "a", "counts": [3]}),
        ({"file_path": "a", "counts": 3}, {"file_path": "a", "counts": [3]}),
        (
            {"file_path": "a", "people": {"firstName": "Ada"}},
            {"file_path": "a", "people": [{"first_name": "Ada"}]},
        ),
        (
            {"file_path": "a", "owner": '{"first_name": "Ada", "age": "36"}'},
            {"file_path": "a", "owner": {"first_name": "Ada", "age": 36}},
        ),
        ({"file_path": "a", "kind": " File"}, {"file_path": "a", "kind": "file"}),
        ({"file_path": "a", "size": "7"}, {"file_path": "a", "size": 7}),
        ({"file_path": "a", "tags": None, "zzz": None}, {"file_path": "a"}),
    ],
)
def test_what_can_be_meant_in_one_way_is_mended(given_: dict[str, Any], mended: dict[str, Any]) -> None:
    before = json.dumps(given_)
    assert fit(SCHEMA, given_) == (mended, [])
    assert json.dumps(given_) == before


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        ({}, "missing field 'file_path' (string)"),
        ({"filePath": "a", "file-path": "b"}, "unknown field 'filePath'; did you mean 'file_path'?"),
        ({"file_path": "a", "tags": "red, blue"}, "field 'tags' must be an array, not \"red, blue\""),
        ({"file_path": "a", "counts": "many"}, "field 'counts' must be an array, not \"many\""),
        ({"file_path": "a", "owner": {}}, "missing field 'owner.first_name' (string)"),
        ({"file_path": "a", "kind": "folder"}, 'field \'kind\' must be one of "file", not "folder"'),
        ({"file_path": 1.10}, "field 'file_path' must be a string, not 1.1"),
        ({"file_path": "a", "both": {"a": "x"}}, "field 'both.a' must be an integer, not \"x\""),
        (
            {"file_path": "a", "tree": {"next": {"next": 5}}},
            "field 'tree.next.next' must be an object, not 5",
        ),
    ],
)
def test_what_could_mean_something_else_is_told(given_: dict[str, Any], problem: str) -> None:
    assert problem in fit(SCHEMA, given_)[1]


def test_a_field_too_many_is_left_out_only_for_a_tool_that_changes_nothing() -> None:
    async def run(arguments: dict[str, Any], context: ToolContext) -> str:
        return ""

    given_ = {"file_path": "a", "zzz": 1}
    writes = Tool("writes", "Writes.", SCHEMA, run)
    sets = Tool("sets", "Writes, and the same again changes nothing.", SCHEMA, run, effect=Effect.IDEMPOTENT)
    reads = Tool("reads", "Reads.", SCHEMA, run, effect=Effect.READ)
    assert check_arguments(reads, given_) == ({"file_path": "a"}, [])
    for changing in (writes, sets):
        problem = check_arguments(changing, given_)[1][0]
        assert problem.startswith("unknown field 'zzz'; the fields are: file_path,")
    near = {"file_path": "a", "sizes": 1}
    assert check_arguments(reads, near)[1] == ["unknown field 'sizes'; did you mean 'size'?"]


def test_a_field_too_many_stays_where_the_schema_allows_others() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True}
    assert fit(schema, {"a": "x", "B": 1, "A": 2}, drops=True) == ({"a": "x", "B": 1, "A": 2}, [])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_a_required_value_is_never_made_up(value: Any) -> None:
    given_ = value if isinstance(value, dict) else {"tags": value}
    checked, problems = fit(SCHEMA, given_, drops=True)
    if "file_path" not in checked:
        assert any("'file_path'" in problem for problem in problems)


def test_a_schema_that_refers_to_itself_alone_allows_everything() -> None:
    schema = {"$defs": {"A": {"$ref": "#/$defs/A"}}, "properties": {"a": {"$ref": "#/$defs/A"}}}
    assert fit(schema, {"a": [1]}) == ({"a": [1]}, [])


# --- in a run -----------------------------------------------------------------------------------------------------


@tool
async def label(file_path: str, tags: list[str]) -> str:
    """Labels a file."""
    return f"{file_path}: {' '.join(tags)}"


async def test_a_repair_is_in_the_record_and_the_tool_gets_the_mended_arguments() -> None:
    wrote = {"filePath": "a.txt", "tags": "red"}
    model = ScriptedModel([calls(("label", wrote)), "Done."])
    journal = MemoryJournal()
    await create_deep_agent(model, tools=[label], tool_mode="native").run("Label it.", journal=journal)
    mended = {"file_path": "a.txt", "tags": ["red"]}
    (repaired,) = [event for event in journal.events if isinstance(event, ArgumentsRepaired)]
    assert (repaired.call, repaired.before, repaired.after) == ("1.0", wrote, mended)
    (started,) = [event for event in journal.events if isinstance(event, ToolDispatched)]
    assert started.arguments == mended
    (ended,) = [event for event in journal.events if isinstance(event, ToolFinished)]
    assert ended.result == "a.txt: red"


async def test_a_repair_is_decided_once_and_holds_when_a_run_goes_on() -> None:
    asking = Tool(label.name, label.description, label.parameters, label.run, asks=True)
    model = ScriptedModel([calls(("label", {"file_path": "a.txt", "tags": "red"})), "Done."])
    journal = MemoryJournal()
    agent = create_deep_agent(model, tools=[asking], tool_mode="native")
    assert (await agent.run("Label it.", journal=journal)).outcome == "waiting"
    mended = {"file_path": "a.txt", "tags": ["dark red"]}  # As an earlier version would have put it.
    earlier = MemoryJournal()
    for event in journal.events:
        earlier.append(replace(event, after=mended) if isinstance(event, ArgumentsRepaired) else event)
    for _ in range(2):
        (question,) = (await agent.run("Label it.", journal=earlier)).waiting
    earlier.append(ApprovalDecided("", question.call, question.digest, "approved", "Ada"))
    await agent.run("Label it.", journal=earlier)
    (repaired,) = [event for event in earlier.events if isinstance(event, ArgumentsRepaired)]
    (started,) = [event for event in earlier.events if isinstance(event, ToolDispatched)]
    assert repaired.after == started.arguments == mended


async def test_a_repair_is_recorded_once_by_a_run_that_is_paused_before_the_call() -> None:
    def pause(event: object) -> None:
        journal.pausing = isinstance(event, ModelReplied) or journal.pausing

    journal = MemoryJournal(on_event=pause)
    model = ScriptedModel([calls(("label", {"file_path": "a.txt", "tags": "red"})), "Done."])
    agent = create_deep_agent(model, tools=[label], tool_mode="native")
    assert (await agent.run("Label it.", journal=journal)).paused
    assert not [event for event in journal.events if isinstance(event, ToolDispatched)]
    journal.pausing = False
    await agent.run("Label it.", journal=journal)
    assert len([event for event in journal.events if isinstance(event, ArgumentsRepaired)]) == 1


async def test_a_file_is_not_replaced_where_something_was_to_be_appended(tmp_path: Path) -> None:
    (tmp_path / "guests.txt").write_text("Ann\n")
    wrote = {"path": "guests.txt", "content": "Kofi\n", "append": True}
    model = ScriptedModel([calls(("write_file", wrote)), "It does not append."])
    journal = MemoryJournal()
    await create_deep_agent(model, workspace=tmp_path, tool_mode="native").run("Add Kofi.", journal=journal)
    (ended,) = [event for event in journal.events if isinstance(event, ToolFinished)]
    assert ended.result == ("The arguments do not fit: unknown field 'append'; the fields are: path, content")
    assert (tmp_path / "guests.txt").read_text() == "Ann\n"


async def test_a_person_decides_about_the_mended_arguments() -> None:
    seen: list[ApprovalRequested] = []

    async def ask(question: ApprovalRequested) -> Answer:
        seen.append(question)
        return Answer(True, by="Ada")

    asking = Tool(label.name, label.description, label.parameters, label.run, asks=True)
    model = ScriptedModel([calls(("label", {"file_path": "a.txt", "tags": "red"})), "Done."])
    journal = MemoryJournal()
    agent = create_deep_agent(model, tools=[asking], tool_mode="native", approval=Approval(ask=ask))
    await agent.run("Label it.", journal=journal)
    (started,) = [event for event in journal.events if isinstance(event, ToolDispatched)]
    assert seen[0].arguments == started.arguments == {"file_path": "a.txt", "tags": ["red"]}
    assert seen[0].digest == started.digest
