"""The tasks of the scoreboard: each can be solved, an idle or careless model does not pass, and an early end is fair."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
from graphton.testing import ScriptedModel, calls
from stigmer.modelbench._attempt import attempt
from stigmer.modelbench.task import KINDS, Case
from stigmer.modelbench.tasks import TASKS, case_of, cases

_spec = importlib.util.spec_from_file_location("solved", Path(__file__).with_name("solved.py"))
assert _spec is not None
assert _spec.loader is not None
_solved = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_solved)
SOLVED = _solved.SOLVED


def test_there_are_sixty_tasks_and_more_of_four_kinds_and_each_has_its_name_alone() -> None:
    assert len(TASKS) >= 60
    assert {task.kind for task in TASKS} == set(KINDS)
    assert len({(task.kind, task.name) for task in TASKS}) == len(TASKS)
    for task in TASKS:
        assert len({wording.request for wording in task.wordings}) == 3, task.name


def test_every_task_has_a_known_right_way() -> None:
    assert set(SOLVED) == {f"{task.kind}/{task.name}" for task in TASKS}


@pytest.mark.parametrize("name", list(SOLVED))
async def test_the_right_way_through_is_right(name: str) -> None:
    made, answer = SOLVED[name]
    model = ScriptedModel([*(calls(call) for call in made), answer])
    tried = await attempt(model, case_of(f"{name}/1"), tool_mode="native")
    assert tried.wrong == ""


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kind}/{task.name}")
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_model_that_only_says_done_passes_no_task_that_needs_a_tool(task, number: int) -> None:
    tried = await attempt(ScriptedModel(["Done!"]), Case(task, number), tool_mode="native")
    if task.kind != "no_call":
        assert tried.wrong


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kind}/{task.name}")
async def test_a_call_printed_as_text_is_never_right(task) -> None:
    text = '```json\n{"name": "read_file", "arguments": {"path": "settings.ini"}}\n```'
    tried = await attempt(ScriptedModel([text] * 12), Case(task, 0), tool_mode="native")
    assert tried.wrong


@pytest.mark.parametrize("task", [t for t in TASKS if t.tools == "files"], ids=lambda t: f"{t.kind}/{t.name}")
async def test_a_file_too_many_is_wrong_wherever_files_are_the_matter(task) -> None:
    made, answer = SOLVED[f"{task.kind}/{task.name}"]
    extra = ("write_file", {"path": "oops.txt", "content": "x"})
    model = ScriptedModel(
        [calls(extra, *made)] if task.kind == "one_call" else [*(map(calls, [extra, *made])), answer]
    )
    tried = await attempt(model, Case(task, 0), tool_mode="native")
    if task.name not in ("edit_text", "list_into_file"):  # Their checks look at their own files alone.
        assert tried.wrong


def test_a_full_bench_is_every_wording_once_and_begins_with_the_short_one() -> None:
    ids = [case.id for case in cases("full")]
    assert len(ids) == len(set(ids)) == 3 * len(TASKS)
    assert ids[: len(cases())] == [case.id for case in cases()]
    with pytest.raises(ValueError, match="'long' is not one of short, full"):
        cases("long")


def test_wherever_a_bench_ends_every_kind_has_had_its_share() -> None:
    full = cases("full")
    whole = Counter(case.task.kind for case in full)
    for end in range(len(cases()), len(full), 16):
        seen = Counter(case.task.kind for case in full[:end])
        for kind in KINDS:
            assert abs(seen[kind] / end - whole[kind] / len(full)) < 0.12, (end, kind)


def test_ids_name_their_tries() -> None:
    for case in cases("full"):
        assert case_of(case.id) == case
    with pytest.raises(KeyError):
        case_of("one_call/nothing/1")
    json.dumps([case.id for case in cases()])
