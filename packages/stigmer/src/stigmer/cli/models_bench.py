"""`models bench`: how well a local model uses tools, on the user's own machine and servers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._main import asked, json_option, verbose_option
from stigmer.cli._terminal import Terminal, harmless, terminal
from stigmer.errors import ConfigError, UsageError
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.modelbench.bench import Setup
    from stigmer.modelbench.results import Results

__all__ = ["bench"]

MEANING = """\
right: tries that a program found right, with the range that the true rate lies in at 95 %. Plain native API: the same
tasks through the server's own tools API, without stigmer; measured for our default models. `stigmer models bench -v`
tells what was wrong with each wrong try."""


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--full", is_flag=True, help="All tasks in three wordings each: some six times as long.")
@click.option("--base-url", metavar="URL", help="Where the model's server is, if not at the usual place.")
@click.option(
    "--tool-mode",
    type=click.Choice(["native", "recovery", "envelope"]),
    help="Try another way to bring the model to use tools than a run would take.",
)
@click.option("--again", is_flag=True, help="Begin anew, even where a bench was broken off.")
@json_option
@verbose_option
def bench(
    names: tuple[str, ...], full: bool, base_url: str | None, tool_mode: str | None, again: bool
) -> int:
    """Try a local model on small tasks that a program checks, and show what it gets done.

    NAME is a model as --model takes it (`ollama:qwen3:4b`), or the path of a .gguf file; none is the model that a run
    would take here. A short bench is 32 tries, a few minutes with a small model; one that was broken off goes on where
    it was. Nothing outside a temporary folder is touched, and no command is run.
    """
    import asyncio

    setups = [_setup(name, base_url, tool_mode) for name in names or ("",)]
    talk, form = terminal(), "full" if full else "short"
    for setup in setups:
        try:
            results, server = asyncio.run(_try_all(setup, form, again=again, talk=talk))
        except KeyboardInterrupt:
            talk.say(f"{harmless(setup.name)}: broken off; the same command goes on where it was")
            raise
        talk.status("")
        (_as_json if asked().json else _as_table)(setup, form, results, server, talk)
    if not asked().json:
        talk.say(MEANING)
    return 0


def _setup(name: str, base_url: str | None, tool_mode: str | None) -> Setup:
    """What is tried: the settings are those that a run with this model would have."""
    from graphton.models import PROVIDERS

    from stigmer.cli._resolved import resolved
    from stigmer.modelbench.bench import Setup

    flags = {"model": _as_model(name)} if name else {}
    found = resolved(flags | ({"base_url": base_url} if base_url else {}))
    if found.problems:
        raise ConfigError(found.problems)
    settings = {key: row["value"] for key, row in found.settings.items()}
    provider, model = str(settings["provider"]), str(settings["model"])
    if not PROVIDERS[provider].local:
        raise UsageError(
            f"{provider}:{model} is no model of this machine, and a bench of it would cost money",
            hint="name a local one: stigmer models bench ollama:qwen2.5-coder:7b",
        )
    return Setup(provider, model, settings["base_url"], tool_mode, settings["context_window"])


def _as_model(name: str) -> str:
    """The path of a file stands for the built-in llama.cpp with it."""
    if not name.lower().endswith(".gguf") or name.startswith("llamacpp:"):
        return name
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise UsageError(
            f"there is no model file {str(path)!r}", hint="stigmer models list names those that are here"
        )
    return f"llamacpp:{path}"


async def _try_all(setup: Setup, form: str, *, again: bool, talk: Terminal) -> tuple[Results, str]:
    """Try what is missing; the results, and on which server."""
    from contextlib import aclosing

    from stigmer.modelbench.bench import tried
    from stigmer.modelbench.results import Results
    from stigmer.modelbench.show import Progress
    from stigmer.modelbench.tasks import cases

    ids = [case.id for case in cases(form)]
    folder = Home.find().create().path / "bench"
    results = Results.open(folder / f"{form}-{setup.file_name}", setup.head(form), wanted=ids, again=again)
    wanted, server = [id for id in ids if id not in results.tries], ""
    progress = Progress(len(ids), len(results.tries), sum(not one.wrong for one in results.tries.values()))
    if results.tries:
        talk.say(
            f"{harmless(setup.name)}: goes on after {len(results.tries)} of {len(ids)} tries (--again begins anew)"
        )
    async with aclosing(tried(setup, wanted)) as source:
        async for one in source:
            if isinstance(one, str):
                server = one
            else:
                results.add(one)
                progress.count(right=not one.wrong)
                _tell_wrong(one.id, one.wrong, talk)
            talk.status(f"{harmless(setup.name)}: {progress}")
    return results, server


def _tell_wrong(id: str, wrong: str, talk: Terminal) -> None:
    from stigmer.modelbench.tasks import case_of

    if wrong and asked().verbose:
        talk.say(harmless(f"{id}: {case_of(id).wording.request!r}: {wrong}"))


def _as_table(setup: Setup, form: str, results: Results, server: str, talk: Terminal) -> None:
    from stigmer.modelbench.scores import aims_for, native_for, score
    from stigmer.modelbench.show import table

    found = score(results.tries.values())
    title = f"{setup.name} on {server}, {form} bench of {found.total} tries"
    native = native_for(setup.provider, setup.model)
    talk.data(harmless(table(title, found, native=native, aims=aims_for(setup.model))) + "\n\n")


def _as_json(setup: Setup, form: str, results: Results, server: str, talk: Terminal) -> None:
    from stigmer.modelbench.bench import today
    from stigmer.modelbench.scores import aims_for, native_for, score, to_json

    native = native_for(setup.provider, setup.model)
    shown: dict[str, Any] = {
        "model": setup.name,
        "server": server,
        "form": form,
        "date": today(),
        **to_json(score(results.tries.values())),
        "aims": dict(aims_for(setup.model)),
        "native": {"right": dict(native.right), "tries": dict(native.tries), "date": native.date}
        if native
        else None,
        "results": os.fspath(results.path),
    }
    talk.data(json.dumps(shown, ensure_ascii=False) + "\n")
