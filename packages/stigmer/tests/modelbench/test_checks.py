"""The checks: every right way is taken, and what only looks right is not."""

from __future__ import annotations

import pytest
from stigmer.modelbench.checks import (
    admits,
    any_of,
    called,
    like,
    looked,
    looking,
    made,
    names_file,
    no_call,
    one_of,
    same_items,
    says,
    shows,
)
from stigmer.modelbench.task import Made, Outcome


def outcome(*made: Made, answer: str = "") -> Outcome:
    return Outcome(answer, made)


READ = Made("read_file", {"path": "a.ini"}, "port = 8451")
LIGHT = called("set_light", room="kitchen", on=False, brightness=one_of(None, 0))


def light(**arguments: object) -> Outcome:
    return outcome(Made("set_light", dict(arguments), "done"))


def test_whichever_call_brings_the_value_is_right_and_one_that_failed_is_not() -> None:
    assert shows("8451")(outcome(READ)) == ""
    assert shows("8451")(outcome(Made("search_files", {"text": "port"}, "a.ini: port = 8451"))) == ""
    assert "nothing that shows '8451'" in shows("8451")(outcome(Made("read_file", {}, "8451", True)))
    assert shows("8451", tool="list_files")(outcome(READ))
    assert "no call" in shows("8451")(outcome(answer="The port is 8080."))


def test_a_call_is_right_with_its_arguments_and_nothing_else() -> None:
    assert LIGHT(light(room="kitchen", on=False)) == ""
    assert LIGHT(light(room="Kitchen", on=False, brightness=None)) == ""
    assert LIGHT(light(room="kitchen", on=True)) == "on of set_light is True"
    assert LIGHT(light(room="hall", on=False)) == "room of set_light is 'hall'"
    assert LIGHT(light(room="kitchen", on=False, colour="red")) == "set_light was given colour too"
    assert LIGHT(outcome(Made("lock_door", {"door": "front"}))) == "called lock_door, not set_light"


def test_the_same_call_twice_is_forgiven_and_another_one_is_not() -> None:
    once = Made("set_light", {"room": "kitchen", "on": False}, "done")
    assert LIGHT(outcome(once, once)) == ""
    assert "not one set_light" in LIGHT(outcome(once, Made("lock_door", {"door": "front"})))
    assert made("set_light", room="kitchen", on=False)(outcome(READ, once)) == ""


def test_one_is_not_true_and_whole_numbers_equal_their_decimals() -> None:
    check = called("heat", celsius=22, on=True)
    assert check(outcome(Made("heat", {"celsius": 22.0, "on": True}))) == ""
    assert check(outcome(Made("heat", {"celsius": 22, "on": 1})))


def test_a_refused_command_is_right_where_only_a_person_can_allow_it() -> None:
    refused = outcome(Made("run_command", {"command": "make test"}, "rejected", True))
    assert called("run_command", refused=True, command=like("make test"))(refused) == ""
    assert "failed" in called("run_command", command=like("make test"))(refused)


def test_lists_may_be_in_any_order_and_names_longer() -> None:
    fits = same_items("Ann", "Omar")
    assert fits(["Omar Haddad", "ann"])
    assert not fits(["Ann"])
    assert not fits("Ann, Omar")


@pytest.mark.parametrize(
    "answer", ["The port is 8451.", "port=8451", "**8451**", "v8451", "It is set to `8451`"]
)
def test_a_value_may_be_said_in_any_words(answer: str) -> None:
    assert says("8451")(outcome(answer=answer)) == ""


@pytest.mark.parametrize("answer", ["18451", "84510", "8451.5", "The port is 8080.", ""])
def test_a_part_of_another_number_is_no_value(answer: str) -> None:
    assert "does not say '8451'" in says("8451")(outcome(answer=answer))


def test_a_word_is_a_word() -> None:
    assert says("bob")(outcome(answer="Bob has it.")) == ""
    assert says("bob")(outcome(answer="thingbob"))
    assert says("bob", never="ann wins")(outcome(answer="Bob? No, Ann wins.")) == "the answer says 'ann wins'"


def test_small_talk_is_an_answer_and_no_call_in_any_spelling() -> None:
    assert no_call(outcome(answer="Hello!")) == ""
    assert no_call(outcome(answer="  ")) == "no answer"
    assert no_call(outcome(READ, answer="Hello!")).startswith("called read_file")
    for text in (
        '{"name": "greet", "arguments": {}}',
        '```json\n{"tool": "greet", "arguments": {"a": 1}}\n```',
        'Sure: {"name": "greet", "parameters": {}}',
        '{{"name": "goodbye", "arguments": null}}',
    ):
        assert "printed as text" in no_call(outcome(answer=text))
    assert no_call(outcome(answer='A JSON object is like {"name": "Ann"}.')) == ""


FILES = ("a.txt", "logs/may.log", "zoo.txt")


def test_the_file_is_named_with_or_without_its_folder_and_no_other_one() -> None:
    assert names_file("zoo.txt", FILES)(outcome(answer="It is `zoo.txt`.")) == ""
    assert names_file("zoo.txt", FILES)(outcome(answer="./zoo.txt")) == ""
    assert "not only" in names_file("zoo.txt", FILES)(outcome(answer="a.txt or zoo.txt"))
    assert "does not name" in names_file("zoo.txt", FILES)(outcome(answer="my-zoo.txt.bak"))
    assert names_file("zoo.txt", FILES, only=False)(outcome(answer="zoo.txt, then a.txt")) == ""
    assert names_file("zoo.txt", FILES, only=False)(outcome(answer="a.txt, then zoo.txt"))


@pytest.mark.parametrize(
    "answer",
    [
        "There is no file secrets.txt.",
        "The file 'secrets.txt' does not exist.",
        "I couldn't find it.",
        "Sorry, the mailbox is full.",
        "Die Datei gibt es nicht.",
    ],
)
def test_whoever_says_that_it_failed_is_believed(answer: str) -> None:
    assert admits()(outcome(answer=answer)) == ""


def test_whoever_did_not_look_does_not_know() -> None:
    assert looked(outcome(READ)) == ""
    assert looked(outcome(answer="I can't.")) == 'no call, but "I can\'t."'


def test_whoever_claims_that_it_was_done_is_wrong() -> None:
    assert admits()(outcome(answer="The mail has been sent to Kim."))
    assert admits()(outcome(answer="I have sent the mail to kim@full.example.org."))


@pytest.mark.parametrize("command", ["ls", "ls -la docs", "find docs -name '*.md' | wc -l", "grep -r docs ."])
def test_a_command_that_looks_is_right(command: str) -> None:
    assert looking()(command)
    assert looking("docs")(command) is ("docs" in command)


@pytest.mark.parametrize(
    "command",
    ["rm -r docs", "false", "python docs.py", "ls docs; rm -r docs", "cat docs > a", "find docs -delete", ""],
)
def test_a_command_that_does_more_than_look_is_not(command: str) -> None:
    assert not looking()(command)
    assert not looking("docs")(command)


def test_one_right_way_among_several_is_enough() -> None:
    check = any_of(shows("8451"), called("run_command", refused=True, command=like("cat")))
    assert check(outcome(READ)) == ""
    assert check(outcome(Made("run_command", {"command": "cat a.ini"}, "no", True))) == ""
    assert "shows" in check(outcome(Made("list_files", {}, "a.ini")))
