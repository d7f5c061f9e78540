"""attach, cancel, get, list; approvals from other terminals."""

from __future__ import annotations

import json

COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo heron > made.txt"}}]}


def started(stigmer) -> str:
    return stigmer("run", "go", "--detach").stdout.strip()


def test_attach_shows_events_from_a_sequence_number(stigmer, fake) -> None:
    fake.script({"text": "answer"})
    execution = started(stigmer)
    everything = stigmer.events("attach", execution)
    later = stigmer.events("attach", execution, "--from", "3")
    assert [e["seq"] for e in later] == [e["seq"] for e in everything if e["seq"] and e["seq"] >= 3]
    assert later[-1] == everything[-1]


def test_get_shows_state_sources_and_result(stigmer, fake) -> None:
    fake.script({"text": "answer"})
    execution = started(stigmer)
    stigmer("attach", execution)
    page = stigmer("get", "execution", execution).stdout
    assert "completed" in page
    assert "STIGMER_LLM_MODEL" in page
    assert page.rstrip().endswith("answer")
    found = json.loads(stigmer("get", "execution", execution, "--json").stdout)
    assert found["result"]["text"] == "answer"
    assert found["settings"]["model"]["source"].startswith("env STIGMER_LLM_MODEL")


def test_an_unknown_execution_is_named(stigmer, fake) -> None:
    for command in (("get", "execution"), ("attach",), ("cancel",)):
        done = stigmer(*command, "nope")
        assert done.returncode == 1, done.stderr
        assert "'nope'" in done.stderr


def test_list_shows_the_newest_first(stigmer, fake) -> None:
    fake.script({"text": "1"}, {"text": "2"})
    first, second = started(stigmer), started(stigmer)
    lines = stigmer("list", "executions").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [second, first]


def test_cancel_stops_a_run_and_a_finished_one_says_so(stigmer, fake) -> None:
    fake.script({"text": "one two three four", "stall_after": 2})
    execution = started(stigmer)
    done = stigmer("cancel", execution)
    assert (done.returncode, done.stderr) == (0, f"{execution}: cancelled\n")
    done = stigmer("cancel", execution)
    assert (done.returncode, done.stderr) == (0, f"{execution} had finished already: cancelled\n")
    assert stigmer("attach", execution).returncode == 1  # Cancelled by somebody else.


def test_a_question_that_nobody_here_can_answer_ends_with_4_and_says_how_to_go_on(stigmer, fake) -> None:
    fake.script(COMMAND, {"text": "made it"})
    done = stigmer("run", "make the file")
    assert done.returncode == 4, done.stderr
    assert "echo heron > made.txt" in done.stderr
    assert not (stigmer.folder / "made.txt").exists()
    (line,) = [line for line in done.stderr.splitlines() if "stigmer approve" in line]
    execution, call = line.partition("stigmer approve ")[2].split()[:2]

    listed = stigmer("approvals")
    assert "echo heron > made.txt" in listed.stdout
    assert f"stigmer approve {execution} {call}" in listed.stdout

    approved = stigmer("approve", execution, call)
    assert approved.returncode == 0, approved.stderr
    attached = stigmer("attach", execution)
    assert (attached.returncode, attached.stdout) == (0, "made it\n")
    assert (stigmer.folder / "made.txt").read_text() == "heron\n"

    again = stigmer("reject", execution, call)
    assert again.returncode == 1
    assert "approved" in again.stderr


def test_a_rejection_is_told_to_the_model_and_the_run_goes_on(stigmer, fake) -> None:
    fake.script(COMMAND, {"text": "then not"})
    execution = stigmer.events("run", "go")[0]["execution"]
    (question,) = [json.loads(line) for line in stigmer("approvals", "--json").stdout.splitlines()]
    assert question["execution"] == execution
    assert stigmer("reject", execution, question["call"], "--reason", "use the other folder").returncode == 0
    attached = stigmer("attach", execution)
    assert (attached.returncode, attached.stdout) == (0, "then not\n")
    assert "use the other folder" in json.dumps(fake.requests[-1])
    assert not (stigmer.folder / "made.txt").exists()


def test_yes_answers_the_question(stigmer, fake) -> None:
    fake.script(COMMAND, {"text": "made it"})
    done = stigmer("run", "go", "--yes")
    assert (done.returncode, done.stdout) == (0, "made it\n"), done.stderr
    assert (stigmer.folder / "made.txt").read_text() == "heron\n"
