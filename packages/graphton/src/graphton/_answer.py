"""The answers to one reply's tool calls: recorded ones are used, new ones are decided, dispatched, run.

Write-ahead: ToolDispatched is durable before a tool starts. A call that a crash left without its answer is run
again only if that is harmless; otherwise its outcome is unknown, and the agent's `on_unknown` says what follows.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson

from graphton._not_run import FORBIDDEN, LEFT, REFUSED, UNKNOWN
from graphton.approval import Answer, Question, Ruling, Waits
from graphton.budget import Exceeded, Tree
from graphton.definition import Definition
from graphton.errors import JournalError, OutcomeUnknown, ToolError
from graphton.journal import (
    ApprovalDecided,
    ApprovalRequested,
    ArgumentsRepaired,
    Journal,
    ProcessStarted,
    Progress,
    RuleMatched,
    ToolDispatched,
    ToolFinished,
    ToolOutcomeUnknown,
    key_of,
)
from graphton.messages import AssistantMessage, ToolCall, ToolResult, ToolResults
from graphton.tools import Effect, Tool, ToolContext, ToolOutput, check_arguments

__all__ = ["Parked", "answer", "recorded"]

CLIPPED = "\n[… {cut} characters left out …]\n"


@dataclass(frozen=True, slots=True)
class Parked:
    """Nothing in the reply can go on: people must answer `questions`, a limit above is `exceeded`, or the run rests."""

    questions: tuple[Question, ...]
    exceeded: Exceeded | None = None
    paused: bool = False


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


_Plan = ToolFinished | _Refused | _Ready | Question


async def answer(
    agent: Definition, message: AssistantMessage, *, tree: Tree, path: str
) -> ToolResults | Parked:
    """Results for all calls of `message`, in call order, or what they wait for when no call can go on."""
    journal = tree.journal
    while True:
        parked = await _go_on(agent, message, tree, path)
        if parked is None:
            return recorded(message, journal, path)
        await journal.commit()
        decided = any(journal.decision(q.path, q.call, q.digest) for q in parked.questions)
        if parked.exceeded or parked.paused or not decided:
            return parked  # Else a person decided while other calls ran.


async def _go_on(agent: Definition, message: AssistantMessage, tree: Tree, path: str) -> Parked | None:
    """Bring every call as far as it goes; None: all have their results."""
    journal = tree.journal
    plans = [await _plan(agent, call, journal, path) for call in message.calls]
    ready = [plan for plan in plans if isinstance(plan, _Ready)]
    paused = journal.pausing and bool(ready)
    if paused:
        ready = []
    for new in ready:
        if not new.dispatched:
            journal.append(_dispatch(new, journal, path))
    if ready:
        await journal.commit()
    waits = await _run_all(agent, ready, tree, path)
    for call, plan in zip(message.calls, plans, strict=True):
        if isinstance(plan, _Refused):
            journal.append(ToolFinished(path, call.id, call.name, plan.text, True, 0.0))
    questions = [plan for plan in plans if isinstance(plan, Question)]
    questions += [question for wait in waits for question in wait.questions]
    exceeded = next((wait.exceeded for wait in waits if wait.exceeded), None)
    paused = paused or any(wait.paused for wait in waits)
    return Parked(tuple(questions), exceeded, paused) if questions or exceeded or paused else None


async def _run_all(agent: Definition, ready: Sequence[_Ready], tree: Tree, path: str) -> list[Waits]:
    """Run these calls side by side; what those sub-agents wait for that could not finish.

    Only what ends the whole run is raised, as it is: JournalError, OutcomeUnknown.
    """
    if len(ready) == 1:  # The usual case: what a task of its own costs is a tenth of a step.
        alone = await _run(agent, ready[0], tree, path)
        return [] if alone is None else [alone]
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(_run(agent, plan, tree, path)) for plan in ready]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [wait for task in running if (wait := task.result()) is not None]


async def _plan(agent: Definition, call: ToolCall, journal: Journal, path: str) -> _Plan:
    """What is to be done about one call; a Question: it waits for a decision."""
    if finished := journal.finished(path, call.id):
        return finished
    dispatched = journal.dispatched(path, call.id)
    lost = journal.outcome_unknown(path, call.id)
    if dispatched and (lost or dispatched.effect == Effect.WRITE):
        return await _lost(agent, call, dispatched, journal)
    tool = agent.tools.get(call.name)
    if tool is None:
        return _Refused(f"There is no tool {call.name!r}. Tools: {', '.join(agent.tools) or 'none'}.")
    if dispatched:  # With the arguments that its key stands for, whatever would be made of them today.
        return _Ready(replace(call, arguments=dispatched.arguments), tool, dispatched=True)
    if call.malformed:
        return _Refused(f"The arguments are no JSON object: {call.malformed[:200]!r}")
    before = journal.repaired(path, call.id)
    given = before.after if before else call.arguments
    arguments, problems = check_arguments(tool, given)
    if problems:
        return _Refused("The arguments do not fit: " + "; ".join(problems))
    good = replace(call, arguments=arguments)
    if arguments is not given:
        journal.append(ArgumentsRepaired(path, call.id, call.arguments, arguments))
    match _ruling(agent, good, tool, journal, path):
        case Ruling("deny", rule):
            return _Refused(FORBIDDEN.format(rule=rule))
        case Ruling("ask") if not agent.approval.approve_all:
            return await _approved(agent, good, tool, journal, path)
        case _:
            return _Ready(good, tool, dispatched=False)


def _ruling(agent: Definition, call: ToolCall, tool: Tool, journal: Journal, path: str) -> Ruling:
    """What the rules say: what they said is recorded, and holds in later attempts."""
    digest = _digest(call)
    said, asked = journal.rule(path, call.id), journal.approval(path, call.id)
    if asked is not None and asked.digest == digest:
        return Ruling("ask")  # An answer for all such calls came later: this question stays a person's.
    if said is not None and said.digest == digest and said.verdict in ("allow", "ask", "deny"):
        return Ruling(said.verdict, said.rule)  # type: ignore[arg-type]  # checked the line before
    ruling = agent.approval.ruling(tool, call)
    if ruling.rule:
        journal.append(RuleMatched(path, call.id, digest, ruling.verdict, ruling.rule))
    return ruling


async def _approved(agent: Definition, call: ToolCall, tool: Tool, journal: Journal, path: str) -> _Plan:
    """What a person decided about this very call."""
    question = ApprovalRequested(path, call.id, call.name, call.arguments, _digest(call))
    decision = await _decision(agent, question, journal)
    if decision is None:
        return Question(path, call.id, question.reason, question.digest)
    if decision.decision != "approved":
        text = REFUSED.get(decision.decision, REFUSED["rejected"])
        return _Refused(f"{text} Reason: {decision.reason}" if decision.reason else text)
    return _Ready(call, tool, dispatched=False)


async def _lost(agent: Definition, call: ToolCall, dispatched: ToolDispatched, journal: Journal) -> _Plan:
    """A write that was dispatched and never answered."""
    path = dispatched.path
    if not journal.outcome_unknown(path, call.id):
        journal.append(ToolOutcomeUnknown(path, call.id))
    if agent.on_unknown == "stop":
        await journal.commit()
        raise OutcomeUnknown(
            f"{call.name} (call {call.id}) was running when the program stopped: it is not known whether it did its work",
            hint='look, then run again with on_unknown "tell" or "ask", or start anew',
        )
    tool = agent.tools.get(call.name)
    if agent.on_unknown == "tell" or tool is None:
        return _Refused(UNKNOWN)
    times = journal.outcome_unknown(path, call.id)
    digest = _digest_of([dispatched.digest, "outcome", times])
    question = ApprovalRequested(path, call.id, call.name, dispatched.arguments, digest, reason="outcome")
    decision = await _decision(agent, question, journal)
    if decision is None:
        return Question(path, call.id, question.reason, digest)
    if decision.decision != "approved":
        left = LEFT.get(decision.decision, LEFT["rejected"])
        return _Refused(" ".join(part for part in (UNKNOWN, left, decision.reason) if part))
    return _Ready(replace(call, arguments=dispatched.arguments), tool, dispatched=False)


async def _decision(
    agent: Definition, question: ApprovalRequested, journal: Journal
) -> ApprovalDecided | None:
    """The decision about exactly this question, asking first where nobody was asked."""
    asked = journal.approval(question.path, question.call)
    if asked is None or asked.digest != question.digest:
        journal.append(question)
    elif decision := journal.decision(question.path, question.call, question.digest):
        return decision
    if agent.approval.ask is None:
        return None
    decision = _decided(await agent.approval.ask(question), question)
    journal.append(decision)
    return decision


def _decided(answered: Answer, asked: ApprovalRequested) -> ApprovalDecided:
    word = "approved" if answered.approved else "rejected"
    return ApprovalDecided(asked.path, asked.call, asked.digest, word, answered.by, answered.reason)


def _digest(call: ToolCall) -> str:
    return _digest_of([call.name, call.arguments])


def _digest_of(parts: list[object]) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _key(journal: Journal, path: str, call: str) -> str:
    """The call's idempotency key: the one that it was dispatched with before, whichever execution that was."""
    before = journal.dispatched(path, call)
    return (before.idempotency_key if before else "") or key_of(journal.execution, path, call)


def _dispatch(plan: _Ready, journal: Journal, path: str) -> ToolDispatched:
    call = plan.call
    return ToolDispatched(
        path=path,
        call=call.id,
        name=call.name,
        arguments=call.arguments,
        digest=_digest(call),
        effect=plan.tool.effect.value,
        idempotency_key=_key(journal, path, call.id),
    )


async def _run(agent: Definition, plan: _Ready, tree: Tree, path: str) -> Waits | None:
    """Run one tool and record its answer; what it raises is an answer too."""
    call, journal = plan.call, tree.journal
    context = ToolContext(
        call=call.id,
        path=path,
        idempotency_key=_key(journal, path, call.id),
        progress=lambda text: journal.live(Progress(path, "tool", 0, 0, "", text)),
        started=lambda pid, at: journal.append(ProcessStarted(path, call.id, pid, at)),
        tree=tree,
    )
    begun = time.monotonic()
    output = await _output(plan.tool, call, context)
    if isinstance(output, Waits):
        return output
    text = _clip(output.text, agent.max_result_chars)
    seconds = time.monotonic() - begun
    journal.append(ToolFinished(path, call.id, call.name, text, output.is_error, seconds))
    return None


async def _output(tool: Tool, call: ToolCall, context: ToolContext) -> ToolOutput | Waits:
    try:
        output = await tool.run(call.arguments, context)
    except Waits as waits:
        return waits
    except (JournalError, OutcomeUnknown):
        raise  # A sub-agent's: these end the whole run.
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


def recorded(message: AssistantMessage, journal: Journal, path: str) -> ToolResults:
    """The results that the journal has for the calls of a reply, in call order."""
    found = [(call, journal.finished(path, call.id)) for call in message.calls]
    return ToolResults(
        tuple(
            ToolResult(call.id, call.wire_id, call.name, finished.result, finished.is_error)
            for call, finished in found
            if finished is not None
        )
    )
