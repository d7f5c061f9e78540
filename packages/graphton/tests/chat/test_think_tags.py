"""Thinking in <think> tags is thinking, wherever the pieces are cut; all other text stays as it is."""

from __future__ import annotations

import pytest
from graphton.chat._think_tags import ThinkTags, told_apart
from graphton.chat.base import TextChunk, ThinkingChunk
from hypothesis import given
from hypothesis import strategies as st

CASES = [
    ("plain text", "", "plain text"),
    ("<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ("\n<think>\nHm.\n\nWell.\n</think>\n\nYes.\n", "Hm.\n\nWell.", "Yes.\n"),
    ("<think>\n\n</think>\n\nYes.", "", "Yes."),
    ("<think>cut off", "cut off", ""),
    ("<think>a</b</think", "a</b</think", ""),
    ("Say <think>this</think>", "", "Say <think>this</think>"),
    ("<thing>x", "", "<thing>x"),
    ("<thi", "", "<thi"),
    ("  two blanks", "", "  two blanks"),
    ("<think>a</think><think>b</think>", "a", "<think>b</think>"),
]


def split(pieces: list[str]) -> tuple[str, str]:
    tags = ThinkTags()
    chunks = [c for piece in pieces for c in tags.feed(piece)]
    chunks.extend(tags.end())
    assert all(c.text for c in chunks)
    thought = "".join(c.text for c in chunks if isinstance(c, ThinkingChunk))
    return thought, "".join(c.text for c in chunks if isinstance(c, TextChunk))


@pytest.mark.parametrize(("text", "thought", "said"), CASES)
def test_thinking_is_told_from_text_at_every_cut(text: str, thought: str, said: str) -> None:
    assert split([text]) == (thought, said)
    assert split(list(text)) == (thought, said)
    for at in range(len(text)):
        assert split([text[:at], text[at:]]) == (thought, said)


@given(st.text(), st.integers(1, 5))
def test_text_without_the_tag_is_never_changed(text: str, size: int) -> None:
    text = text.replace("<think>", "")
    assert split([text[i : i + size] for i in range(0, len(text), size)]) == ("", text)


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("Hm.\nWell.\n</think>\n\nYes.\n", "Hm.\nWell.", "Yes.\n"),
        ("Hm.</think>\nYes.", "Hm.", "Yes."),
        ("Hm.\n</think>Yes.", "Hm.", "Yes."),
        ("</think>\n\nYes.", "", "Yes."),
        ("Hm.\n</think>", "Hm.", ""),
        ("</think>\n", "", "</think>\n"),
        ("Yes.", "", "Yes."),
        ("The tag </think> ends it.", "", "The tag </think> ends it."),
        ("Write <think>\nso\n</think>\n.", "", "Write <think>\nso\n</think>\n."),
        ("So:\n```\nx\n</think>\n```\n", "", "So:\n```\nx\n</think>\n```\n"),
    ],
)
def test_a_tag_that_the_template_opened_is_found_in_the_whole_reply(
    text: str, thought: str, said: str
) -> None:
    assert told_apart(text) == (thought, said)
