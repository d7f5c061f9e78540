"""`retention:` of the user's file and STIGMER_RETENTION_*: how long executions that have ended are kept. Strictly read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stigmer.config._settings import BLANKS, nearest
from stigmer.errors import ConfigError

__all__ = ["RETENTION_KEY", "Retention", "retention", "retention_of", "variable_of"]

RETENTION_KEY = "retention"
_EXAMPLE = "retention: {days: 90, keep: 1000}"
_PARTS = {
    "days": ("STIGMER_RETENTION_DAYS", 36_500, "a whole number of days from 1 to 36500, e.g. 90"),
    "keep": (
        "STIGMER_RETENTION_KEEP",
        1_000_000_000,
        "a whole number of executions from 1 to 1000000000, e.g. 1000",
    ),
}
"""What it is made of: the variable, the highest value, and what a value is."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept: everything of the last `days`, and the newest `keep`. None means nobody said; both: everything."""

    days: int | None = None
    keep: int | None = None

    def __bool__(self) -> bool:
        return self.days is not None or self.keep is not None

    def under(self, over: Retention) -> Retention:
        """The same, where `over` says nothing."""
        return Retention(
            self.days if over.days is None else over.days, self.keep if over.keep is None else over.keep
        )


def variable_of(name: str) -> str:
    """The variable that says `days` or `keep`."""
    return _PARTS[name][0]


def retention(env: Mapping[str, str]) -> Retention:
    """What the environment says; an empty variable is not set. Raises ConfigError with everything that is wrong.

    >>> retention({"STIGMER_RETENTION_DAYS": "90"})
    Retention(days=90, keep=None)
    """
    said: dict[str, int] = {}
    problems = []
    for name, (variable, highest, what) in _PARTS.items():
        text = env.get(variable, "").strip(BLANKS)
        if text and text.isascii() and text.isdecimal() and 1 <= int(text[:20]) <= highest:
            said[name] = int(text)
        elif text:
            problems.append(f"{variable} {text!r} is not {what}")
    if problems:
        raise ConfigError(problems)
    return Retention(**said)


def retention_of(
    leaves: Iterable[tuple[str, object, int]], shown: str, *, narrows: bool
) -> tuple[Retention, list[str]]:
    """What a file says, and what is wrong. A file that only `narrows`, as a project's does, may not say it."""
    for key, raw, line in leaves:
        if key != RETENTION_KEY or raw is None:
            continue
        where = f"file {shown}, line {line}"
        if narrows:
            return Retention(), [
                f"{key!r} in {where} may not stand in a project's file: set it in ~/.stigmer/config.yaml or in the "
                "daemon's environment"
            ]
        if not isinstance(raw, Mapping):
            return Retention(), [f"{key} {raw!r} in {where} is no map, e.g. {_EXAMPLE}"]
        return _read(raw, where)
    return Retention(), []


def _read(found: Mapping[Any, object], where: str) -> tuple[Retention, list[str]]:
    said: dict[str, int] = {}
    problems = []
    for name, value in found.items():
        if name not in _PARTS:
            near = nearest(str(name), _PARTS)
            meant = f": did you mean {near!r}?" if near else f"; known are {' and '.join(_PARTS)}"
            problems.append(f"unknown key {str(name)!r} in `retention:` in {where}{meant}")
            continue
        _, highest, what = _PARTS[name]
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= highest:
            said[name] = int(value)
        else:
            problems.append(f"retention.{name} {value!r} in {where} is not {what}")
    return Retention(**said), problems
