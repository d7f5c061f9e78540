"""What the cascade comes to for the default run, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stigmer.doctor._check import FAIL, OK, WARN, Check, check

__all__ = ["settings_checks"]


def settings_checks(
    settings: Mapping[str, Any], notices: Sequence[str], problems: Sequence[str], *, daemon: bool
) -> Iterator[Check]:
    """The settings as `config show --json` has them. A problem decides: with it no run begins."""
    if settings:
        yield _run(settings, problems, daemon=daemon)
    for number, problem in enumerate(problems, 1):
        text, _, hint = problem.partition("\nhint: ")
        if not hint:
            text, hint = _split(text)
        yield check(f"settings.problem.{number}", FAIL, text, hint)
    for number, notice in enumerate(notices, 1):
        yield check(f"settings.notice.{number}", WARN, notice)


def _run(settings: Mapping[str, Any], problems: Sequence[str], *, daemon: bool) -> Check:
    model, provider = settings["model"]["value"], settings["provider"]["value"]
    said = "as the running daemon resolves it" if daemon else "as a daemon started from here would resolve it"
    return check(
        "settings.run",
        WARN if problems else OK,
        f"the default run asks {model} of {provider} ({settings['provider']['source']}), {said}",
        "",
        settings=dict(settings),
        by_daemon=daemon,
    )


def _split(problem: str) -> tuple[str, str]:
    """The cascade writes what helps behind a colon."""
    for mark in (": set ", ": say that ", ": a key goes ", ", e.g. "):
        text, found, rest = problem.partition(mark)
        if found:
            return text, (mark.removeprefix(": ") if mark[0] == ":" else "e.g. ") + rest
    return problem, "stigmer config show"
