"""What has happened, asked before anything is done again.

The loop appends events and asks the journal first: a recorded reply is used, not asked again; a recorded tool
result is used, not run again. `MemoryJournal` forgets with the process; the store's journal in `stigmer` does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from graphton.messages import AssistantMessage, Usage

__all__ = [
    "ApprovalDecided",
    "ApprovalRequested",
    "ArgumentsRepaired",
    "Event",
    "Fallback",
    "HistoryChanged",
    "Journal",
    "Live",
    "MemoryJournal",
    "ModelReplied",
    "ModelRequested",
    "Notice",
    "ProcessStarted",
    "Progress",
    "Retrying",
    "StreamReset",
    "TextDelta",
    "ThinkingDelta",
    "ToolDispatched",
    "ToolFinished",
    "ToolOutcomeUnknown",
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


@dataclass(frozen=True, slots=True)
class ModelReplied:
    """A whole reply; the call ids in it are ours already."""

    path: str
    step: int
    try_: int
    purpose: str
    message: AssistantMessage


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
    """A write was dispatched and its answer was lost in a crash: never guessed, never run again."""

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
    """Long waits show themselves: what is download | load | prompt | tool; total 0 means unknown."""

    path: str
    what: str
    done: float
    total: float
    unit: str
    text: str = ""


Live = TextDelta | ThinkingDelta | StreamReset | Progress


class Journal(Protocol):
    """The record of one execution, for one attempt.

    Reads are synchronous: the record is loaded when the attempt starts. `append` keeps order and returns at once;
    `commit` waits until everything appended before it is durable, and raises Fenced when another attempt owns
    the execution. `live` shows and forgets.
    """

    execution: str
    """The execution's id, part of every idempotency key."""

    def append(self, event: Event) -> None: ...
    async def commit(self) -> None: ...
    def live(self, event: Live) -> None: ...

    def requested(self, path: str, step: int, purpose: str = "turn") -> ModelRequested | None:
        """The last request recorded for this step."""
        ...

    def reply(self, path: str, step: int, purpose: str = "turn") -> ModelReplied | None: ...
    def dispatched(self, path: str, call: str) -> ToolDispatched | None: ...
    def finished(self, path: str, call: str) -> ToolFinished | None: ...
    def outcome_unknown(self, path: str, call: str) -> bool: ...
    def approval(self, path: str, call: str) -> ApprovalRequested | None: ...
    def decision(self, path: str, call: str) -> ApprovalDecided | None: ...
    def history_changed(self, path: str, step: int) -> bool: ...
    def fallback(self, path: str) -> Fallback | None:
        """The last change of model on this path."""
        ...

    def lost(self, path: str) -> Usage:
        """What replies under this path that never came back are counted at: their estimates."""
        ...


@dataclass
class Record:
    """The index over a list of events that answers the Journal's questions; shared by all journals."""

    requests: dict[tuple[str, int, str], ModelRequested] = field(default_factory=dict)
    replies: dict[tuple[str, int, str], ModelReplied] = field(default_factory=dict)
    dispatches: dict[tuple[str, str], ToolDispatched] = field(default_factory=dict)
    results: dict[tuple[str, str], ToolFinished] = field(default_factory=dict)
    unknown: set[tuple[str, str]] = field(default_factory=set)
    approvals: dict[tuple[str, str], ApprovalRequested] = field(default_factory=dict)
    decisions: dict[tuple[str, str], ApprovalDecided] = field(default_factory=dict)
    changed: set[tuple[str, int]] = field(default_factory=set)
    fallbacks: dict[str, Fallback] = field(default_factory=dict)
    open_requests: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Enter one event."""
        match event:
            case ModelRequested():
                key = (event.path, event.step, event.purpose)
                self.requests[key] = event
                self.open_requests[key] = self.open_requests.get(key, 0) + event.prompt_tokens_estimate
            case ModelReplied():
                key = (event.path, event.step, event.purpose)
                self.replies[key] = event
                last = self.requests.get(key)
                self.open_requests[key] -= last.prompt_tokens_estimate if last else 0
            case ToolDispatched():
                self.dispatches[event.path, event.call] = event
            case ToolFinished():
                self.results[event.path, event.call] = event
            case ToolOutcomeUnknown():
                self.unknown.add((event.path, event.call))
            case ApprovalRequested():
                self.approvals[event.path, event.call] = event
            case ApprovalDecided():
                self.decisions[event.path, event.call] = event
            case HistoryChanged():
                self.changed.add((event.path, event.step))
            case Fallback():
                self.fallbacks[event.path] = event
            case _:
                pass

    def requested(self, path: str, step: int, purpose: str = "turn") -> ModelRequested | None:
        return self.requests.get((path, step, purpose))

    def reply(self, path: str, step: int, purpose: str = "turn") -> ModelReplied | None:
        return self.replies.get((path, step, purpose))

    def dispatched(self, path: str, call: str) -> ToolDispatched | None:
        return self.dispatches.get((path, call))

    def finished(self, path: str, call: str) -> ToolFinished | None:
        return self.results.get((path, call))

    def outcome_unknown(self, path: str, call: str) -> bool:
        return (path, call) in self.unknown

    def approval(self, path: str, call: str) -> ApprovalRequested | None:
        return self.approvals.get((path, call))

    def decision(self, path: str, call: str) -> ApprovalDecided | None:
        return self.decisions.get((path, call))

    def history_changed(self, path: str, step: int) -> bool:
        return (path, step) in self.changed

    def fallback(self, path: str) -> Fallback | None:
        return self.fallbacks.get(path)

    def lost(self, path: str) -> Usage:
        below = path + "/"
        return Usage(
            input_tokens=sum(
                tokens for (p, _, _), tokens in self.open_requests.items() if p == path or p.startswith(below)
            )
        )


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
