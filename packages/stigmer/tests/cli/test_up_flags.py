"""`stigmer up` with LLM flags: they cascade from the daemon to the runs, and the daemon's log tells of them."""

from __future__ import annotations

import json
import time

from stigmer.daemon import find

LIMIT = 60.0


def in_the_log(stigmer, text: str) -> str:
    """The daemon's log, once this stands in it."""
    deadline = time.monotonic() + LIMIT
    while text not in (log := stigmer.home.log.read_text()):
        assert time.monotonic() < deadline, log
    return log


def bodies(fake) -> list[dict[str, object]]:
    """What was sent to the model server."""
    return [json.loads(request["body"]) for request in fake.requests]


def test_flags_of_up_reach_the_model_of_a_run_from_another_shell(stigmer, fake) -> None:
    stigmer("up", "--model", "openai:from-up", "--max-tokens", "33")
    for name in fake.environment:
        del stigmer.environment[name]  # Only the daemon has the key and the address now.
    fake.script({"text": "hello"}, {"text": "hello again"})
    assert stigmer("run", "go").stdout == "hello\n"
    stigmer("run", "go", "--model", "openai:from-run")
    assert [body["model"] for body in bodies(fake)] == ["from-up", "from-run"]
    assert {body["max_completion_tokens"] for body in bodies(fake)} == {33}


def test_flags_of_up_rank_above_its_environment_and_below_the_callers_shell(stigmer, fake) -> None:
    stigmer("up", "--model", "openai:from-up")
    fake.script({"text": "hello"}, {"text": "hello"})
    stigmer("run", "go", STIGMER_LLM_MODEL="")
    stigmer("run", "go", STIGMER_LLM_MODEL="openai:from-shell")
    assert [body["model"] for body in bodies(fake)] == ["from-up", "from-shell"]


def test_the_daemon_logs_every_setting_once_with_its_source(stigmer, fake) -> None:
    stigmer("up", "--model", "openai:from-up", "--max-tokens", "33")
    log = in_the_log(stigmer, "name=timeouts.idle")
    assert (
        log.count(
            """setting name=model value="from-up" source='flag --model (stigmer up)' hides="test-model"""
        )
        == 1
    )
    assert "setting name=max_tokens value=33 source='flag --max-tokens (stigmer up)'" in log
    assert """name=api_key value="***cdef" source='env OPENAI_API_KEY'""" in log
    assert fake.environment["OPENAI_API_KEY"] not in log


def test_the_daemon_logs_what_is_wrong_with_its_settings_and_lives(stigmer) -> None:
    stigmer("up", STIGMER_LLM_MAX_TOKENS="8k")
    log = in_the_log(stigmer, "setting problem=")
    assert "max_tokens '8k' from env STIGMER_LLM_MAX_TOKENS is not a whole number" in log
    assert find(stigmer.home) is not None


def test_up_refuses_a_wrong_flag_before_it_starts_anything(stigmer) -> None:
    done = stigmer("up", "--provider", "antropic", "--max-tokens", "8k", "--base-url", "http://h")
    assert done.returncode == 2
    assert "provider 'antropic' from flag --provider (stigmer up)" in done.stderr
    assert "did you mean 'anthropic'" in done.stderr
    assert "max_tokens '8k' from flag --max-tokens (stigmer up) is not a whole number" in done.stderr
    assert find(stigmer.home) is None
