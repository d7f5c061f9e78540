"""The built-in tools. Nothing is imported before `default_tools` is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphton.tools import Tool
    from graphton.toolsets._workspace import Workspace

__all__ = ["default_tools", "open_workspace"]


def default_tools(
    workspace: Workspace | Path | str,
    *,
    closed: Iterable[Path | str] = (),
    environment: Mapping[str, str] | None = None,
) -> list[Tool]:
    """The tools of the default agent, in a stable order, confined to one folder.

    A path is opened as `open_workspace(path, named=False, closed=closed)`. `environment` holds variables that
    commands get besides the allow-listed ones of this process.
    """
    from graphton.toolsets._workspace import Workspace
    from graphton.toolsets.files import file_tools
    from graphton.toolsets.shell import shell_tool
    from graphton.toolsets.todos import todos_tool

    if isinstance(workspace, Workspace):
        opened = open_workspace(workspace.root, named=True, closed=[*workspace.closed, *closed])
    else:
        opened = open_workspace(workspace, named=False, closed=closed)
    return [*file_tools(opened), shell_tool(opened, environment=environment), todos_tool()]


def open_workspace(path: Path | str, *, named: bool, closed: Iterable[Path | str] = ()) -> Workspace:
    """The folder that tools may touch; see `graphton.toolsets._workspace.open_workspace`."""
    from graphton.toolsets import _workspace

    return _workspace.open_workspace(path, named=named, closed=closed)
