"""Everything that can go wrong in stigmer, as one small tree.

StigmerError
├── UsageError      a command that cannot be understood (exit 2)
└── ConfigError     settings that cannot be used, all problems together (exit 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stigmer.config import LLMConfig

__all__ = ["ConfigError", "StigmerError", "UsageError"]


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
