"""The runner's parts: what an execution used, what a failure tells, how a recorded model is called again."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from graphton.errors import ConnectError
from stigmer import redact
from stigmer.api import event_pb2 as pb
from stigmer.api.service_pb2 import CreateExecutionRequest
from stigmer.errors import ConfigError
from stigmer.runner import agent_for, complete, failure, recorded_chat
from stigmer.secrets import Keys

STARTED = pb.Event(attempt_started=pb.AttemptStarted(attempt=1, worker="here:1"))


def requested(
    step: int, try_: int, *, model: str = "openai:gpt-4.1", tokens: int = 100, path: str = ""
) -> pb.Event:
    asked: dict[str, Any] = {"step": step, "try": try_}
    record = pb.ModelRequested(**asked, model=model, purpose="turn", prompt_tokens_estimate=tokens)
    return pb.Event(path=path, model_requested=record)


def replied(step: int, *, tokens: int = 1000, path: str = "") -> pb.Event:
    usage = pb.Usage(input_tokens=tokens, output_tokens=10)
    record = pb.ModelReplied(step=step, purpose="turn", usage=usage, stop_reason="end")
    return pb.Event(path=path, model_replied=record)


def test_usage_is_summed_over_the_tree_with_lost_calls_at_their_estimate() -> None:
    records = [
        STARTED,
        requested(1, 1, tokens=70),  # Its reply was lost.
        requested(1, 2),
        replied(1),
        requested(1, 1, path="/r@1.0"),
        replied(1, path="/r@1.0"),
    ]
    usage = complete(pb.Finished(), records, now_ms=0).usage
    assert (usage.input_tokens, usage.output_tokens) == (2070, 20)
    assert usage.usd == pytest.approx((2 * (1000 * 2 + 10 * 8) + 70 * 2) / 1e6)
    assert usage.unpriced_calls == 0


def test_a_call_without_a_known_price_is_marked_and_not_free() -> None:
    records = [STARTED, requested(1, 1, model="vllm:who-knows"), replied(1), requested(2, 1), replied(2)]
    unknown = [STARTED, requested(1, 1, model="openrouter:nobody/knows-this"), replied(1)]
    usage = complete(pb.Finished(), unknown, now_ms=0).usage
    assert not usage.HasField("usd")
    assert usage.unpriced_calls == 1
    assert complete(pb.Finished(), records, now_ms=0).usage.HasField("usd")


def test_what_a_retry_began_with_is_told_apart_from_what_it_used_itself() -> None:
    records = [requested(1, 1), replied(1, tokens=500), STARTED, requested(2, 1), replied(2, tokens=1000)]
    finished = complete(pb.Finished(), records, now_ms=0)
    assert finished.usage.input_tokens == 1000
    assert finished.carried.input_tokens == 500


def test_a_known_failure_speaks_for_itself_and_says_no_key(tmp_path: Path) -> None:
    redact.remember(["a-secret-of-runner-test"])
    error = ConnectError(
        "no answer at http://ann:hunter22@host, key a-secret-of-runner-test", hint="start sk-0123456789abcdef"
    )
    told = failure(error, home=tmp_path, about="exec_1")
    assert told.code == "unreachable"
    assert told.message == "no answer at http://***@host, key ***"
    assert told.hint == "start ***"
    assert failure(ConfigError(["a", "b"]), home=tmp_path, about="x").code == "config"
    assert list(tmp_path.iterdir()) == []


def test_a_defect_goes_to_a_private_report_without_keys(tmp_path: Path) -> None:
    redact.remember(["a-secret-of-runner-test"])
    try:
        raise KeyError("a-secret-of-runner-test")
    except KeyError as error:
        told = failure(error, home=tmp_path, about="exec_1")
    assert told.code == "internal"
    assert told.message == "stigmer failed at its own work: KeyError"
    (report,) = (tmp_path / "reports").iterdir()
    assert str(report) in told.hint
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert "Traceback" in report.read_text()
    assert "a-secret-of-runner-test" not in report.read_text()


async def test_a_recorded_model_is_called_again_just_so() -> None:
    model = pb.ResolvedModel(
        provider="openai", model="gpt-4.1", base_url="http://127.0.0.1:9/v1", has_key=True, max_tokens=77,
        temperature=0.0, connect_timeout=1.5,
    )  # fmt: skip
    chat = recorded_chat(model, "sk-the-key-of-this-test")
    settings = chat.settings
    assert (str(chat.ref), settings.max_tokens, settings.temperature) == ("openai:gpt-4.1", 77, 0.0)
    assert (settings.thinking, settings.timeouts.connect) == (None, 1.5)
    assert settings.api_key == "sk-the-key-of-this-test"
    await chat.close()


async def test_an_agent_has_tools_only_with_a_workspace(tmp_path: Path) -> None:
    model = pb.ResolvedModel(provider="openai", model="gpt-4.1", base_url="http://127.0.0.1:9/v1")
    chat = recorded_chat(model, None)
    without = agent_for(chat, CreateExecutionRequest(task="t"), closed=())
    with_tools = agent_for(chat, CreateExecutionRequest(task="t", workspace=str(tmp_path)), closed=())
    assert without.tools == {}
    assert {"read_file", "run_command", "todos"} <= set(with_tools.tools)
    assert with_tools.system
    await chat.close()


async def test_budgets_that_nobody_said_are_the_defaults() -> None:
    chat = recorded_chat(
        pb.ResolvedModel(provider="openai", model="gpt-4.1", base_url="http://127.0.0.1:9/v1"), None
    )
    request = CreateExecutionRequest(task="t", budget=pb.Budget(tokens=5))
    budget = agent_for(chat, request, closed=()).budget
    assert (budget.steps, budget.tokens, budget.usd, budget.seconds) == (100, 5, None, 7200.0)
    await chat.close()


def test_a_key_serves_its_provider_and_origin_and_no_other() -> None:
    keys = Keys(otherwise=lambda provider, url: "from-the-environment" if provider == "groq" else None)
    keys.put(
        "exec_1",
        "sk-one-of-the-first",
        organisation="default",
        provider="openai",
        base_url="https://api.openai.com/v1",
    )

    def find(execution: str, provider: str, url: str) -> str | None:
        return keys.find(execution, organisation="default", provider=provider, base_url=url)

    assert find("exec_2", "openai", "https://api.openai.com/v1") == "sk-one-of-the-first"
    assert find("exec_2", "openai", "https://api.openai.com.evil.example/v1") is None
    assert find("exec_1", "openai", "https://evil.example/v1") is None
    assert find("exec_1", "anthropic", "https://api.openai.com/v1") is None
    assert find("exec_2", "anthropic", "https://api.openai.com/v1") is None
    assert find("exec_2", "openai", "http://api.openai.com/v1") is None
    assert find("exec_2", "groq", "https://api.groq.com/openai/v1") == "from-the-environment"
    keys.forget("exec_1")
    assert find("exec_1", "openai", "https://api.openai.com/v1") == "sk-one-of-the-first"
    assert "sk-one-of-the-first" not in repr(keys)
