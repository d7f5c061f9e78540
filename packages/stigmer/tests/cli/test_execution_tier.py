"""The per-execution tier: a program's `execution_config`, and where everybody can read afterwards what it came to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[4] / "examples" / "execution_config.py"


def test_the_example_chooses_its_model_for_one_execution(stigmer, fake) -> None:
    fake.script({"text": "Hello."})
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "openai:from-program", "openai:second"],
        env=stigmer.environment,
        cwd=stigmer.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "Hello.\n", done.stderr
    assert 'model = "from-program" (execution config)' in done.stderr
    assert 'fallbacks = ["openai:second"] (execution config)' in done.stderr
    assert "temperature = null (default for provider openai)" in done.stderr
    (request,) = fake.requests
    body = json.loads(request["body"])
    assert (body["model"], body["max_completion_tokens"]) == ("from-program", 500)


def test_get_execution_shows_the_whole_resolution_as_it_was_recorded(stigmer, fake) -> None:
    stigmer.home.create()
    stigmer.home.config.write_text("llm:\n  max_tokens: 50\n")
    fake.script({"text": "Hello."})
    ran = stigmer("run", "go", "--model", "openai:gpt-4.1", "--max-tokens", "77", "--detach")
    execution = ran.stdout.strip()
    stigmer("attach", execution)
    stigmer.home.config.write_text("llm:\n  max_tokens: 51\n")  # What comes later changes nothing.
    found = json.loads(stigmer("get", "execution", execution, "--json").stdout)
    assert found["settings"]["max_tokens"] == {
        "value": 77,
        "source": "flag --max-tokens",
        "shadowed": [{"value": 50, "source": "file ~/home/config.yaml:2"}],
    }
    assert found["settings"]["model"]["shadowed"] == [
        {"value": "test-model", "source": "env STIGMER_LLM_MODEL (your shell)"},
        {"value": "test-model", "source": "env STIGMER_LLM_MODEL"},  # The daemon was started from here.
    ]
    assert set(found["settings"]) >= {"mode", "provider", "base_url", "api_key", "thinking", "timeouts.idle"}
    page = stigmer("get", "execution", execution).stdout
    assert "77  (flag --max-tokens; hides 50 (file ~/home/config.yaml:2))" in page
    assert "***cdef  (env OPENAI_API_KEY (your shell); hides" in page
    assert fake.environment["OPENAI_API_KEY"] not in page + json.dumps(found)


SHELLS = {
    "anthropic messages": {"STIGMER_LLM_MODEL": "claude-haiku-4.5", "ANTHROPIC_BASE_URL": "{}"},
    "chat completions": {"STIGMER_LLM_MODEL": "openai:gpt-4.1", "OPENAI_BASE_URL": "{}/v1"},
    "responses": {
        "STIGMER_LLM_MODEL": "openai:gpt-6-luna",
        "OPENAI_BASE_URL": "{}/v1",
        "STIGMER_LLM_DIALECT": "responses",
    },
    "ollama": {"STIGMER_LLM_MODEL": "ollama:qwen3:8b", "OLLAMA_HOST": "{}"},
}


@pytest.mark.parametrize("dialect", SHELLS)
def test_a_dry_run_shows_the_very_request_that_then_goes_out(stigmer, fake, dialect) -> None:
    shell = {name: value.format(fake.url) for name, value in SHELLS[dialect].items()}
    shell["ANTHROPIC_API_KEY"] = fake.environment["OPENAI_API_KEY"]
    arguments = ("run", "go", "--max-tokens", "99", "--context-window", "8192")
    dry = stigmer(*arguments, "--dry-run", "--json", **shell)
    shown = json.loads(dry.stdout)
    assert fake.requests == []
    fake.script({"text": "Hello."})
    assert stigmer(*arguments, **shell).stdout == "Hello.\n"
    (sent,) = fake.requests
    assert shown["method"] == "POST"
    assert shown["url"] == fake.url + sent["path"]
    assert shown["body"] == json.loads(sent["body"])
    headers = {name: value for name, value in shown["headers"].items() if "***" not in value}
    assert headers.items() <= sent["headers"].items()
    assert [name for name, value in shown["headers"].items() if "***" in value] == (
        []
        if dialect == "ollama"
        else ["x-api-key" if "claude" in shell["STIGMER_LLM_MODEL"] else "authorization"]
    )
    assert shown["settings"]["max_tokens"]["value"] == 99
    assert shell["ANTHROPIC_API_KEY"] not in dry.stdout + dry.stderr
