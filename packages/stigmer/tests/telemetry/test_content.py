"""What models and tools say is exported only when somebody says so, and never with a key in it."""

from __future__ import annotations

from typing import Any

TASK, ANSWER, RESULT = "a private task", "a private answer", "a private result"
SENTINEL = "sk-sentinel-0123456789abcdef"
OTHER = "ghp_0123456789abcdefghijABCDEFGHIJ"


def run(stigmer: Any, fake: Any, collector: Any, **environment: str) -> bytes:
    """A run in which everything holds a key; all that was exported."""
    (stigmer.folder / "note.txt").write_text(f"{RESULT} {OTHER} {SENTINEL}")
    calls = [{"name": "read_file", "arguments": {"path": "note.txt"}}]
    fake.script({"text": f"I look with {OTHER}", "calls": calls}, {"text": f"{ANSWER} {SENTINEL} {OTHER}"})
    stigmer.environment |= {**collector.environment, **environment}
    assert stigmer("run", f"{TASK} {OTHER} {SENTINEL}").returncode == 0
    collector.one("execution default")
    assert stigmer("down").returncode == 0
    return b"".join(collector.bodies)


def test_nothing_that_was_said_is_exported_by_itself(collector: Any, stigmer: Any, fake: Any) -> None:
    everything = run(stigmer, fake, collector)
    for text in (TASK, ANSWER, RESULT, "note.txt", "I look with", SENTINEL, OTHER):
        assert text.encode() not in everything, text


def test_with_content_on_it_is_exported_without_keys(collector: Any, stigmer: Any, fake: Any) -> None:
    everything = run(stigmer, fake, collector, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="true")
    for text in (TASK, ANSWER, RESULT, "note.txt", "I look with"):
        assert text.encode() in everything, text
    for key in (SENTINEL, OTHER):
        assert key.encode() not in everything
    assert SENTINEL not in stigmer("logs").stdout
    assert OTHER not in stigmer("logs").stdout


def test_what_is_long_is_cut(collector: Any, stigmer: Any, fake: Any) -> None:
    fake.script({"text": "x" * 20_000})
    content = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    assert stigmer("run", "Go.", **collector.environment, **content).returncode == 0
    assert len(collector.one("execution default").attributes["gen_ai.output.messages"]) == 8193
