"""The table, for people and for docs, and the line that says how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from stigmer.modelbench.scores import FIRST_REQUEST_AIM, Native, Score, interval
from stigmer.modelbench.task import KINDS

__all__ = ["Progress", "bad_ends", "figure", "markdown", "table"]

_NO_AIMS: Mapping[str, int] = MappingProxyType({})


@dataclass
class Progress:
    """How far a bench is. The time left comes from the tries of this sitting."""

    total: int
    done: int = 0
    right: int = 0
    begun: float = field(default_factory=time.monotonic)
    here: int = 0

    def count(self, *, right: bool) -> None:
        """One more try has ended."""
        self.done, self.here, self.right = self.done + 1, self.here + 1, self.right + right

    def __str__(self) -> str:
        text = f"{self.done} of {self.total} tries, {self.right} right"
        if not self.here:
            return f"{text}; the first one loads the model"
        left = (time.monotonic() - self.begun) / self.here * (self.total - self.done)
        return f"{text}, about {_duration(left)} left" if self.done < self.total else text


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def figure(right: int, tries: int) -> str:
    """`41/48 = 85 % (73–93)`: right of tries, and where the true rate lies at 95 %."""
    if not tries:
        return "-"
    low, high = interval(right, tries)
    return f"{right}/{tries} = {100 * right / tries:.0f} % ({low:.0f}–{high:.0f})"


def bad_ends(found: Score | Native) -> str:
    """Tries that ended by a crash, an error, an endless loop or a limit."""
    total = sum(found.ends.values())
    if not total:
        return "0"
    return f"{total} ({', '.join(f'{how} {count}' for how, count in sorted(found.ends.items()))})"


def table(title: str, found: Score, *, native: Native | None, aims: Mapping[str, int]) -> str:
    """What one model got done, as lines for a terminal."""
    modes = ", ".join(found.modes) or "none"
    rows = [("", "right", "plain native API", "aim")]
    for kind, name in KINDS.items():
        if tries := found.tries.get(kind):
            theirs = figure(native.right.get(kind, 0), native.tries.get(kind, 0)) if native else "-"
            aim = f"{aims[kind]} %" if kind in aims else "-"
            rows.append((name, figure(found.right.get(kind, 0), tries), theirs, aim))
    rows.append(("ended badly", bad_ends(found), bad_ends(native) if native else "-", "0"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(f"{cell:<{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows]
    foot = [_first_request(found), _cache(found)]
    measured = f"plain native API: {native.server}, measured {native.date}" if native else ""
    return "\n".join([f"{title}; tool mode {modes}", *lines, *(line for line in [*foot, measured] if line)])


def _first_request(found: Score) -> str:
    if not found.first_tokens:
        return ""
    return f"first request of the default agent: {found.first_tokens} tokens (aim: under {FIRST_REQUEST_AIM})"


def _cache(found: Score) -> str:
    if found.cached is None:
        return (
            "later requests: the server does not tell what it had in its prompt cache"
            if found.later_tokens
            else ""
        )
    return f"later requests: {100 * found.cached:.0f} % of the prompt came from the server's cache"


def markdown(cells: Sequence[str], found: Score | Native, aims: Mapping[str, int] = _NO_AIMS) -> str:
    """One row for docs/local.md: `cells`, then each kind, then bad ends. A figure that reaches its aim is bold."""
    kinds = []
    for kind in KINDS:
        right, tries = found.right.get(kind, 0), found.tries.get(kind, 0)
        reached = kind in aims and tries and 100 * right / tries >= aims[kind]
        kinds.append(f"**{figure(right, tries)}**" if reached else figure(right, tries))
    return "| " + " | ".join([*cells, *kinds, bad_ends(found)]) + " |"
