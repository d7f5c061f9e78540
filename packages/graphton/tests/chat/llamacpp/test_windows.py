"""The window of the built-in llama.cpp: chosen once, by the prompt and by memory, grown once, and never a surprise."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from graphton.chat._llamacpp_file import ModelFile, Room, choose_room, locate
from graphton.chat._llamacpp_pool import pool
from graphton.chat.base import Chunk, Done, Request, TextChunk, WaitChunk
from graphton.chat.llamacpp import LlamaCppChat, close_all, served
from graphton.errors import PromptTooLong, SettingError
from graphton.messages import AssistantMessage, StopReason, UserMessage
from graphton.models import ModelRef, ModelSettings

GB = 1 << 30
BIG = ModelFile(Path("big.gguf"), GB, 32_768, 28_672)
ENDLESS = {">": "a", "a": "a"}


def chat_with(path: str, **settings: int) -> LlamaCppChat:
    return LlamaCppChat(ModelRef("llamacpp", path), ModelSettings(**{"max_tokens": 4, **settings}))  # type: ignore[arg-type]  # numbers, all of them


def ask(text: str) -> Request:
    return Request("", [UserMessage(text)])


async def gather(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


async def reply(chat: LlamaCppChat, text: str) -> AssistantMessage:
    done = (await gather(chat.stream(ask(text))))[-1]
    assert isinstance(done, Done)
    return done.message


async def watch_until_it_speaks(chat: LlamaCppChat, text: str) -> None:
    async with aclosing(chat.stream(ask(text))) as stream:  # type: ignore[type-var]  # a generator by another name
        async for chunk in stream:
            if isinstance(chunk, TextChunk):
                return


# ---- by memory, without a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "asked", "window"),
    [
        (900, None, 8192),
        (8192, None, 8192),
        (8193, None, 16_384),
        (900_000, None, 32_768),
        (900, 100, 8192),
        (900, 8193, 16_384),
        (30_000, 16_384, 16_384),
    ],
)
def test_the_window_is_the_smallest_step_of_the_ladder_that_holds_it(
    need: int, asked: int | None, window: int
) -> None:
    room = choose_room(BIG, need, asked, free=16 * GB, slots=2)
    assert (room.window, room.slots, room.notice) == (window, 2, "")


def test_a_model_with_a_small_window_is_served_with_all_of_it() -> None:
    room = choose_room(ModelFile(Path("t.gguf"), GB, 2048, 1), 900, None, free=16 * GB, slots=2)
    assert room.window == 2048


def test_a_window_above_the_models_limit_is_an_error_naming_both() -> None:
    with pytest.raises(SettingError, match="context_window 40000 is above the 32768 tokens") as caught:
        choose_room(BIG, 900, 40_000, free=16 * GB, slots=2)
    assert caught.value.hint == "context_window=32768"


def test_too_little_memory_takes_the_second_slot_before_it_takes_the_window() -> None:
    room = choose_room(BIG, 900, 16_384, free=BIG.memory(16_384), slots=2)
    assert (room.window, room.slots, room.notice) == (16_384, 1, "")


def test_too_little_memory_for_the_window_lowers_it_and_says_so() -> None:
    asked = choose_room(BIG, 900, 32_768, free=BIG.memory(16_384), slots=2)
    assert (asked.window, asked.slots) == (16_384, 1)
    assert (
        asked.notice
        == "context_window 32768 is lowered to 16384: it needs 2.8 GB of memory and 2.3 GB are free"
    )
    needed = choose_room(BIG, 9000, None, free=BIG.memory(4096), slots=2)
    assert needed.window == 4096
    assert needed.notice.startswith("the context window of 16384 tokens is lowered to 4096")


def test_a_machine_without_memory_is_told_and_tries_with_the_smallest() -> None:
    room = choose_room(BIG, 900, None, free=GB, slots=2)
    assert (room.window, room.slots) == (4096, 1)
    assert room.notice.startswith("memory is short: big.gguf takes about 1.9 GB, 1.1 GB are free")


def test_prompts_are_kept_in_a_part_of_what_stays_free() -> None:
    free = BIG.memory(2 * 8192) + 400_000_000
    assert choose_room(BIG, 900, None, free=free, slots=2).cache == 100_000_000
    assert choose_room(BIG, 900, None, free=64 * GB, slots=2).cache == BIG.kv_bytes * 2 * 8192


# ---- with a real llama.cpp ---------------------------------------------------------------------------------------------


async def test_the_window_holds_prompt_reply_and_room_to_grow(tiny: Callable[..., str]) -> None:
    path = tiny("sizes", ENDLESS)
    chat = chat_with(path, max_tokens=4)
    await reply(chat, "x")
    assert (chat.window, chat.settings.context_window) == (8192, 8192)
    larger = chat_with(path, max_tokens=20_000)
    await watch_until_it_speaks(larger, "y" * 1000)
    assert larger.window == 32_768


async def test_a_reply_length_that_nobody_asked_for_takes_a_running_server_as_it_is(
    tiny: Callable[..., str],
) -> None:
    path = tiny("usual", ENDLESS)
    first = LlamaCppChat(ModelRef("llamacpp", path), ModelSettings())
    await watch_until_it_speaks(first, "x")
    assert first.window == 16_384, "prompt, the usual 8,192 tokens of reply, and room to grow"
    await close_all()
    await reply(chat_with(path), "x")
    second = LlamaCppChat(ModelRef("llamacpp", path), ModelSettings())
    await watch_until_it_speaks(second, "x")
    assert (second.window, len(served())) == (8192, 1)


async def test_a_running_server_with_a_larger_window_is_used_as_it_is(tiny: Callable[..., str]) -> None:
    path = tiny("larger", ENDLESS)
    large, small = chat_with(path, context_window=16_384), chat_with(path, context_window=8192)
    await reply(large, "x")
    await reply(small, "x")
    assert (small.window, len(served())) == (16_384, 1)


async def test_a_run_that_needs_more_leaves_the_server_of_another_run_alone(tiny: Callable[..., str]) -> None:
    path = tiny("beside", ENDLESS)
    small, large = chat_with(path), chat_with(path, context_window=16_384)
    await reply(small, "x")
    [(_, pid)] = served()
    await reply(large, "x")
    await reply(small, "x")
    assert pid in [pid for _, pid in served()]
    assert (small.window, large.window) == (8192, 16_384)


async def test_a_server_that_nobody_needs_is_ended_for_one_that_needs_its_memory_and_no_other_is(
    tiny: Callable[..., str],
) -> None:
    needed, left = chat_with(tiny("needed", ENDLESS)), chat_with(tiny("left", ENDLESS))
    await reply(needed, "x")
    await reply(left, "x")
    await left.close()  # Its run has ended; the other one is between two steps.
    huge = replace(locate(tiny("huge", ENDLESS)), size=10**15)
    server = await pool().server(huge, 4096, lambda free: Room(4096, 1))
    await server.ready.wait()
    assert sorted(name for name, _ in served()) == ["huge.gguf", "needed.gguf"]


async def test_a_larger_server_counts_as_needed_from_the_moment_that_it_is_announced(
    tiny: Callable[..., str],
) -> None:
    chat = chat_with(tiny("announced", ENDLESS))
    await reply(chat, "x" * 3000)
    async with aclosing(chat.stream(ask("x" * 16_340))) as stream:  # type: ignore[type-var]  # a generator by another name
        said = await anext(stream)
        assert isinstance(said, WaitChunk)
        assert "raised from 8192 to 16384" in said.text
        assert [s.idle for s in pool()._servers if s.room.window == 16_384] == [False]


async def test_a_server_that_is_ended_leaves_no_task_behind(tiny: Callable[..., str]) -> None:
    server = await pool().server(locate(tiny("ends", ENDLESS)), 4096, lambda free: Room(4096, 1))
    await server.ready.wait()
    await close_all()
    await asyncio.sleep(0)  # What was cancelled ends with the loop's next round.
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_conversation_that_outgrows_its_window_gets_one_step_up_and_says_so(
    tiny: Callable[..., str],
) -> None:
    path = tiny("grows", ENDLESS)
    chat = chat_with(path)
    await reply(chat, "x" * 3000)
    assert chat.largest_window == 32_768
    with_growth = ask("x" * 16_340)  # More than 8,192 by the two bytes a token that were seen just now.
    chunks = await gather(chat.stream(with_growth))
    said = f"context window raised from 8192 to 16384 tokens; {path} is loaded again"
    assert chunks[0] == WaitChunk("load", text=said)
    assert chat.notices == (said,)
    assert chat.largest_window == 16_384
    with pytest.raises(PromptTooLong) as caught:
        await gather(chat.stream(ask("x" * 18_000)))
    assert not caught.value.retryable
    assert (chat.window, chat.notices) == (16_384, (said,))


async def test_a_prompt_longer_than_estimated_grows_the_window_for_the_next_try(
    tiny: Callable[..., str],
) -> None:
    path = tiny("estimate", ENDLESS)
    chat = chat_with(path)
    text = "ä" * 6000  # Two bytes each: 3,000 tokens by the estimate, 12,000 in truth.
    with pytest.raises(PromptTooLong) as caught:
        await reply(chat, text)
    assert caught.value.retryable
    assert "the prompt of 12,0" in caught.value.message
    message = await reply(chat, text)
    assert message.usage.input_tokens > 12_000
    assert chat.window == 16_384


async def test_a_prompt_that_no_window_holds_ends_with_the_budget_by_part(tiny: Callable[..., str]) -> None:
    path = tiny("short", ENDLESS, context=4096)
    chat = chat_with(path, max_tokens=100)
    with pytest.raises(PromptTooLong) as caught:
        await reply(chat, "word " * 4000)
    assert not caught.value.retryable
    text = str(caught.value)
    for row in (
        "system text",
        "tools (0)",
        "messages (1)",
        "room for the reply        100",
        "context window          4,096",
    ):
        assert row in text
    assert "shorten the conversation" in text


async def test_a_reply_that_fills_the_window_ends_there_and_nothing_is_shifted(
    tiny: Callable[..., str],
) -> None:
    path = tiny("full", ENDLESS, context=4096)
    message = await reply(chat_with(path, max_tokens=100_000), "x")
    assert message.stop is StopReason.CONTEXT
    used = message.usage.input_tokens + message.usage.output_tokens
    assert 4094 <= used <= 4096
    assert message.text == "a" * len(message.text)


async def test_compaction_counts_with_the_window_that_was_allocated(tiny: Callable[..., str]) -> None:
    chat = chat_with(tiny("asked", ENDLESS), context_window=9000)
    assert chat.largest_window == 9000
    await reply(chat, "x")
    assert chat.largest_window == 16_384


async def test_less_than_was_promised_is_told_and_believed(tiny: Callable[..., str]) -> None:
    path = tiny("capped", ENDLESS, context=4096)
    await pool().server(
        locate(path), 4096, lambda free: Room(16_384, 1)
    )  # llama.cpp caps it at the model's own.
    chat = chat_with(path)
    await reply(chat, "x")
    assert chat.window == 4096
    assert chat.notices == (
        f"llama.cpp gives {path} a context window of 4096 tokens, not the 16384 that it was started for",
    )
    again = chat_with(path, context_window=4096)
    await reply(again, "x")
    assert (again.window, len(served())) == (4096, 1), "another server would get no more"
