"""An Ollama as the command line manages it: what it holds, and models that it pulls and removes.

The work is that of graphton.chat's; here it is done from a program without an event loop, and imported only when asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from stigmer.preflight import MOST_DESCRIBED

if TYPE_CHECKING:
    from graphton.chat.ollama_facts import Installed, Server

__all__ = ["Held", "held", "pull", "remove", "size_of"]

Result = TypeVar("Result")
_PATIENT = 5.0
"""Seconds for an Ollama that is about to be told something, or to describe all that it has."""


class Held(NamedTuple):
    """A model of an Ollama; None: nobody could tell in time."""

    name: str
    size: int
    loaded: bool
    window: int | None
    """The window that it is loaded with."""
    context_length: int | None
    capabilities: tuple[str, ...] | None
    remote: str
    """The host that serves it, where the Ollama only passes requests on."""


def held(url: str, key: str | None = None) -> list[Held] | str:
    """What the Ollama at this address has, by name; or why nobody can tell, "" where nothing listens there."""
    from graphton.errors import ConnectError, GraphtonError

    try:
        return _run(_held(url, key))
    except GraphtonError as error:
        return "" if isinstance(error, ConnectError) and error.trouble == "refused" else error.message


def pull(
    url: str,
    name: str,
    show: Callable[[int, int, str], None],
    *,
    key: str | None = None,
    insecure: bool = False,
) -> None:
    """Lets the Ollama fetch a model; `show` is told how it goes. Raises the errors of `graphton.chat.ollama_models`."""
    _run(_pull(url, name, show, key, insecure))


def remove(url: str, name: str, *, key: str | None = None) -> int:
    """Lets the Ollama remove a model; gives its size. Raises DownloadError where it has none of that name."""
    return _run(_remove(url, name, key))


def size_of(url: str, name: str, *, key: str | None = None) -> int | None:
    """How large an installed model is; None where it has none of that name."""

    async def look() -> int | None:
        row = (await _at(url, key)).installed_model(name)
        return row.size if row else None

    return _run(look())


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


async def _at(url: str, key: str | None) -> Server:
    from graphton.chat.ollama_facts import measure

    return await measure(url, api_key=key, seconds=_PATIENT)


async def _held(url: str, key: str | None) -> list[Held]:
    server = await _at(url, key)
    rows = sorted(server.installed, key=lambda row: row.name)
    described: list[Held | None] = [None] * len(rows)

    async def describe(place: int) -> None:
        described[place] = await _described(server, rows[place])

    with suppress(TimeoutError):  # What was said in time is shown; the rest has its name and size.
        async with asyncio.timeout(_PATIENT):
            await asyncio.gather(*(describe(i) for i in range(min(len(rows), MOST_DESCRIBED))))
    return [found or _plain(server, row) for found, row in zip(described, rows, strict=True)]


async def _described(server: Server, row: Installed) -> Held:
    from graphton.chat.ollama_facts import model_facts
    from graphton.errors import ProviderError

    try:
        facts = await model_facts(server, row.name)
    except ProviderError:
        facts = None  # A damaged model is still one that can be removed.
    plain = _plain(server, row)
    if facts is None:
        return plain
    able = None if facts.capabilities is None else tuple(sorted(facts.capabilities))
    return plain._replace(context_length=facts.context_length, capabilities=able, remote=facts.remote)


def _plain(server: Server, row: Installed) -> Held:
    loaded = server.loaded_model(row.name)
    return Held(row.name, row.size, loaded is not None, loaded.window if loaded else None, None, None, "")


async def _pull(
    url: str, name: str, show: Callable[[int, int, str], None], key: str | None, insecure: bool
) -> None:
    from graphton.chat import ollama_models

    server = await _at(url, key)
    async with aclosing(ollama_models.pull(server, name, insecure=insecure)) as steps:
        async for step in steps:
            show(step.done, step.total, step.text)


async def _remove(url: str, name: str, key: str | None) -> int:
    from graphton.chat import ollama_models

    server = await _at(url, key)
    row = server.installed_model(name)
    await ollama_models.remove(server, row.name if row else name)
    return row.size if row else 0
