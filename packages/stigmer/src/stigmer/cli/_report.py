"""The file that a fault of our own leaves behind: enough for a maintainer, and no secret."""

from __future__ import annotations

import platform
import sys
import time
import traceback
from pathlib import Path

from stigmer import __version__
from stigmer.home import Home
from stigmer.redact import scrub

__all__ = ["write"]


def write(error: BaseException, arguments: list[str]) -> Path:
    """Writes the report and gives its path. Of the command line it keeps options, not the task."""
    home = Home.find().create()
    home.reports.mkdir(mode=0o700, exist_ok=True)
    path = home.reports / time.strftime("%Y%m%d-%H%M%S.txt", time.gmtime())
    command = " ".join(word if word.startswith("-") or i == 0 else "…" for i, word in enumerate(arguments))
    text = "\n".join(
        (
            f"stigmer {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"command: stigmer {command}",
            f"executable: {sys.executable}",
            "",
            "".join(traceback.format_exception(error)),
        )
    )
    path.touch(mode=0o600)
    path.write_text(scrub(text))
    return path
