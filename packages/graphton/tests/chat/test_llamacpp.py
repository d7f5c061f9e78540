"""The built-in llama.cpp: files and windows without a model; with a real one, replies, deaths and idle stops."""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from graphton import catalog
from graphton._child import Child, start, stop
from graphton._gguf import read_head
from graphton.chat import create_chat
from graphton.chat._llamacpp_pool import pool
from graphton.chat._machine import cores, free_memory
from graphton.chat.base import Chat, Chunk, Done, Request, TextChunk, WaitChunk
from graphton.chat.llamacpp import LlamaCppChat, close_all, locate, served, set_idle_seconds
from graphton.errors import BrokenStream, ModelMissing, ProviderError, StatusError
from graphton.messages import AssistantMessage, Message, StopReason, UserMessage
from graphton.models import ModelRef, ModelSettings

SMALL = "qwen2.5-coder:0.5b"

# ---- files ---------------------------------------------------------------------------------------------------------


def gguf(facts: dict[str, int], tail: bytes = b"") -> bytes:
    """The head of a GGUF file of the made-up architecture `toy`."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("toy")]
    pairs.append(text("general.tags") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"))
    pairs += [text(f"toy.{key}") + struct.pack("<II", 4, value) for key, value in facts.items()]
    pairs.append(text("tokenizer.ggml.tokens") + struct.pack("<I", 99))  # never read
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs) + tail


TOY = {
    "context_length": 4096,
    "block_count": 10,
    "embedding_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}


def test_a_gguf_files_head_tells_window_and_memory_per_token(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    path.write_bytes(gguf(TOY))
    head = read_head(path)
    assert head.context_window == 4096
    assert head.kv_bytes == 10 * 2 * (64 + 64) * 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04 something else", "it is no GGUF file"),
        (b"GGUF\x03", "cut off in its head"),
        (gguf(TOY)[:120], "cut off in its head"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 40), "it is damaged"),
    ],
)
def test_a_file_that_is_no_model_is_told_before_anything_starts(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(ProviderError, match=words) as caught:
        locate(str(path))
    assert repr(str(path)) in str(caught.value)
    assert "hint:" in str(caught.value)


def test_a_model_that_is_not_here_says_its_size_its_source_and_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    with pytest.raises(ModelMissing) as caught:
        locate(SMALL)
    error = caught.value
    assert error.code == "model_missing"
    assert (error.name, error.size) == (SMALL, 491_400_064)
    assert error.source.startswith("https://huggingface.co/Qwen/")
    assert "0.5 GB, from Qwen (Apache-2.0)" in error.message
    assert repr(str(tmp_path)) in error.message
    assert error.hint == f"stigmer models pull {SMALL}"
    assert not error.retryable


async def test_a_missing_model_is_told_by_the_first_call_and_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    chat = create_chat(f"llamacpp:{SMALL}")
    with pytest.raises(ModelMissing):
        await gather(chat.stream(ask("hi")))
    assert served() == []


def test_unknown_names_and_paths_list_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="knows no model 'llama9:1b'") as caught:
        locate("llama9:1b")
    assert SMALL in caught.value.hint
    with pytest.raises(ModelMissing, match=r"there is no model file '/nowhere/x\.gguf'"):
        locate("/nowhere/x.gguf")


# ---- machines ------------------------------------------------------------------------------------------------------


def test_a_containers_limits_count(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:    8000000 kB\n")
    assert free_memory(cgroup=tmp_path, meminfo=meminfo) == 8_000_000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert free_memory(cgroup=tmp_path, meminfo=meminfo) == 8_000_000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1\nactive_file 300\ninactive_file 200\n")
    assert free_memory(cgroup=tmp_path, meminfo=meminfo) == 2500
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert cores(cgroup=tmp_path) == 1


def test_limits_of_older_containers_count_too(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:    8000000 kB\n")
    for name, text in {
        "memory/memory.limit_in_bytes": "5000\n",
        "memory/memory.usage_in_bytes": "3000\n",
        "memory/memory.stat": "active_file 1\ntotal_active_file 300\ntotal_inactive_file 200\n",
        "cpu/cpu.cfs_quota_us": "100000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(cgroup=tmp_path, meminfo=meminfo) == 2500
    assert cores(cgroup=tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert cores(cgroup=tmp_path) == cores(cgroup=tmp_path / "none")


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="only Linux says which processors we may use"
)
def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for number in sorted(os.sched_getaffinity(0)):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-127\n")
    assert cores(cgroup=tmp_path, cpus=tmp_path) == 1


# ---- children, without a model ---------------------------------------------------------------------------------------


def ask(text: str, schema: dict[str, Any] | None = None, system: str = "Be brief.") -> Request:
    return Request(system, [UserMessage(text)], schema=schema)


async def gather(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


async def watch(chat: Chat, text: str, look: Callable[[Chunk], None]) -> None:
    async for chunk in chat.stream(ask(text)):
        look(chunk)


@pytest.fixture
async def closing() -> AsyncIterator[None]:
    yield
    await close_all()
    assert served() == []


async def test_a_file_that_llama_cpp_cannot_load_gives_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: None
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    path = tmp_path / "toy.gguf"
    path.write_bytes(gguf(TOY, b"\0" * 1000))
    chat = create_chat(ModelRef("llamacpp", str(path)))
    with pytest.raises(ProviderError) as caught:
        await gather(chat.stream(ask("hi")))
    text = str(caught.value)
    assert text.startswith(f"llama.cpp cannot serve {str(path)!r} with a window of 4096: ")
    assert "the file is damaged or incomplete: " in text
    assert "hint:" in text
    assert served() == []


async def test_without_the_llama_cpp_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: None
) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ImportError(\"No module named 'xllamacpp'\")\n")
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    path = tmp_path / "toy.gguf"
    path.write_bytes(gguf(TOY))
    with pytest.raises(ProviderError, match="No module named 'xllamacpp'") as caught:
        await gather(create_chat(ModelRef("llamacpp", str(path))).stream(ask("hi")))
    assert caught.value.hint == "install llama.cpp with: pip install 'graphton[llamacpp]'"


def test_the_chat_shows_its_request_before_anything_runs() -> None:
    chat = LlamaCppChat(ModelRef("llamacpp", SMALL), ModelSettings(max_tokens=7))
    shown = chat.preview(ask("hi", schema={"type": "object"}))
    body = json.loads(shown.body)
    assert body["max_tokens"] == 7
    assert body["return_progress"] is True
    assert body["cache_prompt"] is True
    assert body["response_format"]["type"] == "json_schema"
    assert shown.headers["authorization"] == "Bearer ***"


PARENT = """
import asyncio, sys
from graphton._child import start
async def main():
    child = await start("busy_child", {"how": sys.argv[1]})
    async for said in child.lines():
        print(child.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
BUSY_CHILD = """
import json, re, sys
from graphton._child import bind_to_parent, wait_for_parent_to_end
config = bind_to_parent()
print(json.dumps({"ready": True}), flush=True)
if config["how"] == "deaf":
    re.match(r"(a+)+$", "a" * 60 + "b")  # foreign code that does not give the interpreter back for years
wait_for_parent_to_end()
"""


def python_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def gone(pid: int) -> bool:
    """Whether no such process runs any more; one that only waits to be buried is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return sys.platform == "linux"


def wait_until(true: Callable[[], bool], seconds: float = 30) -> bool:
    """Look again and again, because nobody tells us when somebody else's child dies."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("how", ["waiting", "deaf"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path, how: str, signum: int) -> None:
    if how == "deaf" and sys.platform != "linux":
        pytest.skip(
            "only Linux kills a child that is busy in foreign code; elsewhere it ends when that returns"
        )
    (tmp_path / "busy_child.py").write_text(BUSY_CHILD)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(tmp_path)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.send_signal(signum)
        parent.wait(30)
    assert wait_until(lambda: gone(pid))


STUBBORN_CHILD = """
import json, time
from graphton._child import bind_to_parent
bind_to_parent()
print(json.dumps({"ready": True}), flush=True)
time.sleep(1000)  # deaf to the end of its standard input
"""


@pytest.fixture
async def stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    (tmp_path / "stubborn_child.py").write_text(STUBBORN_CHILD)
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    child = await start("stubborn_child", {})
    assert [said async for said in _first(child)] == [{"ready": True}]
    return child


async def _first(child: Child) -> AsyncIterator[dict[str, Any]]:
    async with aclosing(child.lines()) as lines:
        async for said in lines:
            yield said
            return


async def test_a_child_that_does_not_listen_is_killed_after_its_grace(stubborn: Child) -> None:
    await stop(stubborn, grace=0.1)
    assert stubborn.ended == "was ended by SIGKILL"


async def test_stopping_a_child_cannot_be_interrupted_into_leaving_it(stubborn: Child) -> None:
    stopping = asyncio.create_task(stop(stubborn, grace=1000))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert stubborn.ended == "was ended by SIGKILL"


async def test_a_child_gets_no_keys_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "telling_child.py").write_text(
        "import json, os\nfrom graphton._child import bind_to_parent\n"
        "bind_to_parent()\nprint(json.dumps(dict(os.environ)))\n"
    )
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-sentinel")
    child = await start("telling_child", {}, extra_environment={"OMP_WAIT_POLICY": "passive"})
    [environment] = [said async for said in _first(child)]
    await stop(child)
    assert "sk-sentinel" not in str(environment)
    assert environment["OMP_WAIT_POLICY"] == "passive"


# ---- with a real model -----------------------------------------------------------------------------------------------


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of the real 0.5b model, under a name of this test's own, so that its child is its own."""
    pytest.importorskip("xllamacpp")
    named = os.environ.get("STIGMER_TEST_GGUF")
    found = Path(named) if named else catalog.path_of(SMALL)
    if found is None or not found.is_file():
        pytest.skip(
            f"the model is not here: stigmer models pull {SMALL}, or name a file in STIGMER_TEST_GGUF"
        )
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    link = tmp_path / "real.gguf"
    link.symlink_to(found)
    return str(link)


@pytest.fixture
async def model(model_file: str, closing: None) -> str:
    return model_file


def chat_with(model: str, **settings: Any) -> LlamaCppChat:
    return LlamaCppChat(ModelRef("llamacpp", model), ModelSettings(**{"max_tokens": 24, **settings}))


def reply_of(chunks: list[Chunk]) -> Done:
    done = chunks[-1]
    assert isinstance(done, Done)
    return done


@pytest.mark.model
async def test_a_real_reply_tells_loading_and_prompt_and_counts_its_tokens(model: str) -> None:
    chat = chat_with(model)
    chunks = await gather(chat.stream(ask("Say hello.")))
    waits = [chunk.what for chunk in chunks if isinstance(chunk, WaitChunk)]
    assert waits[0] == "load"
    assert "prompt" in waits
    message = reply_of(chunks).message
    assert "hello" in message.text.lower()
    assert message.text == "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))
    assert message.usage.input_tokens > 10
    assert message.usage.output_tokens > 1
    assert message.model == model
    assert chat.settings.context_window == 8192
    assert [name for name, _ in served()] == ["real.gguf"]

    again = reply_of(await gather(chat.stream(ask("Say hello. Then say goodbye.")))).message
    assert again.usage.cached_tokens > 0, "the common beginning of two prompts is read once"


@pytest.mark.model
async def test_a_schema_is_kept(model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    chat = chat_with(model, max_tokens=60)
    reply = json.loads(
        reply_of(await gather(chat.stream(ask("The capital of France?", schema)))).message.text
    )
    assert list(reply) == ["city"]


@pytest.mark.model
async def test_an_output_limit_is_length(model: str) -> None:
    chunks = await gather(chat_with(model, max_tokens=3).stream(ask("Count from one to a hundred.")))
    assert reply_of(chunks).message.stop is StopReason.LENGTH


@pytest.mark.model
async def test_two_first_calls_at_once_start_one_child_and_both_are_answered(model: str) -> None:
    first, second = chat_with(model, max_tokens=4), chat_with(model, max_tokens=4)
    replies = await asyncio.gather(gather(first.stream(ask("Hi"))), gather(second.stream(ask("Hi"))))
    assert all(reply_of(chunks).message.text for chunks in replies)
    assert len(served()) == 1


@pytest.mark.model
@pytest.mark.timeout(1800)
async def test_two_long_prompts_at_once_are_both_read_whole_and_found_again(model: str) -> None:
    """Together they are longer than the window: in a cache that they shared, both would fail."""
    chats = {name: chat_with(model, max_tokens=3) for name in ("alpha", "beta")}
    texts = {name: " ".join(f"{name} {n}" for n in range(850)) for name in chats}
    first = await asyncio.gather(*(_reply(chat, ask(texts[name])) for name, chat in chats.items()))
    for message in first:
        assert 4096 < message.usage.input_tokens < 8192
        assert message.text
    assert {chat.window for chat in chats.values()} == {8192}
    assert len(served()) == 1
    for name, before in zip(reversed(chats), reversed(first), strict=True):
        more: list[Message] = [UserMessage(texts[name]), before, UserMessage("Go on.")]
        again = await _reply(chats[name], Request("Be brief.", more))
        assert again.usage.cached_tokens >= before.usage.input_tokens - 1


async def _reply(chat: Chat, request: Request) -> AssistantMessage:
    return reply_of(await gather(chat.stream(request))).message


@pytest.mark.model
async def test_a_child_killed_in_mid_stream_is_a_broken_stream_and_the_next_call_starts_another(
    model: str,
) -> None:
    killed: list[int] = []

    def kill_at_first_text(chunk: Chunk) -> None:
        if isinstance(chunk, TextChunk) and not killed:
            killed.append(served()[0][1])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(BrokenStream) as caught:
        await watch(chat_with(model, max_tokens=200), "Count from one to a hundred.", kill_at_first_text)
    assert caught.value.retryable
    assert "the llama.cpp process that serves 'real.gguf' was ended by SIGKILL" in caught.value.message
    chunks = await gather(chat_with(model, max_tokens=3).stream(ask("Hi")))
    assert reply_of(chunks)
    [(_, another)] = served()
    assert another != killed[0]


@pytest.mark.model
async def test_a_child_killed_while_it_loads_is_told(model: str) -> None:
    def kill_it(chunk: Chunk) -> None:
        if served():
            os.kill(served()[0][1], signal.SIGKILL)

    with pytest.raises(ProviderError, match="was ended by SIGKILL"):
        await watch(chat_with(model), "Hi", kill_it)


@pytest.mark.model
async def test_a_call_left_early_frees_the_child_for_the_next(model: str) -> None:
    async with aclosing(chat_with(model, max_tokens=400).stream(ask("Count to a thousand."))) as stream:  # type: ignore[type-var]
        async for chunk in stream:
            if isinstance(chunk, TextChunk):
                break
    assert reply_of(await gather(chat_with(model, max_tokens=3).stream(ask("Hi"))))
    assert len(served()) == 1


@pytest.mark.model
async def test_a_child_that_nobody_uses_is_stopped(model: str) -> None:
    set_idle_seconds(0.1)
    await gather(chat_with(model, max_tokens=2).stream(ask("Hi")))
    [(_, pid)] = served()
    assert await asyncio.to_thread(wait_until, lambda: gone(pid))


@pytest.mark.model
async def test_other_users_of_the_machine_are_turned_away(model: str) -> None:
    chat = chat_with(model, max_tokens=2)
    await gather(chat.stream(ask("Hi")))
    server = pool().serving(Path(model), 1)
    assert server is not None
    stranger = create_chat(ModelRef("llamacpp", model), ModelSettings(base_url=f"{server.url}/v1"))
    with pytest.raises(StatusError) as caught:
        await gather(stranger.stream(ask("Hi")))
    assert caught.value.status == 401


REAL_PARENT = """
import asyncio, sys
from graphton.chat.base import Request, TextChunk
from graphton.chat.llamacpp import LlamaCppChat, served
from graphton.messages import UserMessage
from graphton.models import ModelRef, ModelSettings
async def main():
    chat = LlamaCppChat(ModelRef("llamacpp", sys.argv[1]), ModelSettings(max_tokens=2000))
    told = False
    async for chunk in chat.stream(Request("", [UserMessage("Count to a thousand.")])):
        if not told and served() and (sys.argv[2] == "loading" or isinstance(chunk, TextChunk)):
            told = True
            print(served()[0][1], flush=True)
asyncio.run(main())
"""


@pytest.mark.model
@pytest.mark.parametrize("when", ["loading", "generating"])
def test_no_child_outlives_a_parent_killed_while_it_is(model_file: str, when: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", REAL_PARENT, model_file, when],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait(30)
    assert wait_until(lambda: gone(pid))
