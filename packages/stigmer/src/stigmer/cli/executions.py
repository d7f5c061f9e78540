"""`attach`, `cancel`, `pause`, `resume`, `get`, `list`: executions that exist already."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._main import again, asked, json_option, verbose_option
from stigmer.cli._session import connected
from stigmer.cli._terminal import harmless, terminal
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import Execution
    from stigmer.client import Client

__all__ = ["attach", "cancel", "get", "list", "pause", "resume", "summary"]

STATES = ("queued", "running", "waiting", "completed", "failed", "cancelled", "budget_exceeded")


@click.command()
@click.argument("execution")
@click.option(
    "--from", "from_seq", type=click.IntRange(1), default=1, metavar="SEQ", help="Begin with this event."
)
@json_option
@verbose_option
def attach(execution: str, from_seq: int) -> int:
    """Show the events of EXECUTION from the beginning, and those to come until it has finished.

    Ctrl-C leaves; the run goes on. Exit codes as of `stigmer run`.
    """

    async def work(client: Client) -> int:
        from stigmer.cli._follow import Follower, view_and_asks

        view, asks = view_and_asks()
        events = client.watch(execution, from_seq=from_seq)
        return await Follower(client, view, terminal(), cancels=False, asks=asks).follow(events)

    return connected(work)


@click.command()
@click.argument("execution")
@json_option
def cancel(execution: str) -> int:
    """Stop EXECUTION, and wait until its last tool has stopped."""

    async def work(client: Client) -> int:
        from stigmer.cli._follow import whoami

        answer = await client.cancel(execution, by=whoami())
        state = answer.execution.state
        if asked().json:
            _print_json({**summary(answer.execution), "already_finished": answer.already_finished})
        elif answer.already_finished:
            terminal().say(f"{execution} had finished already: {state}")
        else:
            terminal().say(f"{execution}: {state}")
        return 0

    return connected(work)


@click.command()
@click.argument("execution")
@json_option
def pause(execution: str) -> int:
    """Let EXECUTION rest: a model's reply and tools that run may end, nothing new starts. Ctrl-C leaves; it rests all the same.

    A paused run holds no process and no memory, and stays paused until `stigmer resume` or `stigmer cancel`.
    """

    async def work(client: Client) -> int:
        from stigmer.cli._follow import whoami

        answer = await client.pause(execution, by=whoami())
        found, finished = answer.execution, answer.already_finished
        if not finished and found.state != "waiting":
            if not asked().json:
                terminal().say("waits for what runs to end …")
            async for event in client.watch(execution, from_seq=found.last_seq):
                if event.HasField("waiting"):
                    break
            found = await client.get(execution)
        if asked().json:
            _print_json({**summary(found), "already_finished": finished})
        elif finished:
            terminal().say(f"{execution} had finished already: {found.state}")
        elif found.state == "waiting":
            terminal().say(f"{execution}: paused. To let it go on: {again(f'resume {execution}')}")
        else:
            terminal().say(f"{execution} ended before it could rest: {found.state}")
        return 0

    return connected(work)


@click.command()
@click.argument("execution")
@json_option
def resume(execution: str) -> int:
    """Let EXECUTION, which is paused or waits for its key, go on where it rested.

    A key that it lacks after a restart of the daemon is given by this shell, as by `stigmer run`.
    """

    async def work(client: Client) -> int:
        from stigmer.cli._follow import whoami
        from stigmer.cli._request import shell_for

        shell = shell_for(await client.get(execution), home=Home.find())
        answer = await client.resume(execution, by=whoami(), shell=shell)
        if asked().json:
            _print_json(summary(answer.execution))
        else:
            terminal().say(f"{execution} goes on. To see it: {again(f'attach {execution}')}")
        return 0

    return connected(work)


@click.command()
@click.argument("kind", metavar="KIND", type=click.Choice(["execution", "session"]))
@click.argument("execution", metavar="ID")
@json_option
def get(kind: str, execution: str) -> int:
    """Show an execution: its state, its configuration with the source of every value, its result; or a session's executions.

    KIND is `execution` or `session`.
    """

    async def work(client: Client) -> int:
        if kind == "session":
            from stigmer.cli.sessions import show

            return await show(client, execution)
        found = await client.get(execution)
        if asked().json:
            _print_json(_whole(found))
        else:
            terminal().data(_page(found))
        return 0

    return connected(work)


@click.command()
@click.argument(
    "kind",
    metavar="[KIND]",
    type=click.Choice(["execution", "executions", "session", "sessions"]),
    default="executions",
)
@click.option("--state", type=click.Choice(STATES), help="Only executions in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
def list(kind: str, state: str | None, limit: int) -> int:
    """List executions, or sessions, newest first. KIND is `executions` (when left out) or `sessions`."""

    async def work(client: Client) -> int:
        if kind.startswith("session"):
            from stigmer.cli.sessions import show_all

            return await show_all(client, limit=limit)
        found = await client.list(limit=limit, state=state or "")
        if asked().json:
            for one in found:
                _print_json(summary(one))
        elif not found:
            terminal().say('no executions yet. To make one: stigmer run "…"')
        else:
            for one in found:
                task = " ".join(harmless(one.task).split())
                terminal().data(f"{one.id}  {one.state:<15}  {_when(one.created_ms)}  {task[:70]}\n")
        return 0

    return connected(work)


def summary(one: Execution) -> dict[str, Any]:
    """What lists show of an execution, for programs."""
    return {
        "id": one.id,
        "state": one.state,
        "task": one.task,
        "agent": one.agent,
        "session": one.session,
        "workspace": one.workspace,
        "place": one.place or None,
        "created": _when(one.created_ms),
        "finished": _when(one.finished_ms) if one.finished_ms else None,
        "attempt": one.attempt,
        "last_seq": one.last_seq,
        "waits_for": one.waits_for or None,
        "retry_of": one.retry_of or None,
    }


def _whole(one: Execution) -> dict[str, Any]:
    from stigmer.events import budget_json, settings_json, usage_json

    ended = one.finished if one.HasField("finished") else None
    return {
        **summary(one),
        "settings": settings_json(one.config),
        "notices": [*one.config.notices],
        "limits": budget_json(one.limits),
        "approvals": [
            {
                "call": open_.call,
                "name": open_.name,
                "arguments": json.loads(open_.arguments or b"{}"),
                "digest": open_.digest.hex(),
                "expires": _when(open_.expires_ms) if open_.expires_ms else None,
                "reason": open_.reason or "approval",
                "always": open_.always or None,
            }
            for open_ in one.approvals
        ],
        "result": ended
        and {
            "outcome": ended.outcome,
            "text": ended.text,
            "error": {"code": ended.error.code, "message": ended.error.message, "hint": ended.error.hint}
            if ended.HasField("error")
            else None,
            "usage": usage_json(ended.usage),
            "carried_usage": usage_json(ended.carried) if ended.HasField("carried") else None,
            "seconds": ended.seconds,
        },
    }


def _page(one: Execution) -> str:
    from stigmer.cli._view import carried_line, limits_line, question, settings_lines, usage_line

    lines = [
        f"execution  {one.id}",
        f"state      {one.state}" + (f" ({one.waits_for})" if one.waits_for else ""),
        *([f"retry of   {one.retry_of}"] if one.retry_of else []),
        f"created    {_when(one.created_ms)}",
        f"workspace  {_workspace(one)}",
        *([f"session    {one.session}"] if one.session else []),
        f"task       {harmless(one.task)}",
        f"limits     {limits_line(one.limits)}",
        "",
        *settings_lines(one.config),
    ]
    for open_ in one.approvals:
        lines += [
            "",
            question(open_.name, open_.arguments, open_.reason),
            again(f"approve {one.id} {open_.call}"),
        ]
    if one.HasField("finished"):
        lines += ["", usage_line(one.finished.usage, one.finished.seconds)]
        if one.finished.HasField("carried"):
            lines.append(carried_line(one.finished.carried))
        if one.finished.HasField("error"):
            error = one.finished.error
            lines += [f"error: {error.message}", *([f"hint: {error.hint}"] if error.hint else [])]
        lines += ["", one.finished.text]
    return "\n".join(lines).rstrip() + "\n"


def _workspace(one: Execution) -> str:
    """Where its files are."""
    if not one.workspace:
        return "none"
    places = {"worker": "on the disk of its worker", "volume": "on the workers' volume"}
    return f"{one.workspace} {places[one.place]}" if one.place in places else one.workspace


def _when(ms: int) -> str:
    from stigmer.events import time_text

    return time_text(ms)


def _print_json(value: dict[str, Any]) -> None:
    terminal().data(json.dumps(value, ensure_ascii=False) + "\n")
