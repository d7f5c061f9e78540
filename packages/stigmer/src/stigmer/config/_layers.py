"""The layers of the cascade: what somebody said, and where. A layer holds only what somebody set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from graphton.models import PROVIDERS

from stigmer.config._approvals import APPROVAL_KEYS, approvals_of
from stigmer.config._files import MAPS, ReadFile, display_path, read_text, read_yaml
from stigmer.config._retention import RETENTION_KEY, Retention, retention_of
from stigmer.config._settings import BLANKS, SETTINGS, nearest

__all__ = [
    "RANKS",
    "Kind",
    "Layer",
    "Said",
    "find_project_file",
    "layer_from_agent",
    "layer_from_environment",
    "layer_from_execution",
    "layer_from_file",
    "layer_from_flags",
    "layer_from_secrets",
    "layer_from_user_file",
    "llm_variables",
]

Kind = Literal[
    "flag",
    "execution",
    "agent",
    "shell",
    "process_flag",
    "environment",
    "secret",
    "project_file",
    "user_file",
]
RANKS: tuple[Kind, ...] = (
    "flag",
    "execution",
    "agent",
    "shell",
    "process_flag",
    "environment",
    "secret",
    "project_file",
    "user_file",
)
"""Highest first."""

_REQUEST = (
    "provider",
    "model",
    "base_url",
    "max_tokens",
    "temperature",
    "context_window",
    "fallbacks",
    "thinking",
)
_AGENT = ("provider", "model", "max_tokens", "temperature", "context_window", "fallbacks", "thinking")
_PROJECT = ("provider", "model", "max_tokens", "temperature", "context_window")
_PROVIDER_VARIABLES = tuple(
    name for row in PROVIDERS.values() for name in (*row.url_variables, row.key_variable) if name
)


@dataclass(frozen=True, slots=True)
class Said:
    """What one layer says of one setting: the value as it came, and the source to show."""

    raw: object = field(repr=False)
    source: str
    text: bool = False
    """It came as text: a flag, a variable."""
    file: bool = False
    """It stands in a file: a fault in a host or a key there is told even where the value is hidden."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `problems` were found while reading it; they count whoever wins."""

    kind: Kind
    said: Mapping[str, Said] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """An environment's variables, for the provider's own ones and for `api_key_env`."""
    variable_source: str = "env {}"
    modes: Mapping[str, Mapping[str, Said]] = field(default_factory=dict)
    """An agent's `local:` and `cloud:` maps."""
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    remote: bool = False
    """It arrived over TCP: a base_url in it needs the server's leave."""
    rules: tuple[Mapping[str, Any], ...] = ()
    """A file's approval rules, each with its `source`. The cascade has nothing to do with them."""
    on_unknown: str = ""
    retention: Retention = Retention()
    """How long the user's file wants executions kept that have ended."""

    def in_mode(self, mode: str) -> Layer:
        """The layer with an agent's map of this mode laid over its plain keys; its model drops the plain provider."""
        over = self.modes.get(mode, {})
        plain = dict(self.said)
        if "model" in over and "provider" not in over:
            plain.pop("provider", None)
        return replace(self, said={**plain, **over}, modes={}) if self.modes else self

    def over_tcp(self) -> Layer:
        """The same layer, marked as having arrived over TCP, where keys, shells and files do not travel."""
        if self.kind in ("flag", "execution"):
            return replace(self, remote=True)
        return Layer(
            self.kind,
            remote=True,
            problems=(
                f"a {self.kind.replace('_', ' ')} layer is not taken over TCP; flags and execution config are",
            ),
        )


def layer_from_flags(
    flags: Mapping[str, object], kind: Literal["flag", "process_flag"] = "flag", *, command: str = "up"
) -> Layer:
    """The flags that were really given, by setting name; None is not given. Keys are never flags.

    `command` names the command of process flags: up, serve or worker.
    """
    suffix = f" (stigmer {command})" if kind == "process_flag" else ""
    said, problems = {}, []
    for name, raw in flags.items():
        row = SETTINGS.get(name)
        if raw is None or raw == ():
            continue
        if row is None or not row.flag:
            near = nearest(name, (r.name for r in SETTINGS.values() if r.flag))
            problems.append(
                f"flag {name!r} is not a setting" + (f": did you mean {near!r}?" if near else "")
                if row is None
                else f"a key cannot be given by flag ({name!r}): set {PROVIDERS['anthropic'].key_variable} or "
                "STIGMER_LLM_API_KEY in the environment"
                if name.startswith("api_key")
                else f"{name!r} cannot be given by flag: set {row.variables[0]}, or {row.key} in a file"
            )
            continue
        value = raw.strip(BLANKS) if isinstance(raw, str) else raw
        said[name] = Said(value, f"flag {row.flag}{suffix}", text=True)
    return Layer(kind, said, problems=tuple(problems))


def layer_from_environment(
    env: Mapping[str, str], kind: Literal["shell", "environment"] = "environment"
) -> Layer:
    """The LLM variables of an environment: the process's own, or the caller's shell. An empty one is not set."""
    pattern = "env {} (your shell)" if kind == "shell" else "env {}"
    variables = {name: value for name, raw in env.items() if (value := raw.strip(BLANKS))}
    said = {}
    for row in SETTINGS.values():
        name = next((name for name in row.variables if name in variables), None)
        if name is not None:
            said[row.name] = Said(variables[name], pattern.format(name), text=True)
    known = {name for row in SETTINGS.values() for name in row.variables}
    notices = []
    for name in sorted(variables):
        if name.startswith("STIGMER_LLM_") and name not in known:
            near = nearest(name, known)
            said_near = f": did you mean {near}?" if near else ""
            notices.append(f"{pattern.format(name)} is not a setting{said_near}")
    return Layer(kind, said, variables, pattern, notices=tuple(notices))


def llm_variables(env: Mapping[str, str], *named: str) -> dict[str, str]:
    """The part of an environment that the cascade may read: what a CLI sends of its shell to the user's own daemon.

    `named` are the variables that the user's file names by `api_key_env`.
    """
    wanted = {name for row in SETTINGS.values() for name in row.variables} | {*_PROVIDER_VARIABLES, *named}
    return {name: value for name, value in env.items() if name in wanted or name.startswith("STIGMER_LLM_")}


def layer_from_secrets(secrets: Mapping[str, str]) -> Layer:
    """Stored secrets, by the variable that they stand for: `{"ANTHROPIC_API_KEY": "…"}`."""
    return Layer("secret", variables=dict(secrets), variable_source="secret {}")


def layer_from_execution(values: Mapping[str, object]) -> Layer:
    """The `execution_config` of a request; None is not said."""
    return _typed("execution", values, _REQUEST, source="execution config", where="execution config")


def layer_from_agent(llm: Mapping[str, object], label: str) -> Layer:
    """The `llm:` of an agent's revision, `label` like `support-bot@3`. A host or a key in it is a problem."""
    source = f"agent {label}"
    plain = {name: value for name, value in llm.items() if name not in ("local", "cloud")}
    layer = _typed("agent", plain, _AGENT, source=source, where=source)
    modes, problems = {}, list(layer.problems)
    for mode in ("local", "cloud"):
        part = llm.get(mode)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            problems.append(f"{mode!r} in {source} is no map of settings, e.g. {mode}: {{model: qwen3:8b}}")
            continue
        inner = _typed("agent", part, _AGENT, source=source, where=f"{source}, {mode}:")
        modes[mode] = inner.said
        problems += inner.problems
    return replace(layer, modes=modes, problems=tuple(problems))


def _typed(
    kind: Kind, values: Mapping[str, object], allowed: Iterable[str], *, source: str, where: str
) -> Layer:
    said, problems = {}, []
    for name, raw in values.items():
        if name not in allowed:
            problems.append(f"unknown key {name!r} in {where}{_why_not(name, allowed)}")
        elif raw is not None and raw != ():
            said[name] = Said(raw.strip(BLANKS) if isinstance(raw, str) else raw, source)
    return Layer(kind, said, problems=tuple(problems))


def _why_not(name: str, allowed: Iterable[str]) -> str:
    if name in ("base_url", "api_key", "api_key_env"):
        return (
            ": addresses and keys are the user's: set STIGMER_LLM_BASE_URL or the provider's key variable in the "
            "environment, or `llm:` in ~/.stigmer/config.yaml"
        )
    near = nearest(name, allowed)
    return f": did you mean {near!r}?" if near else f"; known are {', '.join(allowed)}"


def layer_from_file(
    path: str | Path,
    text: str | bytes | None = None,
    kind: Literal["user_file", "project_file"] = "user_file",
    *,
    home: str | Path | None = None,
) -> Layer:
    """A configuration file, strictly read: every fault is a problem with its line. Without `text` it is read here."""
    shown = ".stigmer/config.yaml" if kind == "project_file" else display_path(path, home)
    found = (
        read_text(path, shown)
        if text is None
        else ReadFile(text if isinstance(text, bytes) else text.encode())
    )
    if found.problem:
        return Layer(kind, problems=(found.problem,))
    document = read_yaml(found.data, shown)
    if document.problem:
        return Layer(kind, problems=(document.problem,))
    said, problems = {}, []
    rules, on_unknown, wrong = approvals_of(document.leaves, shown, narrows=kind == "project_file")
    retention, wrong_too = retention_of(document.leaves, shown, narrows=kind == "project_file")
    problems += [*wrong, *wrong_too]
    for key, raw, line in document.leaves:
        if key in (*APPROVAL_KEYS, RETENTION_KEY):
            continue
        problem = _file_fault(key, raw, kind, where=f"file {shown}, line {line}")
        if problem:
            problems.append(problem)
        elif raw is not None:
            row = next(r for r in SETTINGS.values() if r.key == key)
            value = raw.strip(BLANKS) if isinstance(raw, str) else raw
            said[row.name] = Said(value, f"file {shown}:{line}", file=True)
    if "api_key" in said and "api_key_env" in said:
        problems.append(
            f"'api_key' and 'api_key_env' both stand in file {shown}: keep one, e.g. api_key_env: ANTHROPIC_API_KEY"
        )
    notices = found.notices if "api_key" in said else ()
    return Layer(
        kind,
        said,
        problems=tuple(problems),
        notices=notices,
        rules=tuple(rules),
        on_unknown=on_unknown,
        retention=retention,
    )


def layer_from_user_file(env: Mapping[str, str], *, home: str | Path | None = None) -> Layer | None:
    """The user's file: the one that STIGMER_CONFIG names, else `config.yaml` in STIGMER_HOME; None where it is not.

    A named one that is missing is a problem.
    """
    base = Path(home if home is not None else os.path.expanduser("~"))
    named, stigmer_home = (env.get(name, "").strip(BLANKS) for name in ("STIGMER_CONFIG", "STIGMER_HOME"))
    if named:
        layer = layer_from_file(_expanded(named, base), home=base)
        return replace(layer, problems=tuple(f"{p} (STIGMER_CONFIG names it)" for p in layer.problems))
    path = (_expanded(stigmer_home, base) if stigmer_home else base / ".stigmer") / "config.yaml"
    return layer_from_file(path, home=base) if os.path.lexists(path) else None


def _expanded(path: str, home: Path) -> Path:
    return home / path[2:] if path.startswith("~/") else Path(os.path.abspath(os.path.expanduser(path)))


def _file_fault(key: str, raw: object, kind: Kind, *, where: str) -> str:
    """Why a key may not stand in a file; "" where it may."""
    keys = {row.key: row for row in SETTINGS.values()}
    row = keys.get(key)
    if row is None:
        if f"llm.{key}" in keys:
            return f"key {key!r} in {where} belongs under `llm:`, e.g. llm: {{{key}: …}}"
        if key == "llm.mode":
            return f"key 'mode' in {where} stands at the top of the file, not under `llm:`"
        if key in MAPS:
            return f"{key!r} in {where} is no map of settings, e.g. {key.split('.')[-1]}: {{…}}"
        return f"unknown key {key.removeprefix('llm.')!r} in {where}{_meant(key, keys)}"
    if kind == "project_file" and row.name not in _PROJECT:
        place = f"in the environment{', by a flag,' if row.flag else ''} or in ~/.stigmer/config.yaml"
        return f"{row.name!r} in {where} may not stand in a project's file: set it {place}"
    return ""


def _meant(key: str, keys: Iterable[str]) -> str:
    inside = key.startswith("llm.")
    word = key.rpartition(".")[2]
    options = [k for k in keys if k.startswith("llm.") or not inside]
    near = nearest(word, [k.rpartition(".")[2] for k in options if k.startswith("llm.")])
    top = None if inside else nearest(word, ["mode", "llm", "models", RETENTION_KEY])
    meant = [f"`{near}`" + ("" if inside else " under `llm:`")] if near else []
    meant = [f"`{top}`", *meant] if top else meant
    if meant:
        return f": did you mean {' or '.join(meant)}?"
    below = ", ".join(k.removeprefix("llm.") for k in keys if k.startswith("llm."))
    return f"; known are mode, models.mirror and, under `llm:`, {below}"


def find_project_file(
    start: str | Path,
    name: str = "config.yaml",
    *,
    home: str | Path | None = None,
    stigmer_home: str | Path | None = None,
) -> tuple[Path | None, tuple[str, ...]]:
    """A project's file, its configuration where no other `name` below `.stigmer` is given; and what was skipped and why.

    Looked for in `start` and its parents, up to the repository's root, else up to but not including HOME; never
    inside STIGMER_HOME. A file that somebody else owns or may write to is skipped with a notice.
    """
    start = Path(os.path.abspath(start))
    home = Path(os.path.realpath(home if home is not None else os.path.expanduser("~")))
    closed = Path(os.path.realpath(stigmer_home if stigmer_home is not None else home / ".stigmer"))
    folders = [start, *start.parents]
    root = next((folder for folder in folders if os.path.exists(folder / ".git")), None)
    for folder in folders:
        real = Path(os.path.realpath(folder))
        if root is None and real == home:
            break
        candidate = folder / ".stigmer" / name
        place = Path(os.path.realpath(candidate))
        ours = place.is_relative_to(closed) or (real / ".stigmer").is_relative_to(closed)
        try:
            reason = _not_the_users(candidate, below=folder) if not ours and candidate.exists() else None
        except OSError as error:
            reason = f"it cannot be looked at ({(error.strerror or 'no reason given').lower()})"
        if reason is not None:
            if reason:
                return None, (f"file {candidate} is skipped: {reason}",)
            return candidate, ()
        if folder == root:
            break
    return None, ()


def _not_the_users(path: Path, *, below: Path) -> str:
    """Why a project's file cannot be relied on; "" where it can."""
    folders = [folder for folder in path.parents if folder.is_relative_to(below / ".stigmer")]
    for place, what in ((path, "it"), *((folder, "its folder") for folder in folders)):
        found = place.stat()
        if found.st_uid not in (os.getuid(), 0):
            return f"{what} belongs to another user (uid {found.st_uid})"
        if found.st_mode & 0o002 or (
            found.st_mode & 0o020 and not _private_group(found.st_gid, found.st_uid)
        ):
            return f"{what} may be written to by other users (mode {found.st_mode & 0o777:o}); chmod go-w {place}"
    return ""


def _private_group(gid: int, uid: int) -> bool:
    """Many systems give each user a group of the same name and let it write; nobody else is in it."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
