"""From a request's layers to one configuration: resolved once, when the execution is accepted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from graphton.models import ModelRef, ModelSettings

from stigmer import agents, config, preflight, redact, trust
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.errors import ConfigError
from stigmer.home import Home
from stigmer.server.status import Refused
from stigmer.vault import Vault

__all__ = ["Resolved", "Resolver"]

log = logging.getLogger("stigmer.server")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration as it is recorded, and beside it what is never recorded: the key."""

    config: pb.ConfigResolved
    provider: str
    model: str
    base_url: str
    line: str
    """Model, provider and why, for people."""
    key: str | None = field(default=None, repr=False)
    key_is_stored: bool = False
    """It is a stored secret: looked up afresh whenever it is needed, so that a changed one counts."""
    rules: tuple[api.ApprovalRule, ...] = ()
    """Approval rules of the user's file and of the project's."""
    on_unknown: str = ""
    """What the user's file says follows a lost write."""
    fallback_keys: tuple[tuple[str, str, str], ...] = field(default=(), repr=False)
    """Provider, base URL and key of the fallbacks and sub-agents that have one, stored ones left out."""


class Resolver:
    """This process's part of the cascade: its flags, its environment, stored secrets and the user file.

    It is asked with a request's layers.
    """

    def __init__(
        self,
        home: Home,
        *,
        flags: Mapping[str, str],
        environ: Mapping[str, str] | None = None,
        where: Literal["local", "serve", "worker"] = "local",
    ) -> None:
        """`where`: a daemon for the user of this machine, or a server or a worker for others too.

        Raises ConfigError on a bad variable of its own.
        """
        self._environ = dict(os.environ if environ is None else environ)
        self._where = where
        self._allowed = config.allowed_hosts(self._environ)
        self._retention = config.retention(self._environ)
        self._home = home
        self._process = (
            config.layer_from_flags(flags, "process_flag", command="up" if where == "local" else where),
            config.layer_from_environment(self._environ),
        )
        self._vault = Vault(home)
        _remember(self._environ)

    async def __call__(self, request: api.CreateExecutionRequest, *, local: bool) -> Resolved:
        """What a run with this request's layers uses. Raises ConfigError with all problems together.

        `local`: the request came over the Unix socket, the only way that the caller's shell and files may take.
        """
        secrets = await self._secrets()
        layers = await self._layers(request, secrets, local=local)
        found = await self._resolve(layers)
        below = [
            (name, await self._resolve(await self._layers(own, secrets, local=local)))
            for name, own in _subagent_requests(request)
        ]
        settings, ref = found.settings, found.ref
        stored = {value for layer in secrets for value in layer.variables.values()}
        record = _record(found)
        for name, child in below:
            theirs = _record(child)
            record.subagents.add(name=name, settings=theirs.settings, models=theirs.models)
            record.notices.extend(text for text in theirs.notices if text not in record.notices)
        others = [(one.ref, one.settings) for one in found.fallbacks]
        for _, child in below:
            others.append((child.ref, child.settings))
            others += [(one.ref, one.settings) for one in child.fallbacks]
        return Resolved(
            config=record,
            provider=ref.provider,
            model=ref.model,
            base_url=settings.base_url or "",
            line=f"{found.values['model'].value} on {ref.provider} ({found.values['provider'].source})",
            key=settings.api_key,
            key_is_stored=settings.api_key in stored,
            rules=tuple(api.ApprovalRule(**rule) for layer in layers for rule in layer.rules),
            on_unknown=next((layer.on_unknown for layer in layers if layer.on_unknown), ""),
            fallback_keys=tuple(
                (used.provider, own.base_url or "", own.api_key)
                for used, own in others
                if own.api_key is not None and own.api_key not in stored
            ),
        )

    async def explain(
        self, request: api.CreateExecutionRequest, *, local: bool
    ) -> tuple[pb.ConfigResolved, tuple[str, ...]]:
        """What a run with this request's layers would use as far as it can be resolved, and what is wrong with them."""
        layers = await self._layers(request, await self._secrets(), local=local)
        found = await self._otherwise(layers)
        return _record(found), found.problems

    async def beside(self, request: api.CreateExecutionRequest, *, local: bool) -> config.Beside:
        """The approval rules and whatever else is no setting of a model, that a run with this request's layers goes by."""
        layers = await self._layers(request, await self._secrets(), local=local)
        named = request.shell.get("STIGMER_CONFIG") or self._environ.get("STIGMER_CONFIG", "").strip()
        path = config.display_path(named or self._home.config)
        found = config.beside(layers, environment=self._environ, user_file=path)
        own = [
            {
                "tool": rule.tool,
                "when": dict(rule.when),
                "verdict": rule.verdict,
                "source": rule.source or f"agent {request.agent}",
            }
            for rule in request.agent_record.approvals
            if request.agent_record.trusted or rule.verdict != "allow"
        ]
        return found._replace(rules=(*own, *found.rules))

    async def log(self) -> list[str]:
        """Writes what this process's own layers come to into the log: one line a setting, secrets masked.

        Gives what is wrong with them.
        """
        layers = [*self._process, *await self._secrets(), *self._user_file()]
        found = await self._otherwise(layers)
        for name, value in found.values.items():
            hidden = "".join(f" hides={_json(one.value)} of={one.source!r}" for one in value.shadowed)
            log.info("setting name=%s value=%s source=%r%s", name, _json(value.value), value.source, hidden)
        for notice in found.notices:
            log.info("setting notice=%r", notice)
        for problem in found.problems:
            log.warning("setting problem=%r", problem)
        return [str(problem) for problem in found.problems]

    async def _layers(
        self, request: api.CreateExecutionRequest, secrets: list[config.Layer], *, local: bool
    ) -> list[config.Layer]:
        """The request's layers and this process's own, those of folders that nobody trusts narrowed.

        An agent may come over TCP, too: it sets no address and no key, and says no more than the caller's flags may.
        """
        if not local and (request.shell or request.HasField("project_file")):
            raise Refused(
                "a request over TCP may not carry the caller's shell or project file",
                code="forbidden",
                hint="send flags, execution_config and an agent; keys are set at the server",
            )
        _remember(request.shell)
        layers = [
            *_request_layers(request, local=local),
            *self._process,
            *secrets,
            *self._user_file(request.shell),
        ]
        if doubtful := _file_layers(request, trusted=False):
            return trust.without_widening(layers, doubtful, await self._otherwise(layers))
        return layers

    def key_for(self, provider: str, base_url: str) -> str | None:
        """The key that this process's environment, a stored secret or the user file binds to that address."""
        wanted = config.layer_from_flags({"provider": provider, "base_url": base_url or None})
        secrets = self._vault.layer()
        layers = [wanted, *self._process, *([secrets] if secrets else []), *self._user_file()]
        try:
            found = config.resolve(layers, config.Known(ollama=False), config.clock(self._environ))
        except ConfigError as error:
            if error.config is None:
                return None
            found = error.config  # Something else is wrong; the key may be there all the same.
        redact.remember([found.settings.api_key or ""])
        return found.settings.api_key

    def key_from(self, shell: Mapping[str, str], provider: str, base_url: str) -> str | None:
        """The key of a caller's shell, or of a variable there that the user file names, which is bound to that address."""
        _remember(shell)
        wanted = config.layer_from_flags({"provider": provider, "base_url": base_url or None})
        layers = [wanted, config.layer_from_environment(shell, "shell"), *self._user_file(shell)]
        try:
            found = config.resolve(layers, config.Known(ollama=False), config.clock(self._environ))
        except ConfigError as error:
            if error.config is None:
                return None
            found = error.config  # Something else is wrong; the key may be there all the same.
        key = found.settings.api_key
        return key if key in {value.strip() for value in shell.values()} else None

    def retention(self) -> config.Retention:
        """How long executions that have ended are kept: the environment's word, else the user file's as it is now.

        Raises ConfigError when that file cannot be relied on: nothing is deleted by half of what somebody wrote.
        """
        said = config.Retention()
        for layer in self._user_file():
            if layer.problems:
                raise ConfigError(layer.problems)
            said = layer.retention
        return said.under(self._retention)

    async def _secrets(self) -> list[config.Layer]:
        """The stored secrets. A keyring may take its time: it is asked beside the loop."""
        layer = self._vault.layer() if self._vault.fresh else await asyncio.to_thread(self._vault.layer)
        if layer is None:
            return []
        redact.remember(layer.variables.values())
        return [layer]

    def _user_file(self, shell: Mapping[str, str] | None = None) -> list[config.Layer]:
        """The file that the caller's shell names, else this process's. Read anew each time: an edit counts at once."""
        names = {**self._environ, "STIGMER_HOME": str(self._home.path)}
        if shell and shell.get("STIGMER_CONFIG"):
            names["STIGMER_CONFIG"] = shell["STIGMER_CONFIG"]
        layer = config.layer_from_user_file(names)
        return [layer] if layer is not None else []

    async def _otherwise(self, layers: list[config.Layer]) -> config.LLMConfig:
        """What these layers come to, whatever is wrong with them."""
        try:
            return await self._resolve(layers)
        except ConfigError as error:
            if error.config is None:
                raise
            return error.config

    async def _resolve(self, layers: list[config.Layer]) -> config.LLMConfig:
        """`resolve` is pure and asks for facts only when they matter: it is run again with each one measured."""
        facts = _Facts()
        while True:
            try:
                now = config.clock(self._environ)
                return config.resolve(layers, facts, now, where=self._where, allowed=self._allowed)
            except _NotMeasured as missing:
                match missing.what:
                    case "memory":
                        facts.memory = preflight.free_memory()
                    case "ollama":
                        facts.ollama[missing.url] = await preflight.ollama_up(missing.url)
                    case "installed":
                        facts.models[missing.url] = await preflight.installed(missing.url)


class _NotMeasured(Exception):
    """A fact is wanted: whether an Ollama answers at `url`, what it has installed, or how much memory is free."""

    def __init__(self, what: Literal["ollama", "installed", "memory"], url: str = "") -> None:
        super().__init__(what, url)
        self.what, self.url = what, url


class _Facts:
    """What has been measured so far."""

    def __init__(self) -> None:
        self.ollama: dict[str, bool] = {}
        self.models: dict[str, tuple[config.Installed, ...] | None] = {}
        self.memory: int | None = None

    def ollama_up(self, base_url: str) -> bool:
        if base_url not in self.ollama:
            raise _NotMeasured("ollama", base_url)
        return self.ollama[base_url]

    def installed(self, base_url: str) -> tuple[config.Installed, ...] | None:
        if base_url not in self.models:
            raise _NotMeasured("installed", base_url)
        return self.models[base_url]

    def free_memory(self) -> int:
        if self.memory is None:
            raise _NotMeasured("memory")
        return self.memory


def _request_layers(request: api.CreateExecutionRequest, *, local: bool) -> list[config.Layer]:
    given = {name.name: value for name, value in request.execution_config.ListFields()}
    values: dict[str, Any] = {n: tuple(v) if n == "fallbacks" else v for n, v in given.items()}
    layers = [config.layer_from_flags(dict(request.flags)), config.layer_from_execution(values)]
    if not local:
        return [*(layer.over_tcp() for layer in layers), *_file_layers(request, trusted=True)]
    return [
        *layers,
        config.layer_from_environment(dict(request.shell), "shell"),
        *_file_layers(request, trusted=True),
    ]


def _subagent_requests(
    request: api.CreateExecutionRequest,
) -> Iterator[tuple[str, api.CreateExecutionRequest]]:
    """For each sub-agent with settings of its own the same request, as if it were the agent."""
    for name, record in agents.with_own_settings(request.agent_record):
        own = api.CreateExecutionRequest()
        own.CopyFrom(request)
        own.agent_record.CopyFrom(record)
        yield name, own


def _file_layers(request: api.CreateExecutionRequest, *, trusted: bool) -> list[config.Layer]:
    """The layers of the agent and of the project's file, those that the user trusts or the others."""
    layers = []
    if request.HasField("agent_record") and request.agent_record.trusted == trusted:
        layers.append(agents.from_record(request.agent_record))
    if request.HasField("project_file") and request.project_file.trusted == trusted:
        project = request.project_file
        layers.append(config.layer_from_file(project.path, project.text, "project_file"))
    return layers


def _record(found: config.LLMConfig) -> pb.ConfigResolved:
    """The resolution as it is stored. Values are masked already where they are secret."""
    record = pb.ConfigResolved(notices=found.notices)
    for name, value in found.values.items():
        shadowed = [pb.Shadowed(value=_json(s.value), source=s.source) for s in value.shadowed]
        record.settings.add(name=name, value=_json(value.value), source=value.source, shadowed=shadowed)
    # A default window is the model's own; only one that somebody set is asked for.
    window_said = not found.values["context_window"].source.startswith("default ")
    called = [(found.ref, found.settings), *((f.ref, f.settings) for f in found.fallbacks)]
    record.models.extend(_model(ref, settings, window_said=window_said) for ref, settings in called)
    return record


def _model(ref: ModelRef, settings: ModelSettings, *, window_said: bool) -> pb.ResolvedModel:
    return pb.ResolvedModel(
        provider=ref.provider,
        model=ref.model,
        base_url=settings.base_url or "",
        has_key=settings.api_key is not None,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        context_window=settings.context_window if window_said else None,
        thinking=settings.thinking,
        dialect=settings.dialect,
        connect_timeout=settings.timeouts.connect,
        first_token_timeout=settings.timeouts.first_token,
        idle_timeout=settings.timeouts.idle,
    )


def _json(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


_SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


def _remember(variables: Mapping[str, str]) -> None:
    """Whatever an environment calls a key is masked from now on, used or not; short words under such names are none."""
    values = {name: value.strip() for name, value in variables.items() if name.endswith(_SECRET_NAMES)}
    ours = config.llm_variables(values)
    redact.remember(value for name, value in values.items() if name in ours or len(value) >= 16)
