"""What a process of ours asks of the system for itself: to be shut for the commands that it runs, and to keep its memory."""

from __future__ import annotations

import sys

__all__ = ["keep_freed_memory", "make_undumpable"]

_PR_SET_DUMPABLE = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 8 << 20
"""Bytes of freed memory that a process keeps for its next large request."""


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


def keep_freed_memory() -> None:
    """Let the C library keep a few megabytes that were freed (glibc; else nothing happens).

    It gives every large block back at once, and a request that grows with each step is a larger one than any before:
    its pages are then made anew each time, which took longer than everything else that is done with half a megabyte.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none.
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
