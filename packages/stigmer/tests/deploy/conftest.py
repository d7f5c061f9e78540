"""What deploy/ renders to, and its containers as processes here: with the manifest's command, arguments and environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[4]
DEPLOY = ROOT / "deploy"
CONFINED = Path(__file__).with_name("confined.py")
LIMIT = 60.0

Manifest = dict[str, Any]


def builder() -> list[str] | None:
    """What renders: the kustomize that STIGMER_TEST_KUSTOMIZE_BIN names, the one on PATH, or kubectl's."""
    named = os.environ.get("STIGMER_TEST_KUSTOMIZE_BIN") or shutil.which("kustomize")
    if named:
        return [named, "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else None


@cache
def rendered(folder: Path) -> tuple[Manifest, ...]:
    command = builder()
    if command is None:
        pytest.skip(
            "nothing renders here: STIGMER_TEST_KUSTOMIZE_BIN=$(scripts/kustomize-for-tests) names a kustomize"
        )
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


class Rendered:
    """The manifests of one kustomization."""

    def __init__(self, manifests: tuple[Manifest, ...]) -> None:
        self.all = manifests

    def __iter__(self) -> Iterator[Manifest]:
        return iter(self.all)

    def kind(self, kind: str) -> dict[str, Manifest]:
        """All of one kind, by name."""
        return {m["metadata"]["name"]: m for m in self.all if m["kind"] == kind}

    def pods(self) -> dict[str, Manifest]:
        """The pod specs of our own workloads, by component."""
        found = {}
        for manifest in self.all:
            template = manifest.get("spec", {}).get("template", {})
            labels = template.get("metadata", {}).get("labels", {})
            if labels.get("app.kubernetes.io/name") == "stigmer":
                found[labels["app.kubernetes.io/component"]] = template
        return found

    def container(self, component: str) -> Manifest:
        """The one container of a component."""
        (container,) = self.pods()[component]["spec"]["containers"]
        return dict(container)

    def variables(self) -> dict[str, dict[str, str]]:
        """The ConfigMaps' entries."""
        return {name: dict(m["data"]) for name, m in self.kind("ConfigMap").items()}


@pytest.fixture(scope="session")
def deployed() -> Callable[..., Rendered]:
    """`deployed("base")` or `deployed("overlays/prod")`: what a kustomization of deploy/kustomize renders to."""
    return lambda name: Rendered(rendered(DEPLOY / "kustomize" / name))


@pytest.fixture(scope="session")
def rendered_from() -> Callable[[Path], Rendered]:
    """What a kustomization anywhere renders to."""
    return lambda folder: Rendered(rendered(folder))


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., Rendered]:
    """`composed("overlays/prod", "kustomize/components/tls")`: an overlay with components, as a user's own would be."""

    def compose(overlay: str, *components: str) -> Rendered:
        def below(path: Path) -> str:
            return os.path.relpath(path, tmp_path.resolve())

        own = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "stigmer",
            "resources": [below(DEPLOY / "kustomize" / overlay)],
            "components": [below(DEPLOY / component) for component in components],
        }
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
        return Rendered(rendered(tmp_path))

    return compose


@dataclass
class Cluster:
    """Containers as processes, with what a cluster would give them: the groups' entries, and addresses for names."""

    manifests: Rendered
    variables: dict[str, dict[str, str]]
    secrets: dict[str, dict[str, str]]
    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    running: list[Container] = field(default_factory=list)

    def container(self, component: str, *, name: str = "") -> Container:
        """A container of this component, not started yet; several replicas have names."""
        return Container(self, component, self.folder / (name or component))

    def stop(self) -> None:
        for container in list(self.running):
            container.end()


class Container:
    """One container: the command, arguments and environment of its manifest, and nowhere else to write than its mounts."""

    def __init__(self, cluster: Cluster, component: str, folder: Path) -> None:
        self._cluster, self.component = cluster, component
        self.spec = cluster.manifests.container(component)
        self.pod = cluster.manifests.pods()[component]["spec"]
        self.ports = {port["name"]: _free_port() for port in self.spec.get("ports", ())}
        self._places = dict(cluster.addresses)
        for port in self.spec.get("ports", ()):
            self._places[f"0.0.0.0:{port['containerPort']}"] = f"127.0.0.1:{self.ports[port['name']]}"
        self._writable: list[str] = []
        self.folders = self._mounted(folder)
        self._places |= self.folders
        self._log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def _mounted(self, folder: Path) -> dict[str, str]:
        """A folder for each mount, as a node makes it: anybody may write to an emptyDir, a Secret's entries are files."""
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        found = {}
        for mount in self.spec["volumeMounts"]:
            volume, place = volumes[mount["name"]], folder / mount["name"]
            place.mkdir(parents=True, exist_ok=True)
            if "emptyDir" in volume:
                place.chmod(0o777)
                self._writable.append(str(place))
            else:
                self._fill(place, volume["secret"])
            found[mount["mountPath"]] = str(place)
        return found

    def _fill(self, place: Path, volume: Mapping[str, Any]) -> None:
        entries = self._cluster.secrets[volume["secretName"]]
        items = volume.get("items") or [{"key": name, "path": name} for name in entries]
        for item in items:
            (place / item["path"]).write_text(entries[item["key"]])

    @property
    def environment(self) -> dict[str, str]:
        """The manifest's, with what the image and the node add: a PATH, a home, a /tmp of its own."""
        given = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": self.folders["/var/lib/stigmer"],
            "TMPDIR": self.folders["/tmp"],
        }
        for entry in self.spec["env"]:
            value = self._value(entry)
            if value is not None:
                given[entry["name"]] = self._placed(value)
        return given

    def _value(self, entry: Mapping[str, Any]) -> str | None:
        if "value" in entry:
            return str(entry["value"])
        source = entry["valueFrom"]
        groups = self._cluster.variables if "configMapKeyRef" in source else self._cluster.secrets
        (reference,) = source.values()
        value = groups.get(reference["name"], {}).get(reference["key"])
        assert value is not None or reference.get("optional"), f"no pod without {reference}"
        return value

    def _placed(self, text: str) -> str:
        here = re.compile("|".join(map(re.escape, self._places)))
        return here.sub(lambda found: self._places[found[0]], text)

    def _command(self, arguments: list[str]) -> list[str]:
        # Only where the kernel can: a test of its own says whether it can here.
        confined = [sys.executable, str(CONFINED), *self._writable, "--"] if _landlock() else []
        return [*confined, *map(self._placed, arguments)]

    def start(self) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command([*self.spec["command"], *self.spec["args"]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.environment,
            )
        self._cluster.running.append(self)

    def execute(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`kubectl exec`: a command in this container's environment, to its end."""
        return subprocess.run(
            self._command(list(arguments)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=self.environment,
            timeout=LIMIT,
            check=False,
        )

    def probe(self, name: str) -> tuple[int, Any]:
        """What the container answers to one of its probes; (0, why) where nobody answers."""
        asks = self.spec[name]["httpGet"]
        url = f"http://127.0.0.1:{self.ports[asks['port']]}{asks['path']}"
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with plain.open(url, timeout=self.spec[name].get("timeoutSeconds", 1)) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)
        except OSError as away:
            return 0, str(away)

    def metrics(self) -> str:
        """What Prometheus gets where the pod's annotations send it."""
        told = self._cluster.manifests.pods()[self.component]["metadata"]["annotations"]
        (name,) = [
            p["name"] for p in self.spec["ports"] if str(p["containerPort"]) == told["prometheus.io/port"]
        ]
        url = f"http://127.0.0.1:{self.ports[name]}{told['prometheus.io/path']}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=LIMIT) as reply:
            return str(reply.read().decode())

    def wait_until_ready(self) -> None:
        """Until every probe says so, as a node waits before it sends work."""
        deadline = time.monotonic() + LIMIT
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            while (said := self.probe(name))[0] != 200:
                assert self.process is not None
                assert self.process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, f"{self.component} is not ready: {said}"
                time.sleep(0.05)

    def end(self) -> int:
        """SIGTERM, and what it ends with; within the time that the manifest gives it."""
        assert self.process is not None
        self._cluster.running.remove(self)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.pod["terminationGracePeriodSeconds"])
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(LIMIT)
            raise
        finally:
            print(f"--- {self.component}, exit code {self.process.returncode}\n{self._log.read_text()}")


@cache
def _landlock() -> bool:
    done = subprocess.run([sys.executable, str(CONFINED), "--", "true"], check=False, timeout=LIMIT)
    return done.returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(short_folder: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes a Cluster of rendered manifests; its containers end with the test."""
    made: list[Cluster] = []

    def make(manifests: Rendered, **given: Any) -> Cluster:
        made.append(Cluster(manifests, folder=short_folder, **given))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def free_port() -> Callable[[], int]:
    return _free_port
