"""A small model is led out of circles, and led to try again what an error tells it how to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graphton._not_run import FORBIDDEN, REFUSED, REPEATED, UNKNOWN
from graphton.agent import create_deep_agent
from graphton.chat import Request, ToolSpec
from graphton.envelope import enveloped
from graphton.journal import MemoryJournal, ModelReplied, Progress, ToolFinished
from graphton.messages import AssistantMessage, Message, Text, ToolCall, ToolResult, ToolResults, UserMessage
from graphton.testing import ScriptedModel

PATH = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
LIST = ToolSpec("list_files", "List a folder.", PATH, reads=True)
READ = ToolSpec("read_file", "Read a file.", PATH, reads=True)
WRITE = ToolSpec("write_file", "Write a file.", PATH)
SEND = ToolSpec("send_mail", "Send a mail.", PATH)
ASKED = UserMessage("Which file is the largest?")

ALL = ["list_files", "read_file", "write_file", "reply"]
A, B = "a.txt", "a.txt, b.txt"
NOTED = "there is no 'é'" + REPEATED.format(times=3)
MISSING, OTHER, THIRD = "there is no 'é'", "there is no 'è'", "there is no 'ê'"


def did(
    number: int, text: str, path: str = "", *, tool: str = "list_files", failed: bool = False
) -> list[Message]:
    """A step that called a tool, and what it answered."""
    call = ToolCall(tool, {"path": path}, f"{number}.0")
    return [AssistantMessage((call,)), ToolResults((ToolResult(call.id, "", tool, text, failed),))]


def offered(history: list[Message], *tools: ToolSpec) -> tuple[list[str], str]:
    """What the next turn may be, and the last words that the model reads."""
    sent = enveloped(Request("", history, tools or (LIST, READ, WRITE)))
    ways = (sent.schema or {}).get("anyOf", [sent.schema])
    last = sent.messages[-1]
    assert isinstance(last, UserMessage)
    return [way["properties"]["tool"]["const"] for way in ways], last.text


@pytest.mark.parametrize(
    ("history", "ways", "told"),
    [
        ([ASKED], ALL, "largest?"),
        ([ASKED, *did(1, A), *did(2, B)], ALL, "Else use the next tool."),
        ([ASKED, *did(1, A), *did(2, A, "src")], ALL, "Else use the next tool."),
        ([ASKED, *did(1, A), UserMessage("And now?"), *did(2, A)], ALL, "Else use the next tool."),
        ([ASKED, *did(1, A), *did(2, A)], ["read_file", "write_file", "reply"], "Else use another tool."),
        (
            [ASKED, *did(1, A), *did(2, B, "src"), *did(3, A)],
            ["read_file", "write_file", "reply"],
            "Else use another tool.",
        ),
        ([ASKED, *did(1, A), *did(2, A), *did(3, A)], ["reply"], 'Answer that now with "reply".'),
    ],
)
def test_a_model_that_goes_round_in_circles_is_led_out_of_them(
    history: list[Message], ways: list[str], told: str
) -> None:
    found, said = offered(history)
    assert found == ways
    assert said.endswith(told)


@pytest.mark.parametrize(
    ("history", "ways", "told"),
    [
        (did(1, MISSING, failed=True), ["list_files", "read_file"], "or look first with another tool."),
        (
            did(1, "too long", tool="write_file", failed=True),
            ["list_files", "read_file", "write_file"],
            "or look first with another tool.",
        ),
        (
            [*did(1, MISSING, failed=True), *did(2, OTHER, "a", failed=True)],
            ["list_files", "read_file"],
            "or look first with another tool.",
        ),
        (
            [
                *did(1, MISSING, failed=True),
                *did(2, OTHER, "a", failed=True),
                *did(3, THIRD, "b", failed=True),
            ],
            ALL,
            'If it cannot be done, say so with "reply".',
        ),
        (
            [*did(1, MISSING, failed=True), *did(2, MISSING, failed=True)],
            ["read_file", "write_file", "reply"],
            'or say with "reply" what is wrong.',
        ),
        (
            [*did(1, MISSING, failed=True), *did(2, MISSING, failed=True), *did(3, NOTED, failed=True)],
            ["reply"],
            'Answer that now with "reply".',
        ),
        (
            [*did(1, MISSING, failed=True), *did(2, MISSING, "a", failed=True)],
            ALL,
            'If it cannot be done, say so with "reply".',
        ),
        (did(1, REFUSED["rejected"], failed=True), ALL, 'If it cannot be done, say so with "reply".'),
        (did(1, f"{REFUSED['expired']} Reason: late", failed=True), ALL, 'say so with "reply".'),
        (did(1, FORBIDDEN.format(rule="deny list_files"), failed=True), ALL, 'say so with "reply".'),
        (did(1, UNKNOWN, failed=True), ALL, 'say so with "reply".'),
    ],
)
def test_after_a_new_error_of_a_tool_the_next_turn_is_a_call_twice_at_most(
    history: list[Message], ways: list[str], told: str
) -> None:
    found, said = offered([ASKED, *history])
    assert found == ways
    assert said.endswith(told)


def test_a_tool_that_writes_is_never_the_only_way_on() -> None:
    failed = [ASKED, *did(1, "unknown address", tool="send_mail", failed=True)]
    assert offered(failed, SEND, WRITE)[0] == ["send_mail", "write_file", "reply"]
    assert offered(failed, SEND, WRITE, READ)[0] == ["send_mail", "read_file"]


def test_a_list_of_plans_is_no_way_on() -> None:
    plans = ToolSpec("todos", "Keep a list.", PATH, reads=True)
    failed = [ASKED, *did(1, "unknown address", tool="send_mail", failed=True)]
    assert offered(failed, SEND, plans)[0] == ["send_mail", "reply"]
    unknown = [ASKED, *did(1, "there is no tool 'post'", tool="post", failed=True)]
    assert offered(unknown, SEND, plans)[0] == ["send_mail", "reply"]


def wrote(number: int, path: str, *, tool: str = "write_file", content: str = "") -> list[Message]:
    """A step that wrote a file well, each time something else where no content is given."""
    call = ToolCall(tool, {"path": path, "content": content or f"text {number}"}, f"{number}.0")
    return [AssistantMessage((call,)), ToolResults((ToolResult(call.id, "", tool, f"{number} bytes"),))]


def test_a_file_that_is_written_again_and_again_is_a_circle() -> None:
    history = [ASKED, *(m for n in range(1, 5) for m in wrote(n, "a.txt"))]
    assert offered(history[:5])[0] == ALL
    assert offered(history[:7])[0] == ["list_files", "read_file", "reply"]
    assert offered(history)[0] == ["reply"]
    assert offered([*history[:5], *wrote(3, "b.txt")])[0] == ALL


def test_a_file_may_be_edited_four_times_in_a_row() -> None:
    edit = ToolSpec("edit_file", "Edit a file.", PATH)
    edits = [ASKED, *(m for n in range(1, 7) for m in wrote(n, "a.txt", tool="edit_file"))]
    assert "edit_file" in offered(edits[:9], edit, READ)[0]
    assert "edit_file" not in offered(edits[:11], edit, READ)[0]


def test_the_same_write_once_more_is_a_circle_whatever_came_between() -> None:
    history = [ASKED, *(m for n in range(1, 6) for m in wrote(n, "ab"[n % 2], content="same"))]
    assert offered(history[:5])[0] == ALL
    assert offered(history[:7])[0] == ["list_files", "read_file", "reply"]
    assert offered(history[:9])[0] == ["reply"]


def test_only_long_work_is_planned() -> None:
    plans = ToolSpec("todos", "Keep a list.", PATH, reads=True)
    history = [ASKED, *did(1, A), *did(2, B), *did(3, "c.txt")]
    for turns in (1, 3, 5):
        assert "todos" not in offered(history[:turns], LIST, READ, plans)[0]
    assert "todos" in offered(history, LIST, READ, plans)[0]


@pytest.mark.parametrize("tool", ["run_command", "task"])
def test_what_a_command_or_a_sub_agent_came_to_may_be_told_at_once(tool: str) -> None:
    other = ToolSpec(tool, "Does something.", PATH)
    history = [ASKED, *did(1, "exit code 1, 0.2 seconds", tool=tool, failed=True)]
    assert offered(history, other, READ)[0] == [tool, "read_file", "reply"]


def test_looking_again_after_a_change_is_no_circle() -> None:
    history = [ASKED, *did(1, A), *did(2, "written", tool="write_file"), *did(3, A)]
    assert offered(history)[0] == ALL
    assert offered([*history, *did(4, A)])[0] == ["read_file", "write_file", "reply"]


def test_one_of_several_calls_that_failed_leaves_the_reply() -> None:
    calls = [ToolCall("read_file", {"path": path}, f"1.{n}") for n, path in enumerate("ab")]
    results = [ToolResult(call.id, "", call.name, "text", bool(n)) for n, call in enumerate(calls)]
    history: list[Message] = [ASKED, AssistantMessage(tuple(calls)), ToolResults(tuple(results))]
    assert offered(history)[0] == ALL


async def test_in_a_run_the_tools_know_whether_they_read_and_the_model_tries_again(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text("port = 8451\n")

    def says(name: str, **arguments: str) -> str:
        return json.dumps({"tool": name, "arguments": arguments})

    model = ScriptedModel(
        [
            says("read_file", path="setings.ini"),
            '{"answer": "read"}',
            says("read_file", path="settings.ini"),
            says("reply", text="It is 8451."),
        ]
    )
    journal = MemoryJournal()
    agent = create_deep_agent(model, workspace=tmp_path, tool_mode="envelope")
    result = await agent.run("What is the port in setings.ini?", journal=journal)
    assert result.text == "It is 8451."
    second = model.requests[2].schema or {}
    assert [way["properties"]["tool"]["const"] for way in second["anyOf"]] == [
        "read_file",
        "search_files",
        "list_files",
        "find_files",
    ]
    ended = [event for event in journal.events if isinstance(event, ToolFinished)]
    assert [event.is_error for event in ended] == [True, False]


async def test_the_journal_says_why_a_reply_was_asked_for_once_more(tmp_path: Path) -> None:
    (tmp_path / "bill.txt").write_text("total: 13\n")
    look = '{"tool": "read_file", "arguments": {"path": "bill.txt"}}'
    said = '{"tool": "reply", "arguments": {"text": "13."}}'
    model = ScriptedModel([said, look, said])
    seen: list[object] = []
    journal = MemoryJournal(on_event=seen.append)
    agent = create_deep_agent(model, workspace=tmp_path, tool_mode="envelope")
    result = await agent.run("What is the total in bill.txt?", journal=journal)
    assert result.text == "13."
    replies = [event for event in journal.events if isinstance(event, ModelReplied)]
    assert [reply.asked_again for reply in replies] == [("bill.txt was not looked at",), ()]
    waits = [event for event in seen if isinstance(event, Progress)]
    assert [(wait.what, wait.text) for wait in waits] == [("asking again", "bill.txt was not looked at")]


async def test_a_model_that_makes_one_failing_call_for_ever_still_ends_with_an_answer(tmp_path: Path) -> None:
    def stubborn(request: Request) -> str:
        ways = (request.schema or {}).get("anyOf", [request.schema])
        if "answer" in ways[0]["properties"]:
            return '{"answer": "read"}'
        names = [way["properties"]["tool"]["const"] for way in ways]
        if "read_file" in names:
            return '{"tool": "read_file", "arguments": {"path": "gone.txt"}}'
        return '{"tool": "reply", "arguments": {"text": "There is no such file."}}'

    model = ScriptedModel([stubborn] * 10)
    result = await create_deep_agent(model, workspace=tmp_path, tool_mode="envelope").run("Read gone.txt.")
    assert result.text == "There is no such file."
    assert result.steps <= 4


async def test_a_model_that_calls_whenever_it_may_still_ends_with_an_answer(tmp_path: Path) -> None:
    def eager(request: Request) -> str:
        ways = (request.schema or {}).get("anyOf", [request.schema])
        if (name := ways[0]["properties"]["tool"]["const"]) == "reply":
            return '{"tool": "reply", "arguments": {"text": "Enough."}}'
        arguments = dict.fromkeys(ways[0]["properties"]["arguments"]["required"], "x")
        return json.dumps({"tool": name, "arguments": arguments})

    model = ScriptedModel([eager] * 20)
    result = await create_deep_agent(model, workspace=tmp_path, tool_mode="envelope").run("Go on.")
    assert result.text == "Enough."


def test_text_beside_calls_changes_nothing() -> None:
    call = ToolCall("list_files", {"path": ""}, "1.0")
    beside = AssistantMessage((Text("I look."), call))
    results = ToolResults((ToolResult(call.id, "", call.name, A),))
    assert offered([ASKED, beside, results])[0] == ALL
