"""A model file for the built-in llama.cpp: where it lies, what it needs, and how much of this machine it gets."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from graphton._gguf import read_head
from graphton.catalog import CATALOG, Entry, by_path, known, models_dir, own_entries, path_of
from graphton.chat._window import LADDER
from graphton.errors import ModelMissing, SettingError

__all__ = ["SMALLEST", "ModelFile", "Room", "choose_room", "locate", "rungs"]

SMALLEST = 8192
"""Smaller windows are for machines without memory: 4,096 tokens less save 117 MB a slot with 1.5b (50 MB with 0.5b),
and the run that outgrows them pays with loading the model again, 2 to 6 seconds, and with reading its prompt anew."""
_CACHE_SHARE = 4
"""Of the memory that stays free, this part may hold the prompts of conversations that are in no slot just now."""
_HEAD = 32 << 20
"""Bytes of a file in which its chat template is looked for: the largest vocabularies end before."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file that is, or would be, on this machine. 0: not known."""

    path: Path
    size: int
    context_window: int
    kv_bytes: int
    has_template: bool = True
    """Whether the file says how its model is talked to."""

    def memory(self, tokens: int) -> int:
        """Bytes that serving it takes, with windows of so many tokens in all.

        The file is mapped, and about two thirds of it are copied in another order for the processor. Measured, without
        what the system can take back: docs/local.md.
        """
        return self.size * 16 // 10 + self.kv_bytes * tokens + (100 << 20)


@dataclass(frozen=True, slots=True)
class Room:
    """What a server is started with: `slots` calls at a time, each with the whole `window`."""

    window: int
    slots: int
    cache: int = 0
    """Bytes for prompts that were read and have lost their slot."""
    notice: str = ""


def locate(model: str) -> ModelFile:
    """The file of a model, by its name in the catalogue or its own path; raises ModelMissing when it is not here.

    >>> locate("qwen2.5-coder:1.5b").path  # doctest: +SKIP
    """
    if path := by_path(model):
        if not path.is_file():
            raise ModelMissing(
                f"there is no model file {str(path)!r}",
                name=model,
                hint="check the path; `stigmer models list` names the models that need none",
            )
        return _own_file(path)
    entry = _entry(model)
    found = path_of(entry.name)
    if found is None:
        raise ModelMissing(
            f"model {entry.name!r} is not on this machine: {entry.size / 1e9:.1f} GB, from "
            f"{entry.publisher or 'an address of your own'} ({entry.licence or 'licence unknown'}), looked for in "
            f"{str(models_dir())!r}",
            name=entry.name,
            size=entry.size,
            source=str(entry.sources[0]),
            hint=f"stigmer models pull {entry.name}",
        )
    if not entry.context_window:
        return _own_file(found)
    return ModelFile(found, entry.size, entry.context_window, entry.kv_bytes)


def _own_file(path: Path) -> ModelFile:
    """A file of the user's own: only its head tells."""
    head = read_head(path)
    return ModelFile(path, path.stat().st_size, head.context_window, head.kv_bytes, _has_template(path))


def _has_template(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"tokenizer.chat_template", 0, _HEAD) >= 0


def _entry(model: str) -> Entry:
    entry = known(model)
    if entry is not None:
        return entry
    names = ", ".join(entry.name for entry in (*CATALOG, *own_entries()))
    raise ModelMissing(
        f"the built-in llama.cpp knows no model {model!r}",
        name=model,
        hint=f"take one of {names}, or the path of a .gguf file",
    )


# ---- how much of the machine it gets -----------------------------------------------------------------------------------


def rungs(file: ModelFile, asked: int | None = None) -> list[int]:
    """The windows that this file may be served with, the smallest first."""
    limit = file.context_window or LADDER[-1]
    return sorted(
        {min(rung, limit) for rung in LADDER} | ({asked} if asked and asked > LADDER[-1] else set())
    )


def choose_room(file: ModelFile, need: int, asked: int | None, *, free: int, slots: int) -> Room:
    """How a server for this file is to be started, by the memory that is free.

    The smallest window of the ladder, from SMALLEST on, that holds `need` tokens, or what was `asked` for. Where memory
    is short, there are fewer slots first, because calls can wait for each other; then a smaller window, and a notice.
    """
    if asked is not None and file.context_window and asked > file.context_window:
        raise SettingError(
            f"context_window {asked} is above the {file.context_window} tokens that {file.path.name!r} can take",
            hint=f"context_window={file.context_window}",
        )
    ladder = rungs(file, asked)
    wanted = asked or need
    first = next((rung for rung in ladder if rung >= max(wanted, SMALLEST)), ladder[-1])
    for window in reversed([rung for rung in ladder if rung <= first]):
        for many in range(slots, 0, -1):
            left = free - file.memory(window * many)
            if left >= 0:
                cache = min(left // _CACHE_SHARE, file.kv_bytes * window * many)
                return Room(window, many, cache, _lowered(file, asked, first, window, free))
    # The estimate may be too careful, and the system can give back more than it says: try with the smallest.
    low = f"memory is short: {file.path.name} takes about {_gb(file.memory(ladder[0]))}, {_gb(free)} are free"
    return Room(ladder[0], 1, 0, low)


def _lowered(file: ModelFile, asked: int | None, first: int, window: int, free: int) -> str:
    if window == first:
        return ""
    what = f"context_window {asked}" if asked else f"the context window of {first} tokens"
    return (
        f"{what} is lowered to {window}: it needs {_gb(file.memory(asked or first))} of memory "
        f"and {_gb(free)} are free"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
