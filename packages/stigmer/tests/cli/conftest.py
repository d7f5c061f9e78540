"""The `stigmer` command on a terminal of its own, with somebody who types."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest


@pytest.fixture
def at_a_terminal(stigmer) -> Callable[..., tuple[int, str]]:
    """`at_a_terminal("run", "go", does=[("after this text", "type that line")])`: exit code and all that was shown."""
    return partial(_run, stigmer)


def _run(
    stigmer, *arguments: str, does: Sequence[tuple[str, str | int | Callable[[], str]]] = ()
) -> tuple[int, str]:
    """Runs a command on a terminal of its own. `does`: after this text, type that line, what that function gives (it
    may wait for something), or send that signal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(stigmer.folder)
        environment = {**stigmer.environment, "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-m", "stigmer", *arguments], environment)
    shown, read, todo = "", 0, list(does)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # How Linux says that the other side is closed.
                break
            if not piece:
                break
            shown += piece.decode(errors="replace")
        if todo and todo[0][0] in shown[read:]:
            _, act = todo.pop(0)
            read = len(shown)
            act = act() if callable(act) else act
            if isinstance(act, int):
                os.kill(pid, act)
            else:
                os.write(terminal, act.encode() + b"\n")
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown
