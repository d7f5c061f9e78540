"""Real parts for tests: a home of one's own, the `stigmer` command as a process, a fake model server as a process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from stigmer import redact
from stigmer.daemon import stop
from stigmer.home import Home

LIMIT = 60.0
"""Seconds for one command: far more than it takes, for busy machines."""

SENTINEL = "sk-sentinel-0123456789abcdef"
"""A provider key that must be in no output."""


@pytest.fixture(autouse=True)
def no_secret_of_another_test() -> Iterator[None]:
    """What one test tells the process to mask, the next one must be able to say."""
    redact.forget()
    yield
    redact.forget()


@dataclass
class Stigmer:
    """Runs the real command line against one home, in one working folder, with a clean environment."""

    home: Home
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *arguments: str, stdin: str | None = None, folder: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs to the end. `stdin` None is /dev/null."""
        return subprocess.run(
            self._command(arguments),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            cwd=folder or self.folder,
            env={**self.environment, **environment},
            timeout=LIMIT,
            check=False,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a command and leaves it running; its output is read by the test."""
        return subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
        )

    def events(self, *arguments: str, **environment: str) -> list[dict[str, Any]]:
        """The events that a command with --json prints."""
        return [json.loads(line) for line in self(*arguments, "--json", **environment).stdout.splitlines()]

    @staticmethod
    def _command(arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "stigmer", *arguments]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, as sockets need."""
    path = Path(tempfile.mkdtemp(prefix="stg-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def stigmer_home(short_folder: Path) -> Iterator[Home]:
    """A home of the test's own. Whatever daemon it gets is ended, and no process of it may be left."""
    home = Home(short_folder / "home")
    yield home
    stop(home)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(home.path) in (p.info["cmdline"] or ())]
    psutil.wait_procs(left, timeout=10)
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def stigmer(stigmer_home: Home, short_folder: Path) -> Stigmer:
    """The command, with a home, a HOME and a working folder of its own and nothing of the machine's settings."""
    folder = short_folder / "work"
    folder.mkdir()
    kept = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "VIRTUAL_ENV", "PYTHONPATH", "COVERAGE_PROCESS_START")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {
        "HOME": str(short_folder),
        "STIGMER_HOME": str(stigmer_home.path),
        "STIGMER_MODELS": str(short_folder / "models"),
        "TERM": "dumb",
    }
    return Stigmer(stigmer_home, folder, environment)


@dataclass
class Fake:
    """A fake model server in a process of its own (graphton.testing)."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What brings a run to this server: key and address stand together, so that the key goes there."""
        return {
            "STIGMER_LLM_MODEL": "openai:test-model",
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": SENTINEL,
        }

    def script(self, *replies: dict[str, Any], rules: Sequence[dict[str, Any]] = ()) -> None:
        """Adds replies (in order) and rules."""
        body = json.dumps({"replies": replies, "rules": list(rules)}).encode()
        self._open(urllib.request.Request(f"{self.url}/_script", data=body))

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The model calls that have arrived."""
        found = json.loads(self._open(urllib.request.Request(f"{self.url}/_requests")))
        return [request for request in found if request["provider"]]

    def wait_for_requests(self, count: int) -> None:
        """Waits until so many model calls have arrived."""
        deadline = time.monotonic() + LIMIT
        while len(self.requests) < count:
            assert time.monotonic() < deadline, "no model call came"

    @staticmethod
    def _open(request: urllib.request.Request) -> bytes:
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with plain.open(request, timeout=LIMIT) as reply:
            return bytes(reply.read())


@pytest.fixture
def fake(stigmer: Stigmer) -> Iterator[Fake]:
    """A fake model server for the time of a test; the test's commands and daemon use it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "graphton.testing", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    server = Fake(process.stdout.readline().strip())
    stigmer.environment |= server.environment
    yield server
    process.send_signal(signal.SIGTERM)
    process.wait(LIMIT)
    process.stdout.close()
