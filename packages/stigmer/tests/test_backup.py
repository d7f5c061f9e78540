"""A backup can be restored: with the commands that stand in docs/operations.md, on both databases."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "operations.md"
LIMIT = 60.0


def commands(heading: str) -> list[str]:
    """The shell blocks of a section of the guide."""
    section = GUIDE.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, flags=re.S)


def shell(script: str, environment: dict[str, str], folder: Path, **more: Any) -> None:
    done = subprocess.run(
        ["sh", "-euc", script],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        **more,
    )
    assert done.returncode == 0, done.stderr


def ids(stigmer: Any) -> list[str]:
    """The executions, the newest first."""
    return [word for word in stigmer("list", "execution").stdout.split() if word.startswith("exec_")]


def work(stigmer: Any, fake: Any) -> tuple[str, str]:
    """One execution of a session that has ended, and one that waits for an answer; the session and the latter's id."""
    fake.script(
        {"text": "Forty-two."},
        {"calls": [{"name": "run_command", "arguments": {"command": "echo yes > out.txt"}}]},
    )
    (first, *_) = stigmer.events("run", "--session", "new", "How many?")
    assert stigmer("run", "Write.").returncode == 4
    return first["session"], ids(stigmer)[0]


def goes_on(stigmer: Any, fake: Any, before: list[str], session: str, waiting: str) -> None:
    """What the backup held is there, reads the same, and goes on."""
    assert ids(stigmer) == before
    assert "Forty-two." in stigmer("get", "execution", before[-1]).stdout
    fake.script({"text": "Done."}, {"text": "As I said."})
    assert stigmer("approve", waiting, "1.0").returncode == 0
    assert stigmer("attach", waiting).returncode == 0
    assert (stigmer.folder / "out.txt").read_text() == "yes\n"
    assert stigmer("run", "--session", session, "Again?").stdout == "As I said.\n"
    assert "Forty-two." in str(fake.requests[-1]["json"])


def test_a_backup_of_sqlite_that_was_taken_while_a_run_waited_comes_back(stigmer: Any, fake: Any) -> None:
    session, waiting = work(stigmer, fake)
    before = ids(stigmer)
    backup, restore = commands("Backup and restore: SQLite")
    beside = stigmer.home.path.parent
    shell(backup, stigmer.environment, beside)
    assert stigmer("down").returncode == 0
    shutil.rmtree(stigmer.home.path)
    command = beside / "bin" / "stigmer"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {" ".join(stigmer._command(()))} "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{stigmer.environment['PATH']}"
    shell(restore, {**stigmer.environment, "PATH": path}, beside)
    goes_on(stigmer, fake, before, session, waiting)


@pytest.mark.usefixtures("postgres")
def test_a_dump_of_postgres_comes_back_in_a_new_database(stigmer: Any, fake: Any, postgres: Any) -> None:
    url = postgres.database()
    restored = url.rpartition("/")[0] + "/stigmer_restored"
    stigmer.environment["STIGMER_DATABASE_URL"] = url
    session, waiting = work(stigmer, fake)
    before = ids(stigmer)
    (script,) = commands("Backup and restore: PostgreSQL")
    folder = postgres.folder / "dump"
    folder.mkdir()
    folder.chmod(0o777)
    environment = {
        "PATH": f"{postgres._programs}{os.pathsep}{os.environ['PATH']}",
        "STIGMER_DATABASE_URL": url,
        "STIGMER_MAINTENANCE_URL": postgres.url("postgres"),
        "STIGMER_RESTORED_URL": restored,
    }
    shell(script, environment, folder, **postgres._user)
    assert stigmer("down").returncode == 0
    stigmer.environment["STIGMER_DATABASE_URL"] = restored
    goes_on(stigmer, fake, before, session, waiting)
    assert stigmer("down").returncode == 0
