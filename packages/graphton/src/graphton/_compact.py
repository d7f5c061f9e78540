"""Makes room: before a request that would not fit the context window, a summary takes the place of older messages.

The summary is a model call of its own, recorded like any other; what was decided is an event, so that a replay reads it.
The messages themselves stay in the journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import takewhile

import orjson

from graphton import models
from graphton._ask import Call, ask, chats_left, turn
from graphton.approval import Waits
from graphton.budget import Exceeded, OverBudget, Tree
from graphton.chat.base import Chat, Request
from graphton.definition import Definition
from graphton.errors import PromptTooLong, ProviderError, StatusError
from graphton.history import History, estimate_tokens
from graphton.journal import Compacted, Journal, ModelReplied
from graphton.messages import AssistantMessage, Message, ToolResults, UserMessage

__all__ = ["next_reply", "replay"]

ATTEMPTS = 2
"""So many compactions in a row that made too little room, and the run ends."""
INSTRUCTIONS = (
    "You summarise the record of an agent's work, so that the agent can go on with your summary in place of the record. "
    "Keep what it needs: what was asked for and decided, facts and exact values found (names, paths, numbers, errors), "
    "what was done already and must not be done again, what is still to be done. Leave out what turned out not to "
    "matter. Write at most {words} words, nothing but the summary."
)
PIECES = (16_000, 8000, 4000, 2000, 1000, 500, 200, 80)
"""Characters of a single text in the record, the first length that fits."""
LOCAL_REPLY = 4
"""On this machine a reply ends where the window does, so no more than this part of the window is kept free for it."""
TOO_LONG = (
    "prompt is too long",
    "context length",
    "context window",
    "context limit",
    "context_length_exceeded",
    "exceeds the context",
)


async def next_reply(
    agent: Definition, history: History, *, tree: Tree, path: str, step: int, crowded: bool = False
) -> ModelReplied | Exceeded:
    """The reply to the history, compacted first where it would not fit, or the budget that forbids to ask.

    `crowded`: the last reply ended where the window ends. Raises what `ask` raises, and PromptTooLong where no summary
    makes enough room.
    """
    try:
        return await _next_reply(agent, history, tree, path, step, crowded=crowded)
    except OverBudget as over:
        return over.exceeded


async def _next_reply(
    agent: Definition, history: History, tree: Tree, path: str, step: int, *, crowded: bool
) -> ModelReplied | Exceeded:
    refused = crowded
    for again in (True, False):
        if exceeded := await _make_room(agent, history, tree, path, step, refused=refused):
            return exceeded
        try:
            return await ask(agent, turn(agent, history), tree=tree, path=path, step=step)
        except ProviderError as error:
            if not _says_too_long(error):
                raise
            if not again or not history.older(history.latest(0)):
                raise (
                    error
                    if isinstance(error, PromptTooLong)
                    else _no_room(agent, history, tree.journal, path)
                ) from error
            refused = True
    raise AssertionError("the second try either answers or raises")


def replay(history: History, journal: Journal, path: str, step: int) -> None:
    """Put the summaries in place that were recorded before this step's request."""
    for done in journal.compactions(path):
        if done.step == step:
            _apply(history, journal, done)


async def _make_room(
    agent: Definition, history: History, tree: Tree, path: str, step: int, *, refused: bool
) -> Exceeded | None:
    """Compact until the next request fits; `refused`: it does not fit, whatever the estimate says."""
    journal = tree.journal
    room, needs_room = _room(agent, journal, path, step), refused
    if refused:
        room = min(room or history.tokens, history.tokens * 3 // 4)
    while True:
        if exceeded := tree.over(path, step):
            return exceeded
        reply = _unused(journal, path, step)
        if reply is None:
            if journal.pausing:
                raise Waits((), paused=True)
            if not needs_room and (room is None or history.tokens <= room):
                return None
            failed = list(takewhile(lambda one: not one.enough, reversed(journal.compactions(path))))
            kept = history.latest(0 if failed else (room or 0) // 4)
            older = history.older(kept) or history.older(kept := history.latest(0))
            if len(failed) >= ATTEMPTS:
                raise _no_room(agent, history, journal, path)
            if not older:
                if _certainly_too_long(history, chats_left(agent, journal, path)[0]):
                    raise _no_room(agent, history, journal, path)
                return None  # What cannot be left out is for the model's server to judge.
            call = _summary_of(agent, older, kept, room=room or history.tokens)
            reply = await ask(agent, call, tree=tree, path=path, step=step)
        _record(history, journal, reply, room=room or history.tokens)
        needs_room = False


def _unused(journal: Journal, path: str, step: int) -> ModelReplied | None:
    """A summary that came just before a crash."""
    reply = journal.reply(path, step, "compaction")
    used = {(done.step, done.try_) for done in journal.compactions(path)}
    return None if reply is None or (step, reply.try_) in used else reply


def _record(history: History, journal: Journal, reply: ModelReplied, *, room: int) -> None:
    """Put this summary in place, and record what that did."""
    path, step = reply.path, reply.step
    asked = journal.requested(path, step, "compaction")
    kept = asked.kept if asked else 0
    count, before = len(history.messages), history.tokens
    last = count - kept if reply.message.text.strip() else 0
    if last:
        history.compact(kept, reply.message.text.strip())
    after = history.tokens
    journal.append(Compacted(path, step, reply.try_, 0, last, count - last, before, after, room))


def _apply(history: History, journal: Journal, done: Compacted) -> None:
    if done.last:
        history.compact(done.kept, journal.summary(done.path, done.step, done.try_))


# ---- how much room there is ----


def _room(agent: Definition, journal: Journal, path: str, step: int) -> int | None:
    """Tokens that a prompt may take, by our estimate; None where nobody knows the window."""
    chat = chats_left(agent, journal, path)[0]
    window = _window(chat)
    if window is None:
        return None
    return int((window - _reserved(chat, window)) / _bias(journal, path, step))


def _certainly_too_long(history: History, chat: Chat) -> bool:
    """Whether the prompt alone exceeds the window even where our estimate is a fifth too high: it is not sent at all."""
    window = _window(chat)
    return window is not None and history.tokens * 4 // 5 > window


def _window(chat: Chat) -> int | None:
    """The largest window that this chat's requests may take: what was allocated, else what is known of the model."""
    while inner := getattr(chat, "chat", None):  # What teaches a model to use tools stands around its chat.
        chat = inner
    largest: int | None = getattr(chat, "largest_window", None)
    return largest or chat.settings.context_window or models.lookup(chat.ref).context_window


def _reserved(chat: Chat, window: int) -> int:
    provider = models.PROVIDERS.get(chat.ref.provider)
    part = LOCAL_REPLY if provider is None or provider.local else 2
    return min(chat.settings.max_tokens or window, window // part)


def _bias(journal: Journal, path: str, step: int) -> float:
    """How far our estimate of the last turn's prompt fell short of what the model's server counted; 1 to 2."""
    asked, reply = journal.requested(path, step - 1), journal.reply(path, step - 1)
    if asked is None or reply is None or not asked.prompt_tokens_estimate:
        return 1.0
    return min(2.0, max(1.0, reply.message.usage.input_tokens / asked.prompt_tokens_estimate))


def _says_too_long(error: ProviderError) -> bool:
    """Whether the model's server refused the prompt for its length."""
    if isinstance(error, PromptTooLong):
        return True
    if not isinstance(error, StatusError) or error.status not in (400, 413):
        return False
    return error.kind == "context" or any(words in error.message.lower() for words in TOO_LONG)


def _no_room(agent: Definition, history: History, journal: Journal, path: str) -> PromptTooLong:
    """The end of a conversation that stays too long, with the budget by part."""
    chat = chats_left(agent, journal, path)[0]
    window = _window(chat)
    reply = _reserved(chat, window) if window else chat.settings.max_tokens or 0
    said = history.tokens - history.system_tokens - history.tools_tokens
    rows = {
        "system text": history.system_tokens,
        f"tools ({len(agent.tools)})": history.tools_tokens,
        f"history ({len(history.messages)} messages)": said,
        "room for the reply": reply,
        "needed": history.tokens + reply,
    } | ({"context window": window} if window else {})
    table = "\n".join(f"  {name:<24}{size:>9,}" for name, size in rows.items())
    tried = len(journal.compactions(path))
    summed = f", although it was summarised {tried} times" if tried else ""
    return PromptTooLong(
        f"the conversation does not fit the context window of {chat.ref}{summed}; in tokens, estimated:\n{table}",
        hint="use a model with a larger window, or raise --context-window; smaller files and fewer tools help too",
        provider=chat.ref.provider,
    )


# ---- what is summarised ----


def _summary_of(agent: Definition, older: Sequence[Message], kept: int, *, room: int) -> Call:
    """The call for a summary of these messages, which fits into `room` tokens itself."""
    system = INSTRUCTIONS.format(words=max(80, min(1000, room // 8)))
    text = _record_of(older, max(200, room * 9 // 10 - estimate_tokens(system)))
    prompt = UserMessage(f"The record:\n\n{text}\n\nWrite the summary now.")
    digest = hashlib.sha256(orjson.dumps([system, prompt.text])).hexdigest()
    tokens = estimate_tokens(system) + estimate_tokens(prompt.text)
    return Call(Request(system=system, messages=[prompt]), "compaction", digest, tokens, kept=kept)


def _record_of(messages: Sequence[Message], room: int) -> str:
    """The messages as plain text of at most `room` tokens; long texts lose their middle, all of them alike."""
    for length in PIECES:
        text = "\n\n".join(_clip(piece, length) for message in messages for piece in _pieces(message))
        if estimate_tokens(text) <= room:
            return text
    while estimate_tokens(text) > room:
        text = _clip(text, len(text) * 3 // 4)
    return text


def _pieces(message: Message) -> Iterator[str]:
    match message:
        case UserMessage():
            yield f"User: {message.text}"
        case AssistantMessage():
            if message.text.strip():
                yield f"Agent: {message.text}"
            for call in message.calls:
                yield f"Call of {call.name}: {call.malformed or orjson.dumps(call.arguments, default=str).decode()}"
        case ToolResults():
            for result in message.results:
                yield f"{'Error' if result.is_error else 'Result'} of {result.name}: {result.text}"


def _clip(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return f"{text[: length // 2]} […] {text[len(text) - length // 2 :]}"
