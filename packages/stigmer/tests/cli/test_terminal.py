"""What a model or a tool says cannot steer the terminal."""

from __future__ import annotations

import io
import sys

import pytest
from stigmer.api import event_pb2 as pb
from stigmer.cli._terminal import Terminal, harmless, size_text
from stigmer.cli._view import JsonView, TextView, arguments_line, question, usage_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext é 漢 🙂", "plain\n\ttext é 漢 🙂"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb", "a\\x0db"),
        ("a\r\nb", "a\nb"),
        ("bell\x07 del\x7f c1\x9b", "bell\\x07 del\\x7f c1\\x9b"),
        ("rm \u202efdp.exe", "rm \\u202efdp.exe"),
    ],
)
def test_control_characters_are_shown_and_do_nothing(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_a_question_shows_the_command_whole() -> None:
    command = "echo " + "x" * 5000 + "\nrm -rf /\x1b[1A"
    shown = question("run_command", b'{"command": ' + __import__("json").dumps(command).encode() + b"}")
    assert "x" * 5000 in shown
    assert "rm -rf /\\x1b[1A" in shown
    assert "\x1b" not in shown


def test_arguments_are_one_short_line() -> None:
    assert arguments_line(b'{"path": "notes.txt"}') == "notes.txt"
    assert arguments_line(b'{"path": "a.txt", "text": "x\\ny"}') == "path=a.txt text=x y"
    assert len(arguments_line(b'{"text": "' + b"y" * 900 + b'"}')) <= 120


def test_sizes_are_for_people() -> None:
    assert [size_text(n) for n in (7, 1234, 491_400_064, 1_117_320_768)] == [
        "7 B",
        "1.2 kB",
        "491 MB",
        "1.1 GB",
    ]


def test_tokens_that_no_server_counted_are_not_told() -> None:
    assert usage_line(pb.Usage(input_tokens=3144), 1.0) == "1.0 s"
    assert usage_line(pb.Usage(input_tokens=3144, output_tokens=5), 1.0) == "3,144 tokens in, 5 out · 1.0 s"


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "try 2 at once"), (2.0, "try 2 in 2 s")])
def test_a_retry_without_a_wait_comes_at_once(
    seconds: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    event = pb.Event(retrying=pb.Retrying(step=1, in_seconds=seconds, reason="broken", **{"try": 2}))
    TextView(Terminal(sys.stdout, sys.stderr)).show("exec_1", event)
    assert capsys.readouterr().err == f"broken; {said}\n"


def test_json_lines_are_written_when_nothing_follows_at_once() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    view = JsonView(Terminal(out, sys.stderr))
    event = pb.Event(notice=pb.Notice(code="n", text="ü"))
    view.show("exec_1", event, more=True)
    assert out.buffer.getvalue() == b""  # type: ignore[attr-defined]  # a BytesIO
    view.show("exec_1", event)
    assert len(out.buffer.getvalue().decode().splitlines()) == 2  # type: ignore[attr-defined]  # a BytesIO
