"""From a command line to a request: the task and the layers of the cascade that the caller holds."""

from __future__ import annotations

import os
from pathlib import Path

from stigmer import config
from stigmer.api.event_pb2 import Budget
from stigmer.api.service_pb2 import CreateExecutionRequest, ProjectFile

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
        shell=config.shell_layer(os.environ),
    )
    if budget:
        request.budget.CopyFrom(Budget(**budget))  # type: ignore[arg-type]  # The options' types are the fields'.
    found = config.find_project_file(workspace)
    if found is not None:
        request.project_file.CopyFrom(ProjectFile(path=str(found), text=found.read_text(errors="replace")))
    return request
