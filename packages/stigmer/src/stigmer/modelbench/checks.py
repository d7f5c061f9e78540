"""What "right" can mean. Each function makes a check; what it says of a wrong outcome is read by people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from stigmer.modelbench.task import Check, Made, Outcome

__all__ = [
    "NOT_DONE",
    "about",
    "admits",
    "any_of",
    "anything",
    "both",
    "called",
    "like",
    "looked",
    "looking",
    "made",
    "names_file",
    "no_call",
    "one_of",
    "same_items",
    "says",
    "shows",
]

Fit = Callable[[Any], bool]
"""Whether an argument is what was meant."""


# ---- put together


def both(*checks: Check) -> Check:
    """All of these; says the first thing that is wrong."""
    return lambda outcome: next((wrong for check in checks if (wrong := check(outcome))), "")


def any_of(*checks: Check) -> Check:
    """One of these is enough: there is more than one right way. Says what is wrong with the first."""

    def check(outcome: Outcome) -> str:
        wrongs = [one(outcome) for one in checks]
        return "" if "" in wrongs else wrongs[0]

    return check


# ---- calls


def shows(*texts: str, tool: str | None = None) -> Check:
    """A call that worked brought what is asked for: its result holds these texts. Which tool does not matter."""

    def check(outcome: Outcome) -> str:
        for call in outcome.calls:
            if not call.failed and tool in (None, call.name) and all(text in call.result for text in texts):
                return ""
        return f"{_calls(outcome)}; nothing that shows {', '.join(map(repr, texts))}"

    return check


def called(tool: str, *, refused: bool = False, **arguments: Any) -> Check:
    """Exactly this call (the same again is forgiven), with these arguments; others must have been left empty.

    `refused`: it may have failed, because it is not for the model to decide (a command that a person must allow).
    """

    def check(outcome: Outcome) -> str:
        distinct = {_key(call): call for call in outcome.calls}
        if len(distinct) != 1:
            return f"{_calls(outcome)}, not one {tool}"
        (call,) = distinct.values()
        return _unfit(call, tool, arguments, refused=refused)

    return check


def made(tool: str, **arguments: Any) -> Check:
    """This call worked, whatever else was called."""

    def check(outcome: Outcome) -> str:
        if any(not _unfit(call, tool, arguments, refused=False) for call in outcome.calls):
            return ""
        return f"{_calls(outcome)}; no {tool} that worked with {_short(arguments)}"

    return check


def looked(outcome: Outcome) -> str:
    """A tool was asked, whatever it said: nobody knows without it."""
    return "" if outcome.calls else _calls(outcome)


def no_call(outcome: Outcome) -> str:
    """No tool was called, and there is an answer that is no printed call."""
    if outcome.calls:
        return _calls(outcome)
    if not outcome.answer.strip():
        return "no answer"
    return f"a call was printed as text: {outcome.answer[:100]!r}" if _printed(outcome.answer) else ""


def _unfit(call: Made, tool: str, wanted: dict[str, Any], *, refused: bool) -> str:
    if call.name != tool:
        return f"called {call.name}, not {tool}"
    if call.failed and not refused:
        return f"{tool} failed: {call.result[:100]}"
    for name, value in wanted.items():
        if not _fits(value, call.arguments.get(name)):
            return f"{name} of {tool} is {call.arguments.get(name)!r}"
    more = [
        name for name, value in call.arguments.items() if name not in wanted and value not in (None, "", [])
    ]
    return f"{tool} was given {', '.join(more)} too" if more else ""


def _fits(wanted: Any, given: Any) -> bool:
    if callable(wanted):
        return bool(wanted(given))
    if isinstance(wanted, str):
        return isinstance(given, str) and plain(given) == plain(wanted)
    if isinstance(wanted, bool) or wanted is None:
        return given is wanted
    return bool(given == wanted)


def plain(text: str) -> str:
    """A text as people compare it: case, blanks and closing marks do not count."""
    return " ".join(text.casefold().split()).strip(" .!?\"'“”„«»`")


# ---- arguments


def like(*words: str) -> Fit:
    """A text that holds these words."""
    return lambda given: isinstance(given, str) and all(word.casefold() in given.casefold() for word in words)


LOOKING = frozenset(
    [
        "ls",
        "dir",
        "find",
        "tree",
        "du",
        "stat",
        "wc",
        "cat",
        "head",
        "tail",
        "less",
        "more",
        "grep",
        "egrep",
        "rg",
        "sort",
    ]
)
"""Programs that only look."""


def looking(*words: str) -> Fit:
    """A shell command of programs that only look, which holds these words."""

    def fits(given: Any) -> bool:
        if not isinstance(given, str) or re.search(r"[;&<>`$]|-delete|-exec", given):
            return False
        programs = [(part.split() or [""])[0] for part in given.split("|")]
        return all(program in LOOKING for program in programs) and like(*words)(given)

    return fits


def one_of(*values: Any) -> Fit:
    """One of these values; None is "left out"."""
    return lambda given: any(_fits(value, given) for value in values)


def same_items(*items: str) -> Fit:
    """A list of these texts, in any order; an item may say more (a family name)."""

    def fits(given: Any) -> bool:
        if not isinstance(given, list) or len(given) != len(items):
            return False
        return all(
            any(isinstance(one, str) and item.casefold() in one.casefold() for one in given) for item in items
        )

    return fits


def anything(given: Any) -> bool:
    """Any value, or none."""
    return True


# ---- answers


def says(*alternatives: str, never: str = "") -> Check:
    """The answer says one of these; each may be a regular expression. `never` is one that it must not say."""

    def check(outcome: Outcome) -> str:
        text = outcome.answer
        bare = _NUMBERED.sub("", text)
        if _printed(text):
            return f"a call was printed as text: {text[:100]!r}"
        if not any(_occurs(one, bare) for one in alternatives):
            return f"the answer does not say {alternatives[0]!r}: {text[:160]!r}"
        return f"the answer says {never!r}" if never and _occurs(never, text) else ""

    return check


_NUMBERED = re.compile(r"(?m)^[ \t]*\d+[.)][ \t]+(?=\S)")
"""The numbers of a numbered list count nothing."""


def about(outcome: Outcome) -> str:
    """Any answer in words will do."""
    return says(r"\w\w")(outcome)


NOT_DONE = (
    r"can(no|')t|could(n't| not)|unable|not able|fail|error|sorry|does(n't| not) exist|do(n't| not) exist|"
    r"no (such )?file|not found|is(n't| not) (there|available|present|a file|in)|was(n't| not)|were(n't| not)|"
    r"there is(n't| no| not)|did(n't| not)|not (been )?(sent|set|found|possible|allowed|saved)|impossible|"
    r"full|too (hot|high|late)|at most|maximum|refus|unavailable|missing|invalid|"
    r"nicht|kein|fehl|leider|konnte|impossible|n'existe|introuvable|pas |désolé|no (existe|se|hay|pude)"
)


_ADDRESS = re.compile(r"\S+@\S+")


def admits(*, never: str = "") -> Check:
    """The answer says that it could not be done, or that there is no such thing; nothing is made up."""

    def check(outcome: Outcome) -> str:
        said = replace(outcome, answer=_ADDRESS.sub("", outcome.answer))  # They may hold any word.
        if not _occurs(NOT_DONE, said.answer):
            return f"the answer does not say that it could not be done: {outcome.answer[:160]!r}"
        return says(NOT_DONE, never=never)(said)

    return check


def names_file(name: str, files: Iterable[str], *, only: bool = True) -> Check:
    """The answer names this file first, and, with `only`, no other one of the folder."""
    files = list(files)
    others = [one for one in files if one.rpartition("/")[2] != name]

    def check(outcome: Outcome) -> str:
        text = outcome.answer
        at = {one: min(found) for one in (name, *others) if (found := _places(one, text, files))}
        if name not in at:
            return f"the answer does not name {name!r}: {text[:160]!r}"
        if min(at, key=lambda one: at[one]) != name or (only and len(at) > 1):
            return f"the answer names {', '.join(at)}, not only {name!r}"
        return ""

    return check


def _places(name: str, text: str, files: Iterable[str]) -> list[int]:
    """Where a text names a file: by its name, or by its path from the folder of the run."""
    ways = {name, *(path for path in files if path.rpartition("/")[2] == name)}
    return [found.start() for way in ways if (found := re.search(_word(way), text))]


def _word(name: str) -> str:
    return rf"(?<![\w/.-]){re.escape(name)}(?![\w/-])(?!\.\w)|(?<=\./){re.escape(name)}(?![\w/-])(?!\.\w)"


def _occurs(pattern: str, text: str) -> bool:
    """Whether a pattern occurs, not within a longer word or number."""
    before = r"(?<!\d)(?<!\d[.,])" if pattern[0].isdigit() else r"(?<!\w)"
    after = r"(?![.,]?\d)" if pattern[-1].isdigit() else ""
    return re.search(f"{before}(?:{pattern}){after}", text, re.IGNORECASE) is not None


_CALL = re.compile(r'"(name|tool|function)"\s*:\s*"[^"]*"\s*,\s*"(arguments|parameters)"\s*:')


def _printed(text: str) -> bool:
    """Whether the answer is, or holds, a call that was written as text: nobody would take it for an answer."""
    return _CALL.search(text) is not None


def _calls(outcome: Outcome) -> str:
    if not outcome.calls:
        return f"no call, but {outcome.answer[:120]!r}"
    return "called " + ", ".join(f"{call.name} {_short(call.arguments)}" for call in outcome.calls[:4])


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda one: "…")[:160]


def _key(call: Made) -> tuple[str, str]:
    return call.name, json.dumps(call.arguments, sort_keys=True)
