"""Every metric there is, in one table, and the labels it may have.

Labels are bounded: words of ours, and names that somebody chose (models, tools) up to a cap, from which on they are
counted as `other`. No id, and nothing that a model wrote, is ever a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from stigmer.telemetry import _conventions as genai

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

__all__ = ["GAUGES", "Cap", "Instruments", "Level"]

Level = Callable[[], Iterable[tuple[float, dict[str, str]]]]
"""What a gauge shows just now: values with their labels."""

_SHORT = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
"""Seconds of what takes milliseconds."""
_LONG = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600)
"""Seconds of what a model, a tool or a whole run takes."""
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
_SIZES = (1, 2, 3, 5, 10, 20, 50, 100)

_COUNTERS = {
    "executions_accepted": ("stigmer.executions.accepted", "{execution}", "Executions that were accepted."),
    "executions_finished": (
        "stigmer.executions.finished",
        "{execution}",
        "Executions that have ended, by outcome and, of failed ones, by error code.",
    ),
    "attempts": ("stigmer.attempts", "{attempt}", "Attempts that have ended, by how."),
    "approvals": (
        "stigmer.approvals",
        "{approval}",
        "Questions about tool calls: requested, approved, rejected, expired, cancelled.",
    ),
    "tokens": ("stigmer.model.tokens", "{token}", "Tokens by model and kind; input holds the cached ones."),
    "cost": ("stigmer.model.cost_usd", "{USD}", "US dollars of replies whose price is known."),
    "unpriced": ("stigmer.model.unpriced", "{reply}", "Replies whose price nobody knows."),
    "retries": ("stigmer.model.retries", "{retry}", "Waits before a model is asked again, by HTTP status."),
    "fallbacks": ("stigmer.model.fallbacks", "{change}", "Changes to the next model."),
    "tool_calls": (
        "stigmer.tool.calls",
        "{call}",
        "Tool calls by outcome: ok, error, refused (it did not run), unknown (a crash cut it off).",
    ),
    "rpc_calls": ("stigmer.rpc.calls", "{call}", "gRPC calls that have ended, by method and status."),
}
_HISTOGRAMS: dict[str, tuple[str, str, str, Sequence[float]]] = {
    "execution_duration": (
        "stigmer.execution.duration",
        "s",
        "Running time of an execution: all its attempts, without waiting.",
        _LONG,
    ),
    "queue_duration": ("stigmer.execution.queue", "s", "From accepted to the first attempt.", _LONG),
    "step_duration": ("stigmer.step.duration", "s", "A model's turn and the tools that it called.", _LONG),
    "operation_duration": (
        genai.OPERATION_DURATION,
        "s",
        "One request to a model, from first to last byte.",
        _LONG,
    ),
    "first_chunk": (genai.FIRST_CHUNK, "s", "Until the first word of a reply.", _LONG),
    "token_usage": (genai.TOKEN_USAGE, "{token}", "Tokens of one request, by input and output.", _TOKENS),
    "tool_duration": ("stigmer.tool.duration", "s", "One call of a tool.", _LONG),
    "append_duration": (
        "stigmer.journal.append.duration",
        "s",
        "From an event of an attempt to its acknowledgement by the store.",
        _SHORT,
    ),
    "batch_size": ("stigmer.journal.batch.size", "{event}", "Events that were appended together.", _SIZES),
    "rpc_duration": ("stigmer.rpc.duration", "s", "gRPC calls with one answer.", _SHORT),
}
GAUGES = {
    "stigmer.executions": ("{execution}", "Executions in the store by state: queued, running, waiting."),
    "stigmer.attempts.running": ("{attempt}", "Attempts that this process drives."),
    "stigmer.watch.streams": ("{stream}", "Callers that watch an execution over this server."),
    "stigmer.worker.slots": ("{slot}", "Executions that this worker could drive at once: used, free."),
    "stigmer.worker.draining": ("1", "1 while this worker takes nothing more and ends."),
}
"""Metrics that are looked at when they are fetched: unit and meaning by name."""


class Cap:
    """Names that somebody chose, as labels: the first `limit` of them as they are, all others as `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """The label of a name."""
        if name not in self._known:
            if len(self._known) >= self._limit:
                return "other"
            self._known.add(name)
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._known


class Instruments:
    """The metrics of one process, each an attribute; `levels` says what the gauges show."""

    executions_accepted: Any
    executions_finished: Any
    attempts: Any
    approvals: Any
    tokens: Any
    cost: Any
    unpriced: Any
    retries: Any
    fallbacks: Any
    tool_calls: Any
    rpc_calls: Any
    execution_duration: Any
    queue_duration: Any
    step_duration: Any
    operation_duration: Any
    first_chunk: Any
    token_usage: Any
    tool_duration: Any
    append_duration: Any
    batch_size: Any
    rpc_duration: Any

    def __init__(self, meter: Meter) -> None:
        self.levels: dict[str, Level] = {}
        self.models, self.tools, self.codes = Cap(50), Cap(100), Cap(50)
        for attribute, (name, unit, text) in _COUNTERS.items():
            setattr(self, attribute, meter.create_counter(name, unit, text))
        for attribute, (name, unit, text, bounds) in _HISTOGRAMS.items():
            made = meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=bounds)
            setattr(self, attribute, made)
        for name, (unit, text) in GAUGES.items():
            meter.create_observable_gauge(name, [self._shown(name)], unit, text)

    def _shown(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def show(options: CallbackOptions) -> Iterable[Observation]:
            level = self.levels.get(name)
            return [Observation(value, labels) for value, labels in level()] if level else []

        return show

    def tool(self, name: str) -> str:
        """The label of a tool that was called. What never ran may be a name that a model made up."""
        return name if name in self.tools else "other"
