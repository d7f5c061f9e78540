"""Server-sent events come out the same however the bytes were split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from graphton.chat._sse import ServerSentEvent, SSEParser
from hypothesis import given
from hypothesis import strategies as st

STREAM = (
    b'\xef\xbb\xbfevent: first\r\ndata: {"a":1}\r\n\r\n'
    b": a comment\n\n"
    b"data: line one\ndata: line two\nid: 7\nretry: 10\n\n"
    b"event:tight\rdata:no blank\r\r"
    b"event: nothing\n\n"
    b"data\n\n"
    b"data:  two blanks \xe2\x82\xac\n\n"
    b"event: unfinished\ndata: lost\n"
)
EVENTS = [
    ServerSentEvent("first", b'{"a":1}'),
    ServerSentEvent("", b"line one\nline two"),
    ServerSentEvent("tight", b"no blank"),
    ServerSentEvent("", b""),
    ServerSentEvent("", b" two blanks \xe2\x82\xac"),
]


def parse(*chunks: bytes) -> list[ServerSentEvent]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_a_whole_stream_gives_its_events_and_drops_an_unfinished_one() -> None:
    assert parse(STREAM) == EVENTS


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_cut_at_any_byte_changes_nothing(cut: int) -> None:
    assert parse(STREAM[:cut], STREAM[cut:]) == EVENTS


def test_single_bytes_are_enough() -> None:
    assert parse(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cuts_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parse(*(STREAM[a:b] for a, b in pairwise(edges))) == EVENTS


def test_comments_for_hours_are_not_held() -> None:
    parser = SSEParser()
    for _ in range(1000):
        assert parser.feed(b": still here\n\n") == []
    assert parser.held == 0


def test_an_unfinished_event_is_counted() -> None:
    parser = SSEParser()
    parser.feed(b"data: 12345\ndata: 678")
    assert parser.held == len("12345") + len("data: 678")
