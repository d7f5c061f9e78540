"""One try: the agent that `stigmer run` makes, in a fresh folder with the task's files, and what came out.

Only the process of the bench imports this: it reaches the loop and the providers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from graphton.agent import Agent, create_deep_agent
from graphton.approval import Answer, Approval
from graphton.budget import Budget
from graphton.chat.base import Chat
from graphton.errors import ConnectError, GraphtonError, ModelMissing
from graphton.journal import ApprovalRequested, ArgumentsRepaired, MemoryJournal, ModelReplied, ToolFinished
from graphton.loop import Result
from graphton.messages import AssistantMessage
from graphton.models import ToolMode

from stigmer.modelbench.own_tools import TOOLSETS, own_tools
from stigmer.modelbench.results import Try
from stigmer.modelbench.task import Case, Made, Outcome, judge

__all__ = ["attempt", "files_of", "folder_for", "mode_of"]

MAX_STEPS = 12
"""A small model that needs more replies than this for a small task goes in circles."""
MAX_SECONDS = 240.0
"""Running time after which a try has not ended by itself."""
_MAX_FILE = 20_000


async def attempt(chat: Chat, case: Case, *, tool_mode: ToolMode | None = None) -> Try:
    """Do the task once. A failed run is an outcome like others; raises only when no try could work (no server, no model)."""
    journal, begun = MemoryJournal(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stigmer-bench-") as name:
        folder = Path(name)
        folder_for(case, folder)
        agent = _agent(chat, case, folder, tool_mode)
        ended, answer = await _run(agent, case, journal)
        outcome = Outcome(answer or _last_words(journal), tuple(_made(journal)), files_of(folder), ended)
    replies = list(_replies(journal))
    usages = [reply.usage for reply in replies]
    return Try(
        id=case.id,
        wrong=judge(case, outcome),
        outcome=outcome,
        mode=journal.tool_mode("", str(agent.chat.ref)) or mode_of(agent.chat),
        replies=tuple(reply.text for reply in replies),
        seconds=time.monotonic() - begun,
        first_tokens=usages[0].input_tokens if usages else 0,
        later_tokens=sum(usage.input_tokens for usage in usages[1:]),
        later_cached=sum(usage.cached_tokens for usage in usages[1:]),
        output_tokens=sum(usage.output_tokens for usage in usages),
    )


def mode_of(chat: Chat) -> ToolMode:
    """How this chat brings its model to use tools, where somebody said so."""
    from graphton.envelope import EnvelopeChat
    from graphton.recovery import RecoveringChat

    if isinstance(chat, EnvelopeChat):
        return "envelope"
    return "recovery" if isinstance(chat, RecoveringChat) else "native"


def folder_for(case: Case, folder: Path) -> None:
    """Lay out the files of a task."""
    for path, text in case.wording.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")


def files_of(folder: Path) -> Mapping[str, str]:
    """Every file below the folder, with its text."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()[:_MAX_FILE].decode(errors="replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _agent(chat: Chat, case: Case, folder: Path, tool_mode: ToolMode | None) -> Agent:
    tools = TOOLSETS[case.task.tools]
    return create_deep_agent(
        chat,
        instructions=tools.instructions,
        tools=own_tools(case.task.tools),
        workspace=folder if tools.files else None,
        approval=Approval(ask=_nobody_says_yes),
        budget=Budget(steps=1 if case.first_reply_only else MAX_STEPS, seconds=MAX_SECONDS),
        tool_mode=tool_mode,
    )


async def _nobody_says_yes(asked: ApprovalRequested) -> Answer:
    return Answer(False, by="bench", reason="no commands in this folder")


async def _run(agent: Agent, case: Case, journal: MemoryJournal) -> tuple[str, str]:
    """How it ended, and the answer."""
    try:
        result = await agent.run(case.wording.request, journal=journal)
    except (ConnectError, ModelMissing):
        raise
    except GraphtonError as error:
        return f"error: {error.code}: {error.message}"[:400], ""
    except Exception as error:
        # A defect of ours must be seen as one in the table, not end the bench.
        return f"error: crash: {type(error).__name__}: {error}"[:400], ""
    return _ended(result, case), result.text


def _ended(result: Result, case: Case) -> str:
    if result.outcome != "budget_exceeded":
        return result.outcome
    return "stopped" if case.first_reply_only and result.limit == "steps" else result.limit


def _last_words(journal: MemoryJournal) -> str:
    replies = list(_replies(journal))
    return replies[-1].text if replies else ""


def _replies(journal: MemoryJournal) -> Iterator[AssistantMessage]:
    """What the model said to the task: not to a summary, nor when it was tried out."""
    for event in journal.events:
        if isinstance(event, ModelReplied) and event.purpose == "turn":
            yield event.message


def _made(journal: MemoryJournal) -> Iterator[Made]:
    """Each call with the arguments that the tool was given, and its result."""
    repaired = {event.call: event.after for event in journal.events if isinstance(event, ArgumentsRepaired)}
    finished = {event.call: event for event in journal.events if isinstance(event, ToolFinished)}
    for reply in _replies(journal):
        for call in reply.calls:
            done = finished.get(call.id)
            arguments = repaired.get(call.id, call.arguments)
            result = done.result if done else "(not run)"
            yield Made(call.name, arguments, result[:2000], done.is_error if done else True)
