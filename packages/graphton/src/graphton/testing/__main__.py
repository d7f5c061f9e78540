"""`python -m graphton.testing`: FakeProviders as a process, for tests of other processes.

Its first line of output is its URL. `GET /_requests` returns the recorded requests as JSON, `POST /_script` adds to
the script. It ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from graphton.errors import GraphtonError
from graphton.testing._fake_providers import FakeProviders


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m graphton.testing",
        description="A fake model server that speaks Anthropic Messages, OpenAI's two APIs and Ollama.",
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one (default)")
    parser.add_argument(
        "--script", type=Path, help="JSON file with replies and rules (graphton.testing.script_from_json)"
    )
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> None:
    fake = FakeProviders()
    if arguments.script is not None:
        fake.script(json.loads(arguments.script.read_text("utf-8")))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await fake.start(arguments.port)
    print(fake.url, flush=True)
    await stop.wait()
    await fake.close()


if __name__ == "__main__":
    try:
        asyncio.run(_main(_arguments()))
    except (GraphtonError, OSError, json.JSONDecodeError) as problem:
        sys.exit(f"fake providers: {problem}")
