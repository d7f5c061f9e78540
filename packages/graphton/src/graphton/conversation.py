"""What was said in a run that has ended, read from its journal: where another run of the same conversation begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from graphton._answer import recorded
from graphton._compact import replay
from graphton.history import History
from graphton.journal import Journal
from graphton.loop import EMPTY, cut, out_of_room, with_note
from graphton.messages import AssistantMessage, Message, StopReason, ToolCall, ToolResults, UserMessage

__all__ = ["conversation", "stands_alone"]


def conversation(
    journal: Journal,
    task: str,
    *,
    earlier: Sequence[Message] = (),
    max_tokens: int | None = None,
    mark: str = "",
) -> list[Message]:
    """The messages of a run on `task`, after those of the runs `earlier`: as its last request carried them, and its end.

    An interrupted run ends where it was: the next run mends what is open. `mark` goes before the ids of its calls, so
    that those of several runs differ.
    """
    history = History()
    history.extend(earlier)
    history.add(UserMessage(task), task=True)
    for step in count(1):
        replay(history, journal, "", step)
        reply = journal.reply("", step)
        if reply is None:
            break
        message = reply.message
        if out_of_room(message, history):
            continue
        history.add(_marked(message, mark))
        if message.stop is StopReason.LENGTH and message.calls:
            history.add(_marked_results(cut(message, max_tokens), mark))
        elif message.calls:
            results = recorded(message, journal, "")
            warned = journal.loop_warned("", step)
            if results.results:
                history.add(_marked_results(with_note(results, warned) if warned else results, mark))
        elif message.stop in (StopReason.END, StopReason.TOOLS) and not message.text.strip():
            history.add(UserMessage(EMPTY))
    return history.messages


def stands_alone(journal: Journal, task: str) -> bool:
    """Whether a summary in this run took the place of all that was said before it: then `earlier` changes nothing."""
    if not any(done.last for done in journal.compactions("")):
        return False
    before = UserMessage("what was said before")
    return before not in conversation(journal, task, earlier=[before])


def _marked(message: AssistantMessage, mark: str) -> AssistantMessage:
    blocks = tuple(replace(b, id=mark + b.id) if isinstance(b, ToolCall) else b for b in message.blocks)
    return replace(message, blocks=blocks, wire={})


def _marked_results(results: ToolResults, mark: str) -> ToolResults:
    return ToolResults(tuple(replace(result, call=mark + result.call) for result in results.results))
