"""How tries are counted, kept and shown; what a killed bench left behind is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graphton.errors import GraphtonError, StatusError
from graphton.messages import Usage
from graphton.testing import ScriptedModel, calls, says
from stigmer.modelbench._attempt import attempt
from stigmer.modelbench.bench import Setup
from stigmer.modelbench.results import Results, Try, judged_anew, try_from_json, try_to_json
from stigmer.modelbench.scores import Native, aims_for, interval, score, to_json
from stigmer.modelbench.show import Progress, figure, table
from stigmer.modelbench.task import Made, Outcome
from stigmer.modelbench.tasks import case_of

HELLO, PORT = "no_call/greeting/1", "one_call/read_value/1"
HEAD = Setup("ollama", "qwen3:4b", "http://localhost:11434").head("short")


def tried(id: str, wrong: str = "", *, ended: str = "completed", **more: object) -> Try:
    return Try(id, wrong, Outcome("Hello!", (Made("a", {"b": 1}, "c"),), {}, ended), "envelope", **more)  # type: ignore[arg-type]


# ---- one try


async def test_a_try_of_one_call_asks_the_model_once() -> None:
    model = ScriptedModel([calls(("read_file", {"path": "settings.ini"}))])
    found = await attempt(model, case_of(PORT), tool_mode="native")
    assert (found.wrong, found.outcome.ended, len(model.requests)) == ("", "stopped", 1)
    assert found.outcome.calls[0].result.startswith("[server]")


async def test_a_model_that_goes_in_circles_is_an_end_and_no_hang() -> None:
    model = ScriptedModel([calls(("list_files", {"path": ""}))] * 20)
    found = await attempt(model, case_of("several_steps/report_value/1"), tool_mode="native")
    assert found.outcome.ended.startswith("error: loop: ")
    assert found.wrong.startswith("ended: error: loop")


async def test_a_model_that_never_answers_is_stopped_after_twelve_replies() -> None:
    model = ScriptedModel([calls(("read_file", {"path": f"{n}.txt"})) for n in range(20)])
    found = await attempt(model, case_of("several_steps/report_value/1"), tool_mode="native")
    assert (found.outcome.ended, len(found.replies)) == ("steps", 12)


@pytest.mark.parametrize(
    ("failure", "ended"),
    [
        (
            StatusError("no room", status=400, kind="x", provider="ollama", url="", retryable=False),
            "error: status: no room",
        ),
        (GraphtonError("broken"), "error: error: broken"),
        (ZeroDivisionError("oh"), "error: crash: ZeroDivisionError: oh"),
    ],
)
async def test_an_error_of_server_or_library_is_counted_and_the_bench_goes_on(
    failure: Exception, ended: str
) -> None:
    found = await attempt(ScriptedModel([failure]), case_of(HELLO), tool_mode="native")
    assert found.outcome.ended == ended
    assert score([found]).ends == {ended.split(": ")[1]: 1}


async def test_no_command_is_run_and_the_model_is_told() -> None:
    model = ScriptedModel([calls(("run_command", {"command": "touch made"})), "I may not."])
    found = await attempt(model, case_of("several_steps/report_value/1"), tool_mode="native")
    assert found.outcome.calls[0].failed
    assert "made" not in found.outcome.files
    assert found.outcome.ended == "completed"


async def test_a_try_says_in_which_way_the_model_used_tools_and_what_its_requests_took() -> None:
    first = calls(("read_file", {"path": "server.ini"}), usage=Usage(700, 20))
    second = says("47", usage=Usage(800, 5, cached_tokens=720))
    id = "several_steps/report_value/1"
    native = await attempt(ScriptedModel([first, second]), case_of(id), tool_mode="native")
    assert (native.mode, native.first_tokens, native.later_tokens, native.later_cached) == (
        "native",
        700,
        800,
        720,
    )
    enveloped = await attempt(ScriptedModel(["hello"]), case_of(HELLO), tool_mode="envelope")
    assert (enveloped.mode, enveloped.wrong) == ("envelope", "")


# ---- kept


def test_a_try_comes_back_from_its_line_as_it_was() -> None:
    one = tried(HELLO, "called a", seconds=1.25, replies=("Hello!",))
    assert try_from_json(json.loads(json.dumps(try_to_json(one)))) == one
    assert judged_anew(one).wrong == "there is no 'notes.txt'"


def test_a_broken_off_bench_goes_on_and_a_half_line_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "a.jsonl"
    Results.open(path, HEAD, wanted=[HELLO, PORT]).add(tried(HELLO))
    with open(path, "a") as file:
        file.write('{"id": "one_call/re')  # Killed in the middle of it.
    again = Results.open(path, HEAD, wanted=[HELLO, PORT])
    assert list(again.tries) == [HELLO]
    again.add(tried(PORT))
    assert json.loads(path.read_text().splitlines()[0]) == HEAD
    assert len(path.read_text().splitlines()) == 3


def test_a_finished_bench_another_setup_and_again_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Results.open(path, HEAD, wanted=[HELLO, PORT]).add(tried(HELLO))
    assert Results.open(path, HEAD, wanted=[HELLO, PORT], again=True).tries == {}
    Results.open(path, HEAD, wanted=[HELLO, PORT]).add(tried(HELLO))
    assert Results.open(path, {**HEAD, "tool_mode": "native"}, wanted=[HELLO, PORT]).tries == {}
    Results.open(path, HEAD, wanted=[HELLO]).add(tried(HELLO))
    assert Results.open(path, HEAD, wanted=[HELLO]).tries == {}


def test_two_setups_share_no_file() -> None:
    names = {
        Setup("ollama", "qwen3:4b", url, mode).file_name
        for url in ("http://localhost:11434", "http://box:11434")
        for mode in (None, "native")
    }
    assert len(names) == 4


# ---- counted and shown


def test_the_interval_is_wilsons() -> None:
    assert [round(end, 1) for end in interval(8, 10)] == [49.0, 94.3]
    assert interval(0, 0) == (0.0, 100.0)
    assert interval(0, 20)[0] == 0
    assert interval(20, 20)[1] == 100
    assert figure(9, 10) == "9/10 = 90 % (60–98)"
    assert figure(0, 0) == "-"


def test_right_wrong_and_bad_ends_are_counted_by_kind() -> None:
    found = score(
        [
            tried(HELLO, first_tokens=812, later_tokens=1000, later_cached=900),
            tried(PORT, "no call", ended="stopped"),
            tried(PORT, "ended: steps", ended="steps"),
        ]
    )
    assert (found.right, found.tries) == ({"no_call": 1}, {"no_call": 1, "one_call": 2})
    assert (found.ends, found.modes, found.first_tokens, found.cached) == (
        {"steps": 1},
        ("envelope",),
        812,
        0.9,
    )
    assert to_json(found)["kinds"]["one_call"] == {"right": 0, "tries": 2, "interval": [0.0, 65.8]}


def test_the_table_shows_aims_the_plain_api_and_what_the_cache_held() -> None:
    found = score([tried(HELLO, first_tokens=812, later_tokens=1000, later_cached=900), tried(PORT)])
    native = Native(
        "qwen2.5-coder:0.5b",
        "ollama",
        "Ollama 0.17.4",
        "2026-12-01",
        {"no_call": 3},
        {"no_call": 8},
        {"steps": 2},
    )
    shown = table("a model", found, native=native, aims=aims_for("qwen2.5-coder:0.5b"))
    assert "a model; tool mode envelope" in shown
    assert "one right call  1/1 = 100 % (21–100)  -" in shown
    assert "78 %" in shown
    assert "3/8 = 38 %" in shown
    assert "2 (steps 2)" in shown
    assert "812 tokens (aim: under 900)" in shown
    assert "90 % of the prompt came from the server's cache" in shown
    assert "Ollama 0.17.4, measured 2026-12-01" in shown


def test_a_file_of_the_catalogue_has_the_aims_of_its_model() -> None:
    assert aims_for("/models/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf")["one_call"] == 92
    assert aims_for("qwen3:4b") == {}


def test_progress_says_how_long_it_will_take() -> None:
    progress = Progress(10, done=4, right=3)
    assert str(progress) == "4 of 10 tries, 3 right; the first one loads the model"
    progress.begun -= 60
    progress.count(right=True)
    assert str(progress) == "5 of 10 tries, 4 right, about 5 min left"
