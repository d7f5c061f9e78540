"""A workspace with a few files, and a way to call its tools as the loop does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from graphton.errors import ToolError
from graphton.tools import ToolContext, ToolOutput, check_arguments
from graphton.toolsets import default_tools, open_workspace

Call = Callable[..., Awaitable[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The workspace's folder, with a secret beside it."""
    (tmp_path / "secret.txt").write_text("outside\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("outside\n")
    root = tmp_path / "work"
    (root / "src").mkdir(parents=True)
    (root / "notes.txt").write_text("first line\nthe zebra sleeps\nlast line\n")
    (root / "src" / "app.py").write_text("def main():\n    return 1\n")
    return root


@pytest.fixture
def call(folder: Path) -> Call:
    """`await call("read_file", path="notes.txt")`: the result's text; a ToolError comes back as `error: ...`."""
    return caller(folder)


def caller(folder: Path, *, closed: tuple[Path, ...] = (), named: bool = False) -> Call:
    tools = {one.name: one for one in default_tools(open_workspace(folder, named=named, closed=closed))}

    async def call(name: str, **arguments: Any) -> str:
        checked, problems = check_arguments(tools[name], arguments)
        assert not problems
        try:
            result = await tools[name].run(checked, ToolContext("0.0", "", "test::0.0"))
        except ToolError as error:
            return f"error: {error}"
        return result.text if isinstance(result, ToolOutput) else result

    return call


@pytest.fixture
def call_in() -> Callable[..., Call]:
    """`call_in(folder, closed=..., named=...)` makes a `call` for another folder."""
    return caller
