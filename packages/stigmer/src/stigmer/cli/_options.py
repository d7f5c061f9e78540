"""Options that several commands share: the LLM flags, one for each setting that a flag may give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from stigmer.cli._main import asked
from stigmer.config import BLANKS, SETTINGS
from stigmer.errors import ConfigError

__all__ = ["check", "flags_of", "llm_options", "mode_flag"]

_FLAGS = {row.name: row.flag for row in SETTINGS.values() if row.flag}
_METAVARS = {
    "mode": "local|cloud",
    "provider": "NAME",
    "model": "NAME",
    "base_url": "URL",
    "temperature": "X",
    "fallbacks": "MODEL",
    "thinking": "LEVEL",
    "timeouts.connect": "SECONDS",
    "timeouts.first_token": "SECONDS",
    "timeouts.idle": "SECONDS",
}
_MORE = {"fallbacks": " May be given again."}


def llm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The LLM flags. They stay text: the cascade checks them, so that every layer's faults read alike."""
    for name in reversed(_FLAGS):
        command = click.option(
            _FLAGS[name],
            _parameter(name),
            metavar=_METAVARS.get(name, "N"),
            multiple=name == "fallbacks",
            help=SETTINGS[name].help + _MORE.get(name, ""),
        )(command)
    return command


def flags_of(given: dict[str, Any]) -> dict[str, str]:
    """Takes the LLM flags out of a command's parameters: only those that somebody gave, by setting name.

    `--mode` may stand before the command too; the one after it is the nearer one.
    """
    found = mode_flag()
    for name in _FLAGS:
        value = given.pop(_parameter(name))
        if value not in (None, ()):
            found[name] = ",".join(value) if isinstance(value, tuple) else value
    return found


def mode_flag() -> dict[str, str]:
    """The flag layer of a command without LLM flags: `stigmer --mode cloud config get model`."""
    return {} if asked().mode is None else {"mode": str(asked().mode)}


def check(flags: dict[str, str], *, command: str) -> None:
    """Raises ConfigError where a flag's own value is wrong, before a process is started that would only say so later."""
    faults = []
    for name, value in flags.items():
        try:
            SETTINGS[name].parse(value.strip(BLANKS), True)
        except ValueError as error:
            faults.append(f"{name} {value!r} from flag {_FLAGS[name]} (stigmer {command}) {error}")
    if faults:
        raise ConfigError(faults)


def _parameter(name: str) -> str:
    return name.replace(".", "_")
