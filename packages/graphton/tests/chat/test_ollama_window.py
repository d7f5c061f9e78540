"""The window of a chat with Ollama: rungs, memory, what is loaded already, one step up, and what was really given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from graphton.chat._window import (
    LADDER,
    ROOM_TO_GROW,
    Bounds,
    Choice,
    Prompt,
    bytes_per_token,
    choose,
    fits_loaded,
    reply_in,
    was_cut,
)
from graphton.chat.base import Chunk, Done, Request, WaitChunk
from graphton.chat.ollama import OllamaChat
from graphton.errors import PromptTooLong, StatusError
from graphton.messages import AssistantMessage, UserMessage
from graphton.models import ModelRef, ModelSettings
from graphton.testing import FakeProviders, FakeRequest, Reply

QWEN_7B = {
    "attention.head_count": 28,
    "attention.head_count_kv": 4,
    "block_count": 28,
    "embedding_length": 3584,
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        server.rule(lambda request: Reply(text="ok"))
        yield server


def chat(fake: FakeProviders, model: str = "qwen2.5-coder:7b", **settings: Any) -> OllamaChat:
    return OllamaChat(ModelRef("ollama", model), ModelSettings(**{"base_url": fake.ollama_url, **settings}))


async def ask(one: OllamaChat, text: str = "Hello") -> tuple[list[Chunk], AssistantMessage]:
    chunks = [chunk async for chunk in one.stream(Request("", [UserMessage(text)]))]
    last = chunks.pop()
    assert isinstance(last, Done)
    return chunks, last.message


def windows(fake: FakeProviders) -> list[int]:
    return [r.json["options"]["num_ctx"] for r in fake.chats]


def text_of(tokens: int) -> str:
    """A text that makes a request of exactly so many tokens, by our estimate."""
    return "x" * ((tokens - 1) * 4 - len('{"role":"user","content":""}'))


# --- rungs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", LADDER[:-1])
async def test_a_prompt_just_under_a_rung_takes_it_and_one_just_over_takes_the_next(
    fake: FakeProviders, step: int
) -> None:
    fake.library.context = 1 << 20
    under = step - 1000 - ROOM_TO_GROW
    await ask(chat(fake, "m:1b", max_tokens=1000), text_of(under))
    await ask(chat(fake, "n:1b", max_tokens=1000), text_of(under + 1))
    assert windows(fake) == [step, LADDER[LADDER.index(step) + 1]]


async def test_above_the_last_rung_a_prompt_is_refused_with_its_budget(fake: FakeProviders) -> None:
    fake.library.context = 1 << 20
    await ask(chat(fake, "m:1b", max_tokens=1000), text_of(LADDER[-1] - 1000))
    assert windows(fake) == [LADDER[-1]]
    with pytest.raises(PromptTooLong) as caught:
        await ask(chat(fake, "m:1b", max_tokens=1000), "x " * LADDER[-1] * 2)
    for part in ("system text", "tools (0)", "messages (1)", "room for the reply", "context window"):
        assert part in caught.value.message
    assert "hint: shorten the conversation" in str(caught.value)


@pytest.mark.parametrize("context", [1024, 2048, 5000, 40_960])
async def test_no_window_is_larger_than_what_the_model_was_made_for(
    fake: FakeProviders, context: int
) -> None:
    fake.library.context = context
    one = chat(fake, "qwen2.5-coder:1.5b", max_tokens=50_000)
    await ask(one)
    assert windows(fake) == [context]
    assert (one.window, one.largest_window) == (context, context)
    assert one.notices == ()


async def test_a_prompt_that_the_model_cannot_hold_names_no_larger_window(fake: FakeProviders) -> None:
    fake.library.context = 2048
    with pytest.raises(PromptTooLong) as caught:
        await ask(chat(fake), "word " * 3000)
    assert fake.chats == []
    assert "shorten the conversation" in caught.value.hint
    assert not caught.value.retryable


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "reply", "said", "memory", "chosen"),
    [
        (1000, 8192, False, None, Choice(16_384, 8192, 16_384)),
        (1000, 8192, False, 20_000, Choice(16_384, 8192, 16_384)),
        (1000, 8192, False, 16_000, Choice(8192, 4096, 16_384)),
        (1000, 8192, False, 5000, Choice(4096, 2048, 16_384)),
        (1000, 8192, False, 0, Choice(4096, 2048, 16_384)),
        (1000, 6000, True, 5000, Choice(4096, 6000, 16_384)),  # a wish for long replies is not rewritten
        (5000, 8192, False, 5000, Choice(8192, 4096, 16_384)),  # what the prompt needs is tried in any case
    ],
)
def test_short_memory_makes_window_and_reply_smaller(
    tokens: int, reply: int, said: bool, memory: int | None, chosen: Choice
) -> None:
    assert choose(tokens, reply, Bounds(None, memory), said=said) == chosen


def test_a_model_with_a_small_window_leaves_half_of_it_to_a_reply_that_nobody_asked_for() -> None:
    assert choose(100, 8192, Bounds(2048), said=False) == Choice(2048, 1024, 2048)
    assert choose(100, 8192, Bounds(2048), said=True) == Choice(2048, 8192, 2048)
    assert reply_in(16_384, 8192, said=False) == 8192


async def test_too_little_memory_is_said_with_what_is_free(fake: FakeProviders) -> None:
    fake.library.info = QWEN_7B
    one = chat(fake, "big:70b")
    fake.library.become(models={"big:70b": ["completion"]}, sizes={"big:70b": 40_000_000_000_000})
    await ask(one)
    if one._known.free() is None:
        pytest.skip("memory is not known where there is a graphics card")
    assert windows(fake) == [4096]
    assert fake.chats[0].json["options"]["num_predict"] == 2048
    (said,) = one.notices
    assert said.startswith(
        "memory is short: big:70b gets a window of 4,096 tokens, and replies of at most 2,048, not of 16,384, which "
        "would take 40001.3 GB; "
    )
    assert one.largest_window == 4096


async def test_memory_enough_is_not_mentioned(fake: FakeProviders) -> None:
    fake.library.become(models={"tiny:1b": ["completion"]}, sizes={"tiny:1b": 1000})
    fake.library.info = {**QWEN_7B, "block_count": 1, "attention.head_count_kv": 1}
    one = chat(fake, "tiny:1b")
    await ask(one)
    assert windows(fake) == [16_384]
    assert one.notices == ()


async def test_a_load_that_fails_for_lack_of_memory_is_tried_with_smaller_windows(
    fake: FakeProviders,
) -> None:
    fake.library.load = Reply(
        status=500, error="model requires more system memory (9.2 GiB) than is available (3.1 GiB)"
    )
    one = chat(fake)
    with pytest.raises(StatusError, match=r"9\.2 GiB") as caught:
        await ask(one)
    assert fake.chats == []
    assert one.notices == (
        "Ollama has too little memory for a window of 16,384 tokens: 8,192 are tried",
        "Ollama has too little memory for a window of 8,192 tokens: 4,096 are tried",
    )
    assert "a smaller window than context_window=4096" in caught.value.hint
    assert not caught.value.retryable


async def test_a_window_that_somebody_set_is_not_lowered_for_lack_of_memory(fake: FakeProviders) -> None:
    fake.library.load = Reply(
        status=500, error="model requires more system memory (9.2 GiB) than is available"
    )
    one = chat(fake, context_window=32_768)
    with pytest.raises(StatusError) as caught:
        await ask(one)
    assert "a smaller window than context_window=32768" in caught.value.hint
    assert one.notices == ()


# --- what is loaded already -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loaded", "serves"), [(4096, False), (8192, True), (16_384, True), (131_072, True), (262_144, False)]
)
def test_a_loaded_window_serves_if_it_is_neither_too_small_nor_absurdly_large(
    loaded: int, serves: bool
) -> None:
    choice = choose(1000, 8192, Bounds(), said=False)
    assert fits_loaded(loaded, 1000, choice, said=False) is serves


def test_a_reply_that_was_asked_for_must_fit_a_loaded_window() -> None:
    choice = choose(1000, 9000, Bounds(), said=True)
    assert not fits_loaded(8192, 1000, choice, said=True)
    assert fits_loaded(16_384, 1000, choice, said=True)


async def test_a_model_that_is_loaded_with_room_enough_is_used_as_it_is(fake: FakeProviders) -> None:
    fake.library.loaded["qwen2.5-coder:7b"] = 8192
    one = chat(fake)
    chunks, _ = await ask(one)
    assert not any(isinstance(chunk, WaitChunk) for chunk in chunks)
    assert windows(fake) == [8192]
    assert fake.library.loads == []
    assert one.notices == (
        "replies are limited to 4,096 tokens: qwen2.5-coder:7b is loaded with a window of 8,192",
    )


async def test_a_run_of_many_steps_loads_the_model_once(fake: FakeProviders) -> None:
    one = chat(fake)
    for step in range(6):
        await ask(one, "more " * 100 * step)
    assert fake.library.loads == [("qwen2.5-coder:7b", 16_384)]


async def test_two_chats_agree_on_the_larger_window_and_load_nothing_again(fake: FakeProviders) -> None:
    small, large = chat(fake, "m:1b", max_tokens=1000), chat(fake, "m:1b", max_tokens=5000)
    await ask(small)
    await ask(large)
    await ask(small)
    assert windows(fake) == [4096, 8192, 8192]
    assert fake.library.loads == [("m:1b", 4096), ("m:1b", 8192)]
    assert small.window == 8192
    assert small.notices == ()


async def test_a_model_that_is_to_stay_longer_is_not_told_to_stay_shorter(fake: FakeProviders) -> None:
    one = chat(fake)
    await ask(one)
    assert fake.chats[0].json["keep_alive"] == "30m"
    fake.library.expires = "2318-11-25T01:32:03.456789123Z"
    one._known.forget()
    await ask(one)
    assert "keep_alive" not in fake.chats[1].json


# --- what was really given ------------------------------------------------------------------------------------------


async def test_a_server_that_gives_less_is_noticed_and_the_smaller_window_counts(fake: FakeProviders) -> None:
    one = chat(fake, max_tokens=6000)
    fake.library.limit = 6000
    await ask(one)
    assert one.notices == (
        "Ollama gave qwen2.5-coder:7b a context window of 6000 tokens, not the 8192 asked for",
    )
    assert (one.window, one.largest_window) == (6000, 6000)
    await ask(one)
    assert windows(fake) == [8192, 8192]  # another number would load the model again
    assert fake.library.loads == [("qwen2.5-coder:7b", 6000)]


async def test_a_model_that_is_served_under_another_name_is_no_old_version() -> None:
    """Ollama serves two models of one file from one process, and lists the name that was used first."""
    async with FakeProviders() as fake:

        def answer(request: FakeRequest) -> Reply:
            fake.library.loaded = {"first:latest": 16_384}
            return Reply(text="ok")

        fake.library.become(models={name: ["completion"] for name in ("first:latest", "qwen2.5-coder:7b")})
        fake.rule(answer)
        one = chat(fake)
        await ask(one)
    assert one.notices == (
        "the context window that qwen2.5-coder:7b was really given is not known: the server does not list it as "
        "loaded; another name of the same file may be",
    )


async def test_a_version_that_does_not_tell_the_window_is_said(fake: FakeProviders) -> None:
    fake.library.version = "0.9.6"
    one = chat(fake)
    await ask(one)
    assert one.notices == (
        "Ollama 0.9.6 cuts a prompt that is too long (0.12.6 and later refuse it): we find that out by its count of "
        "tokens",
        "the context window that qwen2.5-coder:7b was really given is not known: this version of Ollama does not tell",
    )
    assert one.window == 16_384


async def test_estimates_follow_what_the_server_counted() -> None:
    """A prompt of two bytes a token needs twice the window that it seems to need."""
    async with FakeProviders() as fake:
        fake.add(Reply(text="ok", input_tokens=4000), Reply(text="ok", input_tokens=6000))
        one = chat(fake, "m:1b", max_tokens=100)
        await ask(one, text_of(1900))
        await ask(one, text_of(2100))
        assert windows(fake) == [4096, 8192]


@pytest.mark.parametrize(
    ("size", "evaluated", "expected"),
    [
        (8000, 2000, 4.0),
        (8000, 4000, 2.0),
        (8000, 8000, 2.0),
        (8000, 500, 4.0),
        (100, 90, 4.0),
        (8000, None, 4.0),
    ],
)
def test_bytes_per_token_stay_between_two_and_four(size: int, evaluated: int | None, expected: float) -> None:
    assert bytes_per_token(Prompt(0, 0, size, 0, 1, 10, 100), evaluated) == expected


async def test_digits_are_counted_one_by_one() -> None:
    """Qwen makes a token of each: 6,000 of them are no 1,500 tokens."""
    async with FakeProviders() as fake:
        fake.add(Reply(text="ok", input_tokens=6100), Reply(text="ok", input_tokens=6200))
        one = chat(fake, "m:1b", max_tokens=100)
        await ask(one, "Add up: " + "271828 " * 1000)
        await ask(one, "Add up: " + "314159 " * 1000)
        assert windows(fake) == [16_384, 16_384]


def test_a_reply_tells_the_bytes_of_a_token_beside_digits() -> None:
    prompt = Prompt(0, 0, 12_000, 0, 1, 10, 100, digits=4000)
    assert prompt.tokens == 6001
    assert bytes_per_token(prompt, 8000) == 2.0  # 4,000 digits, and 8,000 bytes in as many other tokens
    assert bytes_per_token(prompt, 3000) == 4.0  # A model that takes three digits at once.


def test_digits_that_a_model_takes_three_at_once_are_no_sign_of_a_cut_prompt() -> None:
    prompt = Prompt(0, 0, 24_000, 0, 1, 10, 100, digits=21_000)
    assert prompt.tokens > 8192
    assert not was_cut(prompt, 7800, 8192)
