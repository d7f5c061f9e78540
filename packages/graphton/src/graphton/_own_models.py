"""Models of the user's own: a .gguf file from an address, believed only by its digest, or one that lies elsewhere.

Each gets a name, under which the built-in llama.cpp serves it, and a record beside it in the folder of models. The
record is written first, so that a broken download can be taken up by its name; nothing is installed before the file
itself appears.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from graphton._download import GGUF, Progress, another_file, pull
from graphton._get import Broken, SourceFailed, open_at
from graphton._gguf import check_whole
from graphton.catalog import CATALOG, Entry, HubFile, models_dir, own_entries, record_of
from graphton.errors import DownloadError, ModelNameError, ProviderError

__all__ = ["forget", "name_from", "pull_from", "register"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}(:[a-z0-9][a-z0-9._-]{0,40})?")
_CHUNK = 8 << 20


def name_from(place: str) -> str:
    """The name that an address or a path suggests: its last part, without `.gguf`.

    >>> name_from("https://host/x/Tiny-Q4_K_M.gguf?download=true")
    'tiny-q4_k_m'
    """
    last = unquote(urlsplit(place).path).rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last.removesuffix(".gguf")).strip("-._")


def pull_from(
    url: str, sha256: str, name: str, on_progress: Progress | None = None, *, folder: Path | None = None
) -> Path:
    """Fetch the .gguf file at `url` and keep it as `name`; only bytes with this sha256 count.

    The same promises as for the catalogue: resumed, checked, one at a time, never half visible. A file that is there
    already is left alone. Raises DownloadError and ModelNameError.
    """
    folder = folder or models_dir()
    if "@" in urlsplit(url).netloc:
        raise DownloadError(
            f"the address on {urlsplit(url).hostname} holds a user or password, which would be shown and kept",
            hint="fetch the file with what knows the password, and then: stigmer models pull ./FILE.gguf",
        )
    entry = _entry(name, sha256.lower(), HubFile(url), folder)
    there, before = folder / entry.file, _recorded(entry, folder)
    if before is None and there.exists():
        return _adopted(replace(entry, size=there.stat().st_size), there, on_progress, folder)
    if before is not None and there.exists() and there.stat().st_size == before.size:
        return there  # Nobody is asked: what the address holds by now is not what was fetched.
    entry = replace(entry, size=_size_at(entry, url, folder))
    _record(entry, folder)
    try:
        return pull(entry, on_progress, folder=folder, begins=GGUF)
    except DownloadError:
        if not there.exists() and not (folder / f"{entry.file}.part").exists():
            record_of(entry.file, folder=folder).unlink(missing_ok=True)  # Nothing is left to go on with.
        raise


def register(
    path: Path,
    name: str,
    on_progress: Progress | None = None,
    *,
    sha256: str = "",
    folder: Path | None = None,
) -> Path:
    """Keep the .gguf file at `path` as `name`, by a link: it stays where it is. With `sha256` it must have it."""
    folder = folder or models_dir()
    path = path.absolute()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if (begins := file.read(16))[:4] != GGUF:
                raise DownloadError(
                    f"{str(path)!r} cannot be kept: {another_file(begins)}",
                    hint="give the path of a whole .gguf file",
                )
        check_whole(path)
        digest = _digest(path, size, on_progress)
    except OSError as error:
        raise DownloadError(
            f"model file {str(path)!r} cannot be read: {error.strerror or error}",
            hint=f"ls -l {path}",
        ) from error
    except ProviderError as error:
        raise DownloadError(error.message, hint="copy or fetch the file again") from error
    if sha256 and digest != sha256.lower():
        raise DownloadError(
            f"{str(path)!r} has sha256 {digest!r}, expected {sha256!r}", hint="fetch the file again"
        )
    entry = replace(_entry(name, digest, HubFile(path.as_uri()), folder), size=size)
    target = folder / entry.file
    if target.exists() and _recorded(entry, folder) is None:
        return _adopted(replace(entry, size=target.stat().st_size), target, on_progress, folder)
    _record(entry, folder)
    try:
        _link(path, target)
    except OSError as error:
        if not target.exists():
            record_of(entry.file, folder=folder).unlink(missing_ok=True)
        raise DownloadError(
            f"no link to {str(path)!r} can be made at {str(target)!r}: {error.strerror or error}",
            hint=f"use the file by its path: --model llamacpp:{path}",
        ) from error
    return target


def _link(path: Path, target: Path) -> None:
    """Make `target` lead to `path`, in one step."""
    if target.exists() and target.samefile(path):
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".link-") as made:
        link = Path(made) / "file"
        link.symlink_to(path)
        os.replace(link, target)


def forget(entry: Entry, *, folder: Path | None = None) -> int:
    """Remove a model's file (of a link only the link), its record and what a broken download left; gives the bytes freed."""
    folder = folder or models_dir()
    path, part = folder / entry.file, folder / f"{entry.file}.part"
    freed = 0
    if part.is_dir():
        freed += sum(file.stat().st_size for file in part.iterdir())
        shutil.rmtree(part)
    with contextlib.suppress(FileNotFoundError):
        freed += 0 if path.is_symlink() else path.stat().st_size
        path.unlink()
    record_of(entry.file, folder=folder).unlink(missing_ok=True)
    return freed


def _entry(name: str, sha256: str, source: HubFile, folder: Path) -> Entry:
    """The entry that this would be, its size still unknown; what speaks against its name or digest is an error."""
    name = name.strip().lower()
    if not _NAME.fullmatch(name) or name.endswith(".gguf"):
        raise ModelNameError(
            f"{name!r} cannot be a model's name: letters, digits, `.`, `_`, `-` and one `:`",
            hint="--name tiny:q4",
        )
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DownloadError(
            f"{sha256!r} is no sha256: that is 64 hexadecimal digits",
            hint="the publisher shows it beside the file; of a file that you trust: sha256sum FILE",
        )
    file = f"{name.replace(':', '-')}.gguf"
    if any(name == one.name or file == one.file for one in CATALOG):
        raise ModelNameError(
            f"{name!r} is the name of a model of the catalogue", hint=f"give yours another: --name my-{name}"
        )
    for other in own_entries(folder=folder):
        if other.file == file and (other.name, other.sha256) != (name, sha256):
            raise ModelNameError(
                f"{other.name!r} is another model already (sha256 {other.sha256}, from {other.sources[0]})",
                hint=f"give this one another name: --name {name}-2; or first: stigmer models remove {other.name}",
            )
    return Entry(name, file, "", "", 0, sha256, 0, 0, (source,))


def _recorded(entry: Entry, folder: Path) -> Entry | None:
    return next((one for one in own_entries(folder=folder) if one.file == entry.file), None)


def _record(entry: Entry, folder: Path) -> None:
    said = {
        "name": entry.name,
        "sha256": entry.sha256,
        "size": entry.size,
        "source": str(entry.sources[0]),
        "licence": None,
    }
    path = record_of(entry.file, folder=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(said, indent=1))
        fresh.replace(path)
    except OSError as error:
        raise DownloadError(
            f"the record of model {entry.name!r} cannot be written in {str(folder)!r}: {error.strerror or error}",
            hint="free some space, or name another folder, e.g. STIGMER_MODELS=/data/models",
        ) from error


def _adopted(entry: Entry, there: Path, on_progress: Progress | None, folder: Path) -> Path:
    """A file that somebody put under this name is it where the digest says so."""
    try:
        digest = _digest(there, entry.size, on_progress)
    except OSError as error:
        raise DownloadError(
            f"there is {str(there)!r} already, and it cannot be read: {error.strerror or error}",
            hint=f"give this one another name: --name {entry.name}-2",
        ) from error
    if digest != entry.sha256:
        raise ModelNameError(
            f"there is a file {str(there)!r} already, and it is another one",
            hint=f"give this one another name: --name {entry.name}-2",
        )
    _record(entry, folder)
    return there


def _digest(path: Path, size: int, on_progress: Progress | None) -> str:
    found, done, last = hashlib.sha256(), 0, -1
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            found.update(block)
            done += len(block)
            if on_progress and done * 50 // max(1, size) != last:
                last = done * 50 // max(1, size)
                on_progress(done, size, "checking sha256")
    return found.hexdigest()


def _size_at(entry: Entry, url: str, folder: Path) -> int:
    """How long the file at that address is: it is needed before the disk is asked for room."""
    host = urlsplit(url).hostname
    try:
        with open_at(url, 0, "") as reply:
            if not reply.total:
                raise SourceFailed(f"{host} does not say how long the file is")
            return reply.total
    except (SourceFailed, Broken, ValueError) as failed:
        known = next((one.size for one in own_entries(folder=folder) if one.file == entry.file), 0)
        if known:
            return known  # An earlier call asked; whether it can go on now, the download itself tells.
        raise DownloadError(
            f"model {entry.name!r} could not be downloaded; {entry.sources[0]}: {failed}",
            hint="check the address and the network (proxies are taken from HTTPS_PROXY), and run it again",
        ) from failed
