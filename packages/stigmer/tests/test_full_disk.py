"""A disk that is full while the next daemon starts: it says so, the watcher waits, and with room again all goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stigmer.daemon import ensure_running, stop

CUT_OFF = "echo line >> out.txt; sleep 614; echo line >> out.txt"


@pytest.fixture
def small_disk(stigmer: Any) -> Iterator[Path]:
    """The home lies on a file system of 12 MB; the working folder does not."""
    where = stigmer.home.path
    where.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", str(where)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {getattr(error, 'stderr', error)}")
    yield where
    stop(stigmer.home)
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_a_daemon_that_finds_no_room_says_so_and_the_run_goes_on_when_there_is_some(
    stigmer: Any, fake: Any, small_disk: Path
) -> None:
    fake.script(
        {"calls": [{"name": "run_command", "arguments": {"command": CUT_OFF}}]}, {"text": "I look first."}
    )
    running = stigmer.start("run", "--yes", "Write a line.")
    stigmer.wait_for((stigmer.folder / "out.txt").exists, "the command")
    daemon = ensure_running(stigmer.home).pid
    with pytest.raises(OSError, match="No space"):
        fill(small_disk / "filler")
    os.kill(daemon, signal.SIGKILL)
    told = ""
    while "trying again" not in told:
        line = running.stderr.readline()
        assert line, told
        told += line
    assert "database or disk is full" in told
    (small_disk / "filler").unlink()
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "I look first." in out
    assert (stigmer.folder / "out.txt").read_text() == "line\n"
