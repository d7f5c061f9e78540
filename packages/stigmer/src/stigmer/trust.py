"""Trust in folders: what comes with one may only narrow until the user trusts it, and is asked for anew once it changed.

What comes with a folder is `.stigmer/config.yaml` and `.stigmer/agents/*.yaml`. Trusted or not, it never sets a host
or a key: the cascade refuses those by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from graphton.errors import ModelNameError
from graphton.models import PROVIDERS, implied_provider, split_provider

from stigmer import config
from stigmer.config._own import own_words, read
from stigmer.config.edit import write_atomically
from stigmer.errors import StigmerError
from stigmer.home import Home

__all__ = [
    "Contents",
    "Decision",
    "Trust",
    "TrustError",
    "contents_of",
    "folder_of",
    "narrowed",
    "without_widening",
]


class TrustError(StigmerError):
    """The list of trusted folders cannot be read or written."""

    code = "trust"


class Contents(NamedTuple):
    """What comes with a folder: the very bytes that were looked at are those that are used."""

    folder: Path
    files: Mapping[str, bytes]
    """By their path below the folder: `.stigmer/config.yaml`."""

    @property
    def digest(self) -> str:
        whole = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            whole.update(json.dumps([name, hashlib.sha256(data).hexdigest()]).encode())
        return whole.hexdigest()


class Decision(NamedTuple):
    """What the user said of a folder once."""

    folder: Path
    digest: str
    trusted: bool


def folder_of(file: Path) -> Path | None:
    """The folder that a file comes with; None for one that somebody keeps elsewhere and names by hand."""
    for path in (Path(os.path.abspath(file)), Path(os.path.realpath(file))):
        if path.parent.name == ".stigmer":
            return path.parents[1]
        if path.parent.name == "agents" and path.parents[1].name == ".stigmer":
            return path.parents[2]
    return None


def contents_of(folder: Path) -> Contents:
    """Reads what comes with a folder. What cannot be read has no content; whoever wants it will say so."""
    below = folder / ".stigmer"
    found = {}
    for path in [below / "config.yaml", *sorted((below / "agents").glob("*.yaml"))]:
        try:
            if path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
        except OSError:
            found[str(path.relative_to(folder))] = b""
    return Contents(Path(os.path.realpath(folder)), found)


class Trust:
    """The user's decisions, in `trust.json` of STIGMER_HOME."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.path = home.path / "trust.json"

    def decisions(self) -> list[Decision]:
        """All of them, by folder."""
        return [
            Decision(Path(folder), str(row["digest"]), bool(row["trusted"]))
            for folder, row in sorted(self._rows().items())
        ]

    def decided(self, contents: Contents) -> Decision | None:
        """What was said of this folder, whatever it held then."""
        return next((one for one in self.decisions() if one.folder == contents.folder), None)

    def trusts(self, contents: Contents) -> bool:
        """Whether the user trusts the folder as it is now."""
        said = self.decided(contents)
        return said is not None and said.trusted and said.digest == contents.digest

    def decide(self, contents: Contents, *, trusted: bool) -> None:
        """Remembers what the user says of a folder as it is now."""
        rows = self._rows()
        rows[str(contents.folder)] = {"digest": contents.digest, "trusted": trusted}
        self._write(rows)

    def remove(self, folder: Path) -> bool:
        """Forgets what was said of a folder; False when nothing was."""
        rows = self._rows()
        if rows.pop(os.path.realpath(folder), None) is None:
            return False
        self._write(rows)
        return True

    def _rows(self) -> dict[str, dict[str, object]]:
        try:
            rows = json.loads(self.path.read_text("utf-8"))["folders"]
            return {
                str(folder): {"digest": row["digest"], "trusted": row["trusted"]}
                for folder, row in rows.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrustError(
                f"the trusted folders in {str(self.path)!r} cannot be read",
                hint=f"mv {self.path} {self.path}.broken, then trust them again: stigmer trust DIR",
            ) from error

    def _write(self, rows: Mapping[str, object]) -> None:
        self._home.create()
        try:
            write_atomically(self.path, json.dumps({"version": 1, "folders": rows}, indent=1) + "\n")
        except OSError as error:
            raise TrustError(f"{str(self.path)!r} cannot be written: {error.strerror}") from error


# What an untrusted layer may say


def without_widening(
    layers: Sequence[config.Layer], doubtful: Sequence[config.Layer], otherwise: config.LLMConfig
) -> list[config.Layer]:
    """All layers, those in doubt narrowed. `otherwise` is what would be resolved without them."""
    return [*layers, *(narrowed(layer, otherwise) for layer in doubtful)]


def narrowed(layer: config.Layer, otherwise: config.LLMConfig) -> config.Layer:
    """The layer without what goes beyond what the user has said anyway; each thing left out is a notice.

    It may choose a local model and lower numbers. What is wrong in it stays, to be told as for any layer.
    """
    layer = layer.in_mode(otherwise.mode)
    said = dict(layer.said)
    notices = list(layer.notices)
    for name, why in _widening(layer, otherwise):
        one = said.pop(name)
        notices.append(
            f"{name} {_shown(one.raw)} from {one.source} is not used: {why}, and its folder is not trusted "
            "(stigmer trust)"
        )
    return replace(layer, said=said, notices=tuple(notices))


def _widening(layer: config.Layer, otherwise: config.LLMConfig) -> Iterator[tuple[str, str]]:
    """The settings that may not stand, and why."""
    own = own_words(layer)
    provider = own.provider or str(otherwise.values["provider"].value)
    outside = provider in PROVIDERS and not PROVIDERS[provider].local
    if not own.fault and (outside or _in_ollamas_cloud(own.model)):
        for name in ("provider", "model"):
            if name in layer.said:
                yield (
                    name,
                    f"{provider} is outside this machine" if outside else "its model is outside this machine",
                )
    for name in ("max_tokens", "context_window"):
        limit = otherwise.values[name].value
        value = _value(layer, name)
        if isinstance(value, int) and isinstance(limit, int) and value > limit:
            yield name, f"it is above {limit}"
    if "fallbacks" in layer.said and not _all_local(_value(layer, "fallbacks"), provider):
        yield "fallbacks", "one of them is outside this machine"
    thinking = _value(layer, "thinking")
    if thinking is not None and _costs_more(str(thinking), otherwise.values["thinking"].value) and outside:
        yield "thinking", "it costs more"


def _value(layer: config.Layer, name: str) -> object:
    """A setting's value; None where it is not said, or wrong."""
    return read(name, layer.said[name])[0] if name in layer.said else None


def _all_local(names: object, provider: str) -> bool:
    for name in names if isinstance(names, tuple) else ():
        try:
            named, model = split_provider(name, None)
        except ModelNameError:
            continue  # The cascade tells what is wrong with it.
        owner = named or implied_provider(model) or provider
        if not PROVIDERS[owner].local or _in_ollamas_cloud(model):
            return False
    return True


def _in_ollamas_cloud(model: str | None) -> bool:
    """Whether a local Ollama would hand the prompt on to its maker's servers: `gpt-oss:120b-cloud`."""
    return model is not None and model.rpartition(":")[2].lower().endswith("cloud")


def _costs_more(thinking: str, than: object) -> bool:
    levels = ("off", "low", "medium", "high")
    return levels.index(thinking) > (levels.index(than) if isinstance(than, str) and than in levels else 0)


def _shown(raw: object) -> str:
    return ", ".join(map(str, raw)) if isinstance(raw, list | tuple) else repr(raw)
