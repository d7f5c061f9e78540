"""Where the files of a run are to be: what its caller or its agent wants, and what this server can give."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence

from stigmer.api import service_pb2 as api
from stigmer.errors import ConfigError, StigmerError
from stigmer.places import PLACES, VOLUME, has_commands, own, volume
from stigmer.server.status import Refused
from stigmer.store import Store

__all__ = ["as_shown", "give_folder", "gone", "noted", "patience", "problems", "settle"]

PATIENCE, PATIENCE_SECONDS = "STIGMER_WORKER_PATIENCE", 300.0
GRACE_MS = 60_000
"""So long after its last execution a folder stays: a retry that is being accepted at that moment keeps it."""


def patience(environ: Mapping[str, str] | None = None) -> float:
    """Seconds that a run waits for the worker that has its files, by STIGMER_WORKER_PATIENCE. Raises ConfigError."""
    named = (os.environ if environ is None else environ).get(PATIENCE, "").strip()
    try:
        seconds = float(named or PATIENCE_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise ConfigError(
            [f"{PATIENCE} {named!r} is not a number of seconds above 0 and up to a day, e.g. 300"]
        )
    return seconds


def problems(environ: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with the variables that say where files of runs are."""
    found = []
    for read in (volume, own, patience):
        try:
            read(environ)
        except StigmerError as error:
            found.append(error.message)
    return found


def settle(request: api.CreateExecutionRequest, *, local: bool) -> list[str]:
    """Decides the place of a request and enters it; gives what there is to tell. Raises Refused.

    `local`: it came over the Unix socket, so its workspace is a folder of the caller's own machine. The agent's wish
    for a worker's disk or a volume is for servers: such a folder goes before it.
    """
    for named, whose in ((request.place, "place"), (request.agent_record.workspace, "the agent's workspace")):
        if named not in ("", *PLACES):
            raise Refused(
                f"{whose} {named!r} is not none, worker or volume",
                code="usage",
                hint="volume, or leave it out",
            )
    if request.workspace and request.place:
        raise Refused(
            f"the workspace {request.workspace!r} and the place {request.place!r} are both named",
            code="usage",
            hint="name one of them",
        )
    if request.workspace and not local:
        raise Refused(
            f"the workspace {request.workspace!r} is a path, and over TCP none is taken: it would be one of the server's",
            code="workspace",
            hint="name a place instead, none, worker or volume; or none of both",
        )
    wish = request.place or request.agent_record.workspace
    if wish == "none":
        request.place, request.workspace = "none", ""
    elif wish and not request.workspace:
        request.place = wish
        if wish == "volume" and volume() is None:
            raise Refused(
                f"this server has no volume that workers share ({VOLUME} is not set there)",
                code="workspace",
                hint="take the place none or worker; or have the variable set, at the server and at its workers",
            )
        if not has_commands(request) and _wants_commands(request.agent_record):
            return ["run_command is left out: at a server commands are not confined"]
    return []


def _wants_commands(agent: api.Agent) -> bool:
    """Whether the agent, or one below it, chooses the shell tool."""
    return "run_command" in agent.tools.names or any(map(_wants_commands, agent.subagents))


def give_folder(request: api.CreateExecutionRequest, execution: str) -> None:
    """The folder's name in the place: one for each session, else one for the execution. A retry keeps the first one's."""
    if request.place in ("worker", "volume") and not request.workspace:
        request.workspace = request.session or execution


def noted(request: api.CreateExecutionRequest) -> str:
    """The folder that a request's place has given it, as the store notes it; "" where it has none of a place's."""
    if request.place not in ("worker", "volume") or request.workspace.startswith("/"):
        return ""
    return f"{request.place}/{request.workspace}"


async def gone(store: Store, place: str, names: Sequence[str]) -> list[str]:
    """Which of these folders of a place belonged to executions that were deleted a while ago."""
    folders = await store.folders_gone(
        [f"{place}/{name}" for name in names], before_ms=store.now_ms - GRACE_MS
    )
    return [folder.removeprefix(f"{place}/") for folder in folders]


def as_shown(request: api.CreateExecutionRequest) -> api.CreateExecutionRequest:
    """The same request for looking at its tools only: a place's folder need not be on this machine, and is not made."""
    if request.place not in ("worker", "volume"):
        return request
    shown = api.CreateExecutionRequest()
    shown.CopyFrom(request)
    shown.workspace, shown.workspace_named = tempfile.gettempdir(), True
    return shown
