"""Folders of deleted runs are deleted where they lie: on a worker's disk, and on the volume that workers share."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from graphton.errors import GraphtonError

from stigmer.errors import StigmerError
from stigmer.places import PlaceError, own, volume

__all__ = ["keep_tidy", "tidy"]

log = logging.getLogger("stigmer.server")

Gone = Callable[[str, Sequence[str]], Awaitable[Iterable[str]]]
"""Which of these folders of a place belonged to executions that were deleted. Raises StigmerError, GraphtonError."""

_OURS = re.compile(r"(?:exec|ses)_[0-9a-z]{26}")
"""What our folders are called: an execution's id, or a session's."""
_PAGE = 500
"""So many folders are asked about at once."""
REST_SECONDS = 3600.0


async def keep_tidy(gone: Gone, *, rest: float = REST_SECONDS) -> None:
    """Deletes the folders of deleted runs again and again, until it is cancelled."""
    while True:
        try:
            await tidy(gone)
        except (StigmerError, GraphtonError) as error:
            log.warning("folders of deleted runs stay for now reason=%r", error.message)
        await asyncio.sleep(rest)


async def tidy(gone: Gone) -> int:
    """Deletes the folders of deleted runs that this machine has, and says how many those were.

    Nothing else is touched: a folder must be called as ours are, and `gone` must know whose it was. So a database that
    is new, restored or another's lets nothing go.
    """
    count = 0
    for place, root in (("worker", own()), ("volume", volume())):
        if root is None:
            continue
        names = await asyncio.to_thread(_ours, root)
        for first in range(0, len(names), _PAGE):
            page = names[first : first + _PAGE]
            for name in set(page).intersection(await gone(place, page)):
                count += await asyncio.to_thread(_delete, root / name)
    return count


def _ours(root: Path) -> list[str]:
    """The folders below a root that are called as ours are. A link is no folder. Raises PlaceError."""
    try:
        with os.scandir(root) as entries:
            return [
                one.name for one in entries if _OURS.fullmatch(one.name) and one.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []  # It is made with its first folder; a volume that is not mounted has none.
    except OSError as error:
        raise PlaceError(f"the folder {str(root)!r} cannot be read: {error.strerror}") from error


def _delete(folder: Path) -> bool:
    """Deletes a folder with all it holds, and says whether it did. A link in it goes, and what it leads to stays."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return False  # Another worker is at it.
    except OSError as error:
        log.warning("the folder of a deleted run stays folder=%r reason=%r", str(folder), str(error))
        return False
    log.info("deleted the folder of a deleted run folder=%r", str(folder))
    return True
