"""Nothing but the cascade reads an LLM setting: no other module of either package looks up such a variable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import graphton
import stigmer
from graphton.models import PROVIDERS
from stigmer.config import SETTINGS

LLM_VARIABLES = {name for row in SETTINGS.values() for name in row.variables} | {
    name for row in PROVIDERS.values() for name in (*row.url_variables, row.key_variable) if name
}


def looked_up(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every constant name that is looked up: `x["NAME"]`, `x.get("NAME")`, `getenv("NAME")`, `"NAME" in x`."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Subscript):
            found = [node.slice]
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found = node.args[:1] if name in ("get", "getenv", "pop", "setdefault") else []
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            found = [node.left]
        for one in found:
            if isinstance(one, ast.Constant) and isinstance(one.value, str):
                yield one.value, node.lineno


def test_no_module_but_the_cascade_looks_up_a_variable_of_it() -> None:
    offenders = []
    for package in (graphton, stigmer):
        root = Path(str(package.__file__)).parent
        for file in root.rglob("*.py"):
            if file.is_relative_to(root / "config") and package is stigmer:
                continue
            for name, line in looked_up(ast.parse(file.read_text())):
                if name in LLM_VARIABLES or name.startswith("STIGMER_LLM_"):
                    offenders.append(f"{file.relative_to(root)}:{line} {name}")
    assert offenders == []


def test_the_search_finds_a_lookup() -> None:
    source = 'os.environ["STIGMER_LLM_MODEL"]; env.get("MODE", ""); os.getenv("OPENAI_API_KEY"); "OLLAMA_HOST" in env'
    assert {name for name, _ in looked_up(ast.parse(source))} <= LLM_VARIABLES
    assert len(list(looked_up(ast.parse(source)))) == 4
