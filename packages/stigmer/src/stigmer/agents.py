"""Agent files: one YAML document per agent, strictly read, every problem at once and with its line.

    apiVersion: stigmer/v1
    kind: Agent
    metadata: {name: reviewer}
    spec: {instructions: "Review what changed.", tools: [read_file, search_files]}

docs/agent.schema.json is the same as a JSON Schema; a test keeps the two in step.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stigmer import config
from stigmer.config._files import load_yaml, plain, read_text
from stigmer.config._own import own_words
from stigmer.errors import StigmerError
from stigmer.places import PLACES

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import Agent, ExecutionConfig

__all__ = [
    "BUDGET_KEYS",
    "CHILD_KEYS",
    "LATER",
    "LLM_KEYS",
    "SPEC_KEYS",
    "TOOLS",
    "AgentError",
    "AgentFile",
    "find_agent",
    "from_record",
    "label",
    "parse_agent",
    "read_agent",
    "to_record",
    "unknown_tools",
    "with_own_settings",
]

TOOLS = (
    "list_files",
    "find_files",
    "search_files",
    "read_file",
    "write_file",
    "edit_file",
    "run_command",
    "todos",
)
"""The built-in tools that an agent may choose from."""
SPEC_KEYS = (
    "description",
    "instructions",
    "llm",
    "tools",
    "subagents",
    "approvals",
    "on_unknown",
    "budget",
    "workspace",
)
CHILD_KEYS = ("name", "description", "instructions", "llm", "tools", "subagents")
"""What a sub-agent may say; the rest it has from its parent."""
BUDGET_KEYS = ("steps", "tokens", "usd", "seconds", "children", "depth")
LATER = ("mcp", "skills", "environment")
"""Keys of the format that this version does not act on: better refused than ignored."""
LLM_KEYS = ("provider", "model", "max_tokens", "temperature", "context_window", "fallbacks", "thinking")
_MODES = ("local", "cloud")
_CHILD_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class AgentError(StigmerError):
    """An agent that is not there, or a file that defines none. All problems are told together."""

    code = "agent"
    exit_code = 2

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        listed = "\n".join(f"- {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(self.problems[0] if count == 1 else f"{count} problems:\n{listed}", hint=hint)


@dataclass(frozen=True, slots=True)
class AgentFile:
    """What a file says of an agent."""

    name: str
    revision: str
    """The beginning of the SHA-256 of the file."""
    description: str = ""
    instructions: str = ""
    llm: Mapping[str, object] = field(default_factory=dict)
    """The agent's layer of the cascade, `local` and `cloud` maps in it."""
    tools: tuple[str, ...] | None = None
    """None: nobody chose, so all."""
    subagents: tuple[AgentFile, ...] = ()
    approvals: tuple[Mapping[str, Any], ...] = ()
    """Rules as `graphton.Rule.parse` takes them, checked."""
    on_unknown: str = ""
    budget: Mapping[str, int | float] = field(default_factory=dict)
    workspace: str = ""
    """Where its files are to be: none | worker | volume; "" is not said."""


def find_agent(named: str, start: Path, *, home: Path) -> tuple[Path, str, tuple[str, ...]]:
    """The file of `--agent`, the name that it must define ("" for any), and notices.

    What has a slash or ends in .yaml is a file; else it is the name of one in the nearest `.stigmer/agents`, looked
    for as the project's configuration is. Raises AgentError.
    """
    if "/" in named or named.endswith((".yaml", ".yml")):
        path = Path(os.path.abspath(os.path.expanduser(named)))
        if not os.path.lexists(path):
            raise AgentError([f"there is no agent file {named!r}"], hint="stigmer run --agent ./agent.yaml …")
        return path, "", ()
    found, notices = config.find_project_file(start, f"agents/{named}.yaml", stigmer_home=home)
    if found is None:
        raise AgentError([_nobody(named, start, home=home, notices=notices)], hint=_HINT)
    return found, named, notices


_HINT = "name a file: --agent ./agent.yaml; or put one into .stigmer/agents/NAME.yaml"


def _nobody(named: str, start: Path, *, home: Path, notices: Sequence[str]) -> str:
    if notices:
        return f"there is no agent {named!r} to be used: {notices[0]}"
    folder, _ = config.find_project_file(start, "agents", stigmer_home=home)
    names = sorted(path.stem for path in folder.glob("*.yaml")) if folder is not None else []
    near = config.nearest(named, names)
    more = f": did you mean {near!r}?" if near else f"; there are {', '.join(names)}" if names else ""
    return f"there is no agent {named!r} in .stigmer/agents of {str(start)!r} or above it{more}"


def read_agent(path: Path, shown: str, *, named: str = "") -> AgentFile:
    """The agent that a file defines. Raises AgentError."""
    found = read_text(path, shown)
    if found.problem:
        raise AgentError([found.problem])
    return parse_agent(found.data, shown, named=named)


def parse_agent(data: bytes, shown: str, *, named: str = "") -> AgentFile:
    """The agent that a text defines; `named` is what it must be called. Raises AgentError with every problem."""
    tree, problem = load_yaml(data, shown, what="agent", levels="four")
    if problem:
        raise AgentError([problem])
    reader = _Reader(shown)
    found = reader.agent(tree, named, hashlib.sha256(data).hexdigest()[:8])
    if reader.problems:
        raise AgentError(reader.problems)
    return found


class _Reader:
    """Walks one document and collects what is wrong with it."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self._found: list[tuple[int, str]] = []

    @property
    def problems(self) -> list[str]:
        """In the order of their lines."""
        return [text for _, text in sorted(self._found, key=lambda one: one[0])]

    def agent(self, tree: Any, named: str, revision: str) -> AgentFile:
        if not isinstance(tree, Mapping):
            self._missing("it defines no agent: the first lines are apiVersion: stigmer/v1 and kind: Agent")
            return AgentFile("", revision)
        parts = dict(self._entries(tree, ("apiVersion", "kind", "metadata", "spec"), ""))
        self._constant(tree, parts, "apiVersion", "stigmer/v1")
        self._constant(tree, parts, "kind", "Agent")
        metadata = dict(self._map(parts, "metadata", ("name",), "metadata: {name: reviewer}"))
        spec = dict(self._map(parts, "spec", (*SPEC_KEYS, *LATER), "spec: {instructions: …}"))
        for key in LATER:
            if key in spec:
                self._fault(
                    spec[key][1], f"{key!r} is not supported by this version of stigmer: leave it out"
                )
        name = self._name(metadata, named)
        return self._whole(name, revision, spec)

    def _whole(self, name: str, revision: str, spec: Mapping[str, tuple[Any, int]]) -> AgentFile:
        """An agent, or one below it, of what was said of it."""
        return AgentFile(
            name,
            revision,
            self._text(spec, "description", "description: Reviews what changed."),
            self._text(spec, "instructions", "instructions: Review what changed."),
            self._llm(*spec["llm"]) if "llm" in spec else {},
            self._tools(*spec["tools"]) if "tools" in spec else None,
            self._subagents(*spec["subagents"]) if "subagents" in spec else (),
            self._approvals(*spec["approvals"]) if "approvals" in spec else (),
            self._on_unknown(*spec["on_unknown"]) if "on_unknown" in spec else "",
            self._budget(*spec["budget"]) if "budget" in spec else {},
            self._workspace(*spec["workspace"]) if "workspace" in spec else "",
        )

    def _items(self, value: Any, line: int, what: str, example: str) -> Iterator[tuple[Any, int]]:
        """The maps of a list, each with its line."""
        if not isinstance(value, list):
            self._fault(line, f"{what} {plain(value)!r} is no list, e.g. {example}")
            return
        lines: Any = getattr(value, "lc", None)
        for index, item in enumerate(value):
            place = lines.data[index][0] + 1 if lines is not None and lines.data else line
            if isinstance(item, Mapping):
                yield item, place
            else:
                self._fault(place, f"{plain(item)!r} in {what} is no map, e.g. {example}")

    def _subagents(self, value: Any, line: int) -> tuple[AgentFile, ...]:
        example = "subagents: [{name: reader, description: Reads files.}]"
        found: list[AgentFile] = []
        for item, place in self._items(value, line, "subagents", example):
            spec = dict(self._entries(item, CHILD_KEYS, "subagents: "))
            name = plain(spec.get("name", (None, 0))[0])
            if not isinstance(name, str) or not _CHILD_NAME.fullmatch(name):
                self._fault(
                    place, f"name {name!r} is none for a sub-agent: small letters, digits and -, e.g. reader"
                )
                name = ""
            elif any(one.name == name for one in found):
                self._fault(place, f"sub-agent {name!r} stands there a second time; keep one")
            child = self._whole(name, "", spec)
            if not child.description:
                self._fault(place, f"sub-agent {name!r} has no description, e.g. description: Reads files.")
            found.append(child)
        return tuple(found)

    def _approvals(self, value: Any, line: int) -> tuple[Mapping[str, Any], ...]:
        from graphton.approval import Rule
        from graphton.errors import SettingError

        example = "approvals: [{tool: run_command, when: {command: git *}, verdict: allow}]"
        rules: list[Mapping[str, Any]] = []
        for item, place in self._items(value, line, "approvals", example):
            try:
                rule = Rule.parse(plain(item))
            except SettingError as error:
                self._fault(place, f"{error.message}, e.g. {example}")
            else:
                rules.append({"tool": rule.tool, "when": dict(rule.when), "verdict": rule.verdict})
        return tuple(rules)

    def _on_unknown(self, value: Any, line: int) -> str:
        if value in ("ask", "tell", "stop"):
            return str(value)
        self._fault(line, f"on_unknown {plain(value)!r} is not ask, tell or stop, e.g. on_unknown: ask")
        return ""

    def _workspace(self, value: Any, line: int) -> str:
        if value in PLACES:
            return str(value)
        self._fault(line, f"workspace {plain(value)!r} is not none, worker or volume, e.g. workspace: volume")
        return ""

    def _budget(self, value: Any, line: int) -> dict[str, int | float]:
        if not isinstance(value, Mapping):
            self._fault(line, f"budget {plain(value)!r} is no map, e.g. budget: {{steps: 50, usd: 0.5}}")
            return {}
        limits: dict[str, int | float] = {}
        for key, (given, place) in self._entries(value, BUDGET_KEYS, "budget: "):
            number = plain(given)
            whole = key not in ("usd", "seconds")
            if (
                isinstance(number, bool)
                or not isinstance(number, int if whole else int | float)
                or number <= 0
            ):
                kind = "whole number" if whole else "number"
                self._fault(place, f"{key} {number!r} is no {kind} above 0, e.g. {key}: 5")
            else:
                limits[key] = number
        return limits

    # Every entry is (value, line). A null is not said.

    def _entries(
        self, tree: Any, allowed: Sequence[str], inside: str
    ) -> Iterator[tuple[str, tuple[Any, int]]]:
        for key, value in tree.items():
            line = _line_of(tree, key)
            if key not in allowed:
                self._fault(line, _unknown(str(key), allowed, inside))
            elif value is not None:
                yield str(key), (value, line)

    def _map(
        self, parts: Mapping[str, tuple[Any, int]], key: str, allowed: Sequence[str], example: str
    ) -> Iterator[tuple[str, tuple[Any, int]]]:
        if key not in parts:
            self._missing(f"{key} is missing, e.g. {example}")
            return
        value, line = parts[key]
        if not isinstance(value, Mapping):
            self._fault(line, f"{key} is no map, e.g. {example}")
            return
        yield from self._entries(value, allowed, f"{key}: ")

    def _constant(self, tree: Any, parts: Mapping[str, tuple[Any, int]], key: str, wanted: str) -> None:
        if key not in parts:
            self._missing(f"{key} is missing: {key}: {wanted}")
        elif parts[key][0] != wanted:
            value, line = parts[key]
            self._fault(line, f"{key} {plain(value)!r} is not known to this version: {key}: {wanted}")

    def _name(self, metadata: Mapping[str, tuple[Any, int]], named: str) -> str:
        if "name" not in metadata:
            if not any(" metadata is " in problem for problem in self.problems):
                self._missing("metadata.name is missing, e.g. metadata: {name: reviewer}")
            return ""
        value, line = metadata["name"]
        name = plain(value)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "default":
            self._fault(
                line,
                f"name {name!r} is none for an agent: small letters, digits and -, not default, e.g. reviewer",
            )
            return ""
        if named and name != named:
            self._fault(line, f"name {name!r} in a file that is called {named}.yaml: make them the same")
        return name

    def _text(self, spec: Mapping[str, tuple[Any, int]], key: str, example: str) -> str:
        value, line = spec.get(key, ("", 0))
        if not isinstance(value, str):
            self._fault(line, f"{key} {plain(value)!r} is no text, e.g. {example}")
            return ""
        return str(value).strip()

    def _tools(self, value: Any, line: int) -> tuple[str, ...]:
        if not isinstance(value, list):
            self._fault(line, f"tools {plain(value)!r} is no list, e.g. tools: [read_file, search_files]")
            return ()
        names: list[str] = []
        lines: Any = getattr(value, "lc", None)
        for index, item in enumerate(value):
            place = lines.data[index][0] + 1 if lines is not None and lines.data else line
            name = plain(item)
            if name in names:
                self._fault(place, f"tool {name!r} stands there a second time; keep one")
            elif name in TOOLS:
                names.append(str(name))
            else:
                self._fault(place, _unknown_tool(name))
        return tuple(names)

    def _llm(self, value: Any, line: int) -> dict[str, object]:
        if not isinstance(value, Mapping):
            self._fault(line, f"llm {plain(value)!r} is no map, e.g. llm: {{model: qwen2.5-coder:7b}}")
            return {}
        said = self._settings(value, (*LLM_KEYS, *_MODES), "llm: ")
        for mode in _MODES:
            if mode not in said:
                continue
            part, place = value[mode], _line_of(value, mode)
            if isinstance(part, Mapping):
                said[mode] = self._settings(part, LLM_KEYS, f"llm: {mode}: ")
            else:
                self._fault(place, f"{mode} is no map of settings, e.g. {mode}: {{model: qwen3:8b}}")
        return said

    def _settings(self, tree: Any, allowed: Sequence[str], inside: str) -> dict[str, object]:
        """The settings of a map in their own types; provider and model must not contradict each other."""
        values: dict[str, object] = {}
        said: dict[str, config.Said] = {}
        for key, (value, line) in self._entries(tree, allowed, inside):
            if key in _MODES:
                values[key] = {}
                continue
            raw = plain(value)
            raw = raw.strip(config.BLANKS) if isinstance(raw, str) else raw
            try:
                values[key] = config.SETTINGS[key].parse(raw, False)
            except ValueError as error:
                self._fault(line, f"{key} {raw!r} {error}")
            else:
                said[key] = config.Said(raw, f"file {self.shown}:{line}")
        fault = own_words(config.Layer("agent", said)).fault
        if fault:
            self._found.append((_line_of(tree, "model"), fault))
        return values

    def _fault(self, line: int, text: str) -> None:
        self._found.append((line, f"file {self.shown}, line {line}: {text}"))

    def _missing(self, text: str) -> None:
        self._found.append((0, f"file {self.shown}: {text}"))


def _line_of(tree: Any, key: object) -> int:
    place = (tree.lc.data or {}).get(
        key
    )  # A key that comes by `<<` has no place of its own; the map's is near.
    return int(place[0] if place else tree.lc.line or 0) + 1


def _unknown(key: str, allowed: Sequence[str], inside: str) -> str:
    if key in ("base_url", "api_key", "api_key_env"):
        return (
            f"{key!r} may not stand in an agent's file: addresses and keys are the user's; set "
            "STIGMER_LLM_BASE_URL or the provider's key variable in the environment, or `llm:` in "
            "~/.stigmer/config.yaml"
        )
    if inside == "" and key in (*SPEC_KEYS, *LATER):
        return f"{key!r} belongs under `spec:`"
    if inside == "spec: " and key in LLM_KEYS:
        return f"{key!r} belongs under `llm:`"
    near = config.nearest(key, allowed)
    known = f"; known are {', '.join(name for name in allowed if name not in LATER)}"
    return f"unknown key {inside + key!r}" + (f": did you mean {near!r}?" if near else known)


def _unknown_tool(name: object) -> str:
    if name == "task":
        return "tool 'task' comes by itself with sub-agents: leave it out, and write them under `subagents:`"
    near = config.nearest(str(name), TOOLS)
    return f"there is no tool {name!r}" + (
        f": did you mean {near!r}?" if near else f"; there are {', '.join(TOOLS)}"
    )


# As a record of the API


def label(agent: Agent) -> str:
    """How a source names it: `reviewer@1f2e3d4c`."""
    return f"{agent.name}@{agent.revision}" if agent.revision else agent.name


def to_record(agent: AgentFile, *, trusted: bool) -> Agent:
    """The agent as a request carries it and as it is stored with the execution."""
    from stigmer.api.event_pb2 import Budget
    from stigmer.api.service_pb2 import Agent, ApprovalRule, ToolChoice

    return Agent(
        name=agent.name,
        revision=agent.revision,
        description=agent.description,
        instructions=agent.instructions,
        llm=_as_record({key: value for key, value in agent.llm.items() if key not in _MODES}),
        llm_local=_as_record(agent.llm.get("local")),
        llm_cloud=_as_record(agent.llm.get("cloud")),
        tools=None if agent.tools is None else ToolChoice(names=agent.tools),
        trusted=trusted,
        subagents=[to_record(child, trusted=trusted) for child in agent.subagents],
        approvals=[ApprovalRule(**rule) for rule in agent.approvals],
        on_unknown=agent.on_unknown,
        budget=Budget(**agent.budget) if agent.budget else None,  # type: ignore[arg-type]  # whole where it must be
        workspace=agent.workspace,
    )


def _as_record(values: object) -> ExecutionConfig | None:
    from stigmer.api.service_pb2 import ExecutionConfig

    return ExecutionConfig(**values) if isinstance(values, dict) and values else None


def from_record(agent: Agent) -> config.Layer:
    """The agent's layer of the cascade. A host in it is a problem there."""
    llm: dict[str, object] = _said(agent.llm)
    for mode in _MODES:
        if agent.HasField(f"llm_{mode}"):  # type: ignore[arg-type]  # llm_local, llm_cloud
            llm[mode] = _said(getattr(agent, f"llm_{mode}"))
    return config.layer_from_agent(llm, label(agent))


def _said(values: ExecutionConfig) -> dict[str, object]:
    return {
        one.name: tuple(value) if one.name == "fallbacks" else value for one, value in values.ListFields()
    }


def unknown_tools(agent: Agent) -> list[str]:
    """What is wrong with the tools that a request chooses; a request may come from any program."""
    wrong = [_unknown_tool(name) for name in agent.tools.names if name not in TOOLS]
    return wrong + [problem for child in agent.subagents for problem in unknown_tools(child)]


_LLM_PARTS: tuple[Literal["llm", "llm_local", "llm_cloud"], ...] = ("llm", "llm_local", "llm_cloud")


def with_own_settings(agent: Agent) -> Iterator[tuple[str, Agent]]:
    """The sub-agents that say something of their model, as agents of their own, what they leave open from their parent.

    They come by name, one below another as `researcher/reader`.
    """
    for child in agent.subagents:
        own = _over(agent, child)
        if any(child.HasField(part) for part in _LLM_PARTS):
            yield child.name, own
        yield from ((f"{child.name}/{name}", below) for name, below in with_own_settings(own))


def _over(parent: Agent, child: Agent) -> Agent:
    """The child with its parent's settings under its own. A model or a provider of its own drops the parent's."""
    from stigmer.api.service_pb2 import Agent

    own = Agent(name=f"{parent.name}/{child.name}", revision=parent.revision, trusted=parent.trusted)
    own.subagents.extend(child.subagents)
    for part in _LLM_PARTS:
        said = getattr(child, part)
        if parent.HasField(part):
            getattr(own, part).CopyFrom(getattr(parent, part))
        for drops in (said, child.llm):
            if drops.HasField("model") or drops.HasField("provider"):
                for name in ("model", "provider", "fallbacks"):
                    getattr(own, part).ClearField(name)
        for field_, value in said.ListFields():
            if field_.name == "fallbacks":
                getattr(own, part).ClearField("fallbacks")
                getattr(own, part).fallbacks.extend(value)
            else:
                setattr(getattr(own, part), field_.name, value)
        if not getattr(own, part).ListFields():
            own.ClearField(part)
    return own
