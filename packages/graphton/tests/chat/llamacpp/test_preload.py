"""A model that is made ready before the first message: loaded, the beginning of the prompt read, nothing done twice."""

import asyncio
from collections.abc import AsyncIterator, Callable

from graphton.chat.base import Chunk, Done, Request, WaitChunk
from graphton.chat.llamacpp import LlamaCppChat, served
from graphton.messages import AssistantMessage, UserMessage
from graphton.models import ModelRef, ModelSettings

SPEAKS = {">": "yes", "yes": "</s>"}
SYSTEM = "rules" * 500


def chat_with(path: str, **settings: int) -> LlamaCppChat:
    return LlamaCppChat(ModelRef("llamacpp", path), ModelSettings(**{"max_tokens": 50, **settings}))  # type: ignore[arg-type]  # numbers, all of them


def ask(text: str, system: str = SYSTEM) -> Request:
    return Request(system, [UserMessage(text)])


async def gather(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


async def until_it_reads(ahead: AsyncIterator[WaitChunk]) -> None:
    async for chunk in ahead:
        if chunk.what == "prompt":
            return


def message_of(chunks: list[Chunk]) -> AssistantMessage:
    assert isinstance(chunks[-1], Done)
    return chunks[-1].message


async def test_the_first_message_finds_the_model_loaded_and_the_beginning_read(
    tiny: Callable[..., str],
) -> None:
    path = tiny("ready", SPEAKS)
    told = [wait async for wait in chat_with(path).preload(ask(""))]
    assert told[0].what == "load"
    assert any(chunk.done == chunk.total > len(SYSTEM) for chunk in told if chunk.what == "prompt")
    chunks = await gather(chat_with(path).stream(ask("hello")))
    assert "load" not in [chunk.what for chunk in chunks if isinstance(chunk, WaitChunk)]
    message = message_of(chunks)
    assert message.text == "yes"
    assert message.usage.cached_tokens >= len(SYSTEM)


async def test_what_is_ready_is_not_made_ready_again(tiny: Callable[..., str]) -> None:
    path = tiny("again", SPEAKS)
    await gather(chat_with(path).preload(ask("")))
    assert await gather(chat_with(path).preload(ask(""))) == []
    assert len(served()) == 1


async def test_a_server_that_runs_is_taken_whatever_its_window(tiny: Callable[..., str]) -> None:
    path = tiny("runs", SPEAKS)
    await gather(chat_with(path, context_window=8192).stream(ask("x", system="")))
    await gather(chat_with(path, max_tokens=20_000).preload(ask("")))
    assert len(served()) == 1


async def test_a_message_that_comes_meanwhile_waits_for_the_reading_and_shows_it(
    tiny: Callable[..., str],
) -> None:
    path = tiny("meanwhile", SPEAKS)
    system = "rules" * 1400
    ahead = chat_with(path).preload(ask("", system))
    await until_it_reads(ahead)
    rest = asyncio.create_task(gather(ahead))
    chunks = await gather(chat_with(path).stream(ask("hello", system)))
    assert message_of(chunks).usage.cached_tokens >= len(system)
    waits = [chunk for chunk in chunks if isinstance(chunk, WaitChunk) and chunk.what == "prompt"]
    assert any(wait.total >= len(system) and wait.done < wait.total for wait in waits)
    await rest


async def test_a_reading_that_is_given_up_lets_the_first_message_go_on(tiny: Callable[..., str]) -> None:
    path = tiny("left", SPEAKS)
    system = "rules" * 1400
    ahead = chat_with(path).preload(ask("", system))
    await until_it_reads(ahead)
    call = asyncio.create_task(gather(chat_with(path).stream(ask("hello", system))))
    await asyncio.sleep(0)
    await ahead.aclose()
    assert message_of(await call).text == "yes"
