"""The options that limit a run: steps, tokens, dollars, running time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["limit_options", "limits_of"]

_COUNT = click.IntRange(1, 2**31 - 1)
"""What fits every counter of the protocol."""
_AMOUNT = click.FloatRange(0, min_open=True)

_LIMITS = {
    "steps": ("--max-steps", _COUNT, "N", "Model calls at most."),
    "tokens": ("--max-tokens-total", _COUNT, "N", "Tokens at most, in and out."),
    "usd": ("--max-usd", _AMOUNT, "X", "Dollars at most."),
    "seconds": ("--timeout", _AMOUNT, "SECONDS", "Running time at most."),
}
"""By the limit's name in a Budget."""


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, for commands that start a run."""
    for name, (flag, kind, metavar, help) in reversed(_LIMITS.items()):
        command = click.option(flag, f"limit_{name}", type=kind, metavar=metavar, help=help)(command)
    return command


def limits_of(given: dict[str, Any]) -> dict[str, float]:
    """Takes the limits out of a command's parameters: only those that somebody gave."""
    said = {name: given.pop(f"limit_{name}") for name in _LIMITS}
    return {name: value for name, value in said.items() if value is not None}
