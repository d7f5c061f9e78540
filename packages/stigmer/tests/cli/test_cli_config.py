"""config show, get, set, path: the real command, with a home of its own."""

from __future__ import annotations

import json
import stat

import pytest
from stigmer.daemon import find

KEY = "sk-ant-sentinel-0123456789-wxyz"


@pytest.fixture
def cloud(stigmer):
    """The command with an environment that resolves to Anthropic."""
    stigmer.environment |= {"MODE": "cloud", "ANTHROPIC_API_KEY": KEY}
    return stigmer


def shown(stigmer, *flags, **environment):
    done = stigmer("config", "show", "--json", *flags, **environment)
    return done.returncode, json.loads(done.stdout)


def test_show_tells_value_source_and_what_is_hidden(cloud) -> None:
    cloud.home.create()
    cloud.home.config.write_text("llm:\n  max_tokens: 7\n")
    code, found = shown(cloud, "--max-tokens", "100")
    assert code == 0
    assert found["problems"] == []
    assert found["settings"]["provider"]["source"] == "default for mode cloud"
    assert found["settings"]["model"]["value"] == "claude-sonnet-4.5"
    assert found["settings"]["max_tokens"]["value"] == 100
    assert found["settings"]["max_tokens"]["source"] == "flag --max-tokens"
    (hidden,) = found["settings"]["max_tokens"]["shadowed"]
    assert hidden["value"] == 7
    assert hidden["source"].endswith("config.yaml:2")


def test_show_for_people_is_a_table_on_stdout_and_notes_on_stderr(cloud) -> None:
    done = cloud("config", "show", "--model", "claude-sonnet-5.5", "--temperature", "0.5")
    assert done.returncode == 0
    assert "claude-sonnet-5.5 (claude-sonnet-5-5)" in done.stdout
    assert done.stderr.startswith("note: temperature 0.5 from flag --temperature is not sent")


def test_show_never_shows_a_key_and_never_starts_a_daemon(cloud) -> None:
    for arguments in (("show",), ("show", "--json"), ("get", "api_key"), ("get", "api_key", "--json")):
        done = cloud("config", *arguments)
        assert KEY not in done.stdout + done.stderr
        assert "***wxyz" in done.stdout
    assert find(cloud.home) is None


def test_problems_come_together_with_exit_code_2(stigmer) -> None:
    code, found = shown(stigmer, MODE="cloud", STIGMER_LLM_MAX_TOKENS="8k")
    assert code == 2
    assert len(found["problems"]) == 2
    assert found["settings"]["max_tokens"]["value"] == "8k"
    done = stigmer("config", "show", MODE="clould")
    assert done.returncode == 2
    assert "'clould'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_three_set_ups_that_we_were_asked_for(stigmer) -> None:
    _, cloud = shown(stigmer, MODE="cloud", ANTHROPIC_API_KEY=KEY)
    assert (cloud["settings"]["provider"]["value"], cloud["settings"]["max_tokens"]["value"]) == (
        "anthropic",
        20000,
    )
    ollama = {
        "MODE": "local",
        "STIGMER_LLM_PROVIDER": "ollama",
        "STIGMER_LLM_MODEL": "deepseek-coder-v2:16b",
        "STIGMER_LLM_BASE_URL": "http://localhost:11434",
    }
    code, custom = shown(stigmer, **ollama)
    assert code == 0
    assert custom["settings"]["model"]["value"] == "deepseek-coder-v2:16b"
    assert custom["settings"]["base_url"]["value"] == "http://localhost:11434"
    _, local = shown(stigmer, MODE="local")
    assert local["settings"]["provider"]["value"] in ("ollama", "llamacpp")  # As this machine has it.


def test_the_project_file_of_the_working_folder_counts(stigmer) -> None:
    file = stigmer.folder / ".stigmer" / "config.yaml"
    file.parent.mkdir(mode=0o755)
    file.write_text("llm:\n  model: qwen3:8b\n")
    file.chmod(0o644)
    _, found = shown(stigmer)
    assert found["settings"]["model"] == {
        "value": "qwen3:8b",
        "source": "file .stigmer/config.yaml:2",
        "shadowed": [],
    }
    file.chmod(0o666)
    _, found = shown(stigmer, STIGMER_LLM_MODEL="phi4")
    assert found["settings"]["model"]["shadowed"] == []
    assert any("other users" in notice for notice in found["notices"])


def test_a_running_daemon_is_asked(stigmer, fake) -> None:
    stigmer("up")
    code, found = shown(stigmer, "--max-tokens", "77")
    assert code == 0, found
    assert found["settings"]["max_tokens"]["value"] == 77
    assert found["settings"]["model"]["source"] == "env STIGMER_LLM_MODEL (your shell)"
    assert {"value": "test-model", "source": "env STIGMER_LLM_MODEL"} in found["settings"]["model"][
        "shadowed"
    ]
    code, found = shown(stigmer, "--max-tokens", "8k", "--temperature", "99")
    assert code == 2
    assert len(found["problems"]) == 2
    assert found["settings"]["max_tokens"]["value"] == "8k"


def test_a_running_daemon_shows_its_layers_beside_what_is_wrong(stigmer) -> None:
    stigmer("up", "--provider", "anthropic", "--max-tokens", "55")
    code, found = shown(stigmer, "--temperature", "99")
    assert code == 2
    assert found["settings"]["provider"]["source"] == "flag --provider (stigmer up)"
    assert found["settings"]["max_tokens"]["source"] == "flag --max-tokens (stigmer up)"
    assert found["settings"]["model"]["id"] == "claude-sonnet-4-5-20250929"
    assert len(found["problems"]) == 2
    done = stigmer("config", "show")
    assert done.returncode == 2
    assert "flag --provider (stigmer up)" in done.stdout
    assert done.stderr.startswith("error: provider 'anthropic' at https://api.anthropic.com needs a key")


def test_the_mode_may_stand_before_the_command_and_the_nearer_one_counts(cloud) -> None:
    _, found = shown(cloud, "--mode", "local")
    assert (found["settings"]["mode"]["value"], found["settings"]["mode"]["source"]) == (
        "local",
        "flag --mode",
    )
    done = cloud("--mode", "local", "config", "show", "--json", "--mode", "cloud")
    assert json.loads(done.stdout)["settings"]["mode"]["value"] == "cloud"
    assert cloud("--mode", "cloud", "config", "get", "provider", MODE="local").stdout == "anthropic\n"
    wrong = cloud("--mode", "clould", "config", "show")
    assert wrong.returncode == 2
    assert "mode 'clould' from flag --mode" in wrong.stderr


def test_every_llm_flag_reaches_the_cascade(stigmer) -> None:
    flags = {
        "--mode": "cloud",
        "--provider": "ollama",
        "--model": "qwen3:8b",
        "--base-url": "http://127.0.0.1:9",
        "--max-tokens": "7",
        "--temperature": "0.5",
        "--context-window": "4096",
        "--fallback": "llama3.2:3b",
        "--thinking": "low",
        "--connect-timeout": "1",
        "--first-token-timeout": "2",
        "--idle-timeout": "3",
    }
    code, found = shown(stigmer, *(word for pair in flags.items() for word in pair))
    assert code == 0, found["problems"]
    given = {row["source"] for row in found["settings"].values() if row["source"].startswith("flag ")}
    assert given == {f"flag {flag}" for flag in flags}
    _, found = shown(stigmer, "--model", "qwen3:8b", "--fallback", "llama3.2:3b", "--fallback", "phi4:14b")
    assert found["settings"]["fallbacks"]["value"] == ["llama3.2:3b", "phi4:14b"]


def test_get_prints_one_value(cloud) -> None:
    assert cloud("config", "get", "llm.model").stdout == "claude-sonnet-4.5\n"
    assert cloud("config", "get", "model").stdout == "claude-sonnet-4.5\n"
    assert json.loads(cloud("config", "get", "mode", "--json").stdout)["source"] == "env MODE (your shell)"
    done = cloud("config", "get", "llm.modle")
    assert done.returncode == 2
    assert "'llm.modle'" in done.stderr
    assert "'llm.model'" in done.stderr


def test_path_is_the_users_file(stigmer) -> None:
    assert stigmer("config", "path").stdout == f"{stigmer.home.config}\n"
    other = stigmer.folder / "other.yaml"
    assert stigmer("config", "path", STIGMER_CONFIG=str(other)).stdout == f"{other}\n"


def test_set_keeps_comments_and_order_and_is_the_owners_alone(stigmer) -> None:
    stigmer.home.create()
    before = '# mine\nmode: local   # here\nllm:\n    # the model\n    model: "mistral"\n    timeouts: {idle: 3}\n# end\n'
    stigmer.home.config.write_text(before)
    stigmer.home.config.chmod(0o644)
    assert stigmer("config", "set", "llm.timeouts.connect", "4").returncode == 0
    assert stigmer("config", "set", "max_tokens", "100").returncode == 0
    assert stigmer.home.config.read_text() == before.replace("{idle: 3}", "{idle: 3, connect: 4}").replace(
        "# end", "    max_tokens: 100\n# end"
    )
    assert stat.S_IMODE(stigmer.home.config.stat().st_mode) == 0o600
    assert [entry.name for entry in stigmer.home.path.iterdir()] == ["config.yaml"]


def test_set_makes_the_file_and_its_folder(stigmer) -> None:
    done = stigmer("config", "set", "fallbacks", "qwen3:8b,llama3.2:3b")
    assert done.returncode == 0, done.stderr
    assert stigmer.home.config.read_text() == "llm:\n  fallbacks:\n  - qwen3:8b\n  - llama3.2:3b\n"
    assert stat.S_IMODE(stigmer.home.path.stat().st_mode) == 0o700


def test_set_says_what_hides_the_new_value(stigmer) -> None:
    done = stigmer("config", "set", "model", "qwen3:8b", STIGMER_LLM_MODEL="phi4")
    assert done.returncode == 0
    assert "no effect here: model is phi4, from env STIGMER_LLM_MODEL (your shell)" in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("llm.modle", "x", ["'llm.modle'", "'llm.model'"]),
        ("max_tokens", "8k", ["max_tokens '8k'", "8192"]),
        ("provider", "antropic", ["'antropic'", "'anthropic'"]),
        ("base_url", "gpu.lan", ["'gpu.lan'", "http://"]),
        ("api_key", "sk-typed-into-the-shell", ["command line", "llm.api_key -", "api_key_env"]),
    ],
)
def test_set_refuses_what_would_not_work_and_writes_nothing(stigmer, key, value, parts) -> None:
    stigmer.home.create()
    stigmer.home.config.write_text("mode: local\n")
    done = stigmer("config", "set", key, value)
    assert done.returncode == 2
    assert "sk-typed" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert stigmer.home.config.read_text() == "mode: local\n"


def test_set_leaves_a_broken_file_as_it_is(stigmer) -> None:
    stigmer.home.create()
    stigmer.home.config.write_text("llm: [\n")
    done = stigmer("config", "set", "mode", "cloud")
    assert done.returncode == 2
    assert "not YAML" in done.stderr
    assert stigmer.home.config.read_text() == "llm: [\n"


def test_a_key_is_set_from_standard_input(stigmer) -> None:
    stigmer("config", "set", "provider", "anthropic")
    done = stigmer("config", "set", "api_key", "-", stdin=f"{KEY}\n")
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    _, found = shown(stigmer)
    assert found["settings"]["api_key"]["value"] == "***wxyz"
    assert KEY in stigmer.home.config.read_text()


def test_a_file_linked_from_elsewhere_stays_a_link(stigmer) -> None:
    stigmer.home.create()
    real = stigmer.folder / "dotfiles.yaml"
    real.write_text("mode: local\n")
    stigmer.home.config.symlink_to(real)
    assert stigmer("config", "set", "mode", "cloud").returncode == 0
    assert stigmer.home.config.is_symlink()
    assert real.read_text() == "mode: cloud\n"


def test_the_file_that_a_shell_names_counts_for_its_runs_whoever_started_the_daemon(stigmer, fake) -> None:
    (stigmer.folder / "mine.yaml").write_text("llm: {max_tokens: 41}\n")
    (stigmer.folder / "other.yaml").write_text("llm: {max_tokens: 42}\n")
    stigmer("up", STIGMER_CONFIG="mine.yaml")
    _, found = shown(stigmer)
    assert found["settings"]["max_tokens"]["value"] == 41
    _, found = shown(stigmer, STIGMER_CONFIG="other.yaml")
    assert found["settings"]["max_tokens"]["value"] == 42
    fake.script({"text": "hello"})
    stigmer("run", "go", STIGMER_CONFIG="other.yaml")
    assert json.loads(fake.requests[0]["body"])["max_completion_tokens"] == 42
    for done in (
        stigmer("run", "go", STIGMER_CONFIG="none.yaml"),
        stigmer("config", "show", STIGMER_CONFIG="none.yaml"),
    ):
        assert done.returncode == 2
        assert "work/none.yaml does not exist" in done.stderr
        assert "(STIGMER_CONFIG names it)" in done.stderr


AGENT = """\
apiVersion: stigmer/v1
kind: Agent
metadata: {name: bot}
spec:
  instructions: Work.
  approvals: [{tool: read_file, verdict: ask}]
"""


@pytest.mark.parametrize("daemon", [False, True], ids=["from here", "by a daemon"])
def test_show_tells_rules_and_retention_with_their_sources(stigmer, daemon: bool) -> None:
    """They are no settings of a model, and decide as much."""
    stigmer.home.create()
    stigmer.home.config.write_text(
        "on_unknown: stop\nretention: {days: 90}\n"
        "approvals:\n  - {tool: run_command, when: {command: git *}, verdict: allow}\n"
    )
    (stigmer.folder / "bot.yaml").write_text(AGENT)
    environment = {"MODE": "cloud", "ANTHROPIC_API_KEY": KEY, "STIGMER_RETENTION_KEEP": "1000"}
    if daemon:
        assert stigmer("list", **environment).returncode == 0
    code, found = shown(stigmer, "--agent", "./bot.yaml", **environment)
    assert code == 0
    assert (find(stigmer.home) is not None) is daemon
    assert [(one["verdict"], one["tool"], one["when"]) for one in found["approvals"]] == [
        ("ask", "read_file", {}),
        ("allow", "run_command", {"command": "git *"}),
    ]
    assert "bot" in found["approvals"][0]["source"]
    assert found["approvals"][1]["source"].endswith("config.yaml:4")
    file = found["others"]["on_unknown"]["source"]
    assert file.startswith("file ")
    assert file.endswith("config.yaml")
    assert found["others"] == {
        "on_unknown": {"value": "stop", "source": file},
        "retention.days": {"value": 90, "source": file},
        "retention.keep": {"value": 1000, "source": "env STIGMER_RETENTION_KEEP"},
    }
    for_people = stigmer("config", "show", **environment).stdout.splitlines()
    (rule,) = [line for line in for_people if line.startswith("approvals ")]
    assert "allow run_command where command git *" in rule
    assert rule.endswith("config.yaml:4")
    (kept,) = [line for line in for_people if line.startswith("retention.keep ")]
    assert kept.split()[1:] == ["1000", "env", "STIGMER_RETENTION_KEEP"]


def test_show_says_what_holds_where_nobody_said_anything(stigmer) -> None:
    _, found = shown(stigmer, MODE="cloud", ANTHROPIC_API_KEY=KEY)
    assert found["approvals"] == []
    assert found["others"]["retention.days"] == {"value": None, "source": "default: everything is kept"}
    assert found["others"]["on_unknown"] == {"value": None, "source": "default: ask a person, else tell"}
