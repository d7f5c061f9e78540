"""`trust`: which folders may do more than narrow what the user has set."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stigmer import config as cascade
from stigmer import trust as trusting
from stigmer.cli._main import asked, json_option
from stigmer.cli._terminal import harmless, terminal
from stigmer.errors import StigmerError, UsageError
from stigmer.home import Home

__all__ = ["trust"]


@click.command()
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--list", "listed", is_flag=True, help="List what has been decided.")
@click.option("--remove", is_flag=True, help="Forget what was decided about DIR.")
@json_option
def trust(folder: str | None, listed: bool, remove: bool) -> int:
    """Trust what comes with DIR, by default the current folder: its .stigmer/config.yaml and .stigmer/agents/*.yaml.

    Until then these may only narrow what you have set. A file that changes is asked for anew. No folder ever sets an
    address or a key.
    """
    if listed and (remove or folder):
        raise UsageError("--list stands alone", hint="stigmer trust --list")
    decided = trusting.Trust(Home.find())
    if listed:
        return _list(decided)
    start = Path(folder or ".").expanduser().resolve()
    return _remove(decided, start) if remove else _trust(decided, start)


def _list(decided: trusting.Trust) -> int:
    talk = terminal()
    for one in decided.decisions():
        state = _state(one)
        if asked().json:
            talk.data(json.dumps({"folder": str(one.folder), "state": state}) + "\n")
        else:
            talk.data(f"{state:<11}  {one.folder}\n")
    if not decided.decisions() and not asked().json:
        talk.say("no folder is trusted")
    return 0


def _state(one: trusting.Decision) -> str:
    if trusting.contents_of(one.folder).digest != one.digest:
        return "changed"
    return "trusted" if one.trusted else "not trusted"


def _remove(decided: trusting.Trust, start: Path) -> int:
    if not decided.remove(start):
        raise StigmerError(f"nothing was decided about {str(start)!r}", hint="stigmer trust --list")
    _tell(start, "not asked", [])
    return 0


def _trust(decided: trusting.Trust, start: Path) -> int:
    if not start.is_dir():
        raise UsageError(f"{str(start)!r} is not a folder", hint="stigmer trust, in the folder itself")
    home = Home.find()
    folders: dict[Path, None] = {}
    notices: list[str] = []
    for name in ("config.yaml", "agents"):
        found, skipped = cascade.find_project_file(start, name, stigmer_home=home.path)
        notices += skipped
        if found is not None:
            folders[found.parents[1]] = None
    for notice in notices:
        terminal().say(f"note: {harmless(notice)}")
    whole = [contents for folder in folders if (contents := trusting.contents_of(folder)).files]
    if not whole:
        raise StigmerError(
            f"nothing needs trust in {str(start)!r} or above it: there is no .stigmer/config.yaml and no "
            ".stigmer/agents/*.yaml",
            hint="stigmer trust --list",
        )
    for contents in whole:
        decided.decide(contents, trusted=True)
        _tell(contents.folder, "trusted", sorted(contents.files))
    return 0


def _tell(folder: Path, state: str, files: list[str]) -> None:
    if asked().json:
        terminal().data(json.dumps({"folder": str(folder), "state": state, "files": files}) + "\n")
        return
    terminal().say(
        f"{harmless(str(folder))} is {'trusted' if state == 'trusted' else 'not trusted any more'}"
    )
    for name in files:
        terminal().say(f"  {harmless(name)}")
