"""`prune`: executions that ended long ago are deleted, and their room is given back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._main import asked, json_option
from stigmer.cli._session import connected
from stigmer.cli._terminal import person_here, size_text, terminal
from stigmer.errors import UsageError

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import PruneExecutionsResponse
    from stigmer.client import Client

__all__ = ["prune"]


@click.command()
@click.option(
    "--older-than",
    "days",
    metavar="DAYS",
    type=click.IntRange(0, 36_500),
    help="Keep what ended within so many days.",
)
@click.option(
    "--keep", metavar="N", type=click.IntRange(0, 1_000_000_000), help="Keep the newest N that have ended."
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def prune(days: int | None, keep: int | None, dry_run: bool, yes: bool) -> int:
    """Delete executions that have ended, for good, and free their room; ask first.

    With both options only what neither of them keeps goes; with none, what `retention` in your settings does not keep.
    What has not ended stays, and a session goes as a whole, when its last execution may go.
    """

    async def work(client: Client) -> int:
        found = await client.prune(older_than_days=days, keep=keep, dry_run=True)
        # The second request says what the first one did, whatever happens to the settings meanwhile.
        limits: dict[str, Any] = {
            "older_than_days": found.older_than_days if found.HasField("older_than_days") else None,
            "keep": found.keep if found.HasField("keep") else None,
        }
        if dry_run or not found.executions:
            _tell(found, limits, "would go" if found.executions else "nothing to prune", dry_run=dry_run)
            return 0
        if not yes and not _sure(found, limits):
            terminal().say("nothing is deleted")
            return 1
        _tell(await client.prune(**limits), limits, "pruned", dry_run=False)
        return 0

    return connected(work)


def _sure(found: PruneExecutionsResponse, limits: dict[str, Any]) -> bool:
    """Whether the person here wants them gone."""
    if not person_here():
        raise UsageError(
            f"nobody is here to ask whether {_count(found)} may go",
            hint="stigmer prune --yes, or first: stigmer prune --dry-run",
        )
    terminal().ask(f"Delete {_count(found)}, {_kept(limits)}, for good? [y/N] ")
    answer = sys.stdin.readline()
    terminal().answered()
    return answer.strip().lower() in ("y", "yes")


def _tell(found: PruneExecutionsResponse, limits: dict[str, Any], what: str, *, dry_run: bool) -> None:
    if asked().json:
        shown = {
            "executions": found.executions,
            "sessions": found.sessions,
            "bytes": found.bytes,
            **limits,
            "dry_run": dry_run,
            "compacted": found.compacted,
        }
        terminal().data(json.dumps(shown) + "\n")
        return
    if not found.executions:
        terminal().say(f"{what}: {_kept(limits)}")
        return
    terminal().say(f"{what}: {_count(found)}, {_kept(limits)}")
    if not (dry_run or found.compacted):
        terminal().say("the database keeps its size for now: the room is used again")


def _count(found: PruneExecutionsResponse) -> str:
    many = f"{found.executions:,} execution{'s' if found.executions != 1 else ''}"
    whole = (
        f" ({found.sessions:,} whole session{'s' if found.sessions != 1 else ''})" if found.sessions else ""
    )
    return f"{many}{whole} of {size_text(found.bytes)}"


def _kept(limits: dict[str, Any]) -> str:
    """What stays, for people."""
    days, keep = limits["older_than_days"], limits["keep"]
    stays = [f"the last {days} day{'s' if days != 1 else ''}"] if days else []
    stays += [f"the newest {keep:,}"] if keep else []
    return f"kept: {' and '.join(stays) or 'what has not ended'}"
