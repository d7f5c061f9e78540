"""What a task is: files, a request in three wordings, tools, and a check of what came out. Only values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "Case", "Check", "Made", "Outcome", "Task", "Wording", "judge"]

KINDS: dict[str, str] = {
    "one_call": "one right call",
    "no_call": "no call needed",
    "several_steps": "several steps",
    "tool_error": "after a tool's error",
}
"""Kinds of tasks, as they are counted, and as people read them."""

FINE = ("completed", "stopped")
"""Ends of a try that can be right: the model answered, or the bench stopped after the first reply, as it meant to."""


@dataclass(frozen=True, slots=True)
class Made:
    """A call that the model made: with which arguments (as the tool got them), and what the tool answered."""

    name: str
    arguments: dict[str, Any]
    result: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a try. `files` holds the text of every file of the folder afterwards."""

    answer: str
    calls: tuple[Made, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    ended: str = "completed"
    """completed | stopped (after the first reply, on purpose) | steps | seconds | waiting | error: …"""


Check = Callable[[Outcome], str]
"""What is wrong with an outcome, "" if nothing."""


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to ask for it. Names and values differ from wording to wording, the task does not."""

    request: str
    check: Check
    files: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, str] | None = field(default_factory=dict)
    """The files that must be different afterwards, with their new text; {} is none. None: the check looks itself."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task in three wordings. `tools` names what is offered: `files` is the default agent."""

    name: str
    kind: str
    wordings: tuple[Wording, Wording, Wording]
    tools: str = "files"


@dataclass(frozen=True, slots=True)
class Case:
    """One try: a task in one of its wordings."""

    task: Task
    number: int

    @property
    def id(self) -> str:
        """`one_call/read_value/2`; results are kept by it."""
        return f"{self.task.kind}/{self.task.name}/{self.number + 1}"

    @property
    def wording(self) -> Wording:
        return self.task.wordings[self.number]

    @property
    def first_reply_only(self) -> bool:
        """Whether the first reply decides, so that nothing after it need be asked for."""
        return self.task.kind == "one_call"


def judge(case: Case, outcome: Outcome) -> str:
    """What is wrong with an outcome, "" where it is right: the end, the files, then the task's own check."""
    if outcome.ended not in FINE:
        return f"ended: {outcome.ended}"
    wording = case.wording
    if wording.changes is not None and (wrong := _differs(wording, outcome.files)):
        return wrong
    return wording.check(outcome)


def _differs(wording: Wording, after: Mapping[str, str]) -> str:
    """Where the folder is not as it should be; blank ends of lines and of the file do not count."""
    wanted = {**wording.files, **(wording.changes or {})}
    for path, text in wanted.items():
        if path not in after:
            return f"there is no {path!r}"
        if _even(after[path]) != _even(text):
            return f"{path!r} holds {after[path]!r}"
    more = sorted(set(after) - set(wanted))
    return f"made {', '.join(more)}" if more else ""


def _even(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
