"""The vault: what is sealed can be opened only as it was sealed, and faults are told."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stigmer.home import Home
from stigmer.vault import Vault, VaultError, served_by


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    return Home(tmp_path / "home")


def values(home: Home) -> dict[str, str]:
    layer = Vault(home).layer()
    return {} if layer is None else dict(layer.variables)


def notices(home: Home) -> str:
    layer = Vault(home).layer()
    return "" if layer is None else " ".join(layer.notices)


def test_nothing_is_made_by_looking(home: Home) -> None:
    assert Vault(home).kept() == []
    assert Vault(home).layer() is None
    assert not home.path.exists()


def test_what_was_put_comes_back_and_a_new_value_replaces_it(home: Home) -> None:
    vault = Vault(home)
    assert vault.put("A", "first-value").place == "file"
    assert values(home) == {"A": "first-value"}
    vault.put("B", "schlüssel")
    vault.put("A", "second-value")
    assert values(home) == {"A": "second-value", "B": "schlüssel"}
    assert vault.drop("A")
    assert not vault.drop("A")
    assert values(home) == {"B": "schlüssel"}


def test_a_layer_is_read_again_when_the_file_has_changed(home: Home) -> None:
    reads, writes = Vault(home), Vault(home)
    assert reads.layer() is None
    writes.put("A", "first-value")
    first = reads.layer()
    assert first is reads.layer()
    assert reads.fresh
    writes.put("A", "second-value")
    assert not reads.fresh
    second = reads.layer()
    assert second is not None
    assert second.variables == {"A": "second-value"}


def test_both_files_are_the_owners_alone(home: Home) -> None:
    vault = Vault(home)
    vault.put("A", "a-value")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (vault.path, vault.key_path)} == {0o600}


def test_writers_at_once_lose_nothing(home: Home) -> None:
    home.create()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Vault(home).put(f"N{n}", f"value-{n}"), range(16)))
    assert values(home) == {f"N{n}": f"value-{n}" for n in range(16)}


def test_a_row_cannot_stand_in_for_another(home: Home) -> None:
    vault = Vault(home)
    vault.put("A", "value-of-a")
    vault.put("B", "value-of-b")
    rows = json.loads(vault.path.read_text())
    rows["secrets"]["A"], rows["secrets"]["B"] = rows["secrets"]["B"], rows["secrets"]["A"]
    vault.path.write_text(json.dumps(rows))
    assert values(home) == {}
    assert "the stored secret A cannot be opened" in notices(home)
    assert "stigmer secret set A" in notices(home)


def test_a_changed_or_missing_key_is_told(home: Home) -> None:
    vault = Vault(home)
    vault.put("A", "value-of-a")
    vault.key_path.write_text("AAAA\n")
    assert "is not one of stigmer's" in notices(home)
    vault.key_path.unlink()
    assert "secrets.key' of the stored secrets is not there" in notices(home)
    assert values(home) == {}


def test_a_broken_file_is_never_overwritten(home: Home) -> None:
    home.create()
    vault = Vault(home)
    for text in ("{", "[]", '{"secrets": 3}', '{"secrets": {"A": 3}}'):
        vault.path.write_text(text)
        with pytest.raises(VaultError, match="cannot be read"):
            vault.put("A", "value-of-a")
        assert "cannot be read" in notices(home)
        assert vault.path.read_text() == text


def test_a_secret_serves_only_providers_with_an_address_of_their_own() -> None:
    assert [row.name for row in served_by("ANTHROPIC_API_KEY")] == ["anthropic"]
    assert served_by("NOBODYS_KEY") == ()
