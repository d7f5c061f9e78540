"""One model call, with the only retries there are: broken streams, overload, rate limits, lost connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graphton.chat.base import Chat, Done, Request, TextChunk, ThinkingChunk, WaitChunk, chunks_of
from graphton.errors import BrokenStream, ProviderError, StatusError
from graphton.history import History
from graphton.journal import (
    Journal,
    ModelReplied,
    ModelRequested,
    Progress,
    Retrying,
    StreamReset,
    TextDelta,
    ThinkingDelta,
)
from graphton.messages import AssistantMessage, ToolCall

if TYPE_CHECKING:
    from graphton.agent import Agent

__all__ = ["Retry", "ask"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long a failed model call is tried again.

    The wait doubles from `base` to `cap` seconds with full jitter; a Retry-After of the server is kept to when
    it is at most `patience` seconds, else the run fails at once and says how long the server asked for.
    """

    tries: int = 6
    base: float = 0.5
    cap: float = 30.0
    patience: float = 300.0
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def wait(self, failed: int, error: ProviderError) -> float | None:
        """Seconds until the next try after `failed` tries, or None when it is time to give up."""
        if not error.retryable or failed >= self.tries:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.patience else None
        return min(self.cap, self.base * 2.0 ** (failed - 1)) * (0.5 + self.jitter() / 2)


async def ask(agent: Agent, history: History, *, journal: Journal, path: str, step: int) -> ModelReplied:
    """The model's reply to the history, recorded. Raises ProviderError when no try succeeds."""
    request = Request(system=agent.system, messages=history.messages, tools=agent.tool_specs)
    before = journal.requested(path, step)
    first = before.try_ + 1 if before else 1
    if before:
        journal.live(StreamReset(path, step, first))
    for failed in range(agent.retry.tries):
        try_ = first + failed
        journal.append(_requested(agent.chat, history, path, step, try_))
        try:
            message = await _reply(agent.chat, request, journal, path, step, try_)
        except ProviderError as error:
            delay = agent.retry.wait(failed + 1, error)
            if delay is None:
                raise
            status = error.status if isinstance(error, StatusError) else 0
            journal.append(Retrying(path, step, try_ + 1, status, delay, error.message))
            journal.live(StreamReset(path, step, try_ + 1))
            await agent.retry.sleep(delay)
        else:
            replied = ModelReplied(path, step, try_, "turn", _with_ids(message, step))
            journal.append(replied)
            return replied
    raise AssertionError("the last try either answers or raises")


def _requested(chat: Chat, history: History, path: str, step: int, try_: int) -> ModelRequested:
    return ModelRequested(
        path=path,
        step=step,
        try_=try_,
        model=str(chat.ref),
        purpose="turn",
        digest=history.digest,
        prompt_tokens_estimate=history.tokens,
    )


async def _reply(
    chat: Chat, request: Request, journal: Journal, path: str, step: int, try_: int
) -> AssistantMessage:
    text = thought = 0
    async with chunks_of(chat, request) as chunks:
        async for chunk in chunks:
            match chunk:
                case TextChunk():
                    journal.live(TextDelta(path, step, try_, text, chunk.text))
                    text += len(chunk.text)
                case ThinkingChunk():
                    journal.live(ThinkingDelta(path, step, try_, thought, chunk.text))
                    thought += len(chunk.text)
                case WaitChunk():
                    journal.live(Progress(path, chunk.what, chunk.done, chunk.total, chunk.unit, chunk.text))
                case Done():
                    return chunk.message
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
