"""The documents say what the code does today: generated ones are fresh, tables are complete, README's names exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import graphton.errors
import pytest
import stigmer.errors
from stigmer.api import event_pb2 as pb

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
SOURCES = [*ROOT.glob("packages/graphton/src/**/*.py"), *ROOT.glob("packages/stigmer/src/**/*.py")]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generator", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "configuration.md", "api.md"])
def test_a_generated_document_is_as_new_as_the_code(name: str) -> None:
    fresh = generator().DOCUMENTS[name]()
    assert (DOCS / name).read_text("utf-8") == fresh, "run scripts/docs"


def codes() -> set[str]:
    """Every error code that the code can give: of exception classes, and written at a call."""
    found = {
        kind.code
        for module in (graphton.errors, stigmer.errors)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if isinstance(getattr(kind, "code", None), str)
    }
    for source in SOURCES:
        text = source.read_text("utf-8")
        found.update(re.findall(r'\bcode="([a-z_]+)"', text))
        found.update(re.findall(r'^    code = "([a-z_]+)"', text, flags=re.M))
    return found


def test_every_error_code_is_in_the_table() -> None:
    listed = set(re.findall(r"^\| ([a-z_]+) \|", (DOCS / "errors.md").read_text("utf-8"), flags=re.M))
    assert codes() - listed == set()


def test_every_event_is_in_the_table() -> None:
    text = (DOCS / "events.md").read_text("utf-8")
    rows = [row for row in text.splitlines() if row.startswith("|")]
    listed = {name for row in rows for name in re.findall(r"[a-z_]+", row.split("|")[1])}
    kinds = {field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert kinds - listed == set()


def test_every_example_is_named_in_a_document() -> None:
    texts = "".join(path.read_text("utf-8") for path in [ROOT / "README.md", *DOCS.glob("*.md")])
    missing = [path.name for path in (ROOT / "examples").glob("*.*") if path.name not in texts]
    assert missing == []


def test_links_in_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_troubleshooting_begins_with_words_that_a_user_can_see() -> None:
    text = " ".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text("utf-8")) for path in SOURCES)
    headings = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text("utf-8"), flags=re.M)
    told = [words for heading in headings for words in re.findall(r"`([^`]+)`", heading)]
    assert len(told) > 10
    missing = [words for words in told if re.sub(r" \d{3}$", " ", words) not in text]
    assert missing == []


def test_readmes_library_example_is_the_file_that_runs() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.S)
    assert block is not None
    example = (ROOT / "examples" / "ten_lines.py").read_text("utf-8")
    assert ast.dump(ast.parse(block[1])) == ast.dump(_without_docstring(example))


def _without_docstring(example: str) -> ast.Module:
    tree = ast.parse(example)
    return ast.Module(tree.body[1:], type_ignores=[])
