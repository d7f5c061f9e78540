"""One daemon per home, whatever was killed or left behind, and however many commands start at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from stigmer import __version__
from stigmer.daemon import DaemonError, ensure_running, find, start, stop
from stigmer.home import Home


def gone(pid: int) -> None:
    """Waits until a process has ended."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    if process.status() != psutil.STATUS_ZOMBIE:
        process.wait(30)


def test_a_daemon_is_started_when_none_runs_and_used_when_one_does(stigmer_home: Home) -> None:
    assert find(stigmer_home) is None
    first = ensure_running(stigmer_home)
    assert find(stigmer_home) == first
    assert ensure_running(stigmer_home) == first
    assert first.version == __version__
    assert stop(stigmer_home)
    assert find(stigmer_home) is None
    assert not stop(stigmer_home)


def test_token_socket_and_home_are_for_their_owner_alone(stigmer_home: Home) -> None:
    ensure_running(stigmer_home)
    assert stat.S_IMODE(stigmer_home.path.stat().st_mode) == 0o700
    for private in (stigmer_home.token, stigmer_home.address, stigmer_home.log):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_many_commands_at_once_start_one_daemon(stigmer, fake) -> None:
    fake.script(*[{"text": "ok"}] * 4)
    with ThreadPoolExecutor(4) as several:
        done = list(several.map(lambda n: stigmer("run", f"say ok {n}"), range(4)))
    assert [one.returncode for one in done] == [0, 0, 0, 0], [one.stderr for one in done]
    wanted = str(stigmer.home.path)
    daemons = [
        p
        for p in psutil.process_iter(["cmdline"])
        if "stigmer.daemon" in (p.info["cmdline"] or ()) and wanted in p.info["cmdline"]
    ]
    assert len(daemons) == 1


def test_a_killed_daemon_is_started_again_by_the_next_command(stigmer, fake) -> None:
    fake.script({"text": "1"}, {"text": "2"})
    assert stigmer("run", "x").returncode == 0
    first = find(stigmer.home)
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    gone(first.pid)
    assert stigmer.home.socket.exists()  # Left behind, and it does no harm.
    assert stigmer("run", "x").stdout == "2\n"
    second = find(stigmer.home)
    assert second is not None
    assert second.pid != first.pid


def test_what_dead_daemons_leave_behind_does_no_harm(stigmer_home: Home) -> None:
    stigmer_home.create()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stigmer_home.socket))
    stigmer_home.lock.write_text("999999")
    stigmer_home.start_lock.write_text("")
    stigmer_home.token.write_text("")
    stigmer_home.address.write_text('{"address": "unix:/nowhere", "pid": 1, "ver')
    found = ensure_running(stigmer_home)
    assert found.pid != 999999
    assert len(found.token) >= 32


@pytest.mark.parametrize("part", ["address", "socket", "token"])
def test_a_daemon_whose_files_are_taken_away_makes_way_for_the_next(stigmer_home: Home, part: str) -> None:
    first = ensure_running(stigmer_home)
    file: Path = getattr(stigmer_home, part)
    file.unlink()
    if part == "token":
        file.write_bytes(b"\xff" * 64)
        gone(first.pid)  # Until then the next command would be told that its token is wrong.
    second = ensure_running(stigmer_home)
    gone(first.pid)
    assert second.pid != first.pid
    found = find(stigmer_home)
    assert found is not None
    assert found.pid == second.pid


def test_a_daemon_that_is_stuck_is_told_with_the_cure(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    found = ensure_running(stigmer.home)
    os.kill(found.pid, signal.SIGSTOP)
    done = stigmer("run", "go", **fake.environment)
    assert done.returncode == 1, done.stderr
    assert f"(pid {found.pid}) takes the call and does not answer" in done.stderr
    assert "hint: stigmer down, then try again" in done.stderr
    os.kill(found.pid, signal.SIGCONT)


@pytest.mark.parametrize("busy", [False, True])
def test_a_daemon_of_another_version_is_replaced_when_idle(stigmer, fake, busy: bool) -> None:
    fake.script({"text": "one two three", "stall_after": 1} if busy else {"text": "ok"}, {"text": "new"})
    execution = stigmer("run", "x", "--detach").stdout.strip()
    if busy:
        fake.wait_for_requests(1)
    else:
        stigmer("attach", execution)
    old = find(stigmer.home)
    assert old is not None
    said = json.loads(stigmer.home.address.read_text())
    stigmer.home.address.write_text(json.dumps({**said, "version": "0.0.1"}))
    done = stigmer("run", "x")
    assert (done.returncode, done.stdout) == (0, "new\n"), done.stderr
    new = find(stigmer.home)
    assert new is not None
    assert (new.pid == old.pid) == busy
    if busy:
        assert (
            f"the daemon (pid {old.pid}) is of version 0.0.1, this is {__version__}; it is busy"
            in done.stderr
        )
    else:
        assert f"replaced the daemon of version 0.0.1 by {__version__}" in done.stderr


def test_the_daemon_inherits_no_stream_of_the_command(stigmer) -> None:
    # A pipe that a background process kept open would never come to its end.
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'stigmer', 'up'], check=True)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=stigmer.environment,
        cwd=stigmer.folder,
        timeout=60,
    )
    assert done.returncode == 0
    found = find(stigmer.home)
    assert found is not None
    streams = [os.readlink(f"/proc/{found.pid}/fd/{number}") for number in (0, 1, 2)]
    assert streams == ["/dev/null", str(stigmer.home.log), str(stigmer.home.log)]
    assert os.getsid(found.pid) == found.pid


def test_a_daemon_that_cannot_start_says_why(stigmer_home: Home) -> None:
    stigmer_home.create()
    stigmer_home.database.mkdir()
    with pytest.raises(DaemonError) as caught:
        ensure_running(stigmer_home)
    assert str(stigmer_home.database.name) in str(caught.value) or "database" in str(caught.value)
    assert "daemon.log" in str(caught.value) or caught.value.hint
    stigmer_home.database.rmdir()
    ensure_running(stigmer_home)


def test_a_start_that_takes_too_long_is_given_up(stigmer_home: Home) -> None:
    with pytest.raises(DaemonError, match="not ready in time"):
        start(stigmer_home, limit=0.001)
    assert ensure_running(stigmer_home).pid


def test_a_daemon_that_answers_nobody_is_ended_by_down(stigmer_home: Home) -> None:
    found = ensure_running(stigmer_home)
    os.kill(found.pid, signal.SIGSTOP)
    assert stop(stigmer_home, limit=0.5)
    gone(found.pid)
    assert find(stigmer_home) is None


def test_a_long_home_gets_a_short_private_socket(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "run"))
    home = Home(short_folder / ("long" * 30))
    try:
        found = ensure_running(home)
        path = Path(found.target.removeprefix("unix:"))
        assert len(os.fsencode(path)) < 100
        assert path.is_relative_to(short_folder / "run")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        stop(home)


def test_up_stays_status_tells_and_down_ends(stigmer) -> None:
    assert stigmer("status").returncode == 1
    up = stigmer("up")
    assert up.returncode == 0, up.stderr
    said = json.loads(stigmer("status", "--json").stdout)
    assert said["running"] is True
    assert said["stays"] is True
    assert said["home"] == str(stigmer.home.path)
    assert (said["version"], said["engine"]) == (__version__, "embedded")
    assert stigmer("down").stderr == "the daemon has ended\n"
    assert json.loads(stigmer("status", "--json").stdout)["running"] is False
    assert stigmer("down").stderr == "no daemon was running\n"


def test_up_makes_a_daemon_that_a_command_started_stay(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    stigmer("run", "x")
    assert json.loads(stigmer("status", "--json").stdout)["stays"] is False
    assert stigmer("up").returncode == 0
    assert json.loads(stigmer("status", "--json").stdout)["stays"] is True


def test_commands_that_only_look_start_no_daemon(stigmer) -> None:
    for arguments in (("status",), ("logs",), ("down",), ("models", "list")):
        stigmer(*arguments)
        assert find(stigmer.home) is None
