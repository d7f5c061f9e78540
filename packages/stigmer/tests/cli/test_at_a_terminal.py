"""What happens where a person sits: questions, Ctrl-C, one updating line."""

from __future__ import annotations

import signal

COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo heron > made.txt"}}]}
QUESTION = "or `r` and a reason: "


def test_a_person_approves_a_command_that_is_shown_whole(at_a_terminal, stigmer, fake) -> None:
    fake.script(COMMAND, {"text": "made it"})
    code, shown = at_a_terminal("run", "go", does=[(QUESTION, "what?"), (QUESTION, "a")])
    assert code == 0, shown
    assert "run_command wants to run:\r\n    echo heron > made.txt\r\n" in shown
    assert shown.count(QUESTION) == 2  # An answer that is none is asked again.
    assert "made it" in shown
    assert (stigmer.folder / "made.txt").read_text() == "heron\n"


def test_a_person_rejects_with_a_reason(at_a_terminal, stigmer, fake) -> None:
    fake.script(COMMAND, {"text": "then not"})
    code, shown = at_a_terminal("run", "go", does=[(QUESTION, "r not here")])
    assert code == 0, shown
    assert "then not" in shown
    assert "not here" in str(fake.requests[-1])
    assert not (stigmer.folder / "made.txt").exists()


def test_ctrl_c_at_a_question_cancels_the_run(at_a_terminal, stigmer, fake) -> None:
    fake.script(COMMAND)
    code, shown = at_a_terminal("run", "go", does=[(QUESTION, signal.SIGINT)])
    assert code == 130, shown
    assert '"state": "cancelled"' in stigmer("list", "--json").stdout


def test_the_answer_is_streamed_and_cannot_steer_the_terminal(at_a_terminal, stigmer, fake) -> None:
    fake.script({"text": "red \x1b[31m alert\x07"})
    code, shown = at_a_terminal("run", "go")
    assert code == 0
    assert "red \\x1b[31m alert\\x07" in shown
    assert "\x1b[31m" not in shown
    assert shown.count("alert") == 1


def test_a_reply_that_breaks_off_is_marked_and_told_again(at_a_terminal, stigmer, fake) -> None:
    fake.script({"text": "first second third fourth", "break_after_events": 3}, {"text": "whole answer"})
    code, shown = at_a_terminal("run", "go")
    assert code == 0, shown
    assert "stale" in shown
    assert shown.count("whole answer") == 1


def test_a_retry_counts_down(at_a_terminal, stigmer, fake) -> None:
    fake.script({"status": 529, "error": "overloaded", "retry_after": 2}, {"text": "after all"})
    code, shown = at_a_terminal("run", "go")
    assert code == 0, shown
    assert "HTTP 529" in shown
    assert "next try in 2 s" in shown
    assert "next try in 1 s" in shown
    assert "after all" in shown


def test_no_color_means_none(at_a_terminal, stigmer, fake) -> None:
    fake.script({"text": "plain"})
    stigmer.environment["NO_COLOR"] = "1"
    code, shown = at_a_terminal("run", "go")
    assert code == 0
    assert "\x1b[1m" not in shown
    assert "\x1b[2m" not in shown


def test_a_missing_model_is_named_with_its_size_before_anything_is_fetched(at_a_terminal, stigmer) -> None:
    model = ("run", "go", "--provider", "llamacpp", "--model", "qwen2.5-coder:0.5b")
    done = stigmer(*model)
    assert done.returncode == 2, done.stderr
    assert "hint: stigmer models pull qwen2.5-coder:0.5b" in done.stderr
    code, shown = at_a_terminal(*model, does=[("Fetch it now? [Y/n] ", "n")])
    assert code == 2, shown
    assert "the model qwen2.5-coder:0.5b (491 MB, from " in shown
    assert not (stigmer.folder.parent / "models").exists()
