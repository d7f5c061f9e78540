"""What `stigmer run` would use from here: a running daemon's word, else what one started here would say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stigmer import config as cascade
from stigmer.cli._terminal import terminal
from stigmer.errors import ConfigError
from stigmer.home import Address, Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import ResolveConfigResponse
    from stigmer.cli._project import Project

__all__ = ["Resolved", "configurations", "resolution", "resolved", "resolved_each", "user_file", "user_layer"]


class Resolved(NamedTuple):
    """The settings as `config show --json` has them, as far as they could be resolved, and what there is to say."""

    settings: dict[str, Any]
    notices: list[str]
    problems: list[str]
    approvals: Sequence[Mapping[str, Any]] = ()
    """The approval rules of the files, each with its source."""
    others: Mapping[str, Mapping[str, Any]] = {}
    """What is no setting of a model, by name: value and source."""


def resolved(flags: dict[str, str], agent: str | None = None, *, ask_daemon: bool = True) -> Resolved:
    """The settings of a run with these flags; no daemon is started for it."""
    return resolved_each([flags], agent, ask_daemon=ask_daemon)[0]


def resolved_each(
    several: Sequence[dict[str, str]], agent: str | None = None, *, ask_daemon: bool = True
) -> list[Resolved]:
    """The settings of several runs, one for each set of flags."""
    from stigmer.cli._project import find_project
    from stigmer.cli._session import named_server
    from stigmer.daemon import find

    home = Home.find()
    address = (named_server() or find(home)) if ask_daemon else None
    project = find_project(Path.cwd(), agent=agent, home=home, talk=terminal(), asks=False)
    project, faults = _sound(project)
    answers = (
        _as_from_here(several, home, project)
        if address is None
        else _asked_of_the_daemon(several, home, address, project)
    )
    return [one._replace(problems=[*faults, *one.problems]) for one in answers]


def configurations(several: Sequence[dict[str, str]], agent: str | None = None) -> list[cascade.LLMConfig]:
    """The same from this shell and home alone, problems inside: with keys, so for nobody's eyes."""
    from stigmer.cli._project import find_project

    home = Home.find()
    project, _ = _sound(find_project(Path.cwd(), agent=agent, home=home, talk=terminal(), asks=False))
    return [found for found, _ in _resolved_from_here(several, home, project)]


def _sound(project: Project) -> tuple[Project, list[str]]:
    """What of the folder can be used, and what is wrong with the rest."""
    faults: list[str] = []
    if project.config is not None and project.config.problem:
        faults.append(project.config.problem)
        project = project._replace(config=None)
    if project.agent is not None:
        from stigmer.agents import AgentError

        try:
            project.agent_record()
        except AgentError as error:
            faults += error.problems
            project = project._replace(agent=None)
    return project, faults


def user_file() -> Path:
    """The user's file: the one that STIGMER_CONFIG names, else config.yaml in STIGMER_HOME."""
    named = os.environ.get("STIGMER_CONFIG", "").strip()
    return Path(os.path.abspath(os.path.expanduser(named))) if named else Home.find().config


def user_layer(path: Path, text: str | None = None) -> cascade.Layer | None:
    """The layer of the user's file, as it is or as `text` would make it; None where there is none and need not be."""
    if text is not None:
        return cascade.layer_from_file(path, text)
    named = os.environ.get("STIGMER_CONFIG", "").strip()
    return cascade.layer_from_file(path) if named or os.path.lexists(path) else None


def resolution(layers: list[cascade.Layer]) -> cascade.LLMConfig:
    """The resolution of these layers with this shell, its problems inside."""
    shell = cascade.layer_from_environment(os.environ, "shell")
    try:
        return cascade.resolve([shell, *layers], _Measured(), cascade.clock(os.environ))
    except ConfigError as error:
        if error.config is None:
            raise
        return error.config


@cache
def _ollama_up(base_url: str) -> bool:
    import asyncio

    from stigmer import preflight

    return asyncio.run(preflight.ollama_up(base_url))


@cache
def _installed(base_url: str) -> Sequence[cascade.Installed] | None:
    import asyncio

    from stigmer import preflight

    return asyncio.run(preflight.installed(base_url))


class _Measured:
    """Facts of this machine, measured when they are asked for."""

    def ollama_up(self, base_url: str) -> bool:
        return _ollama_up(base_url)

    def installed(self, base_url: str) -> Sequence[cascade.Installed] | None:
        return _installed(base_url)

    def free_memory(self) -> int:
        from stigmer import preflight

        return preflight.free_memory()


def _as_from_here(several: Sequence[dict[str, str]], home: Home, project: Project) -> list[Resolved]:
    rules = _agents_rules(project)
    return [
        Resolved(
            found.to_json()["settings"],
            [*project.notices, *found.notices],
            list(found.problems),
            [*rules, *beside.rules],
            {name: {"value": value, "source": source} for name, (value, source) in beside.values.items()},
        )
        for found, beside in _resolved_from_here(several, home, project)
    ]


def _resolved_from_here(
    several: Sequence[dict[str, str]], home: Home, project: Project
) -> list[tuple[cascade.LLMConfig, cascade.Beside]]:
    from stigmer.vault import Vault

    below = [layer for layer in (Vault(home).layer(), user_layer(user_file())) if layer is not None]
    shown = cascade.display_path(user_file())
    found = []
    for flags in several:
        layers = _all_layers([cascade.layer_from_flags(flags), *below], project)
        more = cascade.beside(layers, environment=os.environ, user_file=shown)
        found.append((resolution(layers), more))
    return found


def _agents_rules(project: Project) -> list[dict[str, Any]]:
    """The agent's own approval rules; one of an untrusted folder allows nothing."""
    agent = project.agent_record()
    return [
        {
            "tool": rule.tool,
            "when": dict(rule.when),
            "verdict": rule.verdict,
            "source": rule.source or f"agent {agent.name}",
        }
        for rule in (agent.approvals if agent is not None else ())
        if agent is not None and (agent.trusted or rule.verdict != "allow")
    ]


def _all_layers(layers: list[cascade.Layer], project: Project) -> list[cascade.Layer]:
    """These with what comes with the folder, narrowed where the user does not trust it."""
    agent = project.agent_record()
    files: list[tuple[cascade.Layer, bool]] = []
    if project.config is not None:
        path, data, trusted, _ = project.config
        files.append((cascade.layer_from_file(path, data, "project_file"), trusted))
    if agent is not None:
        from stigmer.agents import from_record

        files.append((from_record(agent), agent.trusted))
    layers += [layer for layer, trusted in files if trusted]
    doubtful = [layer for layer, trusted in files if not trusted]
    if doubtful:
        from stigmer.trust import without_widening

        layers = without_widening(layers, doubtful, resolution(layers))
    return layers


def _asked_of_the_daemon(
    several: Sequence[dict[str, str]], home: Home, address: Address, project: Project
) -> list[Resolved]:
    import asyncio

    from stigmer.cli._request import build, stays_here
    from stigmer.cli._session import with_client
    from stigmer.client import Client
    from stigmer.events import settings_json

    requests = [
        build(
            "",
            flags=flags,
            workspace=Path.cwd(),
            named=True,
            approve_all=False,
            budget={},
            idempotency_key="",
            home=home,
            talk=terminal(),
            project=project,
            tells=False,  # What there is to tell is shown with the other notices.
        )
        for flags in several
    ]
    notices = [*project.notices]
    if address.remote:
        notices.append(f"the server at {address.shown} says what a run would use there")
        notices += stays_here(project, address)

    async def work(client: Client) -> list[ResolveConfigResponse]:
        return [await client.resolve(request) for request in requests]

    return [
        Resolved(
            settings_json(found.config),
            [*notices, *found.config.notices],
            list(found.problems),
            [
                {"tool": one.tool, "when": dict(one.when), "verdict": one.verdict, "source": one.source}
                for one in found.approvals
            ],
            {one.name: {"value": json.loads(one.value), "source": one.source} for one in found.others},
        )
        for found in asyncio.run(with_client(work, address))
    ]
