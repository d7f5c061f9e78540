"""How the figures are counted: right of tries by kind, with their interval, beside the aims and the plain native API."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from stigmer.modelbench.results import Try
from stigmer.modelbench.task import FINE, KINDS

__all__ = ["AIMS", "FIRST_REQUEST_AIM", "Native", "Score", "aims_for", "interval", "native_for", "score"]

AIMS: dict[str, dict[str, int]] = {
    "qwen2.5-coder:1.5b": {"one_call": 92, "no_call": 90, "several_steps": 70},
    "qwen2.5-coder:0.5b": {"one_call": 78, "no_call": 75, "several_steps": 35},
}
"""Per cent that we want at least, by model and kind."""
FIRST_REQUEST_AIM = 900
"""Tokens that the first request of the default agent stays under."""

_FIRST = "no_call/greeting/"
"""Of these tries the first request is the default agent's and a short word."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the tries of one model on one server came to."""

    right: Mapping[str, int] = field(default_factory=dict)
    tries: Mapping[str, int] = field(default_factory=dict)
    """By kind."""
    ends: Mapping[str, int] = field(default_factory=dict)
    """Tries that did not end by themselves, by how: crash or error, steps (an endless loop), seconds, waiting."""
    modes: tuple[str, ...] = ()
    first_tokens: int = 0
    later_tokens: int = 0
    later_cached: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.tries.values())

    @property
    def cached(self) -> float | None:
        """The part of later requests that came from the prompt cache; None where there was none, or nobody told."""
        return self.later_cached / self.later_tokens if self.later_cached else None


def score(tries: Iterable[Try]) -> Score:
    """Count tries."""
    found = list(tries)
    firsts = [one.first_tokens for one in found if one.id.startswith(_FIRST)]
    return Score(
        right=Counter(one.kind for one in found if not one.wrong),
        tries=Counter(one.kind for one in found),
        ends=Counter(_end(one.outcome.ended) for one in found if one.outcome.ended not in FINE),
        modes=tuple(sorted({one.mode for one in found})),
        first_tokens=max(firsts, default=0),
        later_tokens=sum(one.later_tokens for one in found),
        later_cached=sum(one.later_cached for one in found),
        seconds=sum(one.seconds for one in found),
    )


def _end(ended: str) -> str:
    """`error: loop: the model made …` as `loop`."""
    return ended.split(":")[1].strip() if ended.startswith("error:") else ended


def interval(right: int, tries: int) -> tuple[float, float]:
    """Where the true rate lies with a probability of 95 % (Wilson), in per cent.

    >>> [round(end) for end in interval(9, 10)]
    [60, 98]
    """
    if not tries:
        return 0.0, 100.0
    z, rate = 1.959964, right / tries
    middle = rate + z * z / (2 * tries)
    spread = z * math.sqrt(rate * (1 - rate) / tries + z * z / (4 * tries * tries))
    scale = 100 / (1 + z * z / tries)
    return max(0.0, scale * (middle - spread)), min(100.0, scale * (middle + spread))


def aims_for(model: str) -> Mapping[str, int]:
    """The aims of a model; none for those that we set none for."""
    return AIMS.get(_known_as(model), {})


@dataclass(frozen=True, slots=True)
class Native:
    """What the server's own tools API got from a model, measured once."""

    model: str
    provider: str
    server: str
    date: str
    right: Mapping[str, int]
    tries: Mapping[str, int]
    ends: Mapping[str, int]


def native_for(provider: str, model: str) -> Native | None:
    """The measured native column of a model, where there is one."""
    rows = json.loads(files("stigmer.modelbench").joinpath("native.json").read_text("utf-8"))
    for row in rows:
        if (row["provider"], row["model"]) == (provider, _known_as(model)):
            return Native(**row)
    return None


def _known_as(model: str) -> str:
    """A model's name as our tables have it: a file of the catalogue by its name there."""
    from graphton.catalog import CATALOG

    name = Path(model).name
    return next((entry.name for entry in CATALOG if entry.file == name), model.lower())


def to_json(found: Score) -> dict[str, Any]:
    """A score for programs."""
    kinds = {
        kind: {
            "right": found.right.get(kind, 0),
            "tries": found.tries.get(kind, 0),
            "interval": [
                round(end, 1) for end in interval(found.right.get(kind, 0), found.tries.get(kind, 0))
            ],
        }
        for kind in KINDS
        if found.tries.get(kind)
    }
    return {
        "kinds": kinds,
        "bad_ends": dict(found.ends),
        "tool_modes": list(found.modes),
        "first_request_tokens": found.first_tokens or None,
        "later_tokens": found.later_tokens,
        "later_cached_tokens": found.later_cached,
        "seconds": round(found.seconds, 1),
    }
