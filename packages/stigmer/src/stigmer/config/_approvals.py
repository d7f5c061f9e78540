"""`approvals:` and `on_unknown:` of a settings file: who may do what, beside the cascade. Strictly read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["APPROVAL_KEYS", "approvals_of"]

APPROVAL_KEYS = ("approvals", "on_unknown")
_EXAMPLE = "approvals: [{tool: run_command, when: {command: git *}, verdict: allow}]"


def approvals_of(
    leaves: Iterable[tuple[str, object, int]], shown: str, *, narrows: bool
) -> tuple[list[Mapping[str, Any]], str, list[str]]:
    """The rules, each with the place where it stands, `on_unknown`, and what is wrong.

    A file that only `narrows`, as a project's does, may deny and ask; what it would allow is a problem.
    """
    rules: list[Mapping[str, Any]] = []
    on_unknown, problems = "", []
    for key, raw, line in leaves:
        where = f"file {shown}, line {line}"
        if key == "on_unknown" and raw is not None:
            if narrows:
                problems.append(
                    f"'on_unknown' in {where} may not stand in a project's file: set it in "
                    "~/.stigmer/config.yaml or in the agent's file"
                )
            elif raw not in ("ask", "tell", "stop"):
                problems.append(
                    f"on_unknown {raw!r} in {where} is not ask, tell or stop, e.g. on_unknown: ask"
                )
            else:
                on_unknown = str(raw)
        elif key == "approvals" and raw is not None:
            for rule, problem in _rules(raw, line, shown, narrows=narrows):
                (problems.append(problem) if problem else rules.append(rule))
    return rules, on_unknown, problems


def _rules(raw: object, line: int, shown: str, *, narrows: bool) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each rule, or what is wrong with it."""
    from graphton.approval import Rule
    from graphton.errors import SettingError

    if not isinstance(raw, list):
        yield {}, f"approvals {raw!r} in file {shown}, line {line}: no list of rules, e.g. {_EXAMPLE}"
        return
    for item in raw:
        place = int(item.lc.line) + 1 if hasattr(item, "lc") else line
        where = f"file {shown}, line {place}"
        try:
            rule = Rule.parse(item)
        except SettingError as error:
            yield {}, f"{error.message}, in {where}, e.g. {_EXAMPLE}"
            continue
        if narrows and rule.verdict == "allow":
            yield (
                {},
                f"the rule `{rule}` in {where} may not stand in a project's file, which may only ask and deny: "
                "set it in ~/.stigmer/config.yaml",
            )
            continue
        source = f"file {shown}:{place}"
        yield {"tool": rule.tool, "when": dict(rule.when), "verdict": rule.verdict, "source": source}, ""
