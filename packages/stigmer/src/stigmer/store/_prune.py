"""What may be pruned: executions that ended long ago, sessions as a whole, in batches that hold nobody up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Age", "Expendable", "batches", "expendable", "ranges"]

EVENTS, EXECUTIONS = 2000, 200
"""A batch ends with the execution that brings it to so many events, or so many executions."""


@dataclass(frozen=True, slots=True)
class Age:
    """What a prune needs to know of one execution."""

    no: int
    session: str | None
    finished_ms: int | None
    seq: int
    bytes: int
    organisation: str


@dataclass(frozen=True, slots=True)
class Expendable:
    """What goes together or not at all: an execution, or a session with all it has."""

    session: str
    ages: tuple[Age, ...]

    @property
    def organisation(self) -> str:
        return self.ages[0].organisation


def expendable(members: Sequence[Age], *, before_ms: int, below: int) -> bool:
    """Whether all of these ended before that moment, and have numbers below that of the newest that are kept.

    What has not ended stays. A session is one conversation, which its next execution begins from: it goes as a whole,
    when its last execution may go and none of it is open.
    """
    return all(
        age.finished_ms is not None and age.finished_ms < before_ms and age.no < below for age in members
    )


def batches(found: Iterable[Expendable]) -> Iterator[list[Expendable]]:
    """The same, cut so that each part is deleted in some milliseconds; a session is never cut."""
    batch: list[Expendable] = []
    events = executions = 0
    for one in found:
        batch.append(one)
        events += sum(age.seq for age in one.ages)
        executions += len(one.ages)
        if events >= EVENTS or executions >= EXECUTIONS:
            yield batch
            batch, events, executions = [], 0, 0
    if batch:
        yield batch


def ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as (first, end).

    >>> ranges([1, 2, 3, 7])
    [(1, 4), (7, 8)]
    """
    found: list[tuple[int, int]] = []
    for no in sorted(numbers):
        if found and found[-1][1] == no:
            found[-1] = (found[-1][0], no + 1)
        else:
            found.append((no, no + 1))
    return found
