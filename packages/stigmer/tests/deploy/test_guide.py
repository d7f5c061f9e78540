"""docs/kubernetes.md: its commands exist, its files are there, and its own overlay renders."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import yaml
from stigmer.cli._main import stigmer as commands

ROOT = Path(__file__).parents[4]
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")


def blocks(language: str = "") -> list[str]:
    """What stands between fences that name this language, or none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```\n", GUIDE, flags=re.M | re.S)
    return [text for named, text in fenced if named == language]


def lines() -> Iterator[str]:
    """The guide's shell commands, each on one line."""
    for block in blocks():
        yield from block.replace("\\\n", " ").splitlines()


def test_every_stigmer_command_of_the_guide_is_one() -> None:
    found = [shlex.split(words) for line in lines() for words in CALLED.findall(line)]
    assert len(found) >= 7
    for words in found:
        _parse(commands, click.Context(commands, info_name="stigmer", **commands.context_settings), words)


CALLED = re.compile(r"(?:^|-- |server +|\) |/bin/)stigmer ([^|>&)]+)")
"""A call of our own program: at a line's beginning, in a container, or behind variables. `kubectl -n stigmer` is none."""


def _parse(group: click.Group, context: click.Context, words: list[str]) -> None:
    command = group.get_command(context, words[0])
    assert command is not None, words
    if isinstance(command, click.Group):
        _parse(command, click.Context(command, parent=context, info_name=words[0]), words[1:])
    else:
        command.make_context(words[0], list(words[1:]), parent=context)


def test_every_file_of_the_guide_is_there() -> None:
    named = set(re.findall(r"deploy/[\w./-]*\w", GUIDE))
    assert "deploy/kustomize/overlays/prod" in named
    ours = {name for name in named if "/ours" in name} | {"deploy/.env"}
    assert [name for name in sorted(named - ours) if not (ROOT / name).exists()] == []


def test_the_guides_own_overlay_renders(rendered_from: Callable[[Path], Any], tmp_path: Path) -> None:
    (text,) = [block for block in blocks("yaml") if "kind: Kustomization" in block]
    own = yaml.safe_load(text)
    here = ROOT / "deploy" / "kustomize" / "overlays" / "ours"
    for field in ("resources", "components"):
        own[field] = [os.path.relpath(here / path, tmp_path.resolve()) for path in own[field]]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    manifests = rendered_from(tmp_path)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    assert manifests.container("server")["image"].startswith("registry.example.com/stigmer:")
    assert manifests.container("server")["args"] == ["serve"]
