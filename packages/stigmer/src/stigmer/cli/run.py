"""`stigmer run`: one task, from the command line to the answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._limits import limit_options, limits_of
from stigmer.cli._main import asked, json_option, verbose_option
from stigmer.cli._options import flags_of, llm_options
from stigmer.cli._pull import with_model
from stigmer.cli._session import named_server
from stigmer.cli._task import place_option, read_task, workspace
from stigmer.cli._terminal import harmless, person_here, terminal
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import CreateExecutionRequest
    from stigmer.cli._project import Project
    from stigmer.client import Client

__all__ = ["run"]


@click.command()
@click.argument("task", required=False)
@llm_options
@click.option("--agent", metavar="NAME|FILE", help="An agent of .stigmer/agents, or an agent file.")
@click.option("--session", metavar="ID|new", default="", help="Go on with a conversation, or begin one.")
@click.option(
    "--if-running",
    type=click.Choice(["enqueue", "reject", "interrupt"]),
    help="While another run of the session has not finished: wait in line (enqueue, the default), or not.",
)
@click.option("--workspace", metavar="DIR", help="The folder that the tools see. Default: the current one.")
@place_option
@click.option("--yes", is_flag=True, help="Answer every question of a tool with yes.")
@click.option("--detach", is_flag=True, help="Print the execution's id and leave it running.")
@click.option("--dry-run", is_flag=True, help="Print the request that would go to the model; send nothing.")
@limit_options
@click.option("--idempotency-key", metavar="K", default="", help="The same key again is the same execution.")
@json_option
@verbose_option
def run(task: str | None, **given: Any) -> int:
    """Run an agent on TASK and show what it does.

    TASK says what to do; `-` or nothing reads it from standard input, and what is piped in beside a TASK is appended
    to it. The answer goes to stdout, everything else to stderr.

    \b
    Exit codes: 0 done, 1 failed, 2 usage or configuration, 4 waiting for an approval,
    5 stopped by a limit, 130 interrupted.
    """
    flags, limits = flags_of(given), limits_of(given)
    text = read_task(task)
    folder = workspace(given["workspace"], elsewhere=named_server() is not None, place=given["place"])

    here = person_here() and not asked().json

    def look() -> Project:
        from stigmer.cli._project import find_project

        return find_project(folder, agent=given["agent"], home=Home.find(), talk=terminal(), asks=here)

    # A question comes first, and what is wrong with an agent's file: no daemon is started for it. Else the daemon
    # starts meanwhile.
    project = look() if here or given["agent"] else None
    if project is not None:
        project.agent_record()

    async def work(client: Client) -> int:
        from stigmer.cli._request import build

        request = build(
            text,
            flags=flags,
            workspace=folder,
            named=given["workspace"] is not None,
            place=given["place"] or "",
            approve_all=given["yes"],
            budget=limits,
            idempotency_key=given["idempotency_key"],
            home=Home.find(),
            talk=terminal(),
            project=project or look(),
        )
        request.session, request.if_running = given["session"], given["if_running"] or ""
        request.interactive = here and not given["detach"]
        if given["dry_run"]:
            return await _preview(client, request)
        return await (_detach if given["detach"] else _follow)(client, request)

    return with_model(work)


async def _follow(client: Client, request: CreateExecutionRequest) -> int:
    from stigmer.cli._follow import Follower, view_and_asks

    view, asks = view_and_asks()
    return await Follower(client, view, terminal(), cancels=True, asks=asks).follow(client.run(request))


async def _detach(client: Client, request: CreateExecutionRequest) -> int:
    execution = (await client.create(request)).execution.id
    if not asked().json:
        terminal().data(execution + "\n")
        return 0
    from stigmer.cli._view import JsonView

    async for event in client.watch(execution):
        JsonView(terminal()).show(execution, event)  # The first is `created`.
        break
    return 0


async def _preview(client: Client, request: CreateExecutionRequest) -> int:
    found = await client.preview(request)
    talk = terminal()
    if client.address.remote:
        talk.say(f"note: the server at {client.address.shown} says what it would send")
    if asked().json:
        from stigmer.events import settings_json

        shown = {
            "method": found.method,
            "url": found.url,
            "headers": dict(found.headers),
            "body": json.loads(found.body),
            "settings": settings_json(found.config),
            "notices": list(found.config.notices),
        }
        talk.data(json.dumps(shown, ensure_ascii=False) + "\n")
        return 0
    for notice in found.config.notices:
        talk.say(f"note: {harmless(notice)}")
    headers = "".join(f"{name}: {value}\n" for name, value in found.headers.items())
    talk.data(f"{found.method} {found.url}\n{headers}\n{found.body.decode()}\n")
    return 0
