"""What `stigmer models list` shows: files, an Ollama's models, providers, and what is known of theirs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stigmer.cli._terminal import harmless, size_text

__all__ = [
    "files",
    "known",
    "known_lines",
    "local_lines",
    "of_ollama",
    "ollama_lines",
    "provider_lines",
    "providers",
]

Row = dict[str, Any]


def files() -> Iterator[Row]:
    """The catalogue, with what of it is here, the user's own, then other .gguf files in the folder of models."""
    from graphton import catalog

    entries = (*catalog.CATALOG, *catalog.own_entries())
    for entry in entries:
        path = catalog.path_of(entry.name)
        yield {
            "kind": "file",
            "name": entry.name,
            "file": entry.file,
            "bytes": entry.size,
            "installed": path is not None,
            "licence": entry.licence or None,
            "sha256": entry.sha256,
            "context_length": entry.context_window or None,
            "path": str(path) if path else None,
            "sources": [str(source) for source in entry.sources],
        }
    ours = {entry.file for entry in entries}
    for file in sorted(catalog.models_dir().glob("*.gguf")):
        if file.name not in ours and file.is_file():
            yield {
                "kind": "file",
                "name": str(file),
                "file": file.name,
                "bytes": file.stat().st_size,
                "installed": True,
                "licence": None,
                "sha256": None,
                "context_length": None,
                "path": str(file),
                "sources": [],
            }


def of_ollama(url: str, key: str | None) -> list[Row] | str:
    """What the Ollama at this address has installed; or why nobody can tell, "" where none runs."""
    from stigmer.ollama import held

    found = held(url, key)
    if isinstance(found, str):
        return found
    return [
        {
            "kind": "ollama",
            "name": one.name,
            "bytes": one.size,
            "installed": True,
            "base_url": url,
            "loaded": one.loaded,
            "window": one.window,
            "context_length": one.context_length,
            "capabilities": None if one.capabilities is None else list(one.capabilities),
            "remote": one.remote or None,
        }
        for one in found
    ]


def providers(settings: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Each provider as a run with it would be resolved here; of its key only whether there is one, and where."""
    from graphton.models import PROVIDERS

    for row in PROVIDERS.values():
        key = settings[row.name]["api_key"]
        yield {
            "kind": "provider",
            "name": row.name,
            "default_model": _default_model(row.name),
            "base_url": settings[row.name]["base_url"]["value"],
            "local": row.local,
            "needs_key": row.needs_key,
            "key_variable": row.key_variable or None,
            "key_found": key["value"] is not None,
            "key_source": None if key["value"] is None else key["source"],
        }


def _default_model(provider: str) -> str:
    from graphton.models import PROVIDERS, api_id

    from stigmer.config import clock

    today = clock(os.environ).date()
    return api_id(provider, PROVIDERS[provider].default_model, today=today, default=True)[1]


def known() -> Iterator[Row]:
    """The table of hosted models, the ids that are only other names for one among them."""
    from graphton.models import known_models

    from stigmer.config import clock

    today = clock(os.environ).date()
    for model in known_models():
        yield {
            "kind": "model",
            "provider": model.provider,
            "name": model.name or model.id,
            "id": model.id,
            "context_window": model.context_window,
            "max_output": model.max_output,
            "price_input": model.price_input,
            "price_output": model.price_output,
            "retires": model.retires.isoformat() if model.retires else None,
            "ended": bool(model.retires and today >= model.retires),
            "successor": model.successor or None,
            "default": _default_model(model.provider) == (model.name or model.id),
        }


# ---- how it is shown


def local_lines(rows: Sequence[Row]) -> list[str]:
    """The files, one a line."""
    from graphton import catalog

    shown = [
        (_name_of(row), size_text(row["bytes"]), row["licence"] or "unknown", _place_of(row)) for row in rows
    ]
    head = f"On this machine, for the built-in llama.cpp ({harmless(str(catalog.models_dir()))})"
    return [head, *_columns(shown, right=(1,)), ""]


def _name_of(row: Row) -> str:
    """The name that --model and `models remove` take."""
    return str(row["name"] if row["sha256"] else Path(row["path"]).name)


def _place_of(row: Row) -> str:
    if row["installed"]:
        return str(row["path"])
    source = row["sources"][0]
    if source.startswith("file:"):
        return f"its file is not there any more: {source}"
    return f"not installed: stigmer models pull {row['name']}"


def ollama_lines(served: Sequence[Row] | str, url: str) -> list[str]:
    """An Ollama's models, one a line."""
    if isinstance(served, str):
        why = f": {harmless(served)}" if served else ""
        return [f"Ollama: none answers at {harmless(url)}{why}", ""]
    shown = [
        (
            row["name"],
            size_text(row["bytes"]) if row["bytes"] else "-",
            _count(row["context_length"]),
            ", ".join(one for one in row["capabilities"] or () if one != "completion") or "-",
            _state_of(row),
        )
        for row in served
    ]
    head = [("model", "size", "window", "takes", "")] if shown else []
    empty = ["  nothing is installed: stigmer models pull qwen2.5-coder:7b"]
    return [f"Ollama at {harmless(url)}", *(_columns([*head, *shown], right=(1, 2)) or empty), ""]


def _state_of(row: Row) -> str:
    if row["remote"]:
        return f"served by {row['remote']}, not here"
    if not row["loaded"]:
        return ""
    return f"loaded, window {row['window']:,}" if row["window"] else "loaded"


def provider_lines(found: Sequence[Row]) -> list[str]:
    """The providers, each with its default model and whether it has its key."""
    rows = [("provider", "default model", "key")]
    for row in found:
        if row["key_found"]:
            key = f"found: {row['key_source']}"
        elif row["needs_key"]:
            key = f"not found: set {row['key_variable']}, or stigmer secret set {row['key_variable']}"
        else:
            key = "none needed"
        rows.append((row["name"], row["default_model"], key))
    return ["Providers", *_columns(rows), ""]


def known_lines(found: Sequence[Row]) -> list[str]:
    """One line a model: other ids of the same one, and those that have ended, are left to --json."""
    rows: list[tuple[str, ...]] = [("model", "window", "max out", "$ in", "$ out", "")]
    shown = [row for row in found if not row["ended"] and not _is_other_id(row, found)]
    for row in shown:
        end = f"until {row['retires']}, then {row['successor']}" if row["retires"] else ""
        rows.append(
            (
                f"{row['provider']}:{row['name']}",
                _count(row["context_window"]),
                _count(row["max_output"]),
                _price(row["price_input"]),
                _price(row["price_output"]),
                " · ".join(part for part in ("default" if row["default"] else "", end) if part),
            )
        )
    rest = len(found) - len(shown)
    head = "Known models of providers (USD per million tokens; any other name is allowed too)"
    return [
        head,
        *_columns(rows, right=(1, 2, 3, 4)),
        f"{rest} more ids, of the same models or of such that have ended: stigmer models list --json",
    ]


def _is_other_id(row: Row, known: Iterable[Row]) -> bool:
    """Whether an id is a second name of another row: dated, or Anthropic's alias of a dated one."""
    same = [one for one in known if one["provider"] == row["provider"] and one["id"] != row["id"]]
    plain = re.sub(r"-\d{4}-\d{2}-\d{2}$|-\d{4}$", "", row["id"])
    return any(
        (plain != row["id"] and one["id"] == plain)
        or (
            row["name"] == row["id"]
            and one["name"].replace(".", "-") == row["id"]
            and one["name"] != row["id"]
        )
        for one in same
    )


def _count(number: int | None) -> str:
    return f"{number:,}" if number is not None else "-"


def _price(usd: float | None) -> str:
    return f"{usd:.2f}" if usd is not None else "-"


def _columns(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> list[str]:
    """The rows as an indented table; columns in `right` end where they end."""
    safe = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in safe) for i in range(len(safe[0]))] if safe else []
    return [
        "  "
        + "  ".join(
            f"{cell:>{widths[i]}}" if i in right else f"{cell:<{widths[i]}}" for i, cell in enumerate(row)
        ).rstrip()
        for row in safe
    ]
