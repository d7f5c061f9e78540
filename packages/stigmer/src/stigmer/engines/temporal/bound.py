"""`python -m stigmer.engines.temporal.bound PARENT COMMAND…`: runs a command that ends with the process PARENT.

On Linux the kernel tells it (a parent-death signal, which outlives exec); elsewhere this process stays and looks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
LOOK_SECONDS = 1.0


def main(parent: int, command: list[str]) -> int:
    """Never returns on Linux: the command takes this process over."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # It died before we could ask to be told.
            return 1
        os.execvp(command[0], command)
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while process.poll() is None:
        if os.getppid() != parent:
            process.terminate()
        time.sleep(LOOK_SECONDS)
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2:]))
