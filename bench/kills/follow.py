"""`stigmer run --json` and `attach --json` for a server that somebody else starts again when it is gone.

python follow.py run [--agent FILE] [--yes] [--json] TASK | attach [--json] EXECUTION
The commands themselves would start a daemon of the home instead, which is right on one machine and wrong here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from stigmer.cli._project import find_project
from stigmer.cli._terminal import Terminal
from stigmer.client import Client, CreateExecutionRequest
from stigmer.config import llm_variables
from stigmer.daemon import find
from stigmer.errors import StigmerError
from stigmer.events import to_json
from stigmer.home import Address, Home


def there() -> Address:
    """Where the home's server is just now."""
    found = find(Home.find())
    if found is None:
        raise StigmerError("the control plane is away")
    return found


def request(given: argparse.Namespace) -> CreateExecutionRequest:
    request = CreateExecutionRequest(
        task=given.what,
        workspace=str(Path.cwd()),
        workspace_named=True,
        approve_all=given.yes,
        shell=llm_variables(os.environ),
    )
    if given.agent:
        talk = Terminal(sys.stdout, sys.stderr)
        project = find_project(Path.cwd(), agent=given.agent, home=Home.find(), talk=talk, asks=False)
        agent = project.agent_record()
        assert agent is not None
        request.agent = agent.name
        request.agent_record.CopyFrom(agent)
    return request


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=("run", "attach"))
    parser.add_argument("what")
    parser.add_argument("--agent")
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    outcome = ""
    async with Client(there(), again=there, notice=lambda text: print(text, file=sys.stderr)) as client:
        events = client.run(request(given)) if given.how == "run" else client.watch(given.what)
        async for event in events:
            print(json.dumps(to_json(event, events.execution)), flush=True)
            if event.HasField("finished") and not event.path:
                outcome = event.finished.outcome
    return 0 if outcome == "completed" else 1


if __name__ == "__main__":
    try:
        raise SystemExit(asyncio.run(main()))
    except StigmerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
