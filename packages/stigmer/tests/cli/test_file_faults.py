"""A settings file that cannot be used: one clear error, the same in `run` and in `config show`, never a trace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

FAULTS: dict[str, tuple[bytes | None, str]] = {
    "broken YAML": (b"llm: [\n", "line 2: not YAML"),
    "a list": (b"- a\n", "line 1: a list or a text, not settings"),
    "a wrong type": (b"llm:\n  max_tokens: [1]\n", "max_tokens [1] from file"),
    "a key twice": (b"llm:\n  model: a\n  model: b\n", "line 3: key 'model' stands there a second time"),
    "a tab": (b"llm:\n\tmodel: a\n", "line 2: a tab; YAML is indented with spaces"),
    "a folder": (None, "is a folder, not a file"),
    "ten megabytes": (b"# " + b"x" * 10_000_000, "is larger than 1 MB"),
    "twenty megabytes": (b"# " + b"x" * 20_000_000, "is larger than 1 MB"),
    "not UTF-8": (b"llm:\n  model: \xff\n", "line 2: not UTF-8 text"),
    "a control character": (b'llm: {model: "a\x00b"}\n', "is not YAML"),
}


def put(file: Path, data: bytes | None) -> None:
    """The file with this content, or a folder in its place."""
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)
        file.chmod(0o644)


@pytest.mark.parametrize("place", ["the user's", "the project's"])
def test_a_file_that_cannot_be_used_is_one_clear_error_in_every_command(stigmer, place) -> None:
    stigmer.home.create()
    file = stigmer.home.config if place == "the user's" else stigmer.folder / ".stigmer" / "config.yaml"
    for what, (data, said) in FAULTS.items():
        put(file, data)
        ran, shown = stigmer("run", "--dry-run", "go"), stigmer("config", "show")
        (problem,) = json.loads(stigmer("config", "show", "--json").stdout)["problems"]
        assert said in problem, what
        for done in (ran, shown):
            assert done.returncode == 2, what
            assert f"error: {problem}" in done.stderr, what
            assert "Traceback" not in done.stderr, what
        assert ran.stdout == ""
        assert shown.stdout.startswith("mode "), what  # What could be resolved is shown all the same.


def test_settings_are_shown_beside_the_faults_of_an_agents_file(stigmer) -> None:
    (stigmer.folder / "bad.yaml").write_text(
        "apiVersion: stigmer/v1\nkind: Agent\nmetadata: {name: bad}\nspec: {llm: {modle: x}, tolls: []}\n"
    )
    for up in (False, True):
        if up:
            stigmer("up")
        done = stigmer("config", "show", "--agent", "./bad.yaml")
        assert done.returncode == 2
        assert done.stdout.startswith("mode ")
        assert "modle': did you mean 'model'?" in done.stderr
        assert "tolls': did you mean 'tools'?" in done.stderr
        assert done.stderr.count("error: ") == 2
        found = json.loads(stigmer("config", "show", "--agent", "./bad.yaml", "--json").stdout)
        assert len(found["problems"]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", ["the user's", "the project's"])
def test_a_file_that_may_not_be_read_is_one_clear_error(stigmer, place) -> None:
    stigmer.home.create()
    file = stigmer.home.config if place == "the user's" else stigmer.folder / ".stigmer" / "config.yaml"
    put(file, b"mode: local\n")
    file.chmod(0)
    for done in (stigmer("run", "--dry-run", "go"), stigmer("config", "show")):
        assert done.returncode == 2
        assert "cannot be read: permission denied; e.g. chmod 600" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_projects_folder_that_may_not_be_looked_at_is_skipped_with_a_word(stigmer) -> None:
    file = stigmer.folder / ".stigmer" / "config.yaml"
    put(file, b"llm: {model: x}\n")
    file.parent.chmod(0)
    try:
        done = stigmer("config", "show")
    finally:
        file.parent.chmod(0o700)
    assert done.returncode == 0
    assert "is skipped: it cannot be looked at (permission denied)" in done.stderr
