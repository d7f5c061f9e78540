"""`stigmer logs`: what the daemon said, and what it says now."""

from __future__ import annotations

import signal


def test_logs_show_the_daemons_lines_and_no_prompt(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    stigmer("run", "a private task")
    shown = stigmer("logs").stdout
    assert "execution accepted" in shown
    assert "a private task" not in shown
    assert stigmer("logs", "-n", "1").stdout.count("\n") == 1


def test_logs_follow_what_comes(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    assert stigmer("up").returncode == 0
    with stigmer.start("logs", "-f", "-n", "1") as process:
        assert process.stdout.readline()
        stigmer("run", "x")
        for line in process.stdout:
            if "execution accepted" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_without_a_log_logs_says_so(stigmer) -> None:
    done = stigmer("logs")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no daemon has run for this home yet" in done.stderr
