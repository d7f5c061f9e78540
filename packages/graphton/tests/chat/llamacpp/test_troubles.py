"""What goes wrong with a model file or its process, each in its own words and with a way out."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from graphton.chat._llamacpp_file import ModelFile, Room
from graphton.chat._llamacpp_pool import Server, _verify
from graphton.chat._llamacpp_trouble import cannot_serve, ended_midway
from graphton.chat.base import Chunk, Request, TextChunk
from graphton.chat.llamacpp import LlamaCppChat, served
from graphton.errors import BrokenStream, ProviderError
from graphton.messages import UserMessage
from graphton.models import ModelRef, ModelSettings

GB = 1 << 30
ENDLESS = {">": "a", "a": "a"}
FILE, ROOM = ModelFile(Path("/m/big.gguf"), GB, 32_768, 28_672), Room(16_384, 2)


def chat_with(path: str) -> LlamaCppChat:
    return LlamaCppChat(ModelRef("llamacpp", path), ModelSettings(max_tokens=5000))


async def gather(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


def ask() -> Request:
    return Request("", [UserMessage("x")])


def rewrite(path: str, how: Callable[[bytes], bytes]) -> None:
    Path(path).write_bytes(how(Path(path).read_bytes()))


async def until_it_ends(stream: AsyncIterator[Chunk], look: Callable[[Chunk], None]) -> None:
    async for chunk in stream:
        look(chunk)


def kill_while_it_writes(chunk: Chunk) -> None:
    if isinstance(chunk, TextChunk):
        with suppress(ProcessLookupError):  # The second chunk may come after its end.
            os.kill(served()[0][1], signal.SIGKILL)


async def refusal(path: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await gather(chat_with(path).stream(ask()))
    assert served() == []
    return caught.value


async def test_a_server_that_says_nothing_readable_of_itself_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        server = Server(FILE, ROOM, url=f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        with pytest.raises(ProviderError, match="no context window in what it says of itself: b'nope'"):
            await _verify(server)


async def test_an_unknown_architecture_is_named_with_what_may_help(tiny: Callable[..., str]) -> None:
    path = tiny("strange", ENDLESS, architecture="quux")
    error = await refusal(path)
    assert f"llama.cpp cannot serve {path!r}" in error.message
    assert "its architecture is not known to this llama.cpp: " in error.message
    assert "quux" in error.message
    assert "pip install -U xllamacpp" in error.hint


async def test_a_file_that_lost_its_end_is_damaged(tiny: Callable[..., str]) -> None:
    path = tiny("cut", ENDLESS)
    rewrite(path, lambda whole: whole[: len(whole) // 2])
    error = await refusal(path)
    assert "the file is damaged or incomplete: " in error.message
    assert error.hint.startswith("fetch it again (stigmer models remove, then pull)")


async def test_a_file_without_a_part_of_the_model_is_damaged(tiny: Callable[..., str]) -> None:
    path = tiny("hole", ENDLESS)
    rewrite(path, lambda whole: whole.replace(b"output_norm.weight", b"output_nurm.weight"))
    error = await refusal(path)
    assert "the file is damaged or incomplete: " in error.message
    assert "output_norm" in error.message


@pytest.mark.parametrize(
    "why",
    [
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "std::bad_alloc",
    ],
)
def test_too_little_memory_says_how_much_and_what_takes_less(why: str) -> None:
    error = cannot_serve(FILE, ROOM, why, GB)
    assert error.message == (
        "llama.cpp cannot serve '/m/big.gguf' with a window of 16384: there is not enough memory for it: "
        "2.8 GB are needed, 1.1 GB are free"
    )
    assert error.hint == (
        "stop other programs, take a smaller model, or a smaller window: --context-window 8192"
    )


def test_a_process_that_is_killed_while_it_loads_names_memory_as_the_likely_cause() -> None:
    error = cannot_serve(FILE, ROOM, "was ended by SIGKILL", GB)
    assert error.message.endswith(
        "its process was ended by SIGKILL, as the system ends one when memory runs out: "
        "2.8 GB are needed, 1.1 GB are free"
    )
    assert "--context-window 8192" in error.hint


def test_a_crash_says_where_its_words_are() -> None:
    error = cannot_serve(FILE, ROOM, "was ended by SIGILL", GB)
    assert "llama.cpp crashed: the process was ended by SIGILL" in error.message
    assert "`logs`" in error.hint


def test_what_nobody_foresaw_is_passed_on_as_it_was_said() -> None:
    error = cannot_serve(FILE, ROOM, "cosmic rays", GB)
    assert error.message.endswith("with a window of 16384: cosmic rays")


async def test_a_process_that_is_killed_in_the_middle_names_memory_as_the_likely_cause(
    tiny: Callable[..., str],
) -> None:
    path = tiny("killed", ENDLESS)
    with pytest.raises(BrokenStream) as caught:
        await until_it_ends(chat_with(path).stream(ask()), kill_while_it_writes)
    assert caught.value.retryable
    assert "'killed.gguf' was ended by SIGKILL, as the system ends a process when memory runs out (" in str(
        caught.value
    )
    assert "take a smaller model or window" in caught.value.hint


def test_a_process_that_ends_otherwise_is_not_blamed_on_memory() -> None:
    error = ended_midway(FILE, "ended with exit code 1", "http://127.0.0.1:1", GB)
    assert error.message == (
        "the llama.cpp process that serves 'big.gguf' ended with exit code 1 in the middle of a call"
    )
    assert "memory" not in error.hint
