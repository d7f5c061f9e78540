"""The process that tries a model: `python -m stigmer.modelbench`, started by the command line and by scripts/bench.

One JSON line comes in: model, settings, tool_mode and the ids of the tries. Lines go out: `{"server": …}` first, `{"try": …}`
after each try, `{"done": true}` at the end, and `{"error": …, "hint": …}` when no try can work. It ends when its standard input closes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.metadata import version
from typing import Any

from graphton._child import bind_to_parent
from graphton.chat import Chat, create_chat
from graphton.errors import GraphtonError
from graphton.models import ModelRef, ModelSettings

from stigmer.modelbench._attempt import attempt
from stigmer.modelbench.results import try_to_json
from stigmer.modelbench.tasks import case_of

__all__: list[str] = []


def main() -> None:
    config = bind_to_parent()
    try:
        asyncio.run(_bench(config))
    except GraphtonError as error:
        _say({"error": error.message, "hint": error.hint, "code": error.code})
        raise SystemExit(1) from None
    except Exception as error:
        _say({"error": f"the bench failed at its own work: {type(error).__name__}: {error}", "hint": ""})
        raise


async def _bench(config: dict[str, Any]) -> None:
    asyncio.get_running_loop().add_reader(0, _end_with_parent)
    ref = ModelRef(config["provider"], config["model"])
    chat = create_chat(ref, ModelSettings(**config["settings"]))
    try:
        _say({"server": await _server(chat, config["settings"].get("base_url") or "")})
        for id in config["tries"]:
            one = await attempt(chat, case_of(id), tool_mode=config["tool_mode"])
            _say({"try": try_to_json(one)})
        _say({"done": True})
    finally:
        await chat.close()
        from graphton.chat.llamacpp import close_all

        await close_all()


async def _server(chat: Chat, base_url: str) -> str:
    """The server with its version, for the head of the table."""
    if chat.ref.provider == "ollama":
        return f"Ollama {await _ollama_version(base_url)}".rstrip()
    if chat.ref.provider == "llamacpp" and not base_url:
        return f"llama.cpp (xllamacpp {version('xllamacpp')})"
    return base_url


async def _ollama_version(base_url: str) -> str:
    """What the server says of itself. One that is not there is found out by the first try, in better words."""
    from graphton.chat._http import HEADERS, endpoint, fetch, limits_for
    from graphton.models import Timeouts

    url = endpoint(base_url.rstrip("/").removesuffix("/v1"), "/api/version")
    try:
        body = await fetch(
            url,
            headers=dict(HEADERS),
            provider="ollama",
            limits=limits_for(Timeouts(), local=True),
            secrets=(),
            method="GET",
        )
        return str(json.loads(body).get("version", ""))
    except (GraphtonError, ValueError):
        return ""


def _say(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    if not os.read(0, 4096):
        os._exit(0)


if __name__ == "__main__":
    main()
