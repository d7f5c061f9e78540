"""The program itself and the machine it runs on."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator

from stigmer import __version__
from stigmer.doctor._check import OK, SKIP, WARN, Check, check

__all__ = ["program"]

FEW_FILES = 256
"""Open files below which a run with sub-agents may not get along."""


def program() -> Iterator[Check]:
    """Versions, the machine, how many files may be open, and whether commands could be confined."""
    yield check(
        "program.version",
        OK,
        f"stigmer {__version__} with Python {platform.python_version()} ({sys.executable})",
        version=__version__,
        python=platform.python_version(),
        executable=sys.executable,
    )
    yield _machine()
    yield _open_files()
    yield _bubblewrap()


def _machine() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    cores = os.cpu_count() or 1
    return check(
        "program.machine",
        OK,
        f"{platform.system()} {platform.release()} on {platform.machine()}, {cores} cores, "
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory free",
        system=platform.system(),
        release=platform.release(),
        machine=platform.machine(),
        cores=cores,
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
    )


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"soft": soft, "hard": hard}
    if 0 <= soft < FEW_FILES:  # RLIM_INFINITY is -1.
        return check(
            "program.files", WARN, f"only {soft} files may be open at once", "ulimit -n 4096", **facts
        )
    said = "any number of" if soft < 0 else f"{soft:,}"
    return check("program.files", OK, f"{said} files may be open at once", **facts)


def _bubblewrap() -> Check:
    path = shutil.which("bwrap")
    if path is None:
        return check(
            "program.bubblewrap",
            SKIP,
            "bubblewrap is not installed; commands run unconfined, and each one is asked for",
            path=None,
        )
    return check(
        "program.bubblewrap",
        OK,
        f"bubblewrap is there ({path}); it is not used yet: commands run unconfined, and each one is asked for",
        path=path,
    )
