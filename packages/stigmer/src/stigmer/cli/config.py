"""`config show | get | set | path`: which settings apply, where each comes from, and how to change one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stigmer import config as cascade
from stigmer.cli._main import USAGE, about_this_machine, asked, json_option
from stigmer.cli._options import flags_of, llm_options, mode_flag
from stigmer.cli._resolved import resolution, resolved, user_file, user_layer
from stigmer.cli._terminal import harmless, terminal
from stigmer.config._approvals import APPROVAL_KEYS
from stigmer.errors import ConfigError, UsageError

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show which settings apply and where each comes from; change them."""


@config.command()
@llm_options
@click.option("--agent", metavar="NAME|FILE", help="An agent of .stigmer/agents, or an agent file.")
@json_option
def show(agent: str | None, **flags: Any) -> int:
    """Show every setting as `stigmer run` would resolve it here: value, source, and what it hides.

    Approval rules, `on_unknown` and how long runs are kept follow, each with its source. A running daemon is asked for its part; none is started. With --server the server says what a run would use there. Exit code 2: there are problems.
    """
    settings, notices, problems, approvals, others = resolved(flags_of(flags), agent)
    talk = terminal()
    if asked().json:
        shown: dict[str, Any] = {"settings": settings, "notices": notices, "problems": problems}
        shown |= {"approvals": approvals, "others": others}
        talk.data(json.dumps(shown, ensure_ascii=False, indent=2 if talk.out_is_terminal else None) + "\n")
        return USAGE if problems else 0
    talk.data(_table(settings, approvals, others))
    for notice in notices:
        talk.say(f"note: {harmless(notice)}")
    for problem in problems:
        talk.say(f"{talk.paint('error:', 'red')} {harmless(problem)}")
    return USAGE if problems else 0


@config.command()
@click.argument("key")
@json_option
def get(key: str) -> int:
    """Print the value of KEY, such as `llm.model`, as it is resolved here; secrets are masked."""
    row = _row(key)
    if row.name == "api_key_env":
        row = cascade.SETTINGS["api_key"]
    settings, _, problems, *_ = resolved(mode_flag())
    talk = terminal()
    found = settings.get(row.name)
    if found is not None:
        talk.data((json.dumps(found, ensure_ascii=False) if asked().json else _plain(found["value"])) + "\n")
    for problem in problems:
        talk.say(f"{talk.paint('error:', 'red')} {harmless(problem)}")
    return USAGE if problems else 0


@config.command("set")
@click.argument("key")
@click.argument("value")
def set_value(key: str, value: str) -> int:
    """Set KEY, such as `llm.model`, to VALUE in the user's file. Comments and order stay.

    A key is read from standard input: `stigmer config set llm.api_key -`.
    """
    from stigmer.config.edit import edited, write_atomically

    about_this_machine("config set")
    row = _row(key)
    path = user_file()
    shown = _shown(path)
    parsed = _parsed(row, value)
    text = edited(path, row, parsed, shown=shown)
    before, after = _faults(path, None, shown), _faults(path, text, shown)
    new = [fault for fault in after if fault not in before]
    if new:
        raise ConfigError([_without_lines(fault) for fault in new])
    write_atomically(path, text)
    talk = terminal()
    talk.say(f"set {row.key} in {shown}")
    settings, _, problems, *_ = resolved({})
    _tell_what_hides(row.name, settings, shown)
    for problem in problems:
        talk.say(f"note: {harmless(problem)}")
    return 0


@config.command()
def path() -> int:
    """Print where the user's file is, or would be."""
    about_this_machine("config path")
    terminal().data(f"{user_file()}\n")
    return 0


def _row(key: str) -> cascade.Setting:
    row = cascade.setting_for_key(key)
    if row is None and key in APPROVAL_KEYS:
        where = _shown(user_file())
        raise UsageError(
            f"{key!r} is not changed by this command: it is no setting of a model",
            hint=f"write it into {where} by hand; see docs/agents.md, and `stigmer approvals rules`",
        )
    if row is None and key.partition(".")[0] == cascade.RETENTION_KEY:
        raise UsageError(
            f"{key!r} is not changed by this command: it is no setting of a model",
            hint=f"write it into {_shown(user_file())} by hand, e.g. retention: {{days: 90}}; see docs/store.md",
        )
    if row is None:
        keys = [row.key for row in cascade.SETTINGS.values()]
        near = cascade.nearest(key, [*keys, *(row.name for row in cascade.SETTINGS.values())])
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(keys)}"
        raise UsageError(f"no setting {key!r}", hint=hint)
    return row


def _parsed(row: cascade.Setting, value: str) -> object:
    """The value in its own type. A key does not stand in a command line, where others can read it."""
    if row.secret:
        if value != "-":
            raise UsageError(
                f"a key is not given in the command line ({row.key})",
                hint=f"stigmer config set {row.key} - <FILE, or name its variable: stigmer config set "
                "llm.api_key_env ANTHROPIC_API_KEY",
            )
        value = sys.stdin.read()
    value = value.strip(cascade.BLANKS)
    try:
        parsed = row.parse(value, True)
    except ValueError as error:
        named = "" if row.secret else f" {value!r}"
        raise ConfigError([f"{row.name}{named} {error}"]) from None
    return parsed


def _faults(path: Path, text: str | None, shown: str) -> list[str]:
    """What is wrong with the user's file, by itself and in the cascade, without the line numbers, which move."""
    file = user_layer(path, text)
    faults = [problem for problem in resolution([file] if file else []).problems if shown in problem]
    return [re.sub(rf"({re.escape(shown)})(:\d+|, line \d+)", r"\1", fault) for fault in faults]


def _without_lines(fault: str) -> str:
    return f"nothing was written: {fault}"


def _shown(path: Path) -> str:
    return cascade.display_path(path)


def _tell_what_hides(name: str, settings: dict[str, Any], shown: str) -> None:
    found = settings.get("api_key" if name == "api_key_env" else name)
    if found is not None and shown not in found["source"]:
        value, source = _plain(found["value"]), found["source"]
        terminal().say(f"note: it has no effect here: {name} is {harmless(value)}, from {source}")


def _rule(rule: Mapping[str, Any]) -> str:
    when = ", ".join(f"{name} {pattern}" for name, pattern in sorted(rule["when"].items()))
    return f"{rule['verdict']} {rule['tool']}" + (f" where {when}" if when else "")


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(
    settings: Mapping[str, Any],
    approvals: Sequence[Mapping[str, Any]] = (),
    others: Mapping[str, Mapping[str, Any]] = {},
) -> str:
    """Setting, value, source; under each what it hides. Then what is no setting of a model."""
    rows = []
    for name, found in settings.items():
        ident = f" ({found['id']})" if "id" in found else ""
        rows.append((name, _plain(found["value"]) + ident, found["source"]))
        rows += [("", f"hides {_plain(hidden['value'])}", hidden["source"]) for hidden in found["shadowed"]]
    rows += [("approvals", harmless(_rule(one)), one["source"]) for one in approvals]
    rows += [(name, _plain(found["value"]), found["source"]) for name, found in others.items()]
    widths = [min(50, max((len(row[column]) for row in rows), default=0)) for column in (0, 1)]
    return "".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() + "\n" for a, b, c in rows)
