"""What comes with the folder that a command works in: its configuration, its agents, and whether the user trusts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stigmer import config as cascade
from stigmer.cli._terminal import Terminal, harmless
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import Agent
    from stigmer.trust import Contents, Trust

__all__ = ["File", "Project", "find_project"]


class File(NamedTuple):
    """A file that a command uses, its bytes as they were looked at."""

    path: Path
    data: bytes
    trusted: bool
    problem: str = ""
    """Why it cannot be used, where that was seen at once."""


class Project(NamedTuple):
    """What a command found: the project's configuration and the agent's file, each where there is one."""

    config: File | None = None
    agent: File | None = None
    agent_name: str = ""
    """What the agent must be called; "" for any."""
    agent_shown: str = ""
    notices: tuple[str, ...] = ()

    def agent_record(self) -> Agent | None:
        """The agent as a request carries it. Raises AgentError with everything that is wrong with its file."""
        if self.agent is None:
            return None
        from stigmer.agents import AgentError, parse_agent, to_record

        if self.agent.problem:
            raise AgentError([self.agent.problem])
        parsed = parse_agent(self.agent.data, self.agent_shown, named=self.agent_name)
        return to_record(parsed, trusted=self.agent.trusted)


def find_project(folder: Path, *, agent: str | None, home: Home, talk: Terminal, asks: bool) -> Project:
    """Looks for both, and asks once whether their folder is to be trusted where `asks` says that somebody is here."""
    path, notices = cascade.find_project_file(folder, stigmer_home=home.path)
    agent_path, name, shown = None, "", ""
    if agent not in (None, "", "default"):
        from stigmer.agents import find_agent

        agent_path, name, more = find_agent(str(agent), folder, home=home.path)
        notices += more
        shown = f".stigmer/agents/{name}.yaml" if name else str(agent)
    if path is None and agent_path is None:
        return Project(notices=notices)  # The way of most runs: nothing of trust is imported.
    files, told = _read(
        [one for one in (path, agent_path) if one is not None], home=home, talk=talk, asks=asks
    )
    return Project(
        files[path] if path else None,
        files[agent_path] if agent_path else None,
        name,
        shown,
        (*notices, *told),
    )


def _read(
    paths: Iterable[Path], *, home: Home, talk: Terminal, asks: bool
) -> tuple[dict[Path, File], list[str]]:
    """The files, each with whether it is trusted, and what is to be told."""
    from stigmer.agents import AgentError
    from stigmer.config._files import ReadFile, read_text
    from stigmer.trust import Trust, contents_of, folder_of

    trust = Trust(home)
    looked_at: dict[Path, tuple[Contents, bool]] = {}
    files, told = {}, []
    for path in paths:
        folder = folder_of(path)
        if folder is None:  # Kept elsewhere and named by hand, as a program would be.
            found = read_text(path, str(path))
            if found.problem:
                raise AgentError([found.problem])
            files[path] = File(path, found.data, True)
            continue
        if folder not in looked_at:
            contents = contents_of(folder)
            trusted = trust.trusts(contents) or (asks and _asked(contents, trust, talk))
            looked_at[folder] = contents, trusted
            if not trusted:
                told.append(
                    f"{folder} is not trusted: what comes with it in .stigmer may only narrow what you have set; "
                    f"to trust it: stigmer trust {folder}"
                )
        contents, trusted = looked_at[folder]
        name = os.path.relpath(path, folder)
        data = contents.files.get(name)
        # Nothing in it may mean that it could not be read.
        found = read_text(path, name) if not data else ReadFile(data)
        problem = found.problem or _no_text(found.data, name)
        files[path] = File(path, found.data, trusted and data is not None, problem)
    return files, told


def _no_text(data: bytes, shown: str) -> str:
    """Why a settings file can be no text; the way of most files costs nothing."""
    from stigmer.config._files import LIMIT, read_yaml

    with suppress(UnicodeDecodeError):
        if len(data) <= LIMIT:
            data.decode()
            return ""
    return read_yaml(data, shown).problem


def _asked(contents: Contents, trust: Trust, talk: Terminal) -> bool:
    """Asks whoever sits here, once per state of the folder."""
    before = trust.decided(contents)
    if before is not None and before.digest == contents.digest:
        return False  # The answer was no.
    changed = before is not None and before.trusted
    talk.say(
        f"What comes with {harmless(str(contents.folder))} for stigmer "
        + ("has changed since you trusted it:" if changed else "is not trusted yet:")
    )
    for name in sorted(contents.files):
        talk.say(f"  {harmless(name)}")
    talk.say(
        "Trusted, it may choose any provider and raise limits; else it may only narrow what you have set."
    )
    while True:
        talk.ask("[t]rust it, or [n]ot: ")
        line = sys.stdin.readline()
        talk.answered()
        word = line.strip().lower()
        if not line:
            return False  # Nobody is here after all: nothing is remembered.
        if word in ("t", "trust", "y", "yes", "n", "not", "no"):
            trust.decide(contents, trusted=word[0] in "ty")
            return word[0] in "ty"
