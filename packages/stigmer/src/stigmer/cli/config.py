"""`config show | get | set | path`: which settings apply, where each comes from, and how to change one."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stigmer import config as cascade
from stigmer.cli._main import USAGE, asked, json_option
from stigmer.cli._options import flags_of, llm_options, mode_flag
from stigmer.cli._terminal import harmless, terminal
from stigmer.errors import ConfigError, UsageError
from stigmer.home import Address, Home

if TYPE_CHECKING:
    from stigmer.cli._project import Project

__all__ = ["config"]


class _Measured:
    """Facts of this machine, measured when they are asked for."""

    def ollama_up(self, base_url: str) -> bool:
        import asyncio

        from stigmer import preflight

        return asyncio.run(preflight.ollama_up(base_url))

    def free_memory(self) -> int:
        from stigmer import preflight

        return preflight.free_memory()


@click.group()
def config() -> None:
    """Show which settings apply and where each comes from; change them."""


@config.command()
@llm_options
@click.option("--agent", metavar="NAME|FILE", help="An agent of .stigmer/agents, or an agent file.")
@json_option
def show(agent: str | None, **flags: Any) -> int:
    """Show every setting as `stigmer run` would resolve it here: value, source, and what it hides.

    A running daemon is asked for its part; none is started. Exit code 2: there are problems.
    """
    settings, notices, problems = _resolved(flags_of(flags), agent)
    talk = terminal()
    if asked().json:
        shown = {"settings": settings, "notices": notices, "problems": problems}
        talk.data(json.dumps(shown, ensure_ascii=False, indent=2 if talk.out_is_terminal else None) + "\n")
        return USAGE if problems else 0
    talk.data(_table(settings))
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
    settings, _, problems = _resolved(mode_flag())
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

    row = _row(key)
    path = _path()
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
    settings, _, problems = _resolved({})
    _tell_what_hides(row.name, settings, shown)
    for problem in problems:
        talk.say(f"note: {harmless(problem)}")
    return 0


@config.command()
def path() -> int:
    """Print where the user's file is, or would be."""
    terminal().data(f"{_path()}\n")
    return 0


def _row(key: str) -> cascade.Setting:
    row = cascade.setting_for_key(key)
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
    file = _user_layer(path, text)
    faults = [problem for problem in _resolution([file] if file else []).problems if shown in problem]
    return [re.sub(rf"({re.escape(shown)})(:\d+|, line \d+)", r"\1", fault) for fault in faults]


def _without_lines(fault: str) -> str:
    return f"nothing was written: {fault}"


def _user_layer(path: Path, text: str | None = None) -> cascade.Layer | None:
    if text is not None:
        return cascade.layer_from_file(path, text)
    return cascade.layer_from_file(path) if os.path.lexists(path) or "STIGMER_CONFIG" in os.environ else None


def _path() -> Path:
    """The user's file: the one that STIGMER_CONFIG names, else config.yaml in STIGMER_HOME."""
    named = os.environ.get("STIGMER_CONFIG", "").strip()
    return Path(os.path.abspath(os.path.expanduser(named))) if named else Home.find().config


def _shown(path: Path) -> str:
    return cascade.display_path(path)


def _resolution(layers: list[cascade.Layer]) -> cascade.LLMConfig:
    """The resolution of these layers with this shell, its problems inside."""
    shell = cascade.layer_from_environment(os.environ, "shell")
    try:
        return cascade.resolve([shell, *layers], _Measured(), cascade.clock(os.environ))
    except ConfigError as error:
        if error.config is None:
            raise
        return error.config


def _resolved(flags: dict[str, str], agent: str | None = None) -> tuple[dict[str, Any], list[str], list[str]]:
    """Settings, notices and problems: the daemon's word where one runs, else what one started here would say."""
    from stigmer.cli._project import find_project
    from stigmer.daemon import find

    home = Home.find()
    address = find(home)
    project = find_project(Path.cwd(), agent=agent, home=home, talk=terminal(), asks=False)
    return (
        _as_from_here(flags, home, project)
        if address is None
        else _asked_of_the_daemon(flags, home, address, project)
    )


def _as_from_here(
    flags: dict[str, str], home: Home, project: Project
) -> tuple[dict[str, Any], list[str], list[str]]:
    from stigmer.vault import Vault

    layers = [cascade.layer_from_flags(flags)]
    layers += [layer for layer in (Vault(home).layer(), _user_layer(_path())) if layer is not None]
    found = _with_project(layers, project)
    return found.to_json()["settings"], [*project.notices, *found.notices], list(found.problems)


def _with_project(layers: list[cascade.Layer], project: Project) -> cascade.LLMConfig:
    """The resolution with what comes with the folder, narrowed where the user does not trust it."""
    agent = project.agent_record()
    files: list[tuple[cascade.Layer, bool]] = []
    if project.config is not None:
        path, data, trusted = project.config
        files.append((cascade.layer_from_file(path, data, "project_file"), trusted))
    if agent is not None:
        from stigmer.agents import from_record

        files.append((from_record(agent), agent.trusted))
    layers += [layer for layer, trusted in files if trusted]
    doubtful = [layer for layer, trusted in files if not trusted]
    if doubtful:
        from stigmer.trust import without_widening

        layers = without_widening(layers, doubtful, _resolution(layers))
    return _resolution(layers)


def _asked_of_the_daemon(
    flags: dict[str, str], home: Home, address: Address, project: Project
) -> tuple[dict[str, Any], list[str], list[str]]:
    import asyncio

    from stigmer.cli._request import build
    from stigmer.cli._session import with_client
    from stigmer.client import Client
    from stigmer.events import settings_json

    request = build(
        "",
        flags=flags,
        workspace=Path.cwd(),
        named=True,
        approve_all=False,
        budget={},
        idempotency_key="",
        home=home,
        talk=terminal(),
        project=project._replace(notices=()),  # They are shown with the others.
    )

    async def work(client: Client) -> Any:
        return await client.resolve(request)

    found = asyncio.run(with_client(work, address))
    return settings_json(found.config), [*project.notices, *found.config.notices], list(found.problems)


def _tell_what_hides(name: str, settings: dict[str, Any], shown: str) -> None:
    found = settings.get("api_key" if name == "api_key_env" else name)
    if found is not None and shown not in found["source"]:
        value, source = _plain(found["value"]), found["source"]
        terminal().say(f"note: it has no effect here: {name} is {harmless(value)}, from {source}")


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(settings: Mapping[str, Any]) -> str:
    """Setting, value, source; under each what it hides."""
    rows = []
    for name, found in settings.items():
        ident = f" ({found['id']})" if "id" in found else ""
        rows.append((name, _plain(found["value"]) + ident, found["source"]))
        rows += [("", f"hides {_plain(hidden['value'])}", hidden["source"]) for hidden in found["shadowed"]]
    widths = [min(50, max((len(row[column]) for row in rows), default=0)) for column in (0, 1)]
    return "".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() + "\n" for a, b, c in rows)
