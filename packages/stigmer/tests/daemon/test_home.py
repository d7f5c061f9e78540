"""STIGMER_HOME: where it is, and who may use it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from stigmer.errors import SystemRefused
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


@pytest.mark.parametrize("name", ["start.lock", "daemon.lock", "daemon.log", "token", "address"])
def test_a_folder_in_the_place_of_a_file_is_told_with_the_cure(stigmer, name: str) -> None:
    stigmer.home.create()
    (stigmer.home.path / name).mkdir()
    done = stigmer("run", "go", STIGMER_LLM_MODEL="ollama:any")
    assert done.returncode == 1, done.stderr
    assert "Is a directory" in done.stderr
    assert f"move it away: mv {stigmer.home.path / name}" in done.stderr


@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "read-only"), (errno.EACCES, "change its rights")],
)
def test_what_the_system_denies_is_no_fault_of_ours(number: int, cure: str) -> None:
    told = SystemRefused.of(OSError(number, os.strerror(number), "/srv/home/start.lock"))
    assert told is not None
    assert told.message == f"'/srv/home/start.lock': {os.strerror(number)}"
    assert cure in told.hint
    assert SystemRefused.of(OSError(errno.EBADF, "bad")) is None
