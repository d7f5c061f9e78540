"""History repair: whatever an interrupt left, the next request is one that providers accept."""

from __future__ import annotations

from graphton.history import History, estimate_tokens
from graphton.messages import AssistantMessage, Message, Text, ToolCall, ToolResult, ToolResults, UserMessage
from hypothesis import given
from hypothesis import strategies as st


def call(number: int) -> ToolCall:
    return ToolCall("t", {"n": number}, id=f"1.{number}", wire_id=f"w{number}")


def result(number: int, text: str = "ok") -> ToolResult:
    return ToolResult(f"1.{number}", f"w{number}", "t", text)


def texts(history: History) -> list[str]:
    return [
        r.text for message in history.messages if isinstance(message, ToolResults) for r in message.results
    ]


def test_a_call_without_a_result_gets_an_error_before_the_next_message() -> None:
    history = History()
    history.extend([UserMessage("go"), AssistantMessage((call(0), call(1))), UserMessage("stop that")])
    closed = history.messages[2]
    assert isinstance(closed, ToolResults)
    assert [(r.call, r.is_error) for r in closed.results] == [("1.0", True), ("1.1", True)]
    assert "interrupted" in closed.results[0].text


def test_results_are_put_in_call_order_and_missing_ones_filled_in() -> None:
    history = History()
    history.extend(
        [AssistantMessage((call(0), call(1), call(2))), ToolResults((result(2, "c"), result(0, "a")))]
    )
    assert [text[:1] for text in texts(history)] == ["a", "T", "c"]


def test_results_that_answer_nothing_are_dropped() -> None:
    history = History()
    history.extend([UserMessage("go"), ToolResults((result(0),)), AssistantMessage((Text("hi"),))])
    assert [type(message) for message in history.messages] == [UserMessage, AssistantMessage]


def test_an_empty_reply_is_dropped() -> None:
    history = History()
    history.extend([UserMessage("go"), AssistantMessage(())])
    assert len(history.messages) == 1


def test_the_digest_depends_on_model_system_tools_and_messages() -> None:
    base = {"model": "m", "system": "s", "tools": [{"name": "t"}]}
    digests = {History(**base).digest}  # type: ignore[arg-type]  # a plain dict of keyword arguments
    for name, value in (("model", "n"), ("system", "r"), ("tools", [])):
        digests.add(History(**{**base, name: value}).digest)  # type: ignore[arg-type]
    other = History(**base)  # type: ignore[arg-type]
    other.add(UserMessage("x"))
    digests.add(other.digest)
    assert len(digests) == 5


def test_the_estimate_is_a_quarter_of_the_bytes() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("abcd") == 1
    assert estimate_tokens("abcde") == 2
    assert estimate_tokens("ö" * 4) == 2


messages = st.lists(
    st.one_of(
        st.builds(UserMessage, st.text(max_size=5)),
        st.builds(
            AssistantMessage,
            st.lists(st.one_of(st.builds(Text, st.text(max_size=5)), st.integers(0, 3).map(call)), max_size=4)
            .map(lambda blocks: list({getattr(b, "id", id(b)): b for b in blocks}.values()))
            .map(tuple),
        ),
        st.builds(ToolResults, st.lists(st.integers(0, 3).map(result), max_size=4).map(tuple)),
    ),
    max_size=12,
)


@given(messages)
def test_every_call_is_answered_right_after_its_message(several: list[Message]) -> None:
    history = History()
    history.extend([*several, UserMessage("end")])
    for before, after in zip(history.messages, history.messages[1:], strict=False):
        wanted = [c.id for c in before.calls] if isinstance(before, AssistantMessage) else []
        got = [r.call for r in after.results] if isinstance(after, ToolResults) else []
        assert wanted == got
