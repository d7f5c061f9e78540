"""`stigmer --help`: complete, and imports nothing heavy."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from stigmer.cli._main import COMMANDS

HEAVY = ("aiohttp", "asyncio", "google.protobuf", "graphton.loop", "grpc", "rich", "ruamel", "xllamacpp")

IN_A_PROCESS = """
import json, sys
from stigmer.cli import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "modules": sorted(sys.modules)}))
"""


def modules_of(*arguments: str) -> set[str]:
    """The modules that a command imported."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0
    return set(said["modules"])


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help"), ("status", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not modules_of(*arguments).intersection(HEAVY)


def test_every_command_of_the_table_exists_and_explains_itself(stigmer) -> None:
    listed = stigmer("--help").stdout
    for name, (_, line) in COMMANDS.items():
        assert f"{name}  " in listed
        assert line in listed
        shown = stigmer(name, "--help")
        assert shown.returncode == 0, shown.stderr
        assert f"Usage: stigmer {name}" in shown.stdout


def test_a_wrong_command_names_the_right_one(stigmer) -> None:
    done = stigmer("rnu", "x")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: no command 'rnu'\nhint: did you mean `stigmer run`? All commands: stigmer --help\n"
    )
    assert done.stdout == ""


def test_a_wrong_option_names_the_command_that_explains_it(stigmer) -> None:
    done = stigmer("run", "--modle", "x", "task")
    assert done.returncode == 2
    assert "No such option '--modle'" in done.stderr
    assert "hint: stigmer run --help" in done.stderr


def test_errors_are_json_where_json_was_asked_for(stigmer) -> None:
    done = stigmer("run", "--json", "--workspace", "/nowhere", "task")
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert (said["type"], said["code"]) == ("error", "usage")
    assert "'/nowhere'" in said["message"]


def test_the_version_is_the_installed_one(stigmer) -> None:
    import importlib.metadata

    assert stigmer("--version").stdout == f"stigmer {importlib.metadata.version('stigmer')}\n"


@pytest.mark.parametrize("command", [("run",), ("chat",), ("retry",), ("up",), ("config", "show")])
def test_every_llm_flag_of_the_settings_table_is_an_option(command, stigmer) -> None:
    from stigmer.config import SETTINGS

    shown = stigmer(*command, "--help").stdout
    for row in SETTINGS.values():
        assert not row.flag or f"{row.flag} " in shown, row.flag


def test_nothing_is_imported_before_a_ctrl_c_is_provided_for() -> None:
    code = "import sys; before = {*sys.modules}; import stigmer.cli; print(*sorted({*sys.modules} - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(done.stdout.split()) <= {"__future__", "stigmer", "stigmer.cli"}


CTRL_C_DURING_IMPORTS = """
import os, signal, sys
from stigmer.cli import main

class Meets:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell in the background ignores it.
sys.meta_path.insert(0, Meets())
main(["status"])
"""


def test_ctrl_c_while_the_command_is_imported_leaves_no_trace() -> None:
    command = [sys.executable, "-c", CTRL_C_DURING_IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
