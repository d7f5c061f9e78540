"""--agent, validate and trust: the real command and daemon, and what reaches the model."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from stigmer.daemon import find

AGENT = """\
apiVersion: stigmer/v1
kind: Agent
metadata: {name: reviewer}
spec:
  instructions: You review heron texts.
  llm: {temperature: 0.3}
  tools: [read_file]
"""
COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo heron > made.txt"}}]}
ASKS = "[t]rust it, or [n]ot: "


@pytest.fixture
def project(stigmer) -> Path:
    """The working folder, a repository with an agent of its own."""
    (stigmer.folder / ".git").mkdir()
    agents = stigmer.folder / ".stigmer" / "agents"
    agents.mkdir(parents=True)
    (agents / "reviewer.yaml").write_text(AGENT)
    return stigmer.folder


def bodies(fake) -> list[dict[str, Any]]:
    """What the model server was asked."""
    return [json.loads(request["body"]) for request in fake.requests]


def tools(body: dict[str, Any]) -> list[str]:
    return [tool["function"]["name"] for tool in body.get("tools", [])]


def test_an_agent_file_gives_instructions_tools_and_its_layer(stigmer, fake) -> None:
    (stigmer.folder / "agent.yaml").write_text(AGENT)
    fake.script({"text": "fine"})
    events = stigmer.events("run", "--agent", "./agent.yaml", "look")
    assert events[-1]["text"] == "fine"
    assert events[0]["agent"] == "reviewer"
    assert events[0]["agent_revision"] == hashlib.sha256(AGENT.encode()).hexdigest()[:8]
    found = events[1]["settings"]["temperature"]
    assert found["value"] == 0.3
    assert found["source"].startswith("agent reviewer@")
    (body,) = bodies(fake)
    assert body["messages"][0]["content"].startswith("You review heron texts.")
    assert body["temperature"] == 0.3
    assert tools(body) == ["read_file"]


def test_an_agent_is_found_by_name_from_below(stigmer, fake, project: Path) -> None:
    below = project / "deep" / "er"
    below.mkdir(parents=True)
    fake.script({"text": "fine"})
    done = stigmer("run", "--agent", "reviewer", "look", folder=below)
    assert done.stdout == "fine\n", done.stderr
    assert "You review heron texts." in json.dumps(fake.requests[0])


def test_a_resumed_run_keeps_the_agent_that_it_began_with(stigmer, fake) -> None:
    file = stigmer.folder / "agent.yaml"
    file.write_text(AGENT.replace("[read_file]", "[run_command]"))
    fake.script(COMMAND, {"text": "made it"})
    waits = stigmer("run", "--agent", "./agent.yaml", "go")
    assert waits.returncode == 4, waits.stderr
    file.unlink()
    stigmer("down")
    (row,) = (json.loads(line) for line in stigmer("list", "--json").stdout.splitlines())
    stigmer("approve", row["id"], "1.0")
    ended = stigmer("attach", row["id"])
    assert ended.stdout.endswith("made it\n"), ended.stderr
    first, second = bodies(fake)
    assert second["messages"][0] == first["messages"][0]
    assert tools(second) == tools(first) == ["run_command"]


def test_an_agent_without_tools_gets_none(stigmer, fake) -> None:
    (stigmer.folder / "agent.yaml").write_text(AGENT.replace("[read_file]", "[]"))
    fake.script({"text": "fine"})
    stigmer("run", "--agent", "./agent.yaml", "look")
    assert tools(bodies(fake)[0]) == []


def test_a_bad_agent_is_told_whole_and_nothing_is_started(stigmer, fake) -> None:
    file = stigmer.folder / "bad.yaml"
    file.write_text(
        AGENT.replace("read_file", "read_fil").replace("temperature: 0.3", "base_url: 'http://x'")
    )
    done = stigmer("run", "--agent", "bad.yaml", "look")
    assert done.returncode == 2
    assert "2 problems:" in done.stderr
    assert "file bad.yaml, line 6: 'base_url' may not stand in an agent's file" in done.stderr
    assert "line 7: there is no tool 'read_fil': did you mean 'read_file'?" in done.stderr
    done = stigmer("run", "--agent", "nobody", "look")
    assert done.returncode == 2
    assert "there is no agent 'nobody' in .stigmer/agents" in done.stderr
    assert "hint: name a file: --agent ./agent.yaml" in done.stderr
    assert find(stigmer.home) is None


def test_validate_names_every_problem_and_the_good_ones(stigmer) -> None:
    (stigmer.folder / "good.yaml").write_text(AGENT)
    (stigmer.folder / "bad.yaml").write_text(AGENT.replace("[read_file]", "[a, b]"))
    done = stigmer("validate", "good.yaml", "bad.yaml", "none.yaml")
    assert done.returncode == 2
    assert done.stdout.startswith("good.yaml: agent reviewer@")
    assert done.stderr.count("there is no tool") == 2
    assert "file none.yaml does not exist" in done.stderr
    assert stigmer("validate", "good.yaml").returncode == 0
    (stigmer.folder / ".stigmer" / "agents").mkdir(parents=True)
    (stigmer.folder / ".stigmer" / "agents" / "other.yaml").write_text(AGENT)
    misnamed = stigmer("validate", ".stigmer/agents/other.yaml")
    assert "line 3: name 'reviewer' in a file that is called other.yaml" in misnamed.stderr
    rows = [
        json.loads(line)
        for line in stigmer("validate", "--json", "good.yaml", "bad.yaml").stdout.splitlines()
    ]
    assert [(row["file"], row["name"], len(row["problems"])) for row in rows] == [
        ("good.yaml", "reviewer", 0),
        ("bad.yaml", None, 2),
    ]


@pytest.mark.parametrize("daemon", [False, True])
def test_config_show_resolves_with_the_agent(stigmer, project: Path, daemon: bool) -> None:
    (project / ".stigmer" / "agents" / "reviewer.yaml").write_text(
        AGENT.replace("temperature: 0.3", "max_tokens: 50, cloud: {model: claude-haiku-4.5}")
    )
    if daemon:
        stigmer("up")
    show = ("config", "show", "--agent", "reviewer", "--mode", "cloud", "--json")
    key = {"ANTHROPIC_API_KEY": "sk-ant-0123456789"}
    found = json.loads(stigmer(*show, **key).stdout)
    assert found["settings"]["max_tokens"]["value"] == 50
    assert found["settings"]["model"]["source"] == "default for provider anthropic"
    notices = " ".join(found["notices"])
    assert "is not trusted" in notices
    assert "model 'claude-haiku-4.5' from agent reviewer@" in notices
    stigmer("trust")
    found = json.loads(stigmer(*show, **key).stdout)
    assert found["settings"]["model"]["value"] == "claude-haiku-4.5"
    assert found["settings"]["model"]["source"].startswith("agent reviewer@")
    assert "trust" not in " ".join(found["notices"])


# Trust


def test_an_untrusted_project_narrows_and_a_trusted_one_may_choose(stigmer, fake, project: Path) -> None:
    (project / ".stigmer" / "config.yaml").write_text("llm:\n  max_tokens: 77\n  temperature: 0.5\n")
    (project / ".stigmer" / "agents" / "reviewer.yaml").write_text(
        AGENT.replace("temperature: 0.3", "model: 'openai:chosen'")
    )
    fake.script({"text": "one"}, {"text": "two"})
    done = stigmer("run", "--mode", "cloud", "--agent", "reviewer", "go")
    assert done.returncode == 0, done.stderr
    assert f"note: {project.resolve()} is not trusted" in done.stderr
    assert f"stigmer trust {project.resolve()}" in done.stderr
    first = bodies(fake)[0]
    assert (first["model"], first["temperature"]) == ("test-model", 0.5)
    assert 77 in first.values()
    trusted = stigmer("trust")
    assert trusted.returncode == 0
    assert trusted.stderr.splitlines() == [
        f"{project.resolve()} is trusted",
        "  .stigmer/agents/reviewer.yaml",
        "  .stigmer/config.yaml",
    ]
    done = stigmer("run", "--mode", "cloud", "--agent", "reviewer", "go")
    assert done.returncode == 0, done.stderr
    assert "trusted" not in done.stderr
    assert bodies(fake)[1]["model"] == "chosen"


def test_a_person_is_asked_once_for_each_state_of_the_folder(
    at_a_terminal, stigmer, fake, project: Path
) -> None:
    config = project / ".stigmer" / "config.yaml"
    config.write_text("llm: {temperature: 0.5}\n")
    fake.script(*[{"text": "ok"}] * 5)
    code, shown = at_a_terminal("run", "go", does=[(ASKS, "what?"), (ASKS, "t")])
    assert code == 0, shown
    assert "for stigmer is not trusted yet:" in shown
    assert ".stigmer/agents/reviewer.yaml" in shown
    assert shown.count(ASKS) == 2
    code, shown = at_a_terminal("run", "go")
    assert (code, ASKS in shown, "not trusted" in shown) == (0, False, False)
    config.write_text("llm: {temperature: 0.6}\n")
    code, shown = at_a_terminal("run", "go", "--yes", does=[(ASKS, "n")])
    assert code == 0, shown
    assert "has changed since you trusted it" in shown
    assert "is not trusted: what comes with it" in shown
    code, shown = at_a_terminal("run", "go")
    assert (code, ASKS in shown, "is not trusted" in shown) == (0, False, True)


def test_ctrl_c_at_the_question_decides_nothing(at_a_terminal, stigmer, fake, project: Path) -> None:
    (project / ".stigmer" / "config.yaml").write_text("llm: {temperature: 0.5}\n")
    code, shown = at_a_terminal("run", "go", does=[(ASKS, signal.SIGINT)])
    assert code == 130, shown
    assert stigmer("trust", "--list").stdout == ""
    assert find(stigmer.home) is None


def test_yes_trusts_nothing_and_does_not_answer_for_an_untrusted_agent(stigmer, fake, project: Path) -> None:
    agent = project / ".stigmer" / "agents" / "reviewer.yaml"
    agent.write_text(AGENT.replace("[read_file]", "[run_command]"))
    fake.script(COMMAND, COMMAND, {"text": "made it"})
    done = stigmer("run", "--agent", "reviewer", "--yes", "go")
    assert done.returncode == 4, done.stderr
    assert not (project / "made.txt").exists()
    assert stigmer("trust", "--list").stdout == ""
    shown = stigmer("list", "--json").stdout
    execution = json.loads(shown.splitlines()[0])["id"]
    assert (
        "--yes does not answer for agent reviewer" in stigmer("get", "execution", execution, "--json").stdout
    )
    stigmer("trust")
    done = stigmer("run", "--agent", "reviewer", "--yes", "go")
    assert done.returncode == 0, done.stderr
    assert (project / "made.txt").read_text() == "heron\n"


def test_trust_is_listed_told_when_it_is_stale_and_removed(stigmer, project: Path) -> None:
    here = str(project.resolve())
    assert stigmer("trust", "--list").stderr == "no folder is trusted\n"
    below = project / "deep"
    below.mkdir()
    assert json.loads(stigmer("trust", "--json", folder=below).stdout)["folder"] == here
    assert stigmer("trust", "--list").stdout == f"trusted      {here}\n"
    (project / ".stigmer" / "agents" / "more.yaml").write_text(AGENT)
    assert json.loads(stigmer("trust", "--list", "--json").stdout) == {"folder": here, "state": "changed"}
    assert stigmer("trust", "--remove", here).returncode == 0
    gone = stigmer("trust", "--remove", here)
    assert (gone.returncode, "nothing was decided about" in gone.stderr) == (1, True)


def test_trust_says_when_there_is_nothing_to_trust(stigmer) -> None:
    done = stigmer("trust")
    assert done.returncode == 1
    assert "there is no .stigmer/config.yaml and no .stigmer/agents/*.yaml" in done.stderr
    done = stigmer("trust", "nowhere")
    assert (done.returncode, "is not a folder" in done.stderr) == (2, True)
    done = stigmer("trust", "--list", ".")
    assert (done.returncode, "--list stands alone" in done.stderr) == (2, True)


def test_a_trusted_folder_still_sets_no_address_and_no_key(stigmer, project: Path) -> None:
    stigmer("trust")
    for line in ("base_url: http://evil.example", "api_key: sk-x", "api_key_env: PATH"):
        (project / ".stigmer" / "config.yaml").write_text(f"llm:\n  {line}\n")
        stigmer("trust")
        done = stigmer("config", "show")
        assert done.returncode == 2
        assert "may not stand in a project's file" in done.stderr
