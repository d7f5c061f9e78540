"""Several calls of one model at a time: each has the whole window, and finds again what was read of its conversation."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from graphton.chat._llamacpp_file import Room, locate
from graphton.chat._llamacpp_pool import pool
from graphton.chat._llamacpp_slots import Slots, Talk
from graphton.chat._machine import slots_worth
from graphton.chat.base import Chunk, Done, Request, TextChunk, WaitChunk
from graphton.chat.llamacpp import LlamaCppChat, served
from graphton.errors import ProviderTimeout
from graphton.messages import AssistantMessage, Message, Text, UserMessage
from graphton.models import ModelRef, ModelSettings, Timeouts

ENDLESS = {">": "a", "a": "a"}
SYSTEM = "Be brief. " * 20


def chat_with(path: str, **settings: int) -> LlamaCppChat:
    return LlamaCppChat(ModelRef("llamacpp", path), ModelSettings(**{"max_tokens": 4, **settings}))  # type: ignore[arg-type]  # numbers, all of them


def ask(*said: str, system: str = SYSTEM) -> Request:
    """A conversation: what the user said, and the model's `ok` between."""
    messages: list[Message] = []
    for text in said:
        messages += [AssistantMessage((Text("ok"),))] if messages else []
        messages.append(UserMessage(text))
    return Request(system, messages)


async def gather(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


async def reply(chat: LlamaCppChat, request: Request) -> AssistantMessage:
    done = (await gather(chat.stream(request)))[-1]
    assert isinstance(done, Done)
    return done.message


# ---- which slot a call gets ------------------------------------------------------------------------------------------


class Run:
    """Whoever holds a slot."""


async def taken(slots: Slots, talk: Talk, run: object) -> int:
    async with slots.turn(talk, run) as slot:
        return slot.id


async def test_a_run_comes_back_to_its_slot_whatever_ran_meanwhile() -> None:
    slots, one, other = Slots(2), Run(), Run()
    first, second = Talk(b"same", b"one"), Talk(b"same", b"other")
    assert [await taken(slots, talk, run) for talk, run in ((first, one), (second, other))] == [0, 1]
    assert [await taken(slots, talk, run) for talk, run in ((second, other), (first, one))] == [1, 0]


async def test_a_new_run_takes_the_slot_of_one_that_has_ended_and_began_alike() -> None:
    slots, ended, new = Slots(2), Run(), Run()
    await taken(slots, Talk(b"same", b"one"), ended)
    slots.leave(ended)
    assert await taken(slots, Talk(b"same", b"other"), new) == 0
    assert await taken(slots, Talk(b"strange", b"third"), new) == 1, "an empty one, where nothing is shared"


async def test_a_run_whose_conversation_begins_anew_keeps_what_was_read_of_its_beginning() -> None:
    slots, run = Slots(2), Run()
    await taken(slots, Talk(b"same", b"the task"), run)
    assert await taken(slots, Talk(b"same", b"a summary"), run) == 0


async def test_a_slot_whose_chat_was_thrown_away_is_not_kept_for_it() -> None:
    slots = Slots(2)
    await taken(slots, Talk(b"same", b"one"), Run())
    assert not slots.held
    assert await taken(slots, Talk(b"same", b"other"), Run()) == 0


async def test_without_a_free_slot_calls_come_in_the_order_in_which_they_asked() -> None:
    slots, order, run = Slots(1), list[int](), Run()
    waiting = [asyncio.create_task(_note(slots, number, order, run)) for number in range(4)]
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3]


async def _note(slots: Slots, number: int, order: list[int], run: object) -> None:
    async with slots.turn(Talk(b"", str(number).encode()), run):
        await asyncio.sleep(0)
        order.append(number)


async def test_a_first_call_waits_for_its_beginning_to_be_read_instead_of_reading_it_beside() -> None:
    slots, run = Slots(2), Run()
    async with slots.turn(Talk(b"same"), run):
        assert slots.must_wait(Talk(b"same", b"one"))
        assert not slots.must_wait(Talk(b"other", b"one"))
        call = asyncio.create_task(taken(slots, Talk(b"same", b"one"), run))
        await asyncio.sleep(0)
        assert not call.done()
    slots.leave(run)
    assert await call == 0


# ---- with a real llama.cpp ---------------------------------------------------------------------------------------------


async def test_two_long_prompts_at_once_have_a_whole_window_each(tiny: Callable[..., str]) -> None:
    path = tiny("two", ENDLESS, context=4096)
    long = ["b" * 3500, "c" * 3500]
    chats = [chat_with(path) for _ in long]
    replies = await asyncio.gather(
        *(reply(chat, ask(text, system="")) for chat, text in zip(chats, long, strict=True))
    )
    assert [message.text for message in replies] == ["aaaa", "aaaa"]
    assert all(message.usage.input_tokens > 3500 for message in replies), "neither was cut"
    assert len(served()) == 1
    assert [chat.window for chat in chats] == [4096, 4096]


async def test_two_calls_run_at_the_same_time(tiny: Callable[..., str]) -> None:
    path = tiny("both", ENDLESS)
    running = await busy(chat_with(path, max_tokens=100_000), "for ever")
    assert (await reply(chat_with(path), ask("quick"))).text == "aaaa"
    await leave(running)


async def test_a_run_finds_its_prompt_read_after_another_runs_steps_between(tiny: Callable[..., str]) -> None:
    path = tiny("between", ENDLESS)
    one, other = chat_with(path), chat_with(path)
    before = await reply(one, ask("the first task, " * 20))
    for step in (1, 2):
        await reply(other, ask(*["another task, " * 30] * step))
    after = await reply(one, ask("the first task, " * 20, "go on"))
    assert after.usage.cached_tokens >= before.usage.input_tokens - 1
    assert after.usage.input_tokens > after.usage.cached_tokens


async def test_a_step_with_a_long_result_reads_only_what_is_new(tiny: Callable[..., str]) -> None:
    path = tiny("result", ENDLESS)
    chat = chat_with(path)
    before = await reply(chat, ask("the task " * 20))
    after = await reply(chat, ask("the task " * 20, "a long result " * 200))
    assert after.usage.cached_tokens >= before.usage.input_tokens - 1
    assert after.usage.input_tokens > 5 * before.usage.input_tokens


async def test_more_runs_than_slots_find_their_prompts_in_the_cache(tiny: Callable[..., str]) -> None:
    path = tiny("many", ENDLESS)
    chats = {name: chat_with(path) for name in ("one", "two", "three", "four", "five")}
    first = {name: await reply(chat, ask(f"task {name} " * 40)) for name, chat in chats.items()}
    for name, chat in chats.items():
        again = await reply(chat, ask(f"task {name} " * 40, "go on"))
        assert again.usage.cached_tokens >= first[name].usage.input_tokens - 1, name


async def test_the_next_turn_of_a_session_finds_the_turns_before_it_read(tiny: Callable[..., str]) -> None:
    path = tiny("session", ENDLESS)
    turn = chat_with(path)
    before = await reply(turn, ask("hello " * 50))
    await turn.close()
    stranger = chat_with(path)
    await reply(stranger, ask("something else " * 20))
    await stranger.close()
    after = await reply(chat_with(path), ask("hello " * 50, "and now"))
    assert after.usage.cached_tokens >= before.usage.input_tokens - 1


async def busy(chat: LlamaCppChat, text: str) -> AsyncIterator[Chunk]:
    """A call that writes for ever, and has begun to."""
    stream = chat.stream(ask(text))
    async for chunk in stream:
        if isinstance(chunk, TextChunk):
            break
    return stream


async def leave(*streams: AsyncIterator[Chunk]) -> None:
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]  # a generator by another name


async def test_a_call_that_finds_no_slot_says_that_it_waits_and_is_answered_then(
    tiny: Callable[..., str],
) -> None:
    path = tiny("busy", ENDLESS)
    running = [await busy(chat_with(path, max_tokens=100_000), f"for ever {n}") for n in range(slots_worth())]
    third = chat_with(path).stream(ask("short"))
    said = await anext(aiter(third))
    assert said == WaitChunk("prompt", text="waiting for other calls of this model")
    await leave(*running)
    assert isinstance((await gather(third))[-1], Done)


async def test_where_memory_allows_one_slot_calls_wait_and_say_why(tiny: Callable[..., str]) -> None:
    path = tiny("one", ENDLESS)
    file = locate(path)
    await pool().server(file, 8192, lambda free: Room(8192, 1))  # What a machine with little memory gets.
    running = await busy(chat_with(path, max_tokens=5000), "for ever")
    second = chat_with(path).stream(ask("short"))
    said = await anext(aiter(second))
    assert said == WaitChunk(
        "prompt", text="waiting for another call of this model: memory allows one at a time"
    )
    await leave(running)
    assert isinstance((await gather(second))[-1], Done)


async def test_a_call_says_that_another_prompt_is_read_first_and_is_patient_as_long_as_that_gets_on(
    tiny: Callable[..., str],
) -> None:
    path = tiny("patient", ENDLESS)
    first, second = chat_with(path), chat_with(path)
    await reply(first, ask("x"))
    second._limits = first._limits = replace(first._limits, first_token=5.0)
    slow = first.stream(ask("a-long-task-" * 500))
    async for chunk in slow:
        if isinstance(chunk, WaitChunk) and chunk.done:
            break
    rest = asyncio.create_task(gather(slow))
    chunks = await gather(second.stream(ask("short")))
    assert WaitChunk("prompt", text="the prompt of another call is read first") in chunks
    assert isinstance(chunks[-1], Done)
    await rest


async def test_a_server_that_says_nothing_to_anybody_is_given_up_after_the_limit(
    tiny: Callable[..., str],
) -> None:
    path = tiny("stopped", ENDLESS)
    chat = chat_with(path)
    await reply(chat, ask("x"))
    chat._limits = replace(chat._limits, first_token=1.0)
    [(_, pid)] = served()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ProviderTimeout) as caught:
            await gather(chat.stream(ask("y")))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert caught.value.limit == "first_token"
    assert "sent no first token within 1 s" in caught.value.message


async def test_a_limit_that_somebody_set_is_kept_to(tiny: Callable[..., str]) -> None:
    path = tiny("strict", ENDLESS)
    settings = ModelSettings(max_tokens=4, timeouts=Timeouts(first_token=1.0))
    chat = LlamaCppChat(ModelRef("llamacpp", path), settings)
    await reply(chat_with(path), ask("x"))
    [(_, pid)] = served()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ProviderTimeout, match="within 1 s"):
            await gather(chat.stream(ask("y")))
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_pieces_may_come_far_apart_unless_somebody_set_how_far(tiny: Callable[..., str]) -> None:
    path = tiny("apart", ENDLESS)
    usual, strict = (
        LlamaCppChat(ModelRef("llamacpp", path), ModelSettings(max_tokens=4, timeouts=limits))
        for limits in (Timeouts(), Timeouts(idle=30.0))
    )
    await reply(usual, ask("x"))
    server = pool().serving(locate(path).path, 1)
    assert server is not None
    assert [chat._call(server, 0)._limits.idle for chat in (usual, strict)] == [600.0, 30.0]
