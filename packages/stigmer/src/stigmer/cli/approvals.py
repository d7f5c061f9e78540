"""`approvals`, `approve`, `reject`: the questions that tools wait for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from stigmer.cli._main import asked, json_option
from stigmer.cli._session import connected
from stigmer.cli._terminal import terminal

if TYPE_CHECKING:
    from stigmer.client import Client

__all__ = ["approvals", "approve", "reject"]


@click.command()
@json_option
def approvals() -> int:
    """List the questions that wait for an answer, each with the command whole."""

    async def work(client: Client) -> int:
        from stigmer.cli._view import question

        talk = terminal()
        found = [
            (one, open_)
            for one in await client.list(limit=1000, state="waiting")
            for open_ in (await client.get(one.id)).approvals
        ]
        for one, open_ in found:
            if asked().json:
                arguments = json.loads(open_.arguments or b"{}")
                row = {"execution": one.id, "call": open_.call, "name": open_.name, "arguments": arguments}
                talk.data(json.dumps({**row, "digest": open_.digest.hex()}, ensure_ascii=False) + "\n")
            else:
                talk.data(
                    f"{question(open_.name, open_.arguments, open_.reason)}\nstigmer approve {one.id} {open_.call}\n\n"
                )
        if not found and not asked().json:
            talk.say("nothing waits for an approval")
        return 0

    return connected(work)


@click.command()
@click.argument("execution")
@click.argument("call")
@click.option("--reason", default="", help="Kept in the record.")
@json_option
def approve(execution: str, call: str, reason: str) -> int:
    """Allow the tool call CALL of EXECUTION; the run goes on."""
    return _decide(execution, call, approve=True, reason=reason)


@click.command()
@click.argument("execution")
@click.argument("call")
@click.option("--reason", default="", help="The model reads it.")
@json_option
def reject(execution: str, call: str, reason: str) -> int:
    """Refuse the tool call CALL of EXECUTION; the model is told, and the run goes on without it."""
    return _decide(execution, call, approve=False, reason=reason)


def _decide(execution: str, call: str, *, approve: bool, reason: str) -> int:
    async def work(client: Client) -> int:
        from stigmer.cli._follow import whoami

        done = await client.decide(execution, call, approve=approve, by=whoami(), reason=reason)
        word = "approved" if approve else "rejected"
        if asked().json:
            answer = {"execution": execution, "call": call, "decision": word, "state": done.execution.state}
            terminal().data(json.dumps(answer) + "\n")
        else:
            terminal().say(f"{word}. To see the run go on: stigmer attach {execution}")
        return 0

    return connected(work)
