"""What came out, as JSON lines: a head that says what was tried, then one line a try. A killed bench goes on there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stigmer.modelbench.task import Made, Outcome, judge
from stigmer.modelbench.tasks import case_of

__all__ = ["Results", "Try", "judged_anew", "try_from_json", "try_to_json"]


@dataclass(frozen=True, slots=True)
class Try:
    """One try: what was wrong with it ("" if nothing), what came out, and what it took."""

    id: str
    wrong: str
    outcome: Outcome
    mode: str = ""
    """How the model was brought to use tools: native | recovery | envelope; `plain` is the server's own API alone."""
    replies: tuple[str, ...] = ()
    seconds: float = 0.0
    first_tokens: int = 0
    """Of the first request, as the server counted them."""
    later_tokens: int = 0
    later_cached: int = 0
    output_tokens: int = 0

    @property
    def kind(self) -> str:
        return self.id.split("/")[0]


def try_to_json(one: Try) -> dict[str, Any]:
    """A try as one line holds it."""
    return {**asdict(one), "seconds": round(one.seconds, 2)}


def try_from_json(data: Mapping[str, Any]) -> Try:
    """The try that `try_to_json` wrote."""
    said = data["outcome"]
    outcome = Outcome(
        said["answer"], tuple(Made(**call) for call in said["calls"]), said["files"], said["ended"]
    )
    return Try(**{**data, "outcome": outcome, "replies": tuple(data["replies"])})


def judged_anew(one: Try) -> Try:
    """The same try, judged by the checks as they are now."""
    return Try(
        **{
            **{name: getattr(one, name) for name in Try.__slots__},
            "wrong": judge(case_of(one.id), one.outcome),
        }
    )


@dataclass
class Results:
    """The file of one bench: `head` says what it is about; a file about something else is begun anew."""

    path: Path
    head: dict[str, Any]
    tries: dict[str, Try] = field(default_factory=dict)
    """By id. Those that an earlier, unfinished bench left are among them."""

    @classmethod
    def open(
        cls, path: Path, head: Mapping[str, Any], *, wanted: Iterable[str], again: bool = False
    ) -> Results:
        """The results so far, if a bench of the same head was broken off; else an empty file."""
        found = cls(path, dict(head))
        if not again:
            found._read()
        if not set(wanted) - set(found.tries):
            found.tries = {}  # It was finished: this is a new one.
        if not found.tries:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(_line(found.head), "utf-8")
        return found

    def add(self, one: Try) -> None:
        """Keep a try; it is on disk when this returns."""
        self.tries[one.id] = one
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(try_to_json(one)))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        try:
            lines = self.path.read_text("utf-8").splitlines()
        except OSError:
            return  # There is none yet.
        if not lines or _parsed(lines[0]) != self.head:
            return
        for line in lines[1:]:
            if (data := _parsed(line)) is not None:  # The last line may be half, after a kill.
                one = try_from_json(data)
                self.tries[one.id] = one
        if not self.path.read_bytes().endswith(b"\n"):
            self.path.write_text(
                "".join(_line(one) for one in (self.head, *map(try_to_json, self.tries.values())))
            )


def _line(data: Mapping[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
