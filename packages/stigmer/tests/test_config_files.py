"""Configuration files: what is read, and one clear error for everything that can be wrong with them."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest
from stigmer.config import (
    Known,
    find_project_file,
    layer_from_environment,
    layer_from_file,
    layer_from_user_file,
    resolve,
)
from stigmer.errors import ConfigError

FILE = "/home/ann/.stigmer/config.yaml"
SHOWN = "file ~/.stigmer/config.yaml"


def problems(text: str | bytes) -> tuple[str, ...]:
    return layer_from_file(FILE, text, home="/home/ann").problems


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("llm:\n\tmodel: x\n", ["line 2", "tab", "spaces"]),
        ("llm: [\n", ["not YAML"]),
        ("llm:\n  model: a\n  model: b\n", ["line 3", "'model'", "second time"]),
        ("- a\n- b\n", ["line 1", "not settings"]),
        ("just a text\n", ["line 1", "not settings"]),
        ("llm: 5\n", ["'llm'", "line 1", "no map"]),
        ("llm:\n  timeouts: 5\n", ["'llm.timeouts'", "line 2", "no map"]),
        ("llm:\n  modle: x\n", ["'modle'", "line 2", "did you mean `model`?"]),
        ("llm:\n  timeouts:\n    conect: 5\n", ["'timeouts.conect'", "line 3", "`connect`"]),
        ("modle: x\n", ["'modle'", "`mode`", "`model` under `llm:`"]),
        ("model: x\n", ["'model'", "belongs under `llm:`"]),
        ("llm:\n  mode: local\n", ["'mode'", "line 2", "top of the file"]),
        ("something: 1\n", ["'something'", "known are mode"]),
        ("models: 5\n", ["'models'", "line 1", "no map"]),
        ("models:\n  miror: x\n", ["'models.miror'", "line 2", "models.mirror"]),
        ("---\nmode: local\n---\nmode: cloud\n", ["line 3", "not YAML"]),
        (b"mode: local\nllm: \xff\xfe\n", ["line 2", "UTF-8"]),
        ("[" * 5000, ["nested too deep"]),
        (b"#" * 1_000_001, ["larger than 1 MB"]),
        ("llm:\n  api_key: k\n  api_key_env: K\n", ["'api_key'", "'api_key_env'", "keep one"]),
    ],
)
def test_each_fault_of_a_file_is_one_clear_problem(text: str | bytes, parts: list[str]) -> None:
    (problem,) = problems(text)
    assert SHOWN in problem
    assert "\n" not in problem
    for part in parts:
        assert part in problem


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only a comment\n", "llm:\n", "llm: null\nmode: ~\n", "\ufeff"]
)
def test_an_empty_file_says_nothing(text: str) -> None:
    layer = layer_from_file(FILE, text)
    assert (layer.said, layer.problems) == ({}, ())


def test_values_carry_their_line() -> None:
    layer = layer_from_file(FILE, "# ours\nmode: cloud\nllm:\n  timeouts:\n    idle: 5\n", home="/home/ann")
    assert {name: said.source for name, said in layer.said.items()} == {
        "mode": f"{SHOWN}:2",
        "timeouts.idle": f"{SHOWN}:5",
    }


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault() -> None:
    layer = layer_from_file(FILE, "\ufeffmode: cloud\r\nllm:\r\n  model: x\r\n".encode())
    assert layer.problems == ()
    assert (layer.said["mode"].raw, layer.said["model"].raw) == ("cloud", "x")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("max_tokens: 8k", ["max_tokens '8k'", ":2", "whole number", "8192"]),
        ("max_tokens: 1.5", ["max_tokens 1.5", ":2"]),
        ("temperature: hot", ["temperature 'hot'", ":2", "0 to 2"]),
        ("temperature: .inf", ["temperature inf"]),
        ("provider: antropic", ["provider 'antropic'", "'anthropic'"]),
        ("provider: 7", ["provider 7", "ollama"]),
        ("model: [a]", ["model ['a']", "qwen2.5-coder:7b"]),
        ("model: 2026-01-01", ["model", "2026"]),
        ("fallbacks: openai:gpt-4.1", ["fallbacks", "list of models", "["]),
        ("thinking: hihg", ["thinking 'hihg'", "'high'"]),
        ("timeouts: {idle: 0}", ["timeouts.idle 0", "seconds"]),
        ("timeouts: {idle: soon}", ["timeouts.idle 'soon'", "seconds"]),
        ("base_url: ftp://x", ["base URL 'ftp://x'", "http://"]),
        ("api_key_env: 'not a name'", ["api_key_env 'not a name'", "ANTHROPIC_API_KEY"]),
    ],
)
def test_a_wrong_value_names_the_value_the_line_and_an_example(line: str, parts: list[str]) -> None:
    layer = layer_from_file(FILE, f"llm:\n  {line}\n", home="/home/ann")
    with pytest.raises(ConfigError) as caught:
        resolve([layer], Known(ollama=True), date(2026, 11, 25))
    assert f"{SHOWN}:2" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_folder_in_place_of_the_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".stigmer" / "config.yaml").mkdir(parents=True)
    layer = layer_from_user_file({}, home=tmp_path)
    assert layer is not None
    assert layer.problems == (
        "file ~/.stigmer/config.yaml is a folder, not a file: move it away, or name another file",
    )


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("mode: local\n")
    file.chmod(0)
    assert "cannot be read: permission denied" in layer_from_file(file).problems[0]


def test_a_link_that_leads_nowhere_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".stigmer").mkdir()
    (tmp_path / ".stigmer" / "config.yaml").symlink_to("gone.yaml")
    layer = layer_from_user_file({}, home=tmp_path)
    assert layer is not None
    assert "does not exist" in layer.problems[0]


def test_a_device_in_place_of_the_file_is_a_problem() -> None:
    assert "no regular file" in layer_from_file("/dev/zero").problems[0]


def test_ten_megabytes_are_refused_without_being_read_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"a: b\n" * 2_000_000)
    assert "larger than 1 MB" in layer_from_file(file).problems[0]


def test_no_user_file_is_no_layer(tmp_path: Path) -> None:
    assert layer_from_user_file({}, home=tmp_path) is None


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    layer = layer_from_user_file({"STIGMER_CONFIG": str(tmp_path / "other.yaml")})
    assert layer is not None
    assert "does not exist" in layer.problems[0]
    assert "STIGMER_CONFIG" in layer.problems[0]


def test_stigmer_home_and_stigmer_config_name_the_user_file(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.yaml").write_text("mode: cloud\n")
    (tmp_path / "other.yaml").write_text("mode: local\n")
    by_home = layer_from_user_file({"STIGMER_HOME": "~/home"}, home=tmp_path)
    by_name = layer_from_user_file(
        {"STIGMER_HOME": "~/home", "STIGMER_CONFIG": "~/other.yaml"}, home=tmp_path
    )
    assert by_home is not None
    assert by_name is not None
    assert by_home.said["mode"].raw == "cloud"
    assert by_name.said["mode"].raw == "local"


def test_a_key_that_others_may_read_is_a_notice(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("llm:\n  provider: anthropic\n  api_key: sk-ant-of-more-than-twenty\n")
    file.chmod(0o644)
    (notice,) = layer_from_file(file).notices
    assert "chmod 600" in notice
    file.chmod(0o600)
    assert layer_from_file(file).notices == ()


def test_a_bad_key_is_never_shown() -> None:
    for line in ("api_key: [sk-secret-1]", "api_key: 'sk-secret 2'", "api_key: {sk-secret-3: 4}"):
        layer = layer_from_file(FILE, f"llm:\n  provider: anthropic\n  {line}\n")
        with pytest.raises(ConfigError) as caught:
            resolve([layer], Known(ollama=True), date(2026, 11, 25))
        assert "sk-secret" not in str(caught.value)
        assert "api_key" in str(caught.value)


# -- the project's file


def project(folder: Path, text: str = "llm:\n  model: qwen3:8b\n") -> Path:
    file = folder / ".stigmer" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    file.parent.chmod(0o755)
    file.chmod(0o644)
    return file


def test_the_project_file_is_found_in_the_nearest_parent(tmp_path: Path) -> None:
    wanted = project(tmp_path / "repo")
    (tmp_path / "repo" / ".git").mkdir()
    inner = tmp_path / "repo" / "src" / "deep"
    inner.mkdir(parents=True)
    assert find_project_file(inner, home=tmp_path) == (wanted, ())
    nearer = project(tmp_path / "repo" / "src")
    assert find_project_file(inner, home=tmp_path) == (nearer, ())


def test_the_search_ends_at_the_repository_root(tmp_path: Path) -> None:
    project(tmp_path / "above")
    (tmp_path / "above" / "repo" / ".git").mkdir(parents=True)
    assert find_project_file(tmp_path / "above" / "repo", home=tmp_path) == (None, ())


def test_without_a_repository_the_search_ends_below_home(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "work").mkdir()
    assert find_project_file(tmp_path / "work", home=tmp_path, stigmer_home=tmp_path / "elsewhere") == (
        None,
        (),
    )
    wanted = project(tmp_path / "work")
    assert find_project_file(tmp_path / "work", home=tmp_path) == (wanted, ())


def test_the_users_own_file_is_never_a_project_file(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / ".git").mkdir()
    assert find_project_file(tmp_path, home=tmp_path) == (None, ())
    project(tmp_path / ".stigmer" / "inside")
    assert find_project_file(tmp_path / ".stigmer" / "inside", home=tmp_path) == (None, ())


def test_a_file_that_others_may_write_is_skipped_with_a_notice(tmp_path: Path) -> None:
    file = project(tmp_path / "repo")
    for place, mode in ((file, 0o666), (file.parent, 0o777)):
        before = place.stat().st_mode & 0o777
        place.chmod(mode)
        found, (notice,) = find_project_file(tmp_path / "repo", home=tmp_path)
        assert found is None
        assert str(file) in notice
        assert "other users" in notice
        place.chmod(before)
    assert find_project_file(tmp_path / "repo", home=tmp_path) == (file, ())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_skipped_with_a_notice(tmp_path: Path) -> None:
    file = project(tmp_path / "repo")
    os.chown(file, 12345, 12345)
    found, (notice,) = find_project_file(tmp_path / "repo", home=tmp_path)
    assert found is None
    assert "uid 12345" in notice


# -- layers of an environment


def test_an_environment_without_values_says_nothing() -> None:
    layer = layer_from_environment({"STIGMER_LLM_MODEL": " ", "STIGMER_LLM_PROVIDER": "\r\n", "PATH": "/bin"})
    assert layer.said == {}
