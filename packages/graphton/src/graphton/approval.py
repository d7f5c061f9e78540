"""Who may do what: a rule allows, asks or denies a tool call before it is dispatched."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import orjson

from graphton.budget import Exceeded
from graphton.errors import SettingError
from graphton.journal import ApprovalRequested
from graphton.messages import ToolCall
from graphton.tools import Tool

__all__ = ["Answer", "Approval", "Question", "Rule", "Ruling", "Verdict", "Waits"]

Verdict = Literal["allow", "ask", "deny"]
VERDICTS: tuple[Verdict, ...] = ("deny", "ask", "allow")
"""The strongest first."""
EXAMPLE = '{"tool": "run_command", "when": {"command": "git *"}, "verdict": "allow"}'
COMMANDS = frozenset({"command", "cmd", "script", "shell"})
"""Arguments of these names are shell commands, whatever the tool."""
PATHS = frozenset({"path", "file", "file_path", "filename", "folder", "directory"})
OPERATORS = re.compile(r"[;|&`<>\n\r\0]|\$\(")
"""What joins shell commands, starts one inside another, or sends output elsewhere."""
SEPARATORS = re.compile(r"[;|&`<>\n\r\0(){}]|\$\(")


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's decision, `by` whom, and why: the model reads the reason of a rejection."""

    approved: bool
    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A call that waits for a person. `reason` is approval or outcome."""

    path: str
    call: str
    reason: str
    digest: str


class Waits(Exception):
    """A sub-agent can go no further by itself: people must answer `questions`, a limit above it is `exceeded`, or the
    run is `paused`.

    No failure and no result: its call stays open, and the next attempt goes on with it.
    """

    def __init__(
        self, questions: tuple[Question, ...], exceeded: Exceeded | None = None, *, paused: bool = False
    ) -> None:
        super().__init__("a sub-agent waits")
        self.questions = questions
        self.exceeded = exceeded
        self.paused = paused


@dataclass(frozen=True, slots=True)
class Rule:
    """What is to happen to calls of the tools that `tool` names, where each argument in `when` fits its pattern.

    Patterns are globs: `*` is any text, `?` one character, `[ab]` one of these; case counts. A rule without `when`
    is about every call. Rules err on the safe side:

    - Arguments called `command` are shell commands. An allow rule never fits a command that holds `;`, `|`, `&`,
      a backtick, `$(`, a redirection or a line end, unless its pattern is that very command, letter by letter.
      Deny and ask rules look at each part of such a command too, so `rm *` finds `cd /tmp && rm -rf x`.
      They stop mistakes, not malice: a shell has endless ways to write a command.
    - Arguments called `path` are read without `.` and `..`. An allow rule fits no path that leads out of the
      workspace upwards, a deny or ask rule about `secrets/*` also finds `/somewhere/secrets/a`.
    """

    tool: str
    when: Mapping[str, str] = field(default_factory=dict)
    verdict: Verdict = "ask"
    source: str = field(default="", compare=False)
    """Where it stands, for people."""

    def __str__(self) -> str:
        given = ", ".join(f"{name}: {pattern}" for name, pattern in self.when.items())
        said = f"{self.verdict} {self.tool}" + (f" ({given})" if given else "")
        return f"{said}, {self.source}" if self.source else said

    def matches(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether the rule is about this call."""
        if not fnmatchcase(name, self.tool):
            return False
        return all(
            key in arguments and self._fits(key, pattern, _text(arguments[key]))
            for key, pattern in self.when.items()
        )

    def _fits(self, key: str, pattern: str, value: str) -> bool:
        widens = self.verdict == "allow"
        if key in COMMANDS:
            return _command_allowed(pattern, value) if widens else _any_fits(pattern, _parts(value))
        if key in PATHS:
            return _path_allowed(pattern, value) if widens else _any_fits(_plain(pattern), _readings(value))
        return fnmatchcase(value, pattern)

    @classmethod
    def parse(cls, given: object, *, where: str = "") -> Rule:
        """A rule from plain data, as agent and user files hold it; `where` names the place in errors.

        >>> str(Rule.parse({"tool": "run_command", "when": {"command": "git *"}, "verdict": "allow"}))
        'allow run_command (command: git *)'

        Raises SettingError.
        """
        at = f"{where}: " if where else ""
        if not isinstance(given, Mapping):
            raise _bad(f"{at}an approval rule must have keys and values, not {given!r}")
        known = ("tool", "when", "verdict")
        for key in given:
            if key not in known:
                raise _bad(f"{at}an approval rule has no key {key!r}, only {', '.join(known)}")
        tool, when = given.get("tool"), given.get("when") or {}
        verdict = next((one for one in VERDICTS if one == given.get("verdict")), None)
        if not isinstance(tool, str) or not tool.strip():
            raise _bad(
                f"{at}`tool` of an approval rule is {tool!r}, not a tool's name or a pattern for names"
            )
        if verdict is None:
            said = given.get("verdict")
            raise _bad(f"{at}`verdict` of an approval rule is {said!r}, not allow, ask or deny")
        if not isinstance(when, Mapping):
            raise _bad(f"{at}`when` of an approval rule is {when!r}, not patterns by argument name")
        for key, pattern in when.items():
            if not isinstance(key, str) or not isinstance(pattern, str):
                raise _bad(
                    f"{at}the pattern for argument {key!r} of an approval rule is {pattern!r}, not a text"
                )
        return cls(tool.strip(), dict(when), verdict)

    @classmethod
    def parse_all(cls, given: object, *, where: str = "") -> tuple[Rule, ...]:
        """A list of rules from plain data. Raises SettingError."""
        if not isinstance(given, list | tuple):
            at = f"{where}: " if where else ""
            raise _bad(f"{at}approval rules must be a list, not {given!r}")
        return tuple(cls.parse(one, where=f"{where}[{n}]" if where else "") for n, one in enumerate(given))


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is to happen to a call, and the rule that says so; "" is the tool's default."""

    verdict: Verdict
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """How questions are answered.

    Among the `rules` that match a call deny beats ask beats allow; where none matches, a tool with `asks=True` needs
    a decision before each call and any other runs. With `approve_all` every question is answered with yes, a denied
    call stays denied; `always` holds answers that were given once and for all: a question about a call that one of
    these rules fits is answered with yes. With `ask` the loop awaits your function; with none of them the run ends as
    `waiting`, and goes on when it is run again with the same journal and a recorded decision.
    """

    approve_all: bool = False
    ask: Callable[[ApprovalRequested], Awaitable[Answer]] | None = None
    rules: tuple[Rule, ...] = ()
    always: tuple[Rule, ...] = ()

    def ruling(self, tool: Tool, call: ToolCall) -> Ruling:
        """What the rules say about this call."""
        found = {
            rule.verdict: rule for rule in reversed(self.rules) if rule.matches(tool.name, call.arguments)
        }
        verdict = next((one for one in VERDICTS if one in found), "ask" if tool.asks else "allow")
        if verdict == "ask":
            for answer in self.always:
                if answer.matches(tool.name, call.arguments):
                    return Ruling("allow", str(answer))
        return Ruling(verdict, str(found.get(verdict, "")))


def _bad(text: str) -> SettingError:
    return SettingError(text, hint=f"for example {EXAMPLE}")


def _text(value: Any) -> str:
    """An argument as patterns see it: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _any_fits(pattern: str, readings: Iterable[str]) -> bool:
    return any(fnmatchcase(reading, pattern) for reading in readings)


def _command_allowed(pattern: str, command: str) -> bool:
    command = command.strip()
    if OPERATORS.search(command):
        return command == pattern.strip()
    return fnmatchcase(command, pattern)


def _parts(command: str) -> Iterator[str]:
    """The command, and every command in it, also without variables set before it and without the program's folder."""
    yield command
    for part in SEPARATORS.split(command):
        words = part.split()
        yield " ".join(words)
        while words and re.match(r"[A-Za-z_]\w*=", words[0]):
            words = words[1:]
        if words:
            yield " ".join(words)
            yield " ".join([posixpath.basename(words[0]), *words[1:]])


def _plain(path: str) -> str:
    return posixpath.normpath(path) if path else ""


def _path_allowed(pattern: str, path: str) -> bool:
    plain = _plain(path)
    return plain != ".." and not plain.startswith("../") and fnmatchcase(plain, _plain(pattern))


def _readings(path: str) -> Iterator[str]:
    """The path as written and in its plain form; of one that may lead anywhere also each of its ends."""
    yield path
    plain = _plain(path)
    yield plain
    if plain.startswith(("/", "../")):
        parts = plain.split("/")
        for n in range(1, len(parts)):
            yield "/".join(parts[n:])
