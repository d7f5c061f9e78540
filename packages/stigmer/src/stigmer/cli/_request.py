"""From a command line to a request: the task and the layers of the cascade that the caller holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from stigmer.api.event_pb2 import Budget
from stigmer.api.service_pb2 import CreateExecutionRequest, ProjectFile
from stigmer.cli._terminal import Terminal
from stigmer.config import find_project_file, llm_variables
from stigmer.home import Home

__all__ = ["build"]


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
) -> CreateExecutionRequest:
    """The request for this task from here. Secrets travel in its `shell` layer, over the user's own socket only."""
    request = CreateExecutionRequest(
        task=task,
        workspace=str(workspace),
        workspace_named=named,
        approve_all=approve_all,
        idempotency_key=idempotency_key,
        caller="cli",
        flags=flags,
        shell=llm_variables(os.environ, *_named_variables(home)),
    )
    if budget:
        request.budget.CopyFrom(Budget(**budget))  # type: ignore[arg-type]  # The options' types are the fields'.
    found, notices = find_project_file(workspace, stigmer_home=home.path)
    for notice in notices:
        talk.say(f"note: {notice}")
    if found is not None:
        request.project_file.CopyFrom(ProjectFile(path=str(found), text=found.read_text(errors="replace")))
    return request


def _named_variables(home: Home) -> list[str]:
    """The variables that the user's file names by `api_key_env`. Reading the file as YAML would cost 50 ms here."""
    path = Path(os.environ.get("STIGMER_CONFIG") or home.config).expanduser()
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []  # None, or one that the daemon will complain of.
    return re.findall(r"\bapi_key_env\s*:\s*[\"']?([A-Za-z_][A-Za-z0-9_]*)", text)
