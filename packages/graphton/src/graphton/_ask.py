"""One model call, with the only retries there are; and the next model when this one cannot be reached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import orjson

from graphton._probe import Question, ShortChat, estimated
from graphton._retry import PACE
from graphton._tool_modes import TaughtChat, recorded_mode, settle, taught
from graphton.approval import Waits
from graphton.budget import Tree
from graphton.chat.base import (
    ASKING_AGAIN,
    Chat,
    Done,
    Request,
    TextChunk,
    ThinkingChunk,
    WaitChunk,
    chunks_of,
)
from graphton.definition import Definition
from graphton.errors import BrokenStream, ProviderError, StatusError
from graphton.history import History
from graphton.journal import (
    Fallback,
    Journal,
    ModelReplied,
    ModelRequested,
    Notice,
    Progress,
    Retrying,
    StreamReset,
    TextDelta,
    ThinkingDelta,
)
from graphton.messages import AssistantMessage, ToolCall, UserMessage
from graphton.models import succeeds

__all__ = ["Call", "ask", "chats_left", "turn"]


@dataclass(frozen=True, slots=True)
class Call:
    """What a model is asked, and what the journal will say of it."""

    request: Request
    purpose: str
    """turn | compaction | probe"""
    digest: str
    tokens: int
    """The estimated tokens of the prompt."""
    kept: int = 0
    allowed: Callable[[], None] = lambda: None
    """Raises OverBudget where a limit forbids to ask once more."""
    tool_mode: str = ""
    """How the model is brought to use tools, where that was found out just now."""
    drop_reasoning: Callable[[], bool] = lambda: False
    """Takes the reasoning that a provider refuses out of the request; False where there is none."""


def turn(agent: Definition, history: History) -> Call:
    """The next turn of the conversation."""
    request = Request(agent.system, history.messages, tools=agent.tool_specs, memo=history.memo)
    return Call(request, "turn", history.digest, history.tokens, drop_reasoning=history.drop_reasoning)


async def ask(agent: Definition, call: Call, *, tree: Tree, path: str, step: int) -> ModelReplied:
    """The reply to a call, recorded.

    Raises ProviderError when no model answers, Waits when it is not to ask again now, OverBudget when it may not.
    """
    journal = tree.journal
    call = replace(call, allowed=partial(tree.afford, path, step))
    if journal.requested(path, step, call.purpose) is not None:
        _reset(journal, path, step, call)
    chats = chats_left(agent, journal, path)
    for chat, fallback in zip(chats, (*chats[1:], None), strict=True):
        if fallback is not None and (rests := PACE.resting(chat.ref, chat.settings)):
            reason = f"{chat.ref} failed in another run and rests for {rests:.0f} s more"
            journal.append(Fallback(path, step, str(chat.ref), str(fallback.ref), reason))
            continue
        try:
            able, said = await _with_tools(agent, chat, call, tree, path, step)
            replied = await _tries(agent, able, said, journal, path, step)
        except ProviderError as error:
            if fallback is None or not (error.retryable or _has_ended(error, chat, fallback)):
                raise
            PACE.rest(chat.ref, chat.settings)
            journal.append(Fallback(path, step, str(chat.ref), str(fallback.ref), error.message))
            _reset(journal, path, step, call)
        else:
            tree.mark_unpriced(path, str(chat.ref))
            return replied
    raise AssertionError("the last model either answers or raises")


async def _with_tools(
    agent: Definition, chat: Chat, call: Call, tree: Tree, path: str, step: int
) -> tuple[Chat, Call]:
    """The chat as its model is brought to use tools, and the call that records how, if that is news."""
    if not isinstance(chat, TaughtChat):
        return chat, call
    if not call.request.tools:
        return chat.chat, call
    journal, model = tree.journal, str(chat.ref)
    mode = recorded_mode(journal, path, model)
    if mode is None:

        async def trial(question: Question) -> None:
            journal.live(Progress(path, "probe", 0, 0, "", model))
            probe = replace(_probe(question), allowed=call.allowed)
            await _tries(agent, ShortChat(chat.chat), probe, journal, path, step)

        async with tree.trials:  # Sub-agents that begin together ask one model once.
            found = await settle(chat, journal, trial)
        mode, call = found.mode, replace(call, tool_mode=found.mode)
        if found.why:
            journal.append(Notice(path, "tool_mode", _told(model, found.mode, found.why)))
    return taught(chat.chat, mode), call


_IN_WORDS = {
    "native": "its server's tools API is used",
    "recovery": "calls that it prints are recovered",
    "envelope": "its replies are held to a schema",
}


def _told(model: str, mode: str, why: str) -> str:
    return f"{model} {why}: {_IN_WORDS[mode]}"


def _probe(question: Question) -> Call:
    request = question.request
    said = [message.text for message in request.messages if isinstance(message, UserMessage)]
    digest = hashlib.sha256(orjson.dumps([request.system, said, request.schema is None])).hexdigest()
    return Call(request, "probe", digest, estimated(request))


def _reset(journal: Journal, path: str, step: int, call: Call) -> None:
    if call.purpose == "turn":  # Of other calls no text is shown.
        journal.live(StreamReset(path, step, _next_try(journal, path, step, call.purpose)))


def chats_left(agent: Definition, journal: Journal, path: str) -> tuple[Chat, ...]:
    """The model in use, as the journal knows it, and those that may follow it."""
    last = journal.fallback(path)
    names = [str(chat.ref) for chat in agent.chats]
    start = names.index(last.to) if last is not None and last.to in names else 0
    return agent.chats[start:]


def _next_try(journal: Journal, path: str, step: int, purpose: str) -> int:
    before = journal.requested(path, step, purpose)
    return before.try_ + 1 if before else 1


async def _tries(
    agent: Definition, chat: Chat, call: Call, journal: Journal, path: str, step: int
) -> ModelReplied:
    """The reply of one model, asked as often as the agent's Retry allows."""
    failed = 0
    while True:
        try_ = _next_try(journal, path, step, call.purpose)
        if held := PACE.held(chat.ref, chat.settings):
            reason = f"{chat.ref.provider} told another call with this key to slow down"
            journal.append(Retrying(path, step, try_, 429, held, reason))
            await _sleep(agent, journal, held)
        call.allowed()
        journal.append(_requested(chat, call, path, step, try_))
        try:
            message, again = await _reply(chat, call, journal, path, step, try_)
        except ProviderError as error:
            failed += 1
            if _refuses_reasoning(error) and call.drop_reasoning():
                delay: float | None = 0.0
            else:
                delay = agent.retry.wait(failed, error)
            if delay is None:
                raise
            status = error.status if isinstance(error, StatusError) else 0
            journal.append(Retrying(path, step, try_ + 1, status, delay, error.message))
            _reset(journal, path, step, call)
            if status == 429:
                PACE.slow(chat.ref, chat.settings, delay)
            await _sleep(agent, journal, delay)
        else:
            replied = ModelReplied(path, step, try_, call.purpose, _with_ids(message, step), again)
            journal.append(replied)
            return replied


async def _sleep(agent: Definition, journal: Journal, seconds: float) -> None:
    """Waits until a model may be asked again; raises Waits where the run shall pause meanwhile."""
    await agent.retry.sleep(seconds)
    if journal.pausing:
        raise Waits((), paused=True) from None


def _has_ended(error: ProviderError, chat: Chat, following: Chat) -> bool:
    """Whether the provider no longer has the model, and the one that follows is its successor by the table."""
    gone = isinstance(error, StatusError) and error.status in (404, 410)
    return gone and succeeds(following.ref, chat.ref)


def _refuses_reasoning(error: ProviderError) -> bool:
    """Whether the provider refuses the reasoning blocks that it gave us itself: then one request goes without them."""
    if not isinstance(error, StatusError) or error.status != 400:
        return False
    return any(word in error.message.lower() for word in ("thinking", "signature", "reasoning"))


def _requested(chat: Chat, call: Call, path: str, step: int, try_: int) -> ModelRequested:
    return ModelRequested(
        path=path,
        step=step,
        try_=try_,
        model=str(chat.ref),
        purpose=call.purpose,
        digest=call.digest,
        prompt_tokens_estimate=call.tokens,
        kept=call.kept,
        tool_mode=call.tool_mode,
    )


async def _reply(
    chat: Chat, call: Call, journal: Journal, path: str, step: int, try_: int
) -> tuple[AssistantMessage, tuple[str, ...]]:
    """The whole reply, and why the model was asked once more for it."""
    text = thought = 0
    again: list[str] = []
    async with chunks_of(chat, call.request) as chunks:
        async for chunk in chunks:
            match chunk:
                case TextChunk() | ThinkingChunk() if call.purpose != "turn":
                    pass  # It is no part of the answer.
                case TextChunk():
                    journal.live(TextDelta(path, step, try_, text, chunk.text))
                    text += len(chunk.text)
                case ThinkingChunk():
                    journal.live(ThinkingDelta(path, step, try_, thought, chunk.text))
                    thought += len(chunk.text)
                case WaitChunk():
                    if chunk.what == ASKING_AGAIN:
                        again.append(chunk.text)
                    journal.live(Progress(path, chunk.what, chunk.done, chunk.total, chunk.unit, chunk.text))
                case Done():
                    return chunk.message, tuple(again)
    raise BrokenStream(
        f"the stream of {chat.ref} ended before the reply was whole", provider=chat.ref.provider
    )


def _with_ids(message: AssistantMessage, step: int) -> AssistantMessage:
    """The same message, its calls named `<step>.<index>`."""
    numbers = iter(range(len(message.blocks)))
    blocks = tuple(
        replace(block, id=f"{step}.{next(numbers)}") if isinstance(block, ToolCall) else block
        for block in message.blocks
    )
    return replace(message, blocks=blocks, wire={})
