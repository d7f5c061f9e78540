"""`validate`: agent files, checked without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stigmer.cli._main import USAGE, asked, json_option
from stigmer.cli._terminal import harmless, terminal

__all__ = ["validate"]


@click.command()
@click.argument("files", metavar="FILE…", nargs=-1, required=True)
@json_option
def validate(files: tuple[str, ...]) -> int:
    """Check agent files: every problem of each, with its line. Exit code 2 where there is one."""
    from stigmer.agents import AgentError, AgentFile, read_agent

    talk, worst = terminal(), 0
    for file in files:
        problems: tuple[str, ...] = ()
        agent: AgentFile | None = None
        try:
            path = Path(file).expanduser()
            belongs = path.absolute().parent.parts[-2:] == (".stigmer", "agents")
            agent = read_agent(path, file, named=path.stem if belongs else "")
        except AgentError as error:
            problems, worst = error.problems, USAGE
        if asked().json:
            name = agent.name if agent else None
            revision = agent.revision if agent else None
            row = {"file": file, "name": name, "revision": revision, "problems": list(problems)}
            talk.data(json.dumps(row, ensure_ascii=False) + "\n")
        elif agent is not None:
            talk.data(f"{file}: agent {agent.name}@{agent.revision} is valid\n")
        for problem in () if asked().json else problems:
            talk.say(f"{talk.paint('error:', 'red')} {harmless(problem)}")
    return worst
