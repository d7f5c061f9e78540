"""Which process this is, in words that another process of the same machine can check: whoever drives a run leaves them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from graphton.toolsets._ending import look

__all__ = ["has_ended", "here", "machine"]


@cache
def machine() -> str:
    """The boot of this machine and the space in which its process numbers count; "" where nobody says (not on Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} "
    except OSError:
        return ""


def here() -> str:
    """This process: its machine, its number and its birth; "" where that cannot be said."""
    seen = look(os.getpid())
    return f"{machine()}{seen.pid} {seen.born}" if machine() and seen is not None else ""


def has_ended(process: str) -> bool:
    """Whether the process that called itself so has ended for sure; False of all that this machine cannot know."""
    ours = machine()
    if not ours or not process.startswith(ours):
        return False
    pid, born = process.removeprefix(ours).split()
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # It lives, but another user's: /proc may be shut to us.
        pass
    seen = look(int(pid))
    return seen is not None and (seen.ended or seen.born != int(born))
