"""Everything that can go wrong in stigmer, as one small tree.

StigmerError
├── UsageError      a command that cannot be understood (exit 2)
├── SystemRefused   the operating system denied a file: no room, no right, a read-only disk
└── ConfigError     settings that cannot be used, all problems together (exit 2)
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stigmer.config import LLMConfig

__all__ = ["ConfigError", "StigmerError", "SystemRefused", "UsageError"]


class StigmerError(Exception):
    """A known failure: what happened, and in `hint` what to do about it.

    `code` is a stable word for programs; `exit_code` is what the command line ends with.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(StigmerError):
    """A command or an argument that cannot be understood."""

    code = "usage"
    exit_code = 2


class SystemRefused(StigmerError):
    """The operating system denied what we need; the cure is the user's, so it is no fault of ours."""

    code = "system"

    @classmethod
    def of(cls, error: OSError) -> SystemRefused | None:
        """The known failure that this error is; None for one that may be our fault."""
        if error.errno not in _CURES:
            return None
        path = error.filename2 or error.filename  # Of a file that is moved, the place that it should go to.
        return cls(
            f"{str(path)!r}: {error.strerror}" if path else str(error.strerror),
            hint=_CURES[error.errno].format(path=path or "the folder that STIGMER_HOME names"),
        )


_RIGHTS = "ls -ld {path}; name another folder with STIGMER_HOME, or change its rights"
_ROOM = "make room: df -h; or name a folder on another disk with STIGMER_HOME"
_FILES = "let it open more files: ulimit -n 4096"
_CURES: dict[int | None, str] = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "the disk is mounted read-only; name a folder on another one with STIGMER_HOME",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EISDIR: "a folder stands where a file belongs; move it away: mv {path} {path}.old",
    errno.ENOTDIR: "a file stands where a folder belongs: ls -ld {path}",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EIO: "the disk may be damaged; see what the system says: dmesg | tail",
}
"""What helps against an error that only the machine's owner can cure."""


class ConfigError(StigmerError):
    """Settings that cannot be used. All problems are told together; `config` is what could be resolved."""

    code = "config"
    exit_code = 2

    def __init__(self, problems: Sequence[str], *, config: LLMConfig | None = None) -> None:
        self.problems = tuple(problems)
        self.config = config
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            listed = "\n".join(f"- {problem}" for problem in self.problems)
            super().__init__(f"{len(self.problems)} problems with the configuration:\n{listed}")
