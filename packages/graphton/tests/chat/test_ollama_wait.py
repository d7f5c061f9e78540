"""Waiting for Ollama: a load that nothing aborts, a slow prompt against its estimate, and limits that follow it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import islice
from typing import Any

import pytest
from graphton.chat._ollama_wait import Speed, _moments, loading, reading, ticks
from graphton.chat.base import Chunk, Done, Request, TextChunk, ToolSpec, WaitChunk
from graphton.chat.ollama import OllamaChat
from graphton.errors import ConnectError, ProtocolError, ProviderTimeout, StatusError
from graphton.messages import UserMessage
from graphton.models import ModelRef, ModelSettings, Timeouts
from graphton.testing import FakeProviders, Reply

HELLO = Request("Be brief.", [UserMessage("Hello")])
READ = ToolSpec("read_file", "Reads a file.", {"type": "object", "properties": {}})


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


def chat(fake: FakeProviders, **settings: Any) -> OllamaChat:
    return OllamaChat(
        ModelRef("ollama", "qwen2.5-coder:7b"), ModelSettings(**{"base_url": fake.ollama_url, **settings})
    )


# --- what is said ---------------------------------------------------------------------------------------------------


def test_a_wait_is_told_every_second_at_first_and_more_rarely_later() -> None:
    moments = list(islice(_moments(), 60))
    assert moments[:11] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12]
    assert moments[-1] - moments[-2] == 5


def test_a_prompt_is_told_as_a_share_of_the_estimate_as_long_as_that_may_be_right() -> None:
    tick = reading(1200, 20)
    assert tick(5) == WaitChunk("prompt", 5, 20, "s", "about 1,200 tokens, estimated from the last ones")
    assert tick(25) == WaitChunk("prompt", 25, 0, "s", "about 1,200 tokens, 25 s so far, estimated were 20 s")
    assert reading(90, 0.3)(25) == WaitChunk("prompt", 25, 0, "s", "about 90 tokens, 25 s so far")
    assert reading(1200, None)(3) == WaitChunk("prompt", 3, 0, "s", "about 1,200 tokens, 3 s so far")


def test_a_load_is_told_by_its_time() -> None:
    said = loading("m:7b", " (4.7 GB), window 16,384")(12)
    assert said == WaitChunk("load", 12, 0, "s", "m:7b (4.7 GB), window 16,384, 12 s so far")


async def test_ticks_end_with_the_work() -> None:
    loop = asyncio.get_running_loop()
    work: asyncio.Future[None] = loop.create_future()
    loop.call_later(1.2, work.set_result, None)
    assert [tick.done async for tick in ticks(work, lambda s: WaitChunk("load", round(s)))] == [1]


async def test_who_leaves_early_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.ensure_future(work())
    async with aclosing(ticks(task, lambda s: WaitChunk("load", s))) as waits:
        await anext(waits)
    assert ended.is_set()
    assert task.cancelled()


async def test_an_error_after_somebody_left_is_no_noise() -> None:
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("on the way out")

    async with aclosing(ticks(asyncio.ensure_future(work()), lambda s: WaitChunk("load", s))) as waits:
        await anext(waits)
    gc.collect()
    assert heard == []


# --- how long it may take -------------------------------------------------------------------------------------------


def test_the_slowest_of_the_last_prompts_gives_the_speed() -> None:
    speed = Speed()
    assert speed.seconds(1000) is None
    for number, (tokens, seconds) in enumerate([(100, 1.0), (1000, 5.0), (400, 1.0)]):
        speed.read([b"%d" % number], tokens, seconds)
    assert speed.seconds(1000) == 10
    for number in range(3):
        speed.read([b"new %d" % number], 400, 1.0)
    assert speed.seconds(1000) == 2.5


def test_what_the_server_has_read_before_counts_as_known() -> None:
    speed = Speed()
    assert speed.fresh([b"aa", b"bb"]) == 1
    speed.read([b"aa", b"bb"], 200, 1.0)
    assert speed.fresh([b"aa", b"bb", b"cccc"]) == 0.5
    assert speed.fresh([b"xx", b"bb"]) == 1
    assert speed.fresh([]) == 1


def test_a_short_prompt_says_nothing_of_the_speed() -> None:
    speed = Speed()
    speed.read([b"a"], 10, 5.0)
    speed.read([b"b"], 1000, 0.0)
    assert speed.seconds(1000) is None


async def test_a_slow_prompt_has_four_times_its_estimate_or_ten_minutes(fake: FakeProviders) -> None:
    one = chat(fake)
    assert one._patience(None, calls=False).first_token == 600
    assert one._patience(100, calls=False).first_token == 600
    assert one._patience(500, calls=False).first_token == 2000
    set_by_hand = chat(fake, timeouts=Timeouts(first_token=30, idle=5))
    assert set_by_hand._patience(500, calls=True) == set_by_hand._limits


async def test_a_call_that_the_server_holds_back_while_it_is_written_is_no_stuck_server(
    fake: FakeProviders,
) -> None:
    one = chat(fake)
    assert one._patience(None, calls=False).idle == 120
    assert one._patience(None, calls=True).idle == 600


async def test_the_speed_is_measured_by_replies_and_shared_by_chats(fake: FakeProviders) -> None:
    last = (
        b'{"model":"m","message":{"content":"ok"},"done":true,"done_reason":"stop","prompt_eval_count":600,'
    )
    fake.add(Reply(body=last + b'"prompt_eval_duration":3000000000,"eval_count":1}\n'))
    assert [c async for c in chat(fake).stream(HELLO)][-2] == TextChunk("ok")
    assert chat(fake)._known.speed.seconds(1000) == pytest.approx(5.0)


# --- what is shown --------------------------------------------------------------------------------------------------


async def test_a_slow_load_is_shown_and_never_aborted(fake: FakeProviders) -> None:
    """Although a first token would be due after half a second: that limit begins when the model is there."""
    fake.library.load = Reply(delay=1.6)
    fake.reply("Hi.")
    chunks = [c async for c in chat(fake, timeouts=Timeouts(first_token=0.5)).stream(HELLO)]
    assert chunks[0] == WaitChunk("load", text="qwen2.5-coder:7b (1.1 GB), window 16,384")
    assert chunks[1] == WaitChunk(
        "load",
        chunks[1].done,
        0,
        "s",
        "qwen2.5-coder:7b (1.1 GB), window 16,384, 1 s so far",  # type: ignore[union-attr]
    )
    assert isinstance(chunks[-1], Done)


async def test_who_stops_waiting_for_a_load_cancels_it_at_the_server(fake: FakeProviders) -> None:
    fake.library.load = Reply(delay=3600)
    async with aclosing(chat(fake).stream(HELLO)) as stream:  # type: ignore[type-var]  # a generator by another name
        assert isinstance(await anext(stream), WaitChunk)
        assert isinstance(await anext(stream), WaitChunk)
    (load,) = [r for r in fake.requests if r.path == "/api/chat"]
    await asyncio.wait_for(load.disconnected.wait(), 30)
    assert fake.chats == []


async def test_a_slow_prompt_is_shown(fake: FakeProviders) -> None:
    fake.reply("Hi.", delay=1.4)
    chunks: list[Chunk] = [c async for c in chat(fake).stream(HELLO)]
    (wait,) = [c for c in chunks if isinstance(c, WaitChunk) and c.what == "prompt"]
    assert "tokens, 1 s so far" in wait.text
    assert isinstance(chunks[-1], Done)


# --- what stands in the way -----------------------------------------------------------------------------------------


async def test_nothing_is_sent_to_what_is_no_ollama(fake: FakeProviders) -> None:
    fake.library.version = None  # type: ignore[assignment]  # a server with such a route that is no Ollama
    with pytest.raises(ProtocolError, match="is no Ollama but a server of OpenAI's API") as caught:
        await anext(chat(fake).stream(HELLO))
    assert "--provider lmstudio" in caught.value.hint
    assert not caught.value.retryable
    assert {r.method for r in fake.requests} == {"GET"}


async def test_what_takes_a_connection_and_never_says_what_it_is_ends_the_call_and_is_sent_nothing() -> None:
    """No load may be begun there: nothing limits how long that takes, so the run would never end."""
    said: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            said.append(data)
        writer.close()

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    one = OllamaChat(ModelRef("ollama", "qwen2.5-coder:7b"), ModelSettings(base_url=url))
    one._known.patience = 1.4
    stream = one.stream(HELLO)
    wait = await anext(stream)
    assert isinstance(wait, WaitChunk)
    assert (wait.what, wait.text) == ("server", f"the Ollama at {url} has not answered yet, 1 s so far")
    with pytest.raises(ProviderTimeout, match=r"nothing at .* answered within 1\.4 s") as caught:
        await anext(stream)
    assert caught.value.limit == "connect"
    assert [line.split(b" HTTP")[0] for line in said] == [b"GET /api/version"]
    silent.close()
    await silent.wait_closed()


async def test_a_server_that_went_away_is_looked_for_again(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake)
    assert [c async for c in one.stream(HELLO)]
    await fake.close()
    with pytest.raises(ConnectError, match="nothing listens") as caught:
        await anext(one.stream(HELLO))
    assert "`ollama serve`" in caught.value.hint
    assert not one._known.is_fresh()


async def test_what_is_known_stays_known_while_another_chat_asks_the_server(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake)
    assert [c async for c in one.stream(HELLO)]
    known = one._known.facts
    asked = sum(r.path == "/api/version" for r in fake.requests)
    asking = asyncio.create_task(chat(fake).facts())
    await fake.wait_for_requests(asked + 1, path="/api/version")
    assert not asking.done()
    assert known is not None
    assert (one._known.facts, one._known.in_memory) == (known, 16_384)
    assert await asking == known


@pytest.mark.parametrize(
    ("words", "hint", "retryable"),
    [
        (
            "model runner has unexpectedly stopped, this may be due to resource limitations",
            "lack of memory",
            True,
        ),
        ("llama runner process has terminated: signal: killed", "a smaller model", True),
        ("timed out waiting for llama runner to start", "OLLAMA_LOAD_TIMEOUT", False),
        ("server busy, please try again.  maximum pending requests exceeded", "OLLAMA_MAX_QUEUE", True),
        ("unable to load model: unknown model architecture: 'qwen9'", "update Ollama", False),
        ('"nomic-embed-text" does not support chat', "`ollama list`", False),
    ],
)
async def test_each_trouble_of_a_load_has_its_way_out(
    fake: FakeProviders, words: str, hint: str, retryable: bool
) -> None:
    fake.library.load = Reply(status=500, error=words)
    with pytest.raises(StatusError) as caught:
        async for _ in chat(fake).stream(HELLO):
            pass
    assert words.split(",")[0] in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.retryable is retryable


async def test_a_server_that_fails_without_a_word_is_told_with_what_that_may_mean(
    fake: FakeProviders,
) -> None:
    """So does Ollama 0.17.4 with a model whose file is damaged."""
    fake.library.load = Reply(status=500, body=b"")
    with pytest.raises(StatusError) as caught:
        async for _ in chat(fake).stream(HELLO):
            pass
    assert caught.value.hint.startswith("Ollama fails without a word: its log says why; ")
    assert "ollama rm qwen2.5-coder:7b, and fetch it again: ollama pull qwen2.5-coder:7b" in caught.value.hint


async def test_a_template_that_hides_everything_is_said(fake: FakeProviders) -> None:
    fake.library.become(templates={"qwen2.5-coder:7b": "{{ .Prompt }}"})
    fake.reply("Hi.")
    one = chat(fake)
    assert [c async for c in one.stream(HELLO)]
    (said,) = one.notices
    assert said.startswith("the template of qwen2.5-coder:7b is a bare {{ .Prompt }}, which hides")
    assert "`ollama create`" in said


@pytest.mark.parametrize(
    ("version", "schema", "thinking", "sent", "said"),
    [
        ("0.4.7", {"type": "object"}, None, {"format": "json"}, "which began with 0.5.0"),
        ("0.8.0", None, "low", {"think": None}, "which began with 0.9.0"),
    ],
)
async def test_what_an_old_version_does_not_take_is_left_out_and_said(
    fake: FakeProviders, version: str, schema: Any, thinking: str | None, sent: dict[str, Any], said: str
) -> None:
    fake.library.version = version
    fake.reply("{}")
    one = OllamaChat(
        ModelRef("ollama", "qwen3:8b"), ModelSettings(base_url=fake.ollama_url, thinking=thinking)
    )
    assert [c async for c in one.stream(Request("", [UserMessage("x")], schema=schema))]
    assert {name: fake.chats[0].json.get(name) for name in sent} == sent
    assert any(said in notice for notice in one.notices)


async def test_a_version_that_reads_over_tools_is_said_where_there_are_some(fake: FakeProviders) -> None:
    fake.library.version = "0.2.8"
    fake.rule(lambda request: Reply(text="Hi."))
    one = chat(fake)
    assert [c async for c in one.stream(HELLO)]
    assert not any("tools" in notice for notice in one.notices)
    assert [c async for c in one.stream(Request("", [UserMessage("x")], tools=[READ]))]
    assert "Ollama 0.2.8 reads over the tools that are offered: they began with 0.3.0" in one.notices


async def test_a_model_is_made_ready_before_anybody_asks_it_and_then_found_loaded(
    fake: FakeProviders,
) -> None:
    said = [wait async for wait in chat(fake).preload()]
    assert said == [WaitChunk("load", text="qwen2.5-coder:7b (1.1 GB), window 16,384")]
    assert fake.chats == []
    fake.reply("Hi.")
    chunks = [c async for c in chat(fake).stream(HELLO)]
    assert not any(isinstance(c, WaitChunk) for c in chunks)
    assert fake.library.loads == [("qwen2.5-coder:7b", 16_384)]


async def test_a_first_token_that_never_comes_is_given_up(fake: FakeProviders) -> None:
    fake.reply("Hi.", delay=3600)
    with pytest.raises(ProviderTimeout) as caught:
        async for _ in chat(fake, timeouts=Timeouts(first_token=0.3)).stream(HELLO):
            pass
    assert caught.value.limit == "first_token"


async def test_a_server_that_does_not_describe_its_model_is_asked_all_the_same(fake: FakeProviders) -> None:
    """A proxy may let through nothing but the chat: the window then goes by the table, and that is said."""
    fake.library.closed = ("/api/show",)
    fake.reply("Hi.")
    one = chat(fake)
    chunks = [c async for c in one.stream(HELLO)]
    assert chunks[0] == WaitChunk("load", text="qwen2.5-coder:7b, window 16,384")
    (said,) = one.notices
    assert said.startswith("what this Ollama is and has could not be measured: ")
    assert "403" in said


async def test_a_proxy_that_hides_what_is_loaded_leaves_the_window_unverified(fake: FakeProviders) -> None:
    fake.library.closed = ("/api/version", "/api/tags", "/api/ps", "/api/show")
    fake.reply("Hi.")
    one = chat(fake)
    assert [c async for c in one.stream(HELLO)]
    first, second = one.notices
    assert first.startswith("what this Ollama is and has could not be measured: ")
    assert second == (
        "the context window that qwen2.5-coder:7b was really given is not known: the server could not be measured"
    )
    assert one.window == 16_384
