"""What has happened, asked before anything is done again.

The loop appends events and asks the journal first: a recorded reply is used, not asked again; a recorded tool
result is used, not run again. `MemoryJournal` forgets with the process; the store's journal in `stigmer` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from graphton import models
from graphton.messages import AssistantMessage, Usage

__all__ = [
    "ApprovalDecided",
    "ApprovalRequested",
    "ArgumentsRepaired",
    "Compacted",
    "Event",
    "Fallback",
    "HistoryChanged",
    "Journal",
    "Live",
    "LoopWarned",
    "MemoryJournal",
    "ModelReplied",
    "ModelRequested",
    "Notice",
    "ProcessStarted",
    "Progress",
    "Record",
    "Retrying",
    "RuleMatched",
    "Spent",
    "StreamReset",
    "SubagentFinished",
    "SubagentStarted",
    "TextDelta",
    "ThinkingDelta",
    "ToolDispatched",
    "ToolFinished",
    "ToolOutcomeUnknown",
    "key_of",
    "scopes",
]


@dataclass(frozen=True, slots=True)
class ModelRequested:
    """A request is about to go out. Model calls are keyed (path, step, purpose, try_)."""

    path: str
    step: int
    try_: int
    model: str
    """`provider:model id`."""
    purpose: str
    """turn | compaction | probe | repair"""
    digest: str
    """SHA-256 (hex) over what the reply depends on: model, system text, tools, messages."""
    prompt_tokens_estimate: int
    kept: int = 0
    """Of a compaction: how many of the last messages stay as they are."""
    tool_mode: str = ""
    """How the model is brought to use tools from this turn on, where that was found out in the run."""


@dataclass(frozen=True, slots=True)
class ModelReplied:
    """A whole reply; the call ids in it are ours already."""

    path: str
    step: int
    try_: int
    purpose: str
    message: AssistantMessage
    asked_again: tuple[str, ...] = ()
    """Why the model was asked once more before this was its reply; its usage counts all of it."""


@dataclass(frozen=True, slots=True)
class ToolDispatched:
    """Durable before the tool starts."""

    path: str
    call: str
    name: str
    arguments: dict[str, Any]
    digest: str
    """SHA-256 (hex) of name and arguments."""
    effect: str
    idempotency_key: str
    """"": the one that `key_of` gives for this execution."""


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """A dispatched call started a process; a sweep after a crash ends its group before it decides the outcome."""

    path: str
    call: str
    pid: int
    start_time: float
    """Seconds since the epoch, to tell a reused pid from ours."""


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A tool answered. `is_error` results go back to the model as such."""

    path: str
    call: str
    name: str
    result: str
    is_error: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class ToolOutcomeUnknown:
    """A write was dispatched and its answer was lost in a crash: never guessed, and run again only if a person says so."""

    path: str
    call: str


@dataclass(frozen=True, slots=True)
class ApprovalRequested:
    """A person must decide about this call; bound to call id and argument digest."""

    path: str
    call: str
    name: str
    arguments: dict[str, Any]
    digest: str
    reason: str = "approval"
    """Why a person is asked: approval | outcome (whether a lost call is to be run again; `digest` is then its own)."""


@dataclass(frozen=True, slots=True)
class ApprovalDecided:
    """The decision: approved | rejected | expired | cancelled."""

    path: str
    call: str
    digest: str
    decision: str
    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RuleMatched:
    """A rule decided about this call: allow | ask | deny. Bound to the call's argument digest, like a decision."""

    path: str
    call: str
    digest: str
    verdict: str
    rule: str
    """The rule as people read it."""


@dataclass(frozen=True, slots=True)
class SubagentStarted:
    """A call of the task tool started a child; its limits are its share of what its parent had left. None is no limit."""

    path: str
    """The parent's; the child's is `<path>/<name>@<call>`."""
    call: str
    name: str
    steps: int | None = None
    tokens: int | None = None
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class SubagentFinished:
    """The child of this call has ended, well or not: the call's result says which."""

    path: str
    call: str


@dataclass(frozen=True, slots=True)
class Compacted:
    """Before this step's request a summary took the place of older messages; the reply to the compaction of `try_` is it.

    Replaced were messages `first` to `last` (exclusive) of the history as it was then, but for the task; the `kept`
    messages after them stayed. An empty summary replaced nothing.
    """

    path: str
    step: int
    try_: int
    first: int
    last: int
    kept: int
    tokens_before: int
    tokens_after: int
    room: int
    """Tokens that a prompt may take, as it was known then."""

    @property
    def enough(self) -> bool:
        """Whether it made room for more than the very next request."""
        return self.tokens_after <= 0.9 * self.room


@dataclass(frozen=True, slots=True)
class LoopWarned:
    """The model was told that it made the same calls with the same results `times` turns in a row."""

    path: str
    step: int
    times: int


@dataclass(frozen=True, slots=True)
class Retrying:
    """The last model call failed in a way that may pass; the next try starts in `in_seconds`."""

    path: str
    step: int
    try_: int
    status: int
    in_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Fallback:
    """The model could not be reached; from this step on the next one of the agent's fallbacks is asked."""

    path: str
    step: int
    from_: str
    """`provider:model id`."""
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class ArgumentsRepaired:
    """The call's arguments were mended by the tool's schema ("5" for a whole number, say) before it was run."""

    path: str
    call: str
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True, slots=True)
class HistoryChanged:
    """A replayed request has another digest (code or prompt changed); recorded messages are kept as history."""

    path: str
    step: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know and need not act on."""

    path: str
    code: str
    text: str


Event = (
    ModelRequested
    | ModelReplied
    | ToolDispatched
    | ProcessStarted
    | ToolFinished
    | ToolOutcomeUnknown
    | ApprovalRequested
    | ApprovalDecided
    | RuleMatched
    | SubagentStarted
    | SubagentFinished
    | LoopWarned
    | Compacted
    | Retrying
    | Fallback
    | ArgumentsRepaired
    | HistoryChanged
    | Notice
)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of visible text, live only. `offset` counts Unicode code points of this reply's text."""

    path: str
    step: int
    try_: int
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of reasoning, live only."""

    path: str
    step: int
    try_: int
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class StreamReset:
    """Text shown so far for this (path, step) is stale: a new try begins."""

    path: str
    step: int
    try_: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Long waits show themselves: what is download | server | load | prompt | tool; total 0 means unknown."""

    path: str
    what: str
    done: float
    total: float
    unit: str
    text: str = ""


Live = TextDelta | ThinkingDelta | StreamReset | Progress


@dataclass(slots=True)
class Spent:
    """What a path and everything below it has used. `unpriced` counts replies whose price nobody knows."""

    steps: int = 0
    """Turns that the model has answered."""
    asking: int = 0
    """Turns it was asked for and has not answered: under way, or lost."""
    usage: Usage = Usage()
    lost: int = 0
    """Estimated prompt tokens of requests without a reply."""
    lost_usd: float = 0.0
    """What those would cost, as far as prices are known."""
    usd: float | None = None
    unpriced: int = 0


def scopes(path: str) -> list[str]:
    """The path and all paths above it, the topmost first: `/a@1.0/b@2.0` gives "", `/a@1.0` and itself."""
    parts = path.split("/")
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def key_of(execution: str, path: str, call: str) -> str:
    """The idempotency key of a call that began in this execution: the same for every attempt."""
    return f"{execution}:{path}:{call}"


class Journal(Protocol):
    """The record of one execution, for one attempt.

    Reads are synchronous: the record is loaded when the attempt starts. `append` keeps order and returns at once;
    `commit` waits until everything appended before it is durable, and raises Fenced when another attempt owns
    the execution. `live` shows and forgets.
    """

    execution: str
    """The execution's id, part of every idempotency key."""
    pausing: bool
    """Somebody wants the run to rest: no model call and no tool starts, what runs may end."""

    def append(self, event: Event) -> None: ...
    async def commit(self) -> None: ...
    def live(self, event: Live) -> None: ...

    def requested(self, path: str, step: int, purpose: str = "turn") -> ModelRequested | None:
        """The last request recorded for this step."""
        ...

    def reply(self, path: str, step: int, purpose: str = "turn") -> ModelReplied | None: ...
    def dispatched(self, path: str, call: str) -> ToolDispatched | None: ...
    def finished(self, path: str, call: str) -> ToolFinished | None: ...
    def open_calls(self, path: str, name: str) -> list[str]:
        """Calls of this tool that were dispatched and have no result."""
        ...

    def outcome_unknown(self, path: str, call: str) -> int:
        """How often this call's outcome was lost; 0 when it is known, or the call was dispatched again since."""
        ...

    def approval(self, path: str, call: str) -> ApprovalRequested | None: ...
    def decision(self, path: str, call: str, digest: str) -> ApprovalDecided | None: ...
    def rule(self, path: str, call: str) -> RuleMatched | None: ...
    def repaired(self, path: str, call: str) -> ArgumentsRepaired | None: ...
    def subagent(self, path: str, call: str) -> SubagentStarted | None: ...
    def subagent_finished(self, path: str, call: str) -> bool: ...
    def loop_warned(self, path: str, step: int) -> LoopWarned | None: ...
    def compactions(self, path: str) -> Sequence[Compacted]:
        """All of this path, in order."""
        ...

    def summary(self, path: str, step: int, try_: int) -> str:
        """The text that this compaction's reply holds."""
        ...

    def history_changed(self, path: str, step: int) -> bool: ...
    def fallback(self, path: str) -> Fallback | None:
        """The last change of model on this path."""
        ...

    def tool_mode(self, path: str, model: str) -> str:
        """How this model is brought to use tools on this path; "": that was not found out yet."""
        ...

    def probes(self, model: str) -> Sequence[AssistantMessage]:
        """What this model answered when it was tried out, in order."""
        ...

    def lost(self, path: str) -> Usage:
        """What replies under this path that never came back are counted at: their estimates."""
        ...

    def spent(self, path: str) -> Spent:
        """What this path and everything below it has used so far."""
        ...


@dataclass
class Record:
    """The index over a list of events that answers the Journal's questions; shared by all journals."""

    requests: dict[tuple[str, int, str], ModelRequested] = field(default_factory=dict)
    replies: dict[tuple[str, int, str], ModelReplied] = field(default_factory=dict)
    dispatches: dict[tuple[str, str], ToolDispatched] = field(default_factory=dict)
    results: dict[tuple[str, str], ToolFinished] = field(default_factory=dict)
    unanswered: dict[str, dict[str, str]] = field(default_factory=dict)
    """By path: call id and tool name of the calls that were dispatched and have no result."""
    unknown: set[tuple[str, str]] = field(default_factory=set)
    losses: dict[tuple[str, str], int] = field(default_factory=dict)
    approvals: dict[tuple[str, str], ApprovalRequested] = field(default_factory=dict)
    decisions: dict[tuple[str, str, str], ApprovalDecided] = field(default_factory=dict)
    """By path, call and digest: a call may be asked about twice, once before it runs and once when its outcome is lost."""
    rules: dict[tuple[str, str], RuleMatched] = field(default_factory=dict)
    repairs: dict[tuple[str, str], ArgumentsRepaired] = field(default_factory=dict)
    subagents: dict[tuple[str, str], SubagentStarted] = field(default_factory=dict)
    subagents_finished: set[tuple[str, str]] = field(default_factory=set)
    loop_warnings: dict[tuple[str, int], LoopWarned] = field(default_factory=dict)
    compacted: dict[str, list[Compacted]] = field(default_factory=dict)
    summaries: dict[tuple[str, int, int], str] = field(default_factory=dict)
    totals: dict[str, Spent] = field(default_factory=dict)
    changed: set[tuple[str, int]] = field(default_factory=set)
    fallbacks: dict[str, Fallback] = field(default_factory=dict)
    tool_modes: dict[tuple[str, str], str] = field(default_factory=dict)
    tried_out: dict[str, list[AssistantMessage]] = field(default_factory=dict)
    pausing: bool = False

    def add(self, event: Event) -> None:
        """Enter one event."""
        match event:
            case ModelRequested():
                self._requested(event)
            case ModelReplied():
                self._replied(event)
            case ToolDispatched():
                self.dispatches[event.path, event.call] = event
                self.unanswered.setdefault(event.path, {})[event.call] = event.name
                self.unknown.discard((event.path, event.call))
            case ToolFinished():
                self.results[event.path, event.call] = event
                self.unanswered.get(event.path, {}).pop(event.call, None)
            case ToolOutcomeUnknown():
                lost = (event.path, event.call)
                self.unknown.add(lost)
                self.losses[lost] = self.losses.get(lost, 0) + 1
            case ApprovalRequested():
                self.approvals[event.path, event.call] = event
            case ApprovalDecided():
                self.decisions[event.path, event.call, event.digest] = event
            case RuleMatched():
                self.rules[event.path, event.call] = event
            case ArgumentsRepaired():
                self.repairs[event.path, event.call] = event
            case SubagentStarted():
                self.subagents[event.path, event.call] = event
            case SubagentFinished():
                self.subagents_finished.add((event.path, event.call))
            case LoopWarned():
                self.loop_warnings[event.path, event.step] = event
            case Compacted():
                self.compacted.setdefault(event.path, []).append(event)
            case HistoryChanged():
                self.changed.add((event.path, event.step))
            case Fallback():
                self.fallbacks[event.path] = event
            case _:
                pass

    def _requested(self, event: ModelRequested) -> None:
        key = (event.path, event.step, event.purpose)
        first = key not in self.requests
        self.requests[key] = event
        if event.tool_mode:
            self.tool_modes[event.path, event.model] = event.tool_mode
        lost = _input_price(event.model) * event.prompt_tokens_estimate
        for total in self._totals(event.path):
            total.lost += event.prompt_tokens_estimate
            total.lost_usd += lost
            total.asking += first and event.purpose == "turn"

    def _replied(self, event: ModelReplied) -> None:
        key = (event.path, event.step, event.purpose)
        asked = self.requests.get(key)
        estimate = asked.prompt_tokens_estimate if asked else 0
        self.replies[key] = event
        if event.purpose == "compaction":
            self.summaries[event.path, event.step, event.try_] = event.message.text
        if event.purpose == "probe" and asked:
            self.tried_out.setdefault(asked.model, []).append(event.message)
        usage = event.message.usage
        usd = _cost(asked.model, usage) if asked else None
        lost = _input_price(asked.model) * estimate if asked else 0.0
        turn = event.purpose == "turn"
        for total in self._totals(event.path):
            total.steps += turn
            total.asking -= turn and asked is not None
            total.lost -= estimate
            total.lost_usd -= lost
            total.usage = total.usage + usage
            if usd is None:
                total.unpriced += 1
            else:
                total.usd = (total.usd or 0.0) + usd

    def _totals(self, path: str) -> list[Spent]:
        return [self.totals.setdefault(scope, Spent()) for scope in scopes(path)]

    def requested(self, path: str, step: int, purpose: str = "turn") -> ModelRequested | None:
        return self.requests.get((path, step, purpose))

    def reply(self, path: str, step: int, purpose: str = "turn") -> ModelReplied | None:
        return self.replies.get((path, step, purpose))

    def dispatched(self, path: str, call: str) -> ToolDispatched | None:
        return self.dispatches.get((path, call))

    def finished(self, path: str, call: str) -> ToolFinished | None:
        return self.results.get((path, call))

    def open_calls(self, path: str, name: str) -> list[str]:
        return [call for call, tool in self.unanswered.get(path, {}).items() if tool == name]

    def outcome_unknown(self, path: str, call: str) -> int:
        return self.losses[path, call] if (path, call) in self.unknown else 0

    def approval(self, path: str, call: str) -> ApprovalRequested | None:
        return self.approvals.get((path, call))

    def decision(self, path: str, call: str, digest: str) -> ApprovalDecided | None:
        return self.decisions.get((path, call, digest))

    def rule(self, path: str, call: str) -> RuleMatched | None:
        return self.rules.get((path, call))

    def repaired(self, path: str, call: str) -> ArgumentsRepaired | None:
        return self.repairs.get((path, call))

    def subagent(self, path: str, call: str) -> SubagentStarted | None:
        return self.subagents.get((path, call))

    def subagent_finished(self, path: str, call: str) -> bool:
        return (path, call) in self.subagents_finished

    def loop_warned(self, path: str, step: int) -> LoopWarned | None:
        return self.loop_warnings.get((path, step))

    def compactions(self, path: str) -> Sequence[Compacted]:
        return self.compacted.get(path, ())

    def summary(self, path: str, step: int, try_: int) -> str:
        return self.summaries[path, step, try_].strip()

    def history_changed(self, path: str, step: int) -> bool:
        return (path, step) in self.changed

    def fallback(self, path: str) -> Fallback | None:
        return self.fallbacks.get(path)

    def tool_mode(self, path: str, model: str) -> str:
        return self.tool_modes.get((path, model), "")

    def probes(self, model: str) -> Sequence[AssistantMessage]:
        return self.tried_out.get(model, ())

    def lost(self, path: str) -> Usage:
        return Usage(input_tokens=self.spent(path).lost)

    def spent(self, path: str) -> Spent:
        return self.totals.get(path) or Spent()


def _cost(model: str, usage: Usage) -> float | None:
    """US dollars of a reply, by the model that gave it; None where nobody knows the price."""
    provider, _, name = model.partition(":")
    return models.cost(models.ModelRef(provider, name), usage)


@cache
def _input_price(model: str) -> float:
    """US dollars of a prompt token of this model; 0 where nobody knows the price."""
    return (_cost(model, Usage(1000)) or 0.0) / 1000


class MemoryJournal(Record):
    """A journal that lives as long as the process. `on_event` sees every event, live ones too."""

    def __init__(self, execution: str = "memory", *, on_event: Any = None) -> None:
        super().__init__()
        self.execution = execution
        self.events: list[Event] = []
        self._on_event = on_event

    def append(self, event: Event) -> None:
        self.add(event)
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)

    async def commit(self) -> None:
        return None

    def live(self, event: Live) -> None:
        if self._on_event is not None:
            self._on_event(event)
