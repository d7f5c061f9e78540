"""`stigmer models bench` as a user has it: a fake Ollama that answers, a bench that is killed, and a real small model."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from graphton import catalog
from stigmer.modelbench.bench import BenchError, Setup, tried
from stigmer.modelbench.results import Try

NAME = "ollama:qwen2.5-coder:0.5b"


@pytest.fixture
def ollama(stigmer, fake) -> Mapping[str, str]:
    """An Ollama whose model says hello to everything."""
    for name in ("STIGMER_LLM_MODEL", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        stigmer.environment.pop(name, None)
    fake.script(rules=[{"match": "", "reply": {"text": "Hello!"}}])
    return {"OLLAMA_HOST": fake.url}


def results(stigmer) -> list[Path]:
    return sorted((stigmer.home.path / "bench").glob("*.jsonl"))


def test_a_bench_shows_what_the_model_gets_done_and_leaves_the_folder_alone(stigmer, ollama) -> None:
    done = stigmer("models", "bench", NAME, "-v", **ollama)
    assert done.returncode == 0, done.stderr
    assert "ollama:qwen2.5-coder:0.5b on Ollama" in done.stdout
    assert "short bench of 32 tries; tool mode envelope" in done.stdout
    assert "one right call" in done.stdout
    assert "0/10 = 0 % (0–28)" in done.stdout
    assert "78 %" in done.stdout
    assert "ended badly" in done.stdout
    assert "one_call/read_value/1: 'What is the port in settings.ini?': no call, but 'Hello!'" in done.stderr
    assert "tries that a program found right" in done.stderr
    assert list(stigmer.folder.iterdir()) == []


def test_json_is_one_object_a_model_with_what_a_program_may_want(stigmer, ollama) -> None:
    done = stigmer("models", "bench", NAME, "--json", "--tool-mode", "native", **ollama)
    [row] = [json.loads(line) for line in done.stdout.splitlines()]
    assert row["model"] == NAME
    assert row["tool_modes"] == ["native"]
    assert row["kinds"]["several_steps"] == {"right": 0, "tries": 8, "interval": [0.0, 32.4]}
    assert row["aims"] == {"one_call": 78, "no_call": 75, "several_steps": 35}
    assert row["bad_ends"] == {}
    assert row["first_request_tokens"] > 0
    assert results(stigmer) == [Path(row["results"])]


def test_a_killed_bench_goes_on_where_it_was(stigmer, ollama, fake) -> None:
    running = stigmer.start("models", "bench", NAME, **ollama)
    deadline = time.monotonic() + 60
    while not (results(stigmer) and len(results(stigmer)[0].read_text().splitlines()) > 3):
        assert time.monotonic() < deadline, "no try was kept"
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.communicate()
    before = results(stigmer)[0].read_text().splitlines()
    kept = len(before) - 1
    done = stigmer("models", "bench", NAME, **ollama)
    assert f"{NAME}: goes on after {kept} of 32 tries (--again begins anew)" in done.stderr
    assert "short bench of 32 tries" in done.stdout
    after = results(stigmer)[0].read_text().splitlines()
    assert after[: len(before)] == before
    tries = [json.loads(line)["id"] for line in after[1:]]
    assert len(tries) == len(set(tries)) == 32


def test_ctrl_c_ends_it_says_that_it_can_go_on_and_leaves_no_process(stigmer, ollama) -> None:
    running = stigmer.start("models", "bench", NAME, **ollama)
    deadline = time.monotonic() + 60
    while not (results(stigmer) and len(results(stigmer)[0].read_text().splitlines()) > 2):
        assert time.monotonic() < deadline, "no try was kept"
        assert running.poll() is None
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "broken off; the same command goes on where it was" in said
    assert children
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_what_cannot_be_tried_is_said_with_a_way_out(stigmer, ollama) -> None:
    away = stigmer("models", "bench", NAME, OLLAMA_HOST="http://127.0.0.1:9")
    assert away.returncode == 1
    assert "127.0.0.1:9" in away.stderr
    hosted = stigmer("models", "bench", "anthropic:claude-haiku-4.5", **ollama, ANTHROPIC_API_KEY="sk-ant-1")
    assert hosted.returncode == 2
    assert "is no model of this machine, and a bench of it would cost money" in hosted.stderr
    missing = stigmer("models", "bench", "./mine.gguf", **ollama)
    assert missing.returncode == 2
    assert "there is no model file" in missing.stderr


async def test_a_process_that_ends_in_the_middle_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    with pytest.raises(BenchError, match="is not on this machine"):
        [one async for one in tried(Setup("llamacpp", "qwen2.5-coder:0.5b"), ["no_call/greeting/1"])]


@pytest.mark.model
@pytest.mark.timeout(600)
async def test_the_real_small_model_is_tried_on_the_built_in_llama_cpp() -> None:
    pytest.importorskip("xllamacpp")
    named = os.environ.get("STIGMER_TEST_GGUF")
    found = Path(named) if named else catalog.path_of("qwen2.5-coder:0.5b")
    if found is None or not found.is_file():
        pytest.skip("the model is not here: name a file in STIGMER_TEST_GGUF")
    ids = ["no_call/greeting/1", "one_call/lock_door/1", "several_steps/report_value/1"]
    said = [one async for one in tried(Setup("llamacpp", str(found)), ids)]
    assert str(said[0]).startswith("llama.cpp (xllamacpp ")
    tries = [one for one in said[1:] if isinstance(one, Try)]
    assert [one.id for one in tries] == ids
    assert {one.outcome.ended for one in tries} <= {"completed", "stopped"}
    assert 0 < tries[0].first_tokens < 900
