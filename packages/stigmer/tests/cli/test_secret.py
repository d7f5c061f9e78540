"""secret set, list, delete: the real command, a keyring of the test's own, and runs that use what is kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from stigmer.daemon import find

KEY = "sk-ant-sentinel-0123456789-wxyz"
COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo heron > made.txt"}}]}

RING = '''
import json, os, pathlib
from keyring.backend import KeyringBackend

class Ring(KeyringBackend):
    """A keyring in a file; PRIORITY and BROKEN make it a bad one."""
    priority = float(os.environ.get("RING_PRIORITY", "5"))
    file = pathlib.Path(__file__).with_name("ring.json")

    def _all(self):
        if os.environ.get("RING_BROKEN"):
            raise RuntimeError("the bus is gone")
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def get_password(self, service, name):
        return self._all().get(service + "|" + name)

    def set_password(self, service, name, value):
        self.file.write_text(json.dumps({**self._all(), service + "|" + name: value}))

    def delete_password(self, service, name):
        found = self._all()
        del found[service + "|" + name]
        self.file.write_text(json.dumps(found))
'''


@pytest.fixture
def ring(stigmer) -> Path:
    """A keyring that the command finds; the file in which it keeps what it got."""
    folder = stigmer.folder.parent / "ring"
    folder.mkdir()
    (folder / "stigmer_test_ring.py").write_text(RING)
    before = stigmer.environment.get("PYTHONPATH", "")
    stigmer.environment["PYTHONPATH"] = f"{folder}:{before}" if before else str(folder)
    stigmer.environment["PYTHON_KEYRING_BACKEND"] = "stigmer_test_ring.Ring"
    return folder / "ring.json"


@pytest.fixture
def gateway(stigmer, fake) -> None:
    """A user file that sends runs to the fake server with the key called GATEWAY_KEY; no shell has it."""
    for name in fake.environment:
        del stigmer.environment[name]
    stigmer.home.create()
    stigmer.home.config.write_text(
        f"llm:\n  provider: openai\n  model: test-model\n  base_url: {fake.url}/v1\n  api_key_env: GATEWAY_KEY\n"
    )


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def shown_key(stigmer, **environment: str) -> dict[str, object]:
    done = stigmer("config", "show", "--mode", "cloud", "--json", **environment)
    return json.loads(done.stdout)["settings"]["api_key"]


def test_a_secret_is_kept_encrypted_listed_without_its_value_and_forgotten(stigmer) -> None:
    done = stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=f" {KEY}\n")
    assert done.returncode == 0, done.stderr
    assert "ANTHROPIC_API_KEY is kept in ~/home/secrets, encrypted" in done.stderr
    assert "for anthropic at https://api.anthropic.com" in done.stderr
    assert "no usable OS keyring" in done.stderr
    for name in ("secrets", "secrets.key"):
        assert stat.S_IMODE((stigmer.home.path / name).stat().st_mode) == 0o600
    listed = stigmer("secret", "list")
    assert listed.stdout == "ANTHROPIC_API_KEY  file     for anthropic at https://api.anthropic.com\n"
    row = json.loads(stigmer("secret", "list", "--json").stdout)
    assert row == {
        "name": "ANTHROPIC_API_KEY",
        "kept": "file",
        "serves": [{"provider": "anthropic", "base_url": "https://api.anthropic.com"}],
    }
    assert KEY not in done.stdout + done.stderr + listed.stdout + listed.stderr
    assert KEY.encode() not in everything_below(stigmer.home.path)
    assert stigmer("secret", "delete", "ANTHROPIC_API_KEY").returncode == 0
    assert stigmer("secret", "list").stdout == ""
    gone = stigmer("secret", "delete", "ANTHROPIC_API_KEY")
    assert gone.returncode == 1
    assert "there is no secret 'ANTHROPIC_API_KEY'" in gone.stderr


def test_a_secret_serves_its_provider_after_the_environment_and_before_the_file(stigmer) -> None:
    stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY)
    stigmer.home.config.write_text("llm: {provider: anthropic, api_key: sk-from-the-file-0123456789}\n")
    found = shown_key(stigmer)
    assert (found["value"], found["source"]) == ("***wxyz", "secret ANTHROPIC_API_KEY")
    assert [hidden["source"] for hidden in found["shadowed"]] == ["file ~/home/config.yaml:1"]
    found = shown_key(stigmer, ANTHROPIC_API_KEY="sk-from-the-shell-0123456789")
    assert found["source"] == "env ANTHROPIC_API_KEY (your shell)"
    assert found["shadowed"][0]["source"] == "secret ANTHROPIC_API_KEY"


def test_a_secret_does_not_go_to_another_address(stigmer) -> None:
    stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY)
    done = stigmer("config", "show", "--mode", "cloud", "--base-url", "https://elsewhere.example", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 2
    assert found["settings"]["api_key"]["value"] is None
    assert "the key from secret ANTHROPIC_API_KEY is not sent" in " ".join(found["notices"])


def test_a_running_daemon_finds_a_new_secret_and_loses_a_forgotten_one(stigmer) -> None:
    stigmer("up")
    assert json.loads(stigmer("config", "show", "--mode", "cloud", "--json").stdout)["problems"]
    stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY)
    assert shown_key(stigmer)["source"] == "secret ANTHROPIC_API_KEY"
    stigmer("secret", "delete", "ANTHROPIC_API_KEY")
    assert "stigmer secret set ANTHROPIC_API_KEY" in stigmer("config", "show", "--mode", "cloud").stderr


def test_a_run_sends_the_secret_that_the_users_file_names(stigmer, fake, gateway) -> None:
    refused = stigmer("run", "go")
    assert refused.returncode == 2
    assert "stigmer secret set GATEWAY_KEY" in refused.stderr
    done = stigmer("secret", "set", "GATEWAY_KEY", stdin=KEY)
    assert done.returncode == 0, done.stderr
    assert "for whom llm.api_key_env names it" in done.stderr
    fake.script({"text": "hello"})
    ran = stigmer("run", "go", "-v")
    assert ran.stdout == "hello\n", ran.stderr
    assert fake.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
    everything = ran.stdout + ran.stderr + stigmer("logs").stdout + stigmer("run", "x", "--dry-run").stdout
    assert KEY not in everything
    assert KEY.encode() not in everything_below(stigmer.home.path)


def test_a_run_that_waits_for_its_key_goes_on_when_it_is_set(stigmer, fake, gateway) -> None:
    stigmer("up")
    fake.script(COMMAND, {"text": "made it"})
    waits = stigmer("run", "go", GATEWAY_KEY=KEY)  # Only this shell has the key.
    assert waits.returncode == 4, waits.stderr
    stigmer("down")
    stigmer("up")
    (row,) = (json.loads(line) for line in stigmer("list", "--json").stdout.splitlines())
    execution = row["id"] if "id" in row else row["execution"]
    stigmer("approve", execution, "1.0")
    waits = stigmer("attach", execution)
    assert waits.returncode == 4, waits.stderr
    assert "waits for its API key" in waits.stderr
    assert "stigmer secret set" in waits.stderr
    done = stigmer("secret", "set", "GATEWAY_KEY", stdin=KEY)
    assert "1 waiting run goes on" in done.stderr
    ended = stigmer("attach", execution)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("made it\n")
    assert fake.requests[-1]["headers"]["authorization"] == f"Bearer {KEY}"


def test_a_changed_secret_counts_at_once_whatever_other_shells_gave(stigmer, fake, gateway) -> None:
    stigmer("up")
    fake.script(*[{"text": "ok"}] * 3)
    other = "sk-from-a-shell-0123456789-ssss"
    assert stigmer("run", "go", GATEWAY_KEY=other).returncode == 0
    for key in (KEY, KEY.replace("wxyz", "abcd")):
        stigmer("secret", "set", "GATEWAY_KEY", stdin=key)
        assert stigmer("run", "go").returncode == 0
    sent = [request["headers"]["authorization"].removeprefix("Bearer ") for request in fake.requests]
    assert sent == [other, KEY, KEY.replace("wxyz", "abcd")]


def test_a_value_in_the_command_line_is_refused_and_not_repeated(stigmer) -> None:
    for words in (("ANTHROPIC_API_KEY", KEY), (f"ANTHROPIC_API_KEY={KEY}",), (KEY,)):
        done = stigmer("secret", "set", *words)
        assert done.returncode == 2
        assert KEY not in done.stdout + done.stderr
    done = stigmer("secret", "set", "ANTHROPIC_API_KEY", KEY)
    assert "not given in the command line" in done.stderr
    assert "hint: stigmer secret set ANTHROPIC_API_KEY" in done.stderr


def test_a_name_that_serves_nothing_is_refused_with_the_nearest(stigmer) -> None:
    done = stigmer("secret", "set", "ANTROPIC_API_KEY", stdin=KEY)
    assert done.returncode == 2
    assert "nothing asks for a secret called 'ANTROPIC_API_KEY'" in done.stderr
    assert "hint: did you mean 'ANTHROPIC_API_KEY'?" in done.stderr
    assert "llm.api_key_env" in stigmer("secret", "set", "ZZZ", stdin=KEY).stderr


def test_a_value_that_can_be_no_key_is_refused(stigmer) -> None:
    done = stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin="\n")
    assert (done.returncode, "standard input is empty" in done.stderr) == (2, True)
    done = stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin="sk one\nsk two\n")
    assert (done.returncode, "holds a blank" in done.stderr) == (2, True)
    assert "sk one" not in done.stderr
    assert not (stigmer.home.path / "secrets").exists()


def test_on_a_terminal_the_value_is_asked_for_and_not_shown(at_a_terminal, stigmer) -> None:
    code, shown = at_a_terminal("secret", "set", "ANTHROPIC_API_KEY", does=[("ANTHROPIC_API_KEY: ", KEY)])
    assert code == 0, shown
    assert KEY not in shown
    assert shown_key(stigmer)["value"] == "***wxyz"


def test_the_keyring_is_taken_where_there_is_one(stigmer, ring: Path) -> None:
    done = stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY)
    assert "is kept in the keyring of this system" in done.stderr
    assert KEY in ring.read_text()
    assert not (stigmer.home.path / "secrets.key").exists()
    assert KEY.encode() not in everything_below(stigmer.home.path)
    assert stigmer("secret", "list").stdout.startswith("ANTHROPIC_API_KEY  keyring  for anthropic")
    assert shown_key(stigmer)["value"] == "***wxyz"
    assert stigmer("secret", "delete", "ANTHROPIC_API_KEY").returncode == 0
    assert KEY not in ring.read_text()


@pytest.mark.parametrize(
    ("environment", "why"),
    [({"RING_BROKEN": "1"}, "the bus is gone"), ({"RING_PRIORITY": "0.5"}, "there is no usable OS keyring")],
)
def test_a_keyring_that_cannot_be_used_is_told_and_the_file_is_taken(
    stigmer, ring: Path, environment: dict[str, str], why: str
) -> None:
    done = stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY, **environment)
    assert done.returncode == 0, done.stderr
    assert "encrypted" in done.stderr
    assert f"note: {why}" in done.stderr
    assert not ring.exists()
    assert shown_key(stigmer, **environment)["value"] == "***wxyz"


def test_a_secret_in_a_keyring_that_is_gone_is_a_notice_and_no_crash(stigmer, ring: Path) -> None:
    stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY)
    done = stigmer("config", "show", "--mode", "cloud", "--json", RING_BROKEN="1")
    found = json.loads(done.stdout)
    assert done.returncode == 2
    assert (
        "the secret ANTHROPIC_API_KEY is in the OS keyring and cannot be read: the bus is gone"
        in found["notices"]
    )


def test_nothing_starts_a_daemon_for_a_secret(stigmer) -> None:
    stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY)
    stigmer("secret", "list")
    assert find(stigmer.home) is None
    assert (
        "set in your shell too"
        in stigmer("secret", "set", "ANTHROPIC_API_KEY", stdin=KEY, ANTHROPIC_API_KEY="x").stderr
    )
