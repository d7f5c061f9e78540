"""How a task goes, as far as its calls show: what a small model is led out of, and what it is led back to.

Three habits of theirs end a task too early or never: they make the same call again, they answer with an error that says
how to do it right, and they read on where they should write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphton._envelope_prompt import dump
from graphton._not_run import is_final, of_the_tool
from graphton.chat.base import ToolSpec
from graphton.messages import AssistantMessage, Message, ToolCall, ToolResults, UserMessage

__all__ = ["Course", "course_of"]

PLANS = "todos"
"""It reads, by its effect, but shows nothing that is not known."""
MOST_WRITES = {"write_file": 3, "edit_file": 5}
"""So often in a row one file is written anew, or edited: who goes on goes in circles."""
LONG = 3
"""Turns after which a task is long, and may be planned. Small models take a plan for the work, and tell it as the result."""
ANSWERS = ("run_command", "task")
"""What a command or a sub-agent came to is an answer, also where it failed: it may be told at once."""
MOST_RETRIES = 2
"""So often in a task a failed call must be followed by a call."""


@dataclass(frozen=True, slots=True)
class Course:
    """What follows for the next turn from the calls since the question."""

    turns: int = 0
    """How many turns with calls there were."""
    again: bool = False
    """The last turn's calls were made before, and had the same answers."""
    repeats: int = 0
    """How many turns were like that."""
    known: frozenset[str] = frozenset()
    """The tools that answered, in such a turn, with what was known: the next turn uses others."""
    retry: frozenset[str] = frozenset()
    """The tools that failed, with an error not seen before: the next turn is a call, of these or of one that reads."""

    @property
    def enough(self) -> bool:
        """Whether the next thing that the model may write is its reply: else it goes round for ever."""
        return self.again and self.repeats > 1

    def offers(self, tool: ToolSpec) -> bool:
        """Whether the next turn may use this tool."""
        if tool.name == PLANS and self.turns < LONG:
            return False
        if self.retry:
            return tool.name in self.retry or (tool.reads and tool.name != PLANS)
        return tool.name not in self.known


def course_of(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Course:
    """The course of the task that the last question began."""
    seen: set[tuple[str, str, str]] = set()
    written: set[tuple[str, str]] = set()  # Whatever came after it, nobody means the same write twice.
    calls: Mapping[str, ToolCall] = {}
    course, retries, writes, before = Course(), 0, 0, ("", "")
    writing = {tool.name for tool in tools if not tool.reads}
    for message in messages:
        match message:
            case UserMessage():
                seen, written, course, retries, writes = set(), set(), Course(), 0, 0
            case AssistantMessage():
                calls = {call.id: call for call in message.calls}
            case ToolResults():
                target = _written(message, calls)
                writes = writes + 1 if target == before else 1
                before = target
                now = _writes(message, calls)
                again = (
                    _made(message, calls) <= seen
                    or bool(now and now <= written)
                    or writes >= MOST_WRITES.get(target[0], writes + 1)
                )
                retry = _failed(message, seen) if retries < MOST_RETRIES else frozenset[str]()
                if not any(tool.reads and tool.name != PLANS for tool in tools):
                    retry = frozenset()  # A tool that writes is never the only way on.
                known = frozenset(r.name for r in message.results if again)
                course = Course(course.turns + 1, again, course.repeats + again, known, retry)
                retries += bool(retry)
                if not again and any(r.name in writing and not r.is_error for r in message.results):
                    seen = set()  # Something is another way now: a look at it is no repetition.
                seen |= _made(message, calls)
                written |= now
    return course


def _made(message: ToolResults, calls: Mapping[str, ToolCall]) -> set[tuple[str, str, str]]:
    """The calls of a turn with what their tools answered."""
    return {
        (r.name, dump(calls[r.call].arguments) if r.call in calls else "", of_the_tool(r.text))
        for r in message.results
    }


def _writes(message: ToolResults, calls: Mapping[str, ToolCall]) -> set[tuple[str, str]]:
    """The writes of a turn that did nothing else, each well."""
    if any(r.name not in MOST_WRITES or r.is_error or r.call not in calls for r in message.results):
        return set()
    return {(r.name, dump(calls[r.call].arguments)) for r in message.results}


def _written(message: ToolResults, calls: Mapping[str, ToolCall]) -> tuple[str, str]:
    """The tool and the file of a turn that did nothing but write one file."""
    found = {
        (r.name, str(calls[r.call].arguments.get("path", "")) if r.call in calls else "")
        for r in message.results
    }
    target = found.pop()
    return target if not found and target[0] in MOST_WRITES and target[1] else ("", "")


def _failed(message: ToolResults, seen: set[tuple[str, str, str]]) -> frozenset[str]:
    """The tools of a turn in which every call failed in a way that another call may mend, each with a new error."""
    old = {(name, text) for name, _, text in seen}
    mendable = all(
        r.is_error
        and r.name not in ANSWERS
        and not is_final(r.text)
        and (r.name, of_the_tool(r.text)) not in old
        for r in message.results
    )
    return frozenset(r.name for r in message.results) if mendable else frozenset()
