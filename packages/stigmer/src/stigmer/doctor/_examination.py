"""Everything that `stigmer doctor` looks at, in its order: here on this machine, beside it in the examiner's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

from graphton.models import PROVIDERS

from stigmer import redact
from stigmer.config import LLMConfig
from stigmer.doctor._check import AREAS, FAIL, SKIP, Check, check
from stigmer.doctor._files import model_files
from stigmer.doctor._home import home_checks
from stigmer.doctor._network import network
from stigmer.doctor._program import program
from stigmer.doctor._settings import settings_checks
from stigmer.doctor._targets import Target, embedded, targets, unasked
from stigmer.home import Home

__all__ = ["Examiner", "Patient", "decides", "examine"]

PATIENCE = 20.0
"""Seconds for the examiner's process, its start included; each of its questions has its own limit, 2.5 s or so."""


class Patient(NamedTuple):
    """What is to be examined."""

    home: Home
    settings: Mapping[str, Any]
    """Of the default run, as `config show --json` has them."""
    notices: Sequence[str]
    problems: Sequence[str]
    by_daemon: bool
    """A running daemon has resolved them."""
    run: LLMConfig | None
    """The same run, resolved from here, with its key; None where nothing can be resolved."""
    others: Mapping[str, LLMConfig]
    """For each provider the run with it."""
    daemon_trouble: str = ""
    """Why a daemon that is there does not answer."""
    database_url: str = ""


def examine(patient: Patient, beside: Examiner, *, offline: bool = False, deep: bool = False) -> list[Check]:
    """Every check, area by area; no secret is in them."""
    _remember(patient)
    run, ask, told = patient.run, list[Target](), list[Check]()
    if run is not None:
        ask, told = targets(run, patient.others)
        beside.ask(_questions(run, patient, [] if offline else ask, offline=offline))
        told += [*(unasked(ask) if offline else ()), *_of_the_daemon_alone(run, patient)]
    here: list[Check] = [
        *program(),
        *home_checks(patient.home, database_url=patient.database_url, deep=deep),
        *_silent_daemon(patient),
        *settings_checks(patient.settings, patient.notices, patient.problems, daemon=patient.by_daemon),
        *network(),
        *model_files(deep=deep),
        *told,
        *(beside.checks() if run is not None else ()),
    ]
    return [_scrubbed(one) for one in _in_order(here)]


def _silent_daemon(patient: Patient) -> list[Check]:
    if not patient.daemon_trouble:
        return []
    return [
        check(
            "home.daemon_answer", FAIL, patient.daemon_trouble, "stigmer down; the next run starts a new one"
        )
    ]


def _in_order(checks: Iterable[Check]) -> list[Check]:
    """By area, and within the providers by the table; of the clocks that were compared the one that is worst off."""
    order = list(AREAS)
    providers = list(PROVIDERS)

    def place(one: Check) -> tuple[int, int]:
        named = one.id.split(".")[1].partition("#")[0]
        return order.index(one.area), providers.index(named) if one.area == "provider" else 0

    found = sorted(checks, key=place)
    clocks = [one for one in found if one.id == "network.clock"]
    if clocks:
        worst = max(clocks, key=lambda one: abs(one.facts["seconds_ahead"]))
        found = [one for one in found if one.id != "network.clock" or one is worst]
    return found


# --- the examiner -------------------------------------------------------------------------------------------------


def _questions(run: LLMConfig, patient: Patient, asked: Sequence[Target], *, offline: bool) -> dict[str, Any]:
    """What the examiner is to look at. Ollama on this machine is looked at offline, too."""
    ollama = patient.others["ollama"]
    to_ollama = run.ref.provider == "ollama"
    config = run if to_ollama else ollama
    source = config.values["base_url"].source
    ours = embedded(run.ref, run.settings)
    return {
        "targets": [one.to_json() for one in asked],
        "ollama": {
            "url": config.settings.base_url,
            "source": source,
            "named": not source.startswith("default "),
            "key": config.settings.api_key,
            "model": run.ref.model if to_ollama else None,
            "window": run.settings.context_window if to_ollama else None,
            "max_tokens": run.settings.max_tokens if to_ollama else None,
            "max_tokens_said": not run.values["max_tokens"].source.startswith("default "),
            "tool_modes": str(patient.home.tool_modes),
        }
        if config.settings.base_url
        else None,
        "llamacpp": {
            "model": (run if ours else patient.others["llamacpp"]).ref.model,
            "window": run.settings.context_window if ours else None,
            "max_tokens": (run if ours else patient.others["llamacpp"]).settings.max_tokens,
            "used": ours,
        },
        "database": "" if offline else patient.database_url,
    }


class Examiner:
    """The process beside us. It starts while we resolve settings, and works while we look at this machine.

    with Examiner() as beside:
        checks = examine(patient, beside)
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stigmer.doctor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, questions: Mapping[str, Any]) -> None:
        """What it is to look at; it begins at once."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # If it is gone, `checks` says why.
            json.dump(questions, pipe)
        self._process.stdin = None

    def checks(self) -> list[Check]:
        """What it has found; where it did not get done, what it had by then and a word on that."""
        late = False
        try:
            said, trouble = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, trouble = self._process.communicate()
            late = True
        found = [one for line in said.splitlines() if (one := _read(line)) is not None]
        if self._process.returncode == 0:
            return found
        lines = trouble.strip().splitlines()
        why = (
            f"was not done within {PATIENCE:g} s"
            if late
            else f"ended: {lines[-1] if lines else 'without a word'}"
        )
        return [
            *found,
            check("network.examiner", FAIL, f"the process that asks servers {why}", "stigmer doctor"),
        ]


def _read(line: str) -> Check | None:
    """A check that the examiner has printed; None for what is none, or was cut when it was ended."""
    try:
        return Check.from_json(json.loads(line))
    except (ValueError, LookupError, TypeError):
        return None


def _of_the_daemon_alone(run: LLMConfig, patient: Patient) -> list[Check]:
    """A run from here goes to the daemon; where only that has a key, we cannot try it."""
    key = patient.settings.get("api_key", {})
    if not patient.by_daemon or not key.get("value") or run.settings.api_key:
        return []
    return [
        check(
            "settings.daemon_key",
            SKIP,
            f"the key that a run would use is the daemon's alone ({key['source']}); it is not tried from here",
            "to have it tried, set it in this shell, too",
        )
    ]


# --- secrets ------------------------------------------------------------------------------------------------------


def _remember(patient: Patient) -> None:
    """Every key that may be on its way is masked from now on, and what stands in proxies' addresses."""
    from urllib.parse import unquote, urlsplit

    configs = [*([patient.run] if patient.run else ()), *patient.others.values()]
    keys = [one.settings.api_key for one in configs]
    keys += [one.settings.api_key for config in configs for one in config.fallbacks]
    redact.remember(key for key in keys if key)
    for name, value in os.environ.items():
        if name.lower().endswith("_proxy") and "@" in value:
            try:
                password = urlsplit(value if "://" in value else f"http://{value}").password or ""
            except ValueError:
                continue
            redact.remember([password, unquote(password)])


def _scrubbed(one: Check) -> Check:
    return Check(one.id, one.status, redact.scrub(one.text), redact.scrub(one.hint), _clean(one.facts))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact.scrub(value)
    if isinstance(value, Mapping):
        return {name: _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def decides(checks: Iterable[Check]) -> list[Check]:
    """The checks because of which the default run would not work."""
    return [one for one in checks if one.status == FAIL]
