"""The model files of this machine: there, whole, and with `--deep` the very bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from graphton import catalog

from stigmer.doctor._check import OK, SKIP, WARN, Check, check

__all__ = ["model_files"]


def model_files(*, deep: bool) -> Iterator[Check]:
    """One check a file that is there, and one for the folder where there is none."""
    folder = catalog.models_dir()
    named = "STIGMER_MODELS" if os.environ.get("STIGMER_MODELS", "").strip() else "default"
    entries = [
        entry for entry in (*catalog.CATALOG, *catalog.own_entries()) if (folder / entry.file).exists()
    ]
    if not entries:
        yield check(
            "llamacpp.files",
            SKIP,
            f"no model file in {folder} ({named})",
            f"stigmer models pull {catalog.CATALOG[0].name}",
            folder=str(folder),
            source=named,
            files=[],
        )
        return
    broken: list[str] = []
    files = []
    for entry in entries:
        fault = _fault(folder / entry.file, entry, deep=deep)
        files.append(
            {"name": entry.name, "path": str(folder / entry.file), "bytes": entry.size, "fault": fault}
        )
        if fault:
            broken.append(f"{entry.name} {fault}")
    names = ", ".join(entry.name for entry in entries)
    facts = {"folder": str(folder), "source": named, "files": files, "deep": deep}
    if broken:
        first = next(file["name"] for file in files if file["fault"])
        yield check(
            "llamacpp.files",
            WARN,
            f"in {folder} ({named}): {'; '.join(broken)}",
            f"fetch it anew: stigmer models remove {first} --yes; stigmer models pull {first}",
            **facts,
        )
        return
    how = "every byte checked" if deep else "their sizes are right; their bytes: stigmer doctor --deep"
    yield check("llamacpp.files", OK, f"in {folder} ({named}): {names}; {how}", **facts)


def _fault(path: Path, entry: catalog.Entry, *, deep: bool) -> str:
    """What is wrong with a file; "" for nothing."""
    try:
        size = path.stat().st_size
        if size != entry.size:
            return f"has {size:,} bytes instead of {entry.size:,}"
        if not deep:
            return ""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return "" if digest == entry.sha256 else f"has the sha256 {digest} instead of {entry.sha256}"
