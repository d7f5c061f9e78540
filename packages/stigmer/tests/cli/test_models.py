"""models list, pull, remove: the real command, a folder of models of its own, and an Ollama that a fake plays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graphton import catalog
from stigmer.daemon import find

KEY = "sk-ant-sentinel-0123456789-wxyz"
NOBODY = "http://127.0.0.1:9"
SMALL = catalog.find("qwen2.5-coder:0.5b")


@pytest.fixture
def folder(stigmer) -> Path:
    """The folder of models, with the small one (by its size) and a file of the user's own."""
    folder = Path(stigmer.environment["STIGMER_MODELS"])
    folder.mkdir()
    with open(folder / SMALL.file, "wb") as file:
        file.truncate(SMALL.size)  # Takes no room.
    (folder / "mine.gguf").write_bytes(b"GGUF" * 500)
    stigmer.environment["OLLAMA_HOST"] = NOBODY
    return folder


def rows(stigmer, **environment: str) -> dict[str, list[dict[str, object]]]:
    """What --json tells, by kind."""
    found: dict[str, list[dict[str, object]]] = {}
    for line in stigmer("models", "list", "--json", **environment).stdout.splitlines():
        row = json.loads(line)
        found.setdefault(row["kind"], []).append(row)
    return found


def test_list_shows_what_is_here_and_how_to_get_what_is_not(stigmer, folder) -> None:
    done = stigmer("models", "list")
    assert done.returncode == 0, done.stderr
    assert f"491 MB  Apache-2.0  {folder / SMALL.file}" in done.stdout
    assert "not installed: stigmer models pull qwen2.5-coder:1.5b" in done.stdout
    assert "mine.gguf" in done.stdout
    assert f"Ollama: none answers at {NOBODY}" in done.stdout
    assert find(stigmer.home) is None


def test_list_shows_what_an_ollama_has_installed(stigmer, folder, fake) -> None:
    done = stigmer("models", "list", OLLAMA_HOST=fake.url)
    listed = done.stdout.partition(f"Ollama at {fake.url}\n")[2].partition("\n\n")[0]
    told = rows(stigmer, OLLAMA_HOST=fake.url)["ollama"]
    assert told
    for row in told:
        assert str(row["name"]) in listed
        assert row["bytes"] > 0
        assert row["base_url"] == fake.url


def test_list_says_whose_key_was_found_and_never_the_key(stigmer, folder) -> None:
    done = stigmer("models", "list", ANTHROPIC_API_KEY=KEY)
    assert "found: env ANTHROPIC_API_KEY (your shell)" in done.stdout
    assert "not found: set OPENAI_API_KEY, or stigmer secret set OPENAI_API_KEY" in done.stdout
    told = stigmer("models", "list", "--json", ANTHROPIC_API_KEY=KEY).stdout
    for text in (done.stdout, told):
        assert KEY not in text
        assert KEY[-4:] not in text
    providers = {row["name"]: row for row in rows(stigmer, ANTHROPIC_API_KEY=KEY)["provider"]}
    assert (providers["anthropic"]["key_found"], providers["openai"]["key_found"]) == (True, False)
    assert providers["openai"]["key_variable"] == "OPENAI_API_KEY"
    assert providers["llamacpp"]["needs_key"] is False


def test_list_finds_the_keys_of_a_running_daemon(stigmer, folder) -> None:
    stigmer("up", ANTHROPIC_API_KEY=KEY)
    assert "found: env ANTHROPIC_API_KEY\n" in stigmer("models", "list").stdout


def test_list_tells_windows_prices_and_ends_of_known_models(stigmer, folder) -> None:
    models = {row["id"]: row for row in rows(stigmer, STIGMER_NOW="2026-11-25")["model"]}
    sonnet = models["claude-sonnet-4-5-20250929"]
    assert (sonnet["name"], sonnet["context_window"], sonnet["max_output"]) == (
        "claude-sonnet-4.5",
        200_000,
        64_000,
    )
    assert (sonnet["price_input"], sonnet["price_output"]) == (3.0, 15.0)
    assert (sonnet["retires"], sonnet["successor"]) == ("2026-11-30", "claude-sonnet-5.5")
    assert (sonnet["default"], sonnet["ended"]) == (True, False)
    before = stigmer("models", "list", STIGMER_NOW="2026-11-25").stdout
    assert "default · until 2026-11-30, then claude-sonnet-5.5" in before
    after = stigmer("models", "list", STIGMER_NOW="2026-12-01").stdout
    assert "anthropic:claude-sonnet-4.5" not in after
    assert "anthropic     claude-sonnet-5.5" in after
    assert (
        before.count("claude-sonnet-4.5 ") == before.count("claude-sonnet-4.5  ") == 2
    )  # Provider, model; no alias.


def test_remove_asks_and_does_nothing_without_a_yes(stigmer, folder, at_a_terminal) -> None:
    nobody = stigmer("models", "remove", SMALL.name)
    assert nobody.returncode == 2
    assert f"hint: stigmer models remove {SMALL.name} --yes" in nobody.stderr
    code, shown = at_a_terminal("models", "remove", SMALL.name, does=[("[y/N] ", "n")])
    assert code == 1, shown
    assert "(491 MB)? [y/N]" in shown
    assert (folder / SMALL.file).exists()
    code, shown = at_a_terminal("models", "remove", SMALL.name, does=[("[y/N] ", "y")])
    assert code == 0, shown
    assert not (folder / SMALL.file).exists()


def test_remove_takes_a_file_of_the_folder_and_tells_its_room(stigmer, folder) -> None:
    done = stigmer("models", "remove", "mine.gguf", "--yes", "--json")
    assert json.loads(done.stdout) == {"name": "mine.gguf", "path": str(folder / "mine.gguf"), "bytes": 2000}
    assert sorted(path.name for path in folder.iterdir()) == [SMALL.file]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen3:8b", ["'qwen3:8b' is none of the models that stigmer keeps", "ollama rm qwen3:8b"]),
        ("qwen2.5-coder:1.5b", ["'qwen2.5-coder:1.5b' is not on this machine"]),
        ("../work/elsewhere.gguf", ["'../work/elsewhere.gguf' is not in the folder of models"]),
        ("nowhere.gguf", ["'nowhere.gguf' is not on this machine"]),
    ],
)
def test_remove_names_what_it_cannot_remove(stigmer, folder, name, parts) -> None:
    (stigmer.folder / "elsewhere.gguf").write_bytes(b"mine")
    done = stigmer("models", "remove", name, "--yes")
    assert done.returncode in (1, 2)
    for part in parts:
        assert part in done.stderr
    assert (stigmer.folder / "elsewhere.gguf").exists()
