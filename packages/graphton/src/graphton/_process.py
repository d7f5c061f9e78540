"""Protection of our own processes against the commands that they run."""

from __future__ import annotations

import sys

__all__ = ["make_undumpable"]

_PR_SET_DUMPABLE = 4


def make_undumpable() -> None:
    """Shut this process's memory and environment for other processes of the same user (Linux; else nothing happens).

    A command run for a model has our user id, and could read the provider keys in `/proc/<pid>/environ` or attach a
    debugger. Children that exec another program are dumpable again. The superuser is not kept out.
    """
    if sys.platform != "linux":
        return
    import ctypes  # here, because a process that holds no key need not pay for it
    import os

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")
