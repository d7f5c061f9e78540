"""The answers to one reply's tool calls: recorded ones are used, new ones are decided, dispatched, run.

Write-ahead: ToolDispatched is durable before a tool starts. A call that a crash left without its answer is run
again only if that is harmless; otherwise its outcome is unknown, and the model is told so.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace

import orjson

from graphton.approval import Answer
from graphton.definition import Definition
from graphton.errors import ToolError
from graphton.journal import (
    ApprovalDecided,
    ApprovalRequested,
    ArgumentsRepaired,
    Journal,
    ProcessStarted,
    Progress,
    ToolDispatched,
    ToolFinished,
    ToolOutcomeUnknown,
)
from graphton.messages import AssistantMessage, ToolCall, ToolResult, ToolResults
from graphton.tools import Effect, Tool, ToolContext, ToolOutput, check_arguments

__all__ = ["Parked", "answer"]

UNKNOWN = (
    "The program stopped while this call was running, so it is not known whether it did its work. "
    "It was not run again. Look at the current state before you go on."
)
REJECTED = "A person rejected this call; it was not run."
CLIPPED = "\n[… {cut} characters left out …]\n"


@dataclass(frozen=True, slots=True)
class Parked:
    """These calls wait for a decision; nothing else in the reply can go on."""

    calls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Refused:
    """The call is answered without being run."""

    text: str


@dataclass(frozen=True, slots=True)
class _Ready:
    """The call may run; `dispatched` when an earlier attempt had started it."""

    call: ToolCall
    tool: Tool
    dispatched: bool


_Plan = ToolFinished | _Refused | _Ready | None


async def answer(
    agent: Definition, message: AssistantMessage, *, journal: Journal, path: str
) -> ToolResults | Parked:
    """Results for all calls of `message`, in call order, or which calls wait for a person."""
    plans = [await _plan(agent, call, journal, path) for call in message.calls]
    ready = [plan for plan in plans if isinstance(plan, _Ready)]
    for new in ready:
        if not new.dispatched:
            journal.append(_dispatch(new, journal.execution, path))
    if ready:
        await journal.commit()
    async with asyncio.TaskGroup() as group:
        for able in ready:
            group.create_task(_run(agent, able, journal, path))
    planned = list(zip(message.calls, plans, strict=True))
    for call, plan in planned:
        if isinstance(plan, _Refused):
            journal.append(ToolFinished(path, call.id, call.name, plan.text, True, 0.0))
    parked = tuple(call.id for call, plan in planned if plan is None)
    if parked:
        await journal.commit()
        return Parked(parked)
    return ToolResults(tuple(_result(call, journal, path) for call in message.calls))


async def _plan(agent: Definition, call: ToolCall, journal: Journal, path: str) -> _Plan:
    """What is to be done about one call; None: it waits for a decision."""
    if finished := journal.finished(path, call.id):
        return finished
    if journal.outcome_unknown(path, call.id):
        return _Refused(UNKNOWN)
    tool = agent.tools.get(call.name)
    if tool is None:
        return _Refused(f"There is no tool {call.name!r}. Tools: {', '.join(agent.tools) or 'none'}.")
    if call.malformed:
        return _Refused(f"The arguments are no JSON object: {call.malformed[:200]!r}")
    arguments, problems = check_arguments(tool, call.arguments)
    if problems:
        return _Refused("The arguments do not fit: " + "; ".join(problems))
    good = replace(call, arguments=arguments)
    dispatched = journal.dispatched(path, call.id)
    if dispatched and tool.effect is Effect.WRITE:
        journal.append(ToolOutcomeUnknown(path, call.id))
        return _Refused(UNKNOWN)
    if dispatched is None:
        if arguments is not call.arguments and journal.approval(path, call.id) is None:
            journal.append(ArgumentsRepaired(path, call.id, call.arguments, arguments))
        match agent.approval.verdict(tool, good):
            case "deny":
                return _Refused("A rule forbids this call; it was not run.")
            case "ask":
                return await _asked(agent, good, tool, journal, path)
    return _Ready(good, tool, dispatched is not None)


async def _asked(agent: Definition, call: ToolCall, tool: Tool, journal: Journal, path: str) -> _Plan:
    """What a person decided about this very call, asking first where nobody was asked."""
    digest = _digest(call)
    decision = journal.decision(path, call.id)
    asked = journal.approval(path, call.id)
    if asked is None or asked.digest != digest:
        asked = ApprovalRequested(path, call.id, call.name, call.arguments, digest)
        journal.append(asked)
        decision = None
    if decision is None and agent.approval.ask is not None:
        answered = await agent.approval.ask(asked)
        decision = _decided(answered, asked)
        journal.append(decision)
    if decision is None:
        return None
    if decision.digest != digest or decision.decision != "approved":
        return _Refused(f"{REJECTED} Reason: {decision.reason}" if decision.reason else REJECTED)
    return _Ready(call, tool, False)


def _decided(answered: Answer, asked: ApprovalRequested) -> ApprovalDecided:
    word = "approved" if answered.approved else "rejected"
    return ApprovalDecided(asked.path, asked.call, asked.digest, word, answered.by, answered.reason)


def _digest(call: ToolCall) -> str:
    return hashlib.sha256(orjson.dumps([call.name, call.arguments], option=orjson.OPT_SORT_KEYS)).hexdigest()


def _key(execution: str, path: str, call: str) -> str:
    return f"{execution}:{path}:{call}"


def _dispatch(plan: _Ready, execution: str, path: str) -> ToolDispatched:
    call = plan.call
    return ToolDispatched(
        path=path,
        call=call.id,
        name=call.name,
        arguments=call.arguments,
        digest=_digest(call),
        effect=plan.tool.effect.value,
        idempotency_key=_key(execution, path, call.id),
    )


async def _run(agent: Definition, plan: _Ready, journal: Journal, path: str) -> None:
    """Run one tool and record its answer; what it raises is an answer too."""
    call = plan.call
    context = ToolContext(
        call=call.id,
        path=path,
        idempotency_key=_key(journal.execution, path, call.id),
        progress=lambda text: journal.live(Progress(path, "tool", 0, 0, "", text)),
        started=lambda pid, at: journal.append(ProcessStarted(path, call.id, pid, at)),
    )
    begun = time.monotonic()
    output = await _output(plan.tool, call, context)
    text = _clip(output.text, agent.max_result_chars)
    seconds = time.monotonic() - begun
    journal.append(ToolFinished(path, call.id, call.name, text, output.is_error, seconds))


async def _output(tool: Tool, call: ToolCall, context: ToolContext) -> ToolOutput:
    try:
        output = await tool.run(call.arguments, context)
    except ToolError as error:
        return ToolOutput(str(error), is_error=True)
    except (
        Exception
    ) as error:  # Whatever a user's tool raises goes to the model as the answer, never further.
        return ToolOutput(f"{type(error).__name__}: {error}", is_error=True)
    return ToolOutput(output) if isinstance(output, str) else output


def _clip(text: str, limit: int) -> str:
    """The text, its middle left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return text[:head] + CLIPPED.format(cut=len(text) - limit) + text[-tail:]


def _result(call: ToolCall, journal: Journal, path: str) -> ToolResult:
    finished = journal.finished(path, call.id)
    assert finished is not None, f"call {call.id} was neither finished nor parked"
    return ToolResult(call.id, call.wire_id, call.name, finished.result, finished.is_error)
