"""`stigmer retry`: a new run that begins with what a failed one has recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._limits import limit_options, limits_of
from stigmer.cli._main import asked, json_option, verbose_option
from stigmer.cli._options import flags_of, llm_options
from stigmer.cli._pull import with_model
from stigmer.cli._session import named_server
from stigmer.cli._terminal import person_here, terminal
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import CreateExecutionResponse, Execution
    from stigmer.client import Client

__all__ = ["retry"]


@click.command()
@click.argument("execution")
@llm_options
@limit_options
@click.option("--yes", is_flag=True, help="Answer every question of a tool with yes.")
@click.option("--detach", is_flag=True, help="Print the new execution's id and leave it running.")
@json_option
@verbose_option
def retry(execution: str, **given: Any) -> int:
    """Begin anew with what EXECUTION has recorded: it failed, was cancelled, or was stopped by a limit.

    Task, agent and workspace are the same. No reply that it has recorded is asked for again, no finished call is run
    again. The model and the limits come from the flags, the environment and the files of now. What it used counts for
    the limits, except running time.
    """
    flags, limits = flags_of(given), limits_of(given)

    async def work(client: Client) -> int:
        from stigmer.cli._request import build

        first = await client.get(execution)
        request = build(
            first.task,
            flags=flags,
            workspace=Path(first.workspace if _is_here(first) else "."),
            named=False,
            approve_all=given["yes"],
            budget=limits,
            idempotency_key="",
            home=Home.find(),
            talk=terminal(),
        )
        request.retry_of = execution
        request.interactive = person_here() and not asked().json and not given["detach"]
        made = await client.create(request)
        return (
            _left(made)
            if given["detach"] and not asked().json
            else await _follow(client, made, given["detach"])
        )

    return with_model(work)


def _is_here(first: Execution) -> bool:
    """Whether it worked in a folder of this machine."""
    return bool(first.workspace) and not first.place and named_server() is None


def _left(made: CreateExecutionResponse) -> int:
    terminal().data(made.execution.id + "\n")
    return 0


async def _follow(client: Client, made: CreateExecutionResponse, detach: bool) -> int:
    """Shows the new execution: all of it to programs, to people what it does anew."""
    from stigmer.api.event_pb2 import Event
    from stigmer.cli._follow import Follower, view_and_asks
    from stigmer.cli._view import JsonView

    view, asks = view_and_asks()
    id, begins = made.execution.id, 1
    if not isinstance(view, JsonView):
        view.show(id, Event(config_resolved=made.execution.config))
        begins = max(1, made.execution.last_seq - 1)  # The model, and what it goes on from.
    events = client.watch(id, from_seq=begins)
    if detach:
        async for event in events:
            view.show(id, event)  # The first is `created`.
            break
        return 0
    return await Follower(client, view, terminal(), cancels=True, asks=asks).follow(events)
