"""STIGMER_HOME: where it is, and who may use it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from stigmer.home import Home, HomeError


def test_the_variable_names_the_home_and_an_empty_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert Home.find({"STIGMER_HOME": "~/other"}).path == Path("/home/ann/other")
    assert Home.find({"STIGMER_HOME": " "}).path == Path("/home/ann/.stigmer")
    assert Home.find({}).path == Path("/home/ann/.stigmer")


def test_the_home_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b").create()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_home_that_others_may_write_to_is_refused_with_the_cure(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(HomeError, match="may be written to by other users") as caught:
        Home(tmp_path).create()
    assert caught.value.hint == f"chmod 700 {tmp_path}"


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="is not a folder"):
        Home(tmp_path / "file").create()


def test_a_command_with_a_bad_home_says_so(stigmer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = stigmer("run", "x", STIGMER_HOME=str(tmp_path / "file"))
    assert done.returncode == 2
    assert f"STIGMER_HOME {str(tmp_path / 'file')!r} is not a folder" in done.stderr
