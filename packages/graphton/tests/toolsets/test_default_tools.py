"""The tools of the default agent: which, in what order, and how little they weigh."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graphton.errors import SettingError
from graphton.tools import Effect
from graphton.toolsets import default_tools, open_workspace

NAMES = [
    "read_file",
    "search_files",
    "list_files",
    "write_file",
    "edit_file",
    "find_files",
    "run_command",
    "todos",
]
SYSTEM_TOKENS = 150
"""What the default agent's system text may take of the 900."""


def test_the_tools_come_in_a_stable_order_with_their_effects(folder: Path) -> None:
    tools = default_tools(folder)
    assert [one.name for one in tools] == NAMES
    effects = [Effect.READ] * 3 + [Effect.IDEMPOTENT, Effect.WRITE, Effect.READ, Effect.WRITE, Effect.READ]
    assert [one.effect for one in tools] == effects
    assert [one.name for one in tools if one.asks] == ["run_command"]


def test_schemas_and_system_text_stay_under_900_tokens(folder: Path) -> None:
    wire = [
        {
            "type": "function",
            "function": {"name": one.name, "description": one.description, "parameters": one.parameters},
        }
        for one in default_tools(folder)
    ]
    text = json.dumps(wire, separators=(",", ":"), ensure_ascii=False)
    assert len(text) / 4 + SYSTEM_TOKENS < 900


@pytest.mark.parametrize("given", [str, Path, lambda folder: open_workspace(folder, named=True)])
async def test_a_workspace_may_be_a_path_or_an_opened_one(folder: Path, given: Any) -> None:
    tools = {tool.name: tool for tool in default_tools(given(folder), closed=[folder / "src"])}
    listing = await tools["list_files"].run({"path": "."}, None)  # type: ignore[arg-type]  # it asks for no context
    assert "notes.txt" in str(listing)
    with pytest.raises(Exception, match="'src' is closed to tools"):
        await tools["list_files"].run({"path": "src"}, None)  # type: ignore[arg-type]  # it asks for no context


def test_a_bare_path_is_not_taken_as_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingError, match="is your home folder"):
        default_tools(tmp_path)
    assert default_tools(open_workspace(tmp_path, named=True))


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import sys, graphton.toolsets; print([n for n in sys.modules if n.startswith('graphton')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['graphton', 'graphton.toolsets']"


async def test_todos_show_the_whole_list(call: Any) -> None:
    items = [
        {"text": "read", "status": "done"},
        {"text": "write", "status": "doing"},
        {"text": "c", "status": "todo"},
    ]
    assert await call("todos", items=items) == "[x] read\n[>] write\n[ ] c\n1 of 3 done"
    assert await call("todos", items=[]) == "0 of 0 done"
