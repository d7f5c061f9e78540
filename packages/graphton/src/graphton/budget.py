"""Limits of a run and of every sub-agent in it, counted from the journal; the next model call is refused before it is made."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson

from graphton.journal import Journal, Notice, Spent, SubagentStarted, scopes
from graphton.messages import AssistantMessage, ToolResults

__all__ = ["REPEATS_END", "REPEATS_TOLD", "Budget", "Exceeded", "OverBudget", "Repeats", "Tree", "child_path"]

REPEATS_TOLD = 3
"""After so many turns in a row without progress the model is told."""
REPEATS_END = 5
"""After so many the run ends."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may use, all its sub-agents included. None is no limit.

    `seconds` is running time: waiting for a person does not count. `children` is how many sub-agents of one agent
    run at once (more wait their turn), `depth` how deep sub-agents may have sub-agents of their own.
    """

    steps: int | None = 100
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = 7200.0
    children: int = 5
    depth: int = 2


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The limit that stopped a run, by its name in Budget, its value, and the path of the agent whose limit it is."""

    limit: str
    value: float
    path: str = ""


class OverBudget(Exception):
    """A limit forbids one more model call. Never leaves the loop."""

    def __init__(self, exceeded: Exceeded) -> None:
        super().__init__(exceeded.limit)
        self.exceeded = exceeded


@dataclass
class Tree:
    """What an agent shares with all sub-agents below it in one attempt: the journal, and the limits by path."""

    journal: Journal
    limits: dict[str, Budget] = field(default_factory=dict)
    trials: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a model is tried out."""
    _slots: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    _unpriced: set[str] = field(default_factory=set)

    def over(self, path: str, step: int) -> Exceeded | None:
        """The limit that forbids this model call: the agent's own, or one of those above it."""
        again = self.journal.requested(path, step) is not None
        for scope in scopes(path):
            budget = self.limits.get(scope)
            for limit, value, used in _used(budget, self.journal.spent(scope)) if budget else ():
                if used - (again and limit == "steps") >= value:
                    return Exceeded(limit, value, scope)
        return None

    def afford(self, path: str, step: int) -> None:
        """Raises OverBudget where a limit forbids this model call, a repeated one too: it is asked before every request."""
        if exceeded := self.over(path, step):
            raise OverBudget(exceeded)

    def mark_unpriced(self, path: str, model: str) -> None:
        """After a reply: say so, once, when a limit in dollars cannot see what the model costs."""
        for scope in scopes(path):
            budget = self.limits.get(scope)
            if budget and budget.usd is not None and self.journal.spent(scope).unpriced == 1:
                if scope not in self._unpriced:
                    self._unpriced.add(scope)
                    text = f"the price of {model} is not known: its calls do not count for the limit of ${budget.usd:g}"
                    self.journal.append(Notice(path, "unpriced", text))
                return

    def share(self, path: str, call: str, name: str, tool: str) -> SubagentStarted:
        """The record of a child that starts now, with its limits.

        A child gets an equal part of what its parent has left: what is left, less what running children were
        promised and have not used, is divided by the number of calls of `tool` that wait to start, and one for the
        parent itself. What a child leaves over goes back to its parent when it ends. The limits of all agents above
        hold as well, so an early share can never be spent twice.
        """
        budget = self.limits.get(path, Budget(steps=None, seconds=None))
        left = dict(_left(budget, self.journal.spent(path)))
        parts = 1
        for other in self.journal.open_calls(path, tool):
            started = self.journal.subagent(path, other)
            if started is None:
                parts += 1
                continue
            promised = Budget(started.steps, started.tokens, started.usd)
            for limit, unused in _left(promised, self.journal.spent(child_path(path, started.name, other))):
                if limit in left:
                    left[limit] -= unused
        steps, tokens, usd = (left.get(limit) for limit in ("steps", "tokens", "usd"))
        return SubagentStarted(
            path,
            call,
            name,
            steps=None if steps is None else max(1, int(steps // parts)),
            tokens=None if tokens is None else max(1, int(tokens // parts)),
            usd=None if usd is None else max(0.0, usd / parts),
        )

    def admit(self, started: SubagentStarted, path: str) -> None:
        """Let the recorded limits of a child hold for `path`; how many and how deep, it has from its parent."""
        above = self.limits.get(started.path, Budget())
        self.limits[path] = Budget(
            started.steps,
            started.tokens,
            started.usd,
            seconds=None,
            children=above.children,
            depth=above.depth,
        )

    def slot(self, path: str) -> asyncio.Semaphore:
        """A turn among the children of this path."""
        if path not in self._slots:
            self._slots[path] = asyncio.Semaphore(self.limits.get(path, Budget()).children)
        return self._slots[path]


def child_path(path: str, name: str, call: str) -> str:
    """The path of the sub-agent that this call of the task tool started."""
    return f"{path}/{name}@{call}"


def _used(budget: Budget, spent: Spent) -> Iterator[tuple[str, float, float]]:
    """Each limit that is set: its name, its value and what is used of it. Calls under way count already."""
    tokens = spent.usage.input_tokens + spent.usage.output_tokens + spent.lost
    for limit, value, used in (
        ("steps", budget.steps, spent.steps + spent.asking),
        ("tokens", budget.tokens, tokens),
        ("usd", budget.usd, (spent.usd or 0.0) + spent.lost_usd),
    ):
        if value is not None:
            yield limit, float(value), float(used)


def _left(budget: Budget, spent: Spent) -> Iterator[tuple[str, float]]:
    for limit, value, used in _used(budget, spent):
        yield limit, max(0.0, value - used)


@dataclass
class Repeats:
    """Counts the turns in a row that made the same calls and got the same results: a run that gets nowhere."""

    times: int = 0
    _last: bytes = b""

    def count(self, message: AssistantMessage, results: ToolResults) -> int:
        """How many turns in a row were like this one, itself included."""
        turn = sorted(
            orjson.dumps(
                [call.name, call.malformed, call.arguments, result.text, result.is_error],
                option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS,
                default=str,
            )
            for call, result in zip(message.calls, results.results, strict=True)
        )
        digest = hashlib.sha256(b"\n".join(dict.fromkeys(turn))).digest()
        self.times = self.times + 1 if digest == self._last else 1
        self._last = digest
        return self.times
