"""The runner: takes an execution's recorded configuration, builds its agent, drives the loop, names the outcome."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graphton import models
from graphton.errors import GraphtonError, JournalError, ProviderError
from graphton.journal import MemoryJournal, Notice, Record
from graphton.models import ModelRef, ModelSettings, Timeouts

from stigmer import redact
from stigmer._translate import from_record
from stigmer.api import event_pb2 as pb
from stigmer.api.service_pb2 import Agent as AgentRecord
from stigmer.api.service_pb2 import CreateExecutionRequest
from stigmer.approvals import Answers, AnswersError, agent_name, rules_of
from stigmer.config import clock
from stigmer.errors import StigmerError
from stigmer.home import Home
from stigmer.journal import StoreJournal, running_seconds
from stigmer.places import folder_of, has_commands, hold, placed_at
from stigmer.store import Row

if TYPE_CHECKING:
    from graphton.agent import Agent
    from graphton.approval import Rule
    from graphton.budget import Budget
    from graphton.chat.base import Chat
    from graphton.loop import Result
    from graphton.messages import Message
    from graphton.tools import Tool, ToolContext, ToolOutput
    from graphton.toolsets.subagents import Subagent

__all__ = [
    "KeySource",
    "Runner",
    "agent_for",
    "complete",
    "enough",
    "failure",
    "limits_of",
    "needed_models",
    "recorded_chat",
]


class KeySource(Protocol):
    """Where a run's key comes from; `stigmer.secrets.Keys` is one."""

    def find(self, execution: str, *, organisation: str, provider: str, base_url: str) -> str | None: ...
    def forget(self, execution: str) -> None: ...


class Runner:
    """Drives attempts. `home` is closed to every tool; reports of our own defects are written below it."""

    def __init__(
        self, home: Path, keys: KeySource, *, always: Callable[[str, str], Sequence[Rule]] | None = None
    ) -> None:
        """`always` gives the answers for all runs of an agent in an organisation; else they are read from the home."""
        self._home, self._keys = home, keys
        self._answers = always or Answers(home).rules

    async def run(self, row: Row, records: Sequence[pb.Event], journal: StoreJournal) -> list[pb.Event]:
        """The records that end this attempt: the last one is `finished` or `waiting`. Raises only JournalError."""
        try:
            return await self._run(row, records, journal)
        except JournalError:
            raise
        except Exception as error:
            failed = pb.Finished(outcome="failed", error=self.explain(error, row))
            return [pb.Event(finished=failed)]

    def can_go_on(self, row: Row, records: Sequence[pb.Event]) -> bool:
        """Whether the keys that this execution needs are at hand."""
        return all(self._key(row, model) is not None for model in needed_models(_config(records)))

    def explain(self, error: Exception, row: Row) -> pb.Error:
        """What the user is told of a failure; a defect of ours leaves a report."""
        return failure(error, home=self._home, about=row.id)

    def forget(self, id: str) -> None:
        """The execution has finished: its key is dropped."""
        self._keys.forget(id)

    def _key(self, row: Row, model: pb.ResolvedModel) -> str | None:
        return self._keys.find(
            row.id, organisation=row.organisation, provider=model.provider, base_url=model.base_url
        )

    async def _run(self, row: Row, records: Sequence[pb.Event], journal: StoreJournal) -> list[pb.Event]:
        request = CreateExecutionRequest.FromString(row.request)
        recorded = _config(records)
        if journal.pausing:
            return [journal.resting()]
        if not self.can_go_on(row, records):
            return [pb.Event(waiting=pb.Waiting(reason="key"))]
        if request.place == "worker":
            await _held_here(request, records, journal)
        told = {record.notice.text for record in records if record.HasField("notice")}
        chats = {"": self._chats(row, recorded.models, journal, told)}
        chats |= {child.name: self._chats(row, child.models, journal, told) for child in recorded.subagents}
        agent = agent_for(
            chats[""][0],
            request,
            closed=(self._home,),
            fallbacks=chats.pop("")[1:],
            children=chats,
            always=self._always(row, request, journal, told),
            tool_modes=Home(self._home).tool_modes,
        )
        try:
            spent = running_seconds(records, now_ms=records[-1].time_ms)
            earlier = said_before(
                await journal.earlier(until=enough(request.retry_of)) if request.session else (),
                retry_of=request.retry_of,
                max_tokens=agent.chat.settings.max_tokens,
            )
            try:
                result = await agent.run(request.task, journal=journal, earlier=earlier, spent_seconds=spent)
            except ProviderError:
                _tell(agent.chat, journal, told)  # What it tried before it gave up.
                raise
            _tell(agent.chat, journal, told)  # A local model's window is only known once it is loaded.
        finally:
            await agent.close()
        return _outcome(result, journal)

    def _chats(
        self, row: Row, models: Sequence[pb.ResolvedModel], journal: StoreJournal, told: set[str]
    ) -> list[Chat]:
        """The chat of an agent, whose key is there, and its fallbacks; what there is to say of them is told."""
        models = list(_with_successors(models))
        main = models[0]
        chat = recorded_chat(main, self._key(row, main) if main.has_key else None)
        _tell(chat, journal, told)
        fallbacks, lacking = self._fallbacks(row, models[1:])
        for name in lacking:
            _say(f"{name} is no fallback just now: its key is missing", journal, told)
        return [chat, *fallbacks]

    def _always(
        self, row: Row, request: CreateExecutionRequest, journal: StoreJournal, told: set[str]
    ) -> Sequence[Rule]:
        """The answers that people of its organisation gave for all runs of this agent, as they are now."""
        name = agent_name(request)
        try:
            return self._answers(name, row.organisation) if name else ()
        except AnswersError as error:  # Asking is the safe way on.
            _say(error.message, journal, told)
            return ()

    def _fallbacks(self, row: Row, models: Iterable[pb.ResolvedModel]) -> tuple[list[Chat], list[str]]:
        """The chats of the fallbacks, and the names of those whose key is nowhere to be had."""
        chats, lacking = [], []
        for model in models:
            key = self._key(row, model) if model.has_key else None
            if key is None and model.has_key:
                lacking.append(f"{model.provider}:{model.model}")
            else:
                chats.append(recorded_chat(model, key))
        return chats, lacking


async def _held_here(
    request: CreateExecutionRequest, records: Sequence[pb.Event], journal: StoreJournal
) -> None:
    """Holds a run to this machine's disk, where its files are; those of its session lie in one folder.

    Raises WorkerGone where they are on another one.
    """
    placed = placed_at(records)
    held = hold(placed or await _of_its_session(request, journal))
    if placed is None:
        journal.write([pb.Event(workspace_placed=held)])


async def _of_its_session(
    request: CreateExecutionRequest, journal: StoreJournal
) -> pb.WorkspacePlaced | None:
    """Where the executions before this one in its session have put their files."""
    if not request.session:
        return None

    def found(row: Row, records: Sequence[pb.Event]) -> bool:
        return placed_at(records) is not None

    earlier = await journal.earlier(until=found)
    return placed_at(earlier[0][1]) if earlier else None


def _tell(chat: Chat, journal: StoreJournal, told: set[str]) -> None:
    """What the chat has to say about its settings, each thing once per execution."""
    for text in chat.notices:
        _say(text, journal, told)


def _say(text: str, journal: StoreJournal, told: set[str]) -> None:
    if text not in told:
        told.add(text)
        journal.append(Notice("", "setting", text))


def _config(records: Sequence[pb.Event]) -> pb.ConfigResolved:
    return next(record.config_resolved for record in records if record.HasField("config_resolved"))


def needed_models(config: pb.ConfigResolved) -> list[pb.ResolvedModel]:
    """The models that a run cannot do without, of those that need a key: the agent's and its sub-agents'."""
    firsts = [config.models[0], *(child.models[0] for child in config.subagents)]
    return [model for model in firsts if model.has_key]


def _with_successors(recorded: Iterable[pb.ResolvedModel]) -> Iterator[pb.ResolvedModel]:
    """The models as recorded; one past its end is followed by its successor, should the provider say that it is gone."""
    today = clock(os.environ).date()
    for model in recorded:
        yield model
        id_, _ = models.api_id(model.provider, model.model, today=today, default=True)
        if id_ == model.model:
            continue
        successor = pb.ResolvedModel()
        successor.CopyFrom(model)
        successor.model = id_
        known = models.lookup(ModelRef(model.provider, id_))
        for field, limit in (("max_tokens", known.max_output), ("context_window", known.context_window)):
            if limit is not None and model.HasField(field) and getattr(model, field) > limit:  # type: ignore[arg-type]  # a field's name
                setattr(successor, field, limit)
        yield successor


def recorded_chat(model: pb.ResolvedModel, key: str | None) -> Chat:
    """The chat that a recorded configuration means."""
    from graphton.chat import create_chat

    def said(name: str) -> Any:
        return getattr(model, name) if model.HasField(name) else None  # type: ignore[arg-type]  # a field's name

    settings = ModelSettings(
        max_tokens=said("max_tokens"),
        temperature=said("temperature"),
        context_window=said("context_window"),
        thinking=said("thinking"),
        dialect=said("dialect"),
        base_url=model.base_url or None,
        api_key=key,
        timeouts=Timeouts(
            connect=said("connect_timeout"),
            first_token=said("first_token_timeout"),
            idle=said("idle_timeout"),
        ),
    )
    return create_chat(ModelRef(model.provider, model.model), settings)


def enough(retry_of: str = "") -> Callable[[Row, Sequence[pb.Event]], bool]:
    """Tells of a session's executions, the last one first, with which one its conversation begins anew by a summary.

    Those before it need not be read. What was tried again is no part of the conversation.
    """
    from graphton.conversation import stands_alone

    again = {retry_of}

    def begins_anew(row: Row, records: Sequence[pb.Event]) -> bool:
        request = CreateExecutionRequest.FromString(row.request)
        again.add(request.retry_of)
        return row.id not in again and stands_alone(_journal(row, records), request.task)

    return begins_anew


def _journal(row: Row, records: Sequence[pb.Event]) -> MemoryJournal:
    journal = MemoryJournal(row.id)
    for event in map(from_record, records):
        if event is not None:
            journal.append(event)
    return journal


def said_before(
    executions: Sequence[tuple[Row, Sequence[pb.Event]]], *, retry_of: str = "", max_tokens: int | None
) -> list[Message]:
    """The conversation of a session's executions so far. One that was tried again is left to its retry, `retry_of` too."""
    from graphton.conversation import conversation

    asked = [(row, CreateExecutionRequest.FromString(row.request), records) for row, records in executions]
    again = {request.retry_of for _, request, _ in asked} | {retry_of}
    said: list[Message] = []
    for row, request, records in asked:
        if row.id in again:
            continue
        journal = _journal(row, records)
        said = conversation(journal, request.task, earlier=said, max_tokens=max_tokens, mark=f"e{row.no}_")
    return said


def complete(finished: pb.Finished, records: Sequence[pb.Event], *, now_ms: int) -> pb.Finished:
    """The same outcome with what the execution used: all attempts, calls that never came back at their estimate.

    What a retry began with was used by the execution that it was taken from: it stands apart.
    """
    began = next((n for n, record in enumerate(records) if record.HasField("attempt_started")), len(records))
    finished.usage.CopyFrom(_usage(records[began:]))
    carried = _usage(records[:began])
    if carried != pb.Usage():
        finished.carried.CopyFrom(carried)
    finished.seconds = running_seconds(records, now_ms=now_ms)
    return finished


def _usage(records: Iterable[pb.Event]) -> pb.Usage:
    record = Record()
    for event in map(from_record, records):
        if event is not None:
            record.add(event)
    spent = record.spent("")
    used = spent.usage + record.lost("")
    usd = spent.usd if spent.usd is None and not spent.lost_usd else (spent.usd or 0.0) + spent.lost_usd
    return pb.Usage(
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cached_tokens=used.cached_tokens,
        cache_write_tokens=used.cache_write_tokens,
        usd=usd,
        unpriced_calls=spent.unpriced,
    )


def failure(error: Exception, *, home: Path, about: str) -> pb.Error:
    """What the user is told of an exception. A known one speaks for itself; any other is our defect and goes to a report."""
    if isinstance(error, (GraphtonError, StigmerError)) and error.code != "internal":
        return pb.Error(code=error.code, message=redact.scrub(error.message), hint=redact.scrub(error.hint))
    report = _report(error, home=home, about=about)
    cause = error.__cause__ if isinstance(error, JournalError) else None
    return pb.Error(
        code="internal",
        message=f"stigmer failed at its own work: {type(cause or error).__name__}",
        hint=f"this is our defect; what happened is written in {report}",
    )


def _report(error: Exception, *, home: Path, about: str) -> str:
    """Writes the trace of a defect to a file for its owner alone, and gives its path."""
    folder = home / "reports"
    folder.mkdir(mode=0o700, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    path = folder / f"{stamp}-{about}.txt"
    text = redact.scrub("".join(traceback.format_exception(error)))
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(f"{about}\n{text}\n")
    return str(path)


def agent_for(
    chat: Chat,
    request: CreateExecutionRequest,
    *,
    closed: Iterable[Path],
    fallbacks: Sequence[Chat] = (),
    children: Mapping[str, Sequence[Chat]] | None = None,
    always: Sequence[Rule] = (),
    tool_modes: Path | None = None,
) -> Agent:
    """The agent that a request asks for; folders in `closed` are shut to its tools.

    `children` holds the chats of sub-agents with settings of their own, by name, one below another as `a/b`;
    `always` what may run without a question; `tool_modes` is the file that remembers how local models use tools.
    """
    from graphton._instructions import DEFAULT_INSTRUCTIONS
    from graphton.agent import create_deep_agent
    from graphton.approval import Approval

    record = request.agent_record
    tools = {tool.name: _guarded(tool) for tool in _tools(request, closed)}
    chosen = _chosen(tools, record)
    return create_deep_agent(
        chat,
        fallbacks=fallbacks,
        instructions=record.instructions or (DEFAULT_INSTRUCTIONS if chosen else None),
        tools=chosen,
        subagents=_subagents(record, tools, chosen, children or {}),
        approval=Approval(request.approve_all, rules=rules_of(request), always=tuple(always)),
        budget=_budget(request.budget),
        on_unknown=record.on_unknown or request.on_unknown or "tell",  # type: ignore[arg-type]  # checked when it was accepted
        name=request.agent,
        tool_modes=tool_modes,
    )


def _subagents(
    record: AgentRecord,
    tools: Mapping[str, Tool],
    above: Sequence[Tool],
    chats: Mapping[str, Sequence[Chat]],
    prefix: str = "",
) -> list[Subagent]:
    """The sub-agents of a record; without a choice of tools they have those of the agent `above`."""
    from graphton._instructions import DEFAULT_INSTRUCTIONS
    from graphton.toolsets.subagents import Subagent

    found = []
    for child in record.subagents:
        own = chats.get(prefix + child.name, ())
        chosen = _chosen(tools, child) if child.HasField("tools") else list(above)
        found.append(
            Subagent(
                child.name,
                child.description,
                child.instructions or (DEFAULT_INSTRUCTIONS if chosen else ""),
                model=own[0] if own else None,
                fallbacks=own[1:],
                tools=chosen,
                subagents=_subagents(child, tools, chosen, chats, f"{prefix}{child.name}/"),
            )
        )
    return found


def _tools(request: CreateExecutionRequest, closed: Iterable[Path]) -> list[Tool]:
    folder = folder_of(request)
    if folder is None:
        return []
    from graphton.toolsets import default_tools, open_workspace

    opened = open_workspace(folder, named=request.workspace_named, closed=closed)
    tools = default_tools(opened, closed=closed)
    return tools if has_commands(request) else [tool for tool in tools if tool.name != "run_command"]


def _chosen(tools: Mapping[str, Tool], record: AgentRecord) -> list[Tool]:
    if not record.HasField("tools"):
        return list(tools.values())
    return [tool for name, tool in tools.items() if name in record.tools.names]


def _guarded(tool: Tool) -> Tool:
    """The tool, with known secrets masked in what it answers: neither the model nor the record gets to see one."""
    from graphton.tools import ToolOutput

    async def run(arguments: dict[str, Any], context: ToolContext) -> ToolOutput:
        output = await tool.run(arguments, context)
        if isinstance(output, str):
            return ToolOutput(redact.mask(output))
        return replace(output, text=redact.mask(output.text))

    return replace(tool, run=run)


def _budget(given: pb.Budget) -> Budget:
    from graphton.budget import Budget

    said = {field.name: value for field, value in given.ListFields()}
    return replace(Budget(), **said)


def limits_of(request: CreateExecutionRequest) -> pb.Budget:
    """The limits of a run, the usual ones where the request has none."""
    budget = _budget(request.budget)
    return pb.Budget(**{field.name: getattr(budget, field.name) for field in pb.Budget.DESCRIPTOR.fields})


def _outcome(result: Result, journal: StoreJournal) -> list[pb.Event]:
    match result.outcome:
        case "completed":
            return [pb.Event(finished=pb.Finished(outcome="completed", text=result.text))]
        case "budget_exceeded":
            exceeded = pb.BudgetExceeded(limit=result.limit, value=result.value)
            finished = pb.Finished(outcome="budget_exceeded", text=result.text)
            return [pb.Event(budget_exceeded=exceeded), pb.Event(finished=finished)]
        case "waiting" if result.paused:
            return [journal.resting()]
        case "waiting":
            return [journal.waiting(result.waiting)]
