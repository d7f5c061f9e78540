"""What may run without a question: the rules of a request, and answers that people gave once and for all.

The answers stand in `approvals.json` of STIGMER_HOME, for its owner alone. They answer questions, as `--yes` does, and
never go against a rule that denies.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stigmer.config.edit import write_atomically
from stigmer.errors import StigmerError
from stigmer.organisations import DEFAULT_ORGANISATION

if TYPE_CHECKING:
    from graphton.approval import Rule

    from stigmer.api.service_pb2 import CreateExecutionRequest

__all__ = ["Answer", "Answers", "AnswersError", "agent_name", "offered", "rules_of"]

_LONG = 300
"""Characters of arguments above which an answer for exactly these would be of no use."""


class AnswersError(StigmerError):
    """The stored answers cannot be read or written, or there is none of that number."""

    code = "answers"


class Answer(NamedTuple):
    """Calls of `tool` whose arguments fit `when` may run, in runs of this agent by the same organisation."""

    agent: str
    tool: str
    when: Mapping[str, str]
    by: str
    time_ms: int
    organisation: str = DEFAULT_ORGANISATION

    @property
    def rule(self) -> Rule:
        """As the loop takes it."""
        from graphton.approval import Rule

        return Rule(self.tool, self.when, "allow", source=f"always, said by {self.by}")

    @property
    def about(self) -> tuple[object, ...]:
        """What it answers: another answer about the same says nothing new."""
        return (self.organisation, self.agent, self.tool, self.when)

    def __str__(self) -> str:
        return str(replace(self.rule, source=""))


class Answers:
    """The answers of one home, in the order in which they were given."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.path = home / "approvals.json"

    def all(self) -> list[Answer]:
        """Raises AnswersError."""
        try:
            rows = json.loads(self.path.read_text("utf-8"))["answers"]
            return [
                Answer(
                    str(row["agent"]),
                    str(row["tool"]),
                    {str(key): str(pattern) for key, pattern in row["when"].items()},
                    str(row["by"]),
                    int(row["time_ms"]),
                    str(row.get("organisation", DEFAULT_ORGANISATION)),
                )
                for row in rows
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnswersError(
                f"the stored answers in {str(self.path)!r} cannot be read",
                hint=f"mv {self.path} {self.path}.broken, then answer again as you are asked",
            ) from error

    def rules(self, agent: str, organisation: str) -> tuple[Rule, ...]:
        """What runs of this agent need not ask in this organisation."""
        found = (answer for answer in self.all() if answer.organisation == organisation)
        return tuple(answer.rule for answer in found if answer.agent == agent)

    def add(self, answer: Answer) -> None:
        """Keeps an answer, once."""
        with self._locked():
            answers = self.all()
            if all(known.about != answer.about for known in answers):
                self._write([*answers, answer])

    def remove(self, number: int) -> Answer:
        """Forgets the answer of this number, from 1 as they are listed."""
        with self._locked():
            answers = self.all()
            if not 1 <= number <= len(answers):
                raise AnswersError(f"there is no rule {number}", hint="stigmer approvals rules")
            gone = answers.pop(number - 1)
            self._write(answers)
        return gone

    def _write(self, answers: Sequence[Answer]) -> None:
        rows = [answer._asdict() for answer in answers]
        try:
            write_atomically(self.path, json.dumps({"version": 1, "answers": rows}, indent=1) + "\n")
        except OSError as error:
            raise AnswersError(f"{str(self.path)!r} cannot be written: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time. The folder itself is the lock, so that none is left over."""
        fd = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def agent_name(request: CreateExecutionRequest) -> str:
    """The agent that a request's answers belong to; "" where it may have none: nobody trusts its folder."""
    if request.HasField("agent_record") and not request.agent_record.trusted:
        return ""
    return request.agent or "default"


def offered(tool: str, arguments: Mapping[str, Any]) -> Rule | None:
    """The rule that an answer for all such calls would be; None where none is offered.

    A call that names paths is known by them; any other by all of its arguments as they are. An unconfined command is
    shown whole and asked each time.
    """
    from graphton.approval import COMMANDS, PATHS, Rule

    if tool == "run_command" or COMMANDS & arguments.keys():
        return None
    known_by = {key: value for key, value in arguments.items() if key in PATHS} or arguments
    when = {key: _exactly(value) for key, value in known_by.items()}
    rule = Rule(tool, when, "allow")
    if sum(map(len, when.values())) > _LONG or not rule.matches(tool, arguments):
        return None
    return rule


def _exactly(value: object) -> str:
    """The pattern that fits this argument and no other."""
    import orjson

    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def rules_of(request: CreateExecutionRequest) -> tuple[Rule, ...]:
    """The approval rules of a request: its agent's and those beside them. Raises SettingError."""
    from graphton.approval import Rule

    from stigmer.agents import label

    agent = request.agent_record
    its_own = f"agent {label(agent)}"
    found = []
    for source, given in (
        *((its_own, rule) for rule in agent.approvals),
        *((rule.source, rule) for rule in request.approvals),
    ):
        plain = {"tool": given.tool, "when": dict(given.when), "verdict": given.verdict}
        found.append(replace(Rule.parse(plain, where="approvals"), source=source))
    return tuple(found)
