"""All tasks, and in which order they are tried: at whatever moment a bench ends, all kinds had their share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from stigmer.modelbench import _no_call, _one_call, _one_own_call, _several_steps, _tool_error
from stigmer.modelbench.own_tools import TOOLSETS
from stigmer.modelbench.task import KINDS, Case, Task

__all__ = ["FORMS", "TASKS", "case_of", "cases"]

TASKS: tuple[Task, ...] = (
    *_one_call.TASKS,
    *_one_own_call.TASKS,
    *_no_call.TASKS,
    *_several_steps.TASKS,
    *_tool_error.TASKS,
)

SHORT = {"one_call": 10, "no_call": 8, "several_steps": 8, "tool_error": 6}
"""Tries of each kind in the short form."""

FORMS = ("short", "full")


def cases(form: str = "short") -> list[Case]:
    """The tries of a form, in order. The full form begins with the short one, then goes round by round.

    Within a round they are sorted by what tools are offered: a server has read the beginning of the prompt then.
    """
    if form not in FORMS:
        raise ValueError(f"{form!r} is not one of {', '.join(FORMS)}")
    short = [case for kind in KINDS for case in _spread([t for t in TASKS if t.kind == kind], SHORT[kind])]
    found = _by_tools(short)
    if form == "full":
        known = {case.id for case in short}
        for turn in range(3):
            round_ = [Case(task, (number + turn) % 3) for number, task in enumerate(TASKS)]
            found += _by_tools(case for case in round_ if case.id not in known)
    return found


def case_of(id: str) -> Case:
    """The try of that id; raises KeyError."""
    kind, name, number = id.split("/")
    task = next((t for t in TASKS if (t.kind, t.name) == (kind, name)), None)
    if task is None:
        raise KeyError(id)
    return Case(task, int(number) - 1)


def _spread(tasks: Sequence[Task], count: int) -> list[Case]:
    """Tasks at even distances, each wording in its turn."""
    return [Case(tasks[n * len(tasks) // count], n % 3) for n in range(count)]


def _by_tools(found: Iterable[Case]) -> list[Case]:
    """Sorted by tools; of each kind one after the other, so that an early end leaves no kind behind."""
    order, seen, turns = list(TOOLSETS), Counter[tuple[str, str]](), []
    for case in found:
        task = case.task
        turns.append((order.index(task.tools), seen[task.tools, task.kind], case))
        seen[task.tools, task.kind] += 1
    return [case for _, _, case in sorted(turns, key=lambda one: one[:2])]
