"""From a command line to a request: the task and the layers of the cascade that the caller holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from stigmer.api.event_pb2 import Budget
from stigmer.api.service_pb2 import CreateExecutionRequest, ProjectFile
from stigmer.cli._project import Project, find_project
from stigmer.cli._session import named_server
from stigmer.cli._terminal import Terminal, harmless
from stigmer.config import llm_variables, named_key_variables
from stigmer.errors import ConfigError
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import Execution
    from stigmer.home import Address

__all__ = ["build", "shell_for", "stays_here"]


def _shell(home: Home) -> dict[str, str]:
    """The shell's part of the cascade, with the variables that the user's file names."""
    chosen = os.environ.get("STIGMER_CONFIG", "").strip()
    user_file = os.path.abspath(os.path.expanduser(chosen)) if chosen else str(home.config)
    shell = llm_variables(os.environ, *named_key_variables(user_file))
    if chosen:
        shell["STIGMER_CONFIG"] = user_file  # In full: the daemon works in another folder.
    return shell


def shell_for(execution: Execution, *, home: Home) -> dict[str, str]:
    """What of this shell tells the keys that an execution needs: nothing of other providers leaves it.

    A server elsewhere has keys of its own, and gets none.
    """
    from graphton.models import PROVIDERS

    if execution.finished_ms or named_server() is not None:
        return {}
    config = execution.config
    firsts = [*config.models[:1], *(child.models[0] for child in config.subagents)]
    needed = {model.provider for model in firsts if model.has_key}

    def words(names: Iterable[str]) -> set[str]:
        rows = [PROVIDERS[name] for name in names if name in PROVIDERS]
        return {word for row in rows for word in (row.key_variable, *row.url_variables) if word}

    others = words(PROVIDERS.keys() - needed) - words(needed)
    return {name: value for name, value in _shell(home).items() if name not in others} if needed else {}


def stays_here(project: Project, server: Address) -> list[str]:
    """What would count at the user's own daemon, and is not sent to a server that somebody names."""
    variables = sorted(name for name, value in llm_variables(os.environ).items() if value.strip())
    what = [f"{', '.join(variables)} of this shell"] if variables else []
    what += [str(project.config.path)] if project.config is not None else []
    if not what:
        return []
    return [
        f"{' and '.join(what)} {'stays' if len(what) == 1 and not variables[1:] else 'stay'} here: "
        f"the server at {server.shown} goes by its own settings, and by flags and the agent"
    ]


def build(
    task: str,
    *,
    flags: dict[str, str],
    workspace: Path,
    named: bool,
    approve_all: bool,
    budget: dict[str, float],
    idempotency_key: str,
    home: Home,
    talk: Terminal,
    project: Project | None = None,
    place: str = "",
    tells: bool = True,
) -> CreateExecutionRequest:
    """The request for this task from here. Secrets travel in its `shell` layer, over the user's own socket only.

    `project` is what comes with the workspace's folder, and the agent; it is looked for where nobody has yet. To a
    server elsewhere go the flags and the agent; shell, project file and folder stay here, which is told if `tells`. With
    a `place` the run's files are there instead of in the folder.
    """
    server = named_server()
    in_folder = server is None and not place
    shell = _shell(home) if server is None else {}
    if server is None and (models := os.environ.get("STIGMER_MODELS", "").strip()):
        shell["STIGMER_MODELS"] = os.path.abspath(os.path.expanduser(models))
    request = CreateExecutionRequest(
        task=task,
        workspace=str(workspace) if in_folder else "",
        workspace_named=named and in_folder,
        place=place,
        approve_all=approve_all,
        idempotency_key=idempotency_key,
        caller="cli",
        flags=flags,
        shell=shell,
    )
    if budget:
        request.budget.CopyFrom(Budget(**budget))  # type: ignore[arg-type]  # The options' types are the fields'.
    if project is None:
        project = find_project(workspace, agent=None, home=home, talk=talk, asks=False)
    notices = project.notices if server is None else [*project.notices, *stays_here(project, server)]
    for notice in notices if tells else ():
        talk.say(f"note: {harmless(notice)}")
    if (file := project.config) is not None and server is None:
        if file.problem:
            raise ConfigError([file.problem])
        text = file.data.decode(errors="replace")
        request.project_file.CopyFrom(ProjectFile(path=str(file.path), text=text, trusted=file.trusted))
    if (agent := project.agent_record()) is not None:
        request.agent = agent.name
        request.agent_record.CopyFrom(agent)
    return request
