"""What must hold of every run, however it was disturbed: from what people and witnesses saw, a list of faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kills.scenario import ANSWER, file_of, key_of

__all__ = ["Evidence", "Kill", "faults"]

Json = dict[str, Any]
UNKNOWN = "whether the command did its work is unknown"
"""What a call answers whose process was killed under a living daemon, in the tool's own words."""


@dataclass
class Kill:
    """One disturbance: what, after how many more events of the run, and what came of it."""

    kind: str
    after: int
    delay: float
    what: str = ""
    """The process that it hit."""
    at: float = 0.0
    """When; 0: the run had ended before."""
    revived: float | None = None
    """When the process that took over was started, or the part that was away came back."""
    resumed: float | None = None
    """When its attempt began, or the run went on."""

    @property
    def hit(self) -> bool:
        return self.at > 0


@dataclass
class Evidence:
    """All that was seen of one run."""

    run: int
    code: int | None
    """The exit code of `stigmer run`; None: it did not end in time."""
    talk: str
    """What `stigmer run` said on stderr."""
    watched: list[Json]
    """The stored events that `stigmer run --json` printed, attached all the time."""
    fetched: list[Json]
    """The stored events that `stigmer attach --json` printed afterwards."""
    asked: list[tuple[str, int, int]]
    """What the model server was asked: path, step, milliseconds."""
    lines: Counter[str]
    posts: Counter[str]
    beats: dict[str, int]
    """The last sign of life of each call's process, in milliseconds."""
    folder: Path
    kills: list[Kill] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Processes that outlived the run."""
    damage: list[str] = field(default_factory=list)
    """What the database said of itself after a kill."""
    slack_ms: int = 0
    """So far apart may clocks be: a worker tells the time of a reply by what it knows of its server's clock."""
    lost: list[str] = field(default_factory=list)
    """Executions beside it that were accepted while a part was away, and did not come to their good end."""


def faults(seen: Evidence) -> list[str]:
    """What is wrong, in words; empty when all promises were kept."""
    found = [*_end(seen), *_events(seen)]
    if not found or seen.fetched:
        found += [*_model(seen), *_calls(seen), *_effects(seen)]
    found += [f"left over: {process}" for process in seen.left]
    found += [f"lost: {execution}" for execution in seen.lost]
    return found + [f"the database is damaged: {what}" for what in seen.damage]


def _of(seen: Evidence, kind: str) -> list[Json]:
    return [event for event in seen.fetched if event["type"] == kind]


def _ids(events: list[Json]) -> list[tuple[str, str]]:
    return [(event["path"], event["call"]) for event in events]


def _end(seen: Evidence) -> Iterator[str]:
    if seen.code != 0:
        yield f"`stigmer run` gave {seen.code}: {seen.talk.strip()[-500:]}"
    ends = _of(seen, "finished")
    if [(end["outcome"], end["text"]) for end in ends] != [("completed", ANSWER)]:
        yield f"it did not come to its one good end: {ends}"


def _events(seen: Evidence) -> Iterator[str]:
    for who, events in (("run", seen.watched), ("attach", seen.fetched)):
        seqs = [event["seq"] for event in events]
        if seqs != list(range(1, len(seqs) + 1)):
            odd = next(i for i, seq in enumerate(seqs, 1) if seq != i)
            yield f"`stigmer {who}` saw a gap or a double: event {seqs[odd - 1]} in place {odd}"
    for one, other in zip(seen.watched, seen.fetched, strict=False):
        if one != other:
            yield f"the watcher saw another event {one['seq']} than is stored: {one} {other}"
            return
    if len(seen.watched) != len(seen.fetched):
        yield f"the watcher saw {len(seen.watched)} events, {len(seen.fetched)} are stored"


def _model(seen: Evidence) -> Iterator[str]:
    replied: dict[tuple[str, int], int] = {}
    for event in _of(seen, "model_replied"):
        one = event["path"], event["step"]
        if one in replied:
            yield f"two replies are recorded for {one}"
        replied[one] = _milliseconds(event)
    for path, step, at in seen.asked:
        if at > replied.get((path, step), at) + seen.slack_ms:
            yield f"a completed model call was asked again: {(path, step)}"
    limit = 1 + sum(1 for kill in seen.kills if kill.kind != "tool")
    for called, times in Counter((path, step) for path, step, _ in seen.asked).items():
        if times > limit:
            yield f"{called} was asked {times} times for {limit - 1} kills"
    if missing := set(replied) - {(path, step) for path, step, _ in seen.asked}:
        yield f"replies from nowhere: {sorted(missing)}"


def _calls(seen: Evidence) -> Iterator[str]:
    """What the record says of each call, and whether it was done once."""
    dispatched, finished = _of(seen, "tool_dispatched"), _of(seen, "tool_finished")
    started, unknown = _of(seen, "process_started"), _of(seen, "tool_outcome_unknown")
    for what, events in (("dispatched", dispatched), ("finished", finished), ("unknown", unknown)):
        yield from (f"{call} is {what} {n} times" for call, n in Counter(_ids(events)).items() if n > 1)
    yield from (f"a write was started {n} times: {c}" for c, n in Counter(_ids(started)).items() if n > 1)
    effects = {(e["path"], e["call"]): e["effect"] for e in dispatched}
    yield from (
        f"a {effects.get(c)} call is unknown: {c}" for c in _ids(unknown) if effects.get(c) != "write"
    )
    if lost := set(effects) - set(_ids(finished)):
        yield f"calls without an answer: {sorted(lost)}"
    hits = sum(kill.kind == "tool" for kill in seen.kills if kill.hit)
    bad = [e for e in finished if e["is_error"] and (e["path"], e["call"]) not in set(_ids(unknown))]
    if len(bad) > hits:
        yield f"{len(bad)} calls failed for {hits} killed commands: {[(e['call'], e['result']) for e in bad]}"
    for event in unknown:
        key = key_of(seen.run, event["path"], event["call"])
        if seen.beats.get(key, 0) > _milliseconds(event):
            yield f"a left-over process still worked when its call's outcome was decided: {key}"


def _effects(seen: Evidence) -> Iterator[str]:
    good = {(e["path"], e["call"]) for e in _of(seen, "tool_finished") if not e["is_error"]}
    calls = {(e["path"], e["call"]): e for e in _of(seen, "tool_dispatched")}
    keys = {key_of(seen.run, *call): call for call in calls}
    for what, effects in (("written to the file", seen.lines), ("sent to the server", seen.posts)):
        yield from (f"{key} was {what} {n} times" for key, n in effects.items() if n > 1)
        yield from (f"{key} was {what}, and no record says so" for key in effects if key not in keys)
    for key, call in keys.items():
        arguments = calls[call]["arguments"]
        if call not in good:
            continue
        if "command" in arguments and " post " in arguments["command"] and not seen.posts[key]:
            yield f"{key} answered well and was never sent"
        if "lines" in arguments.get("command", "") and not seen.lines[key]:
            yield f"{key} answered well and was never written"
        if "content" in arguments and (seen.folder / file_of(key)).read_text() != key:
            yield f"{key} answered well and its file holds something else"


def _milliseconds(event: Json) -> int:
    return round(datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp() * 1000)
