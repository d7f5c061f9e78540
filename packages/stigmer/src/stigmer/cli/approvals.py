"""`approvals`, `approve`, `reject`: the questions that tools wait for, and answers given once and for all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._main import about_this_machine, again, asked, json_option
from stigmer.cli._session import connected
from stigmer.cli._terminal import harmless, terminal
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.api.event_pb2 import ApprovalRequested
    from stigmer.client import Client

__all__ = ["approvals", "approve", "reject"]


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def approvals(ctx: click.Context) -> int:
    """List the questions of all executions that wait for an answer, each call whole."""
    return connected(_listed) if ctx.invoked_subcommand is None else 0


async def _listed(client: Client) -> int:
    ids: dict[str, None] = {}
    for state in ("waiting", "running"):  # What runs may have a question open beside what it does.
        ids |= dict.fromkeys(one.id for one in await client.list(limit=1000, state=state))
    found = [(id, open_) for id in ids for open_ in (await client.get(id)).approvals]
    for execution, open_ in found:
        terminal().data(_json(execution, open_) if asked().json else _text(execution, open_))
    if not found and not asked().json:
        terminal().say("nothing waits for an approval")
    return 0


def _json(execution: str, open_: ApprovalRequested) -> str:
    from stigmer.events import time_text

    row: dict[str, Any] = {
        "execution": execution,
        "call": open_.call,
        "name": open_.name,
        "arguments": json.loads(open_.arguments or b"{}"),
        "digest": open_.digest.hex(),
        "reason": open_.reason or "approval",
        "expires": time_text(open_.expires_ms) if open_.expires_ms else None,
        "always": open_.always or None,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _text(execution: str, open_: ApprovalRequested) -> str:
    from stigmer.cli._view import question
    from stigmer.events import time_text

    path = open_.call.rpartition(":")[0]
    lines = [
        question(open_.name, open_.arguments, open_.reason, path=path),
        again(f"approve {execution} {open_.call}"),
        again(f"reject {execution} {open_.call} --reason …"),
    ]
    if open_.always:
        lines.append(f"with --always all such calls may run from now on: {harmless(open_.always)}")
    if open_.expires_ms:
        lines.append(f"expires {time_text(open_.expires_ms)}")
    return "\n".join(lines) + "\n\n"


@approvals.group(invoke_without_command=True)
@json_option
@click.pass_context
def rules(ctx: click.Context) -> int:
    """List the answers that were given with --always, by number."""
    about_this_machine("approvals rules")
    if ctx.invoked_subcommand is not None:
        return 0
    from stigmer.approvals import Answers
    from stigmer.events import time_text
    from stigmer.organisations import DEFAULT_ORGANISATION

    found = Answers(Home.find().path).all()
    for number, one in enumerate(found, start=1):
        said = time_text(one.time_ms)
        if asked().json:
            row = {"number": number, "agent": one.agent, "tool": one.tool, "when": dict(one.when)}
            row |= {"organisation": one.organisation, "by": one.by, "time": said}
            terminal().data(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            where = f" of {one.organisation}" if one.organisation != DEFAULT_ORGANISATION else ""
            terminal().data(f"{number}  agent {one.agent}{where}: {one}, said by {one.by} at {said}\n")
    if not found and not asked().json:
        terminal().say("no call has been allowed for always. Rules of your own: `approvals:` in config.yaml")
    return 0


@rules.command()
@click.argument("number", type=int)
def remove(number: int) -> int:
    """Forget the answer NUMBER: such calls are asked about again."""
    from stigmer.approvals import Answers

    about_this_machine("approvals rules remove")
    gone = Answers(Home.find().path).remove(number)
    terminal().say(f"removed: agent {gone.agent}: {gone}")
    return 0


@click.command()
@click.argument("execution")
@click.argument("call")
@click.option("--reason", default="", help="Kept in the record.")
@click.option("--always", is_flag=True, help="Let all such calls run from now on, as `approvals` lists it.")
@json_option
def approve(execution: str, call: str, reason: str, always: bool) -> int:
    """Allow the tool call CALL of EXECUTION; the run goes on.

    CALL is written as `stigmer approvals` lists it, with its path where a sub-agent asks. Of a call that a crash cut
    off, approving says that it did not do its work and is to be run again.
    """
    return _decide(execution, call, approve=True, reason=reason, always=always)


@click.command()
@click.argument("execution")
@click.argument("call")
@click.option("--reason", default="", help="The model reads it.")
@json_option
def reject(execution: str, call: str, reason: str) -> int:
    """Refuse the tool call CALL of EXECUTION; the model is told, and the run goes on without it.

    Of a call that a crash cut off, rejecting says that it is not to be run again, because it did its work or for
    another reason.
    """
    return _decide(execution, call, approve=False, reason=reason, always=False)


def _decide(execution: str, call: str, *, approve: bool, reason: str, always: bool) -> int:
    async def work(client: Client) -> int:
        from stigmer.cli._follow import whoami
        from stigmer.cli._request import shell_for

        shell = shell_for(await client.get(execution), home=Home.find())
        done = await client.decide(
            execution, call, approve=approve, by=whoami(), reason=reason, always=always, shell=shell
        )
        word = "approved" if approve else "rejected"
        state = done.execution.state
        if asked().json:
            answer = {"execution": execution, "call": call, "decision": word, "state": state}
            terminal().data(json.dumps(answer) + "\n")
            return 0
        terminal().say(f"{word}. To see the run go on: {again(f'attach {execution}')}")
        if done.execution.waits_for == "pause":
            terminal().say(f"it is paused; to let it go on: {again(f'resume {execution}')}")
        if always and not client.address.remote:
            terminal().say("to see and take back what may run for always: stigmer approvals rules")
        return 0

    return connected(work)
