"""The heart: one function that turns an agent and a journal into events, until the task is done.

Ask the model, answer its tool calls, again. The journal is asked first at every turn, so the same function also
resumes: after a crash it walks over what is recorded without a single request and goes on where the record ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

from graphton._answer import Parked, answer
from graphton._compact import next_reply, replay
from graphton._not_run import REPEATED
from graphton.approval import Question, Waits
from graphton.budget import REPEATS_END, REPEATS_TOLD, Exceeded, Repeats, Tree
from graphton.definition import Definition
from graphton.errors import GraphtonError
from graphton.history import History
from graphton.journal import HistoryChanged, Journal, LoopWarned, Notice
from graphton.messages import (
    AssistantMessage,
    Message,
    StopReason,
    Thinking,
    ToolResult,
    ToolResults,
    Usage,
    UserMessage,
)

__all__ = ["ReplyError", "Result", "run"]

CUT = "Your reply was cut at the limit of {limit} output tokens, so this call was not run. Make it shorter."
EMPTY = "Your last reply was empty. Answer the task, or call a tool."
PATIENCE = 2
"""How often in a row a reply may be useless (empty, or cut inside a call) before the run fails."""


class ReplyError(GraphtonError):
    """The model answered, but with nothing that a run can go on from; `code` says how: refused, context, length, empty, loop."""

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended; what it used counts all sub-agents.

    `waiting` holds the calls that need a decision, wherever in the tree they are; `paused`: it waits because the journal
    said so; `limit` and `value` the budget that stopped it, `limit_path` the agent whose budget that is.
    """

    outcome: Literal["completed", "waiting", "budget_exceeded"]
    text: str = ""
    usage: Usage = Usage()
    usd: float | None = None
    unpriced_calls: int = 0
    steps: int = 0
    waiting: tuple[Question, ...] = ()
    limit: str = ""
    value: float = 0.0
    limit_path: str = ""
    paused: bool = False


async def run(
    agent: Definition,
    task: str,
    *,
    journal: Journal,
    path: str = "",
    earlier: Sequence[Message] = (),
    spent_seconds: float = 0.0,
    tree: Tree | None = None,
) -> Result:
    """Run `agent` on `task` until it is done, must wait, or has used its budget.

    `earlier` is a conversation that the task goes on from, as `graphton.conversation` finds it. `spent_seconds` is the running time of earlier attempts; `tree` is given to sub-agents, whose limits stand in it.
    Raises ProviderError when the model server fails for good, ReplyError when the model's reply leads nowhere, Fenced
    when another attempt took over, OutcomeUnknown where the agent says to stop then. Cancelling the task stops the
    model stream, every running tool and every sub-agent before it returns.
    """
    tree = tree or Tree(journal)
    seconds = tree.limits.setdefault(path, agent.budget).seconds
    try:
        async with asyncio.timeout(None if seconds is None else max(0.0, seconds - spent_seconds)) as clock:
            return await _turns(agent, task, earlier, tree=tree, path=path)
    except TimeoutError:
        if not clock.expired():
            raise
        await journal.commit()
        return _stopped(journal, path, Exceeded("seconds", seconds or 0.0, path))


async def _turns(
    agent: Definition, task: str, earlier: Sequence[Message], *, tree: Tree, path: str
) -> Result:
    journal = tree.journal
    history = History(system=agent.system, tools=agent.tool_schemas, model=str(agent.chat.ref))
    history.extend(earlier)
    history.add(UserMessage(task), task=True)
    useless, crowded, repeats = 0, False, Repeats()
    for step in count(1):
        replay(history, journal, path, step)
        recorded = journal.reply(path, step)
        if recorded is not None:
            _note_change(journal, path, step, history.digest)
        elif journal.pausing:
            return _paused(journal, path)
        try:
            reply = recorded or await next_reply(
                agent, history, tree=tree, path=path, step=step, crowded=crowded
            )
        except Waits:
            return _paused(journal, path)
        if isinstance(reply, Exceeded):
            return _stopped(journal, path, reply)
        message = reply.message
        crowded, again = out_of_room(message, history), ""
        if not crowded:
            history.add(message)
        match message.stop:
            case StopReason.CONTEXT if crowded:
                useless += 1
            case StopReason.LENGTH if message.calls:
                useless += 1
                again = "the reply was cut by max_tokens inside a tool call, so the call was not run"
                history.add(cut(message, agent.chat.settings.max_tokens))
            case StopReason.PAUSED:
                continue
            case _ if message.calls and message.stop in (StopReason.TOOLS, StopReason.END):
                useless = 0
                results = await answer(agent, message, tree=tree, path=path)
                if isinstance(results, Parked) and results.exceeded:
                    return _stopped(journal, path, results.exceeded)
                if isinstance(results, Parked):
                    asked, paused = results.questions, results.paused
                    return _result("waiting", journal, path, waiting=asked, paused=paused)
                warned = _warning(journal, path, step, repeats.count(message, results))
                history.add(with_note(results, warned) if warned else results)
            case StopReason.END | StopReason.TOOLS if not message.text.strip():
                useless += 1
                again = (
                    "the reply held thoughts and no answer" if thinking(message) else "the reply was empty"
                )
                history.add(UserMessage(EMPTY))
            case _:
                _check_final(message, agent)
                if message.stop is StopReason.LENGTH and recorded is None:
                    journal.append(Notice(path, "answer_cut", "the answer was cut by max_tokens"))
                await journal.commit()
                return _result("completed", journal, path, text=message.text)
        if useless > PATIENCE:
            raise _useless(message, agent)
        if again and recorded is None:
            journal.append(Notice(path, "asked_again", f"{again}; the model is asked again"))
    raise AssertionError("count() never ends")


def out_of_room(message: AssistantMessage, history: History) -> bool:
    """Whether the reply ended where the window ends, and a summary can make room: it is then left out and asked for again."""
    return message.stop is StopReason.CONTEXT and bool(history.older(history.latest(0)))


def thinking(message: AssistantMessage) -> bool:
    """Whether the model thought aloud."""
    return any(isinstance(block, Thinking) for block in message.blocks)


def _note_change(journal: Journal, path: str, step: int, digest: str) -> None:
    asked = journal.requested(path, step)
    if asked is not None and asked.digest != digest and not journal.history_changed(path, step):
        journal.append(HistoryChanged(path, step))


def _warning(journal: Journal, path: str, step: int, times: int) -> LoopWarned | None:
    """What the model is told of turns that repeat themselves; ReplyError when it was told and went on."""
    warned = journal.loop_warned(path, step)
    asked = journal.requested(path, step)
    if warned or times < REPEATS_TOLD or journal.requested(path, step + 1):
        return warned  # Decided already, whatever the limits were then.
    if times >= REPEATS_END:
        raise ReplyError(
            f"{asked.model if asked else 'the model'} made the same call with the same result {times} times in a row",
            code="loop",
            hint="say in the task what to do when that does not help, or try another model with --model",
        )
    warned = LoopWarned(path, step, times)
    journal.append(warned)
    return warned


def with_note(results: ToolResults, warned: LoopWarned) -> ToolResults:
    """The results, the warning below the last one."""
    *rest, last = results.results
    return ToolResults((*rest, replace(last, text=last.text + REPEATED.format(times=warned.times))))


def cut(message: AssistantMessage, limit: int | None) -> ToolResults:
    """Answers for the calls of a reply that was cut: the last one may be half, so none is run."""
    text = CUT.format(limit=limit)
    return ToolResults(
        tuple(
            ToolResult(c.id, wire_id=c.wire_id, name=c.name, text=text, is_error=True) for c in message.calls
        )
    )


def _check_final(message: AssistantMessage, agent: Definition) -> None:
    """A reply without calls ends the run; raise unless it is an answer."""
    model = str(agent.chat.ref)
    if message.stop is StopReason.REFUSED:
        raise ReplyError(f"{model} refused to answer: {message.text or 'no reason given'}", code="refused")
    if message.stop is StopReason.CONTEXT:
        raise ReplyError(
            f"the conversation no longer fits the context window of {model}",
            code="context",
            hint="use a model with a larger window, or raise --context-window",
        )
    if message.stop is StopReason.LENGTH and not message.text.strip():
        raise _useless(message, agent)


def _useless(message: AssistantMessage, agent: Definition) -> ReplyError:
    model = str(agent.chat.ref)
    if message.stop is StopReason.CONTEXT:
        _check_final(message, agent)
    if (
        message.stop is StopReason.LENGTH
        and thinking(message)
        and not (message.text.strip() or message.calls)
    ):
        return ReplyError(
            f"{model} thought for all of its {message.usage.output_tokens:,} output tokens and wrote no answer",
            code="length",
            hint="raise --max-tokens, or let it think less: --thinking off",
        )
    if message.stop is StopReason.LENGTH:
        limit = agent.chat.settings.max_tokens
        return ReplyError(
            f"{model} used all of its {limit} output tokens without finishing an answer or a tool call",
            code="length",
            hint="raise --max-tokens",
        )
    return ReplyError(
        f"{model} answered with an empty reply {PATIENCE + 1} times in a row",
        code="empty",
        hint="try again, or another model with --model",
    )


def _paused(journal: Journal, path: str) -> Result:
    return _result("waiting", journal, path, paused=True)


def _stopped(journal: Journal, path: str, by: Exceeded) -> Result:
    return _result("budget_exceeded", journal, path, limit=by.limit, value=by.value, limit_path=by.path)


def _result(
    outcome: Literal["completed", "waiting", "budget_exceeded"], journal: Journal, path: str, **more: Any
) -> Result:
    spent = journal.spent(path)
    return Result(
        outcome, usage=spent.usage, usd=spent.usd, unpriced_calls=spent.unpriced, steps=spent.steps, **more
    )
