"""What the doctor says of an Ollama, and of the llama.cpp that we serve ourselves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from graphton.testing import tiny_gguf
from stigmer.doctor import Check
from stigmer.doctor import _llamacpp as llamacpp
from stigmer.doctor import _ollama as ollama

GB = 1_000_000_000
CHAT = "{{ .System }}{{ range .Messages }}{{ .Content }}{{ end }}"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Library:
    """An Ollama's models, as its native routes show them."""

    def __init__(self, web: Any, version: str = "0.17.4") -> None:
        self.web = web
        self.tags: list[dict[str, Any]] = []
        self.shown: dict[str, dict[str, Any]] = {}
        self.loaded: list[dict[str, Any]] = []
        web.answers["/api/version"] = (200, {"version": version})
        web.answers["/api/tags"] = (200, {"models": self.tags})
        web.answers["/api/ps"] = (200, {"models": self.loaded})
        web.answers["/api/show"] = (200, self.show)

    def show(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = asked["model"]
        return (
            (200, self.shown[name]) if name in self.shown else (404, {"error": f"model '{name}' not found"})
        )

    def add(self, name: str, *can: str, size: int = GB, template: str = CHAT, context: int = 32_768) -> None:
        self.tags.append({"name": name, "digest": f"{self.web.url} {name}", "size": size})
        self.shown[name] = {
            "capabilities": list(can),
            "template": template,
            "details": {"parameter_size": "7.6B", "quantization_level": "Q4_K_M"},
            "model_info": {
                "general.architecture": "qwen2",
                "qwen2.context_length": context,
                "qwen2.block_count": 28,
                "qwen2.embedding_length": 3584,
                "qwen2.attention.head_count": 28,
                "qwen2.attention.head_count_kv": 4,
            },
        }

    async def look(self, model: str | None, **more: Any) -> dict[str, Check]:
        asked = {"url": self.web.url, "source": "env OLLAMA_HOST (your shell)", "named": True, "key": None}
        run = {"model": model, "window": None, "max_tokens": 8192, "max_tokens_said": False}
        found = await ollama.look({**asked, **run, "tool_modes": "/nowhere/tool-modes.json", **more})
        return {one.id: one for one in found}


@pytest.fixture
def library(web: Any) -> Library:
    return Library(web)


# --- Ollama


async def test_a_model_that_is_there_is_described(library: Library) -> None:
    library.add("qwen2.5-coder:7b", "completion", "tools", "insert")
    rows = await library.look("qwen2.5-coder:7b")
    assert [(row.id, row.status) for row in rows.values() if row.id != "ollama.memory"] == [
        ("ollama.server", "ok"),
        ("ollama.model", "ok"),
        ("ollama.tools", "ok"),
        ("ollama.window", "ok"),
    ]
    assert rows["ollama.server"].text == (
        f"Ollama 0.17.4 at {library.web.url} (env OLLAMA_HOST (your shell)): qwen2.5-coder:7b"
    )
    assert rows["ollama.model"].text == (
        "model qwen2.5-coder:7b (7.6B, Q4_K_M, 1.0 GB): it can do completion, insert, tools; made for 32,768 tokens"
    )
    assert rows["ollama.tools"].facts["mode"] == "envelope"
    assert rows["ollama.window"].text == (
        "not loaded; a first short task loads it with a window of 16,384 tokens"
    )


async def test_a_model_that_is_not_installed_decides_and_one_that_can_use_tools_is_named(
    library: Library,
) -> None:
    library.add("nomic-embed-text:latest", "embedding", size=9 * GB)
    library.add("llama3.2:1b", "completion", "tools", size=1 * GB)
    library.add("qwen3:8b", "completion", "tools", "thinking", size=5 * GB)
    row = (await library.look("qwen2.5-coder:7b"))["ollama.model"]
    assert (row.status, row.facts["installed"], row.facts["instead"]) == ("fail", False, "qwen3:8b")
    assert row.text == f"the model 'qwen2.5-coder:7b' is not installed in the Ollama at {library.web.url}"
    assert (
        row.hint
        == "fetch it: stigmer models pull qwen2.5-coder:7b; or take one that is installed: --model ollama:qwen3:8b"
    )


async def test_an_empty_ollama_names_the_command(library: Library) -> None:
    rows = await library.look("qwen3:8b")
    assert rows["ollama.server"].text.endswith("no model is installed")
    assert rows["ollama.model"].hint == "fetch it: stigmer models pull qwen3:8b"


async def test_a_model_that_only_embeds_decides(library: Library) -> None:
    library.add("nomic-embed-text:latest", "embedding")
    row = (await library.look("nomic-embed-text"))["ollama.model"]
    assert (row.status, row.text) == (
        "fail",
        "the model 'nomic-embed-text:latest' answers no chat: it can do embedding",
    )


async def test_a_model_that_the_server_cannot_describe_is_still_installed(web: Any, library: Library) -> None:
    library.add("qwen3:8b", "completion", "tools")
    web.answers["/api/show"] = (500, {"error": "disk on fire"})
    row = (await library.look("qwen3:8b"))["ollama.model"]
    assert (row.status, row.facts["installed"]) == ("warn", True)
    assert "is installed; the server did not describe it: " in row.text
    assert "disk on fire" in row.text


async def test_a_bare_template_is_warned_of(library: Library) -> None:
    library.add("mine:latest", "completion", template="{{ .Prompt }}")
    row = (await library.look("mine"))["ollama.template"]
    assert row.status == "warn"
    assert row.text == (
        "the template of mine:latest is a bare {{ .Prompt }}: it sees neither the system text nor the tools"
    )
    assert "ollama show --modelfile mine:latest" in row.hint


@pytest.mark.parametrize(
    ("model", "can", "status", "mode", "said"),
    [
        ("qwen2.5-coder:7b", "tools", "ok", "envelope", "by replies held to a schema (tool mode envelope)"),
        ("qwen3:8b", "tools", "ok", "native", "through Ollama's native tools (tool mode native)"),
        (
            "qwen3:8b",
            "insert",
            "warn",
            "envelope",
            "(tool mode envelope): it takes no tools, its server says",
        ),
        ("unheard-of:1b", "tools", "ok", None, "how it uses tools is tried out before its first run"),
    ],
)
async def test_the_way_of_using_tools_is_the_one_that_a_run_takes(
    library: Library, model: str, can: str, status: str, mode: str | None, said: str
) -> None:
    library.add(model, "completion", can)
    row = (await library.look(model))["ollama.tools"]
    assert (row.status, row.facts["mode"]) == (status, mode)
    assert said in row.text


async def test_what_a_trial_has_found_is_told(library: Library, tmp_path: Path) -> None:
    from graphton._tool_modes import ToolModes

    library.add("unheard-of:1b", "completion", "tools")
    file = tmp_path / "tool-modes.json"
    ToolModes(file).remember(f"ollama {library.web.url} unheard-of:1b", "recovery", model="unheard-of:1b")
    row = (await library.look("unheard-of:1b", tool_modes=str(file)))["ollama.tools"]
    assert row.text == (
        "tools are used by calls recovered from its text (tool mode recovery); so a trial has found"
    )


async def test_the_window_that_it_is_loaded_with_is_shown(library: Library) -> None:
    library.add("qwen3:8b", "completion", "tools")
    library.loaded.append({"name": "qwen3:8b", "context_length": 4096, "size": 6 * GB, "size_vram": 3 * GB})
    rows = await library.look("qwen3:8b", window=8192)
    assert rows["ollama.window"].text == (
        "loaded with a window of 4,096 tokens, 6.0 GB of memory, 50% of it on the graphics card; a run asks for "
        "8,192, so it is loaded again"
    )
    assert "ollama.memory" not in rows


async def test_a_model_that_is_too_large_for_this_machine_is_warned_of(library: Library) -> None:
    library.add("qwen3:235b", "completion", "tools", size=psutil.virtual_memory().total)
    row = (await library.look("qwen3:235b"))["ollama.memory"]
    assert row.status == "warn"
    assert row.facts["needed_bytes"] > row.facts["free_bytes"]
    assert row.hint == "end other programs, or take a smaller model: stigmer models list"


async def test_an_old_ollama_is_told_what_it_does_in_silence(web: Any) -> None:
    row = (await Library(web, version="0.5.7").look(None))["ollama.server"]
    assert row.status == "warn"
    assert "it is older than 0.12.6, so it cuts long prompts and does not say so" in row.text
    assert row.hint == "get a newer one: https://ollama.com/download"


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        (
            "qwen2.5-coder:1.5b",
            "0.4.7",
            "by replies held to a schema (tool mode envelope), which this Ollama does not ",
        ),
        (
            "qwen3:8b",
            "0.2.8",
            "through Ollama's native tools (tool mode native), which this Ollama does not know",
        ),
    ],
)
async def test_a_way_of_using_tools_that_its_version_does_not_know_is_warned_of(
    web: Any, model: str, version: str, words: str
) -> None:
    library = Library(web, version=version)
    library.add(model, "completion", "tools")
    row = (await library.look(model))["ollama.tools"]
    assert (row.status, row.hint) == ("warn", "get a newer one: https://ollama.com/download")
    assert words in row.text


async def test_an_ollama_that_is_slow_to_list_its_models_is_one_all_the_same(library: Library) -> None:
    """A run waits for it, so the default run would work."""
    library.add("qwen3:8b", "completion", "tools")

    def slow(asked: dict[str, Any]) -> tuple[int, Any]:
        library.web.over.wait(2.8)
        return 200, {"models": library.tags}

    library.web.answers["/api/tags"] = (200, slow)
    rows = await library.look("qwen3:8b")
    assert (rows["ollama.server"].status, rows["ollama.model"].status) == ("ok", "ok")


async def test_something_else_at_that_address_is_no_ollama(web: Any, library: Library) -> None:
    web.answers["/api/version"] = (404, {})
    row = (await library.look("qwen3:8b"))["ollama.server"]
    assert (row.status, row.facts["reachable"], row.facts["outcome"]) == ("fail", False, "protocol")
    assert f"what listens at {web.url!r} is no Ollama but a web server" in row.text
    assert "(address: env OLLAMA_HOST (your shell))" in row.text


async def test_one_that_says_nothing_is_given_up(web: Any, library: Library) -> None:
    web.silent = True
    row = (await library.look("qwen3:8b"))["ollama.server"]
    assert (row.status, row.facts["outcome"]) == ("fail", "timeout")
    assert "within 2 s" in row.text


@pytest.mark.parametrize(
    ("model", "named", "status"),
    [("qwen3:8b", True, "fail"), (None, True, "warn"), (None, False, "skip")],
)
async def test_where_none_runs_it_depends_on_who_wants_one(
    library: Library, model: str | None, named: bool, status: str
) -> None:
    row = (await library.look(model, url="http://127.0.0.1:9", named=named))["ollama.server"]
    assert (row.status, row.facts["outcome"]) == (status, "refused")
    assert row.hint == "start it with `ollama serve`, or set base_url (OLLAMA_HOST) to where it runs"


# --- llama.cpp


async def served(model: str, *, window: int | None = None, used: bool = True) -> dict[str, Check]:
    asked = {"model": model, "window": window, "max_tokens": 8192, "used": used}
    return {one.id: one for one in await llamacpp.look(asked)}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    return tmp_path


async def test_the_library_is_loaded_to_see_whether_it_can_be(models: Path) -> None:
    pytest.importorskip("xllamacpp")
    row = (await served("qwen2.5-coder:0.5b"))["llamacpp.library"]
    assert (row.status, row.facts["loads"]) == ("ok", True)
    assert row.text.startswith("llama.cpp (xllamacpp ")
    assert row.text.endswith(" threads")


async def test_a_library_that_ends_the_process_is_told_with_the_reason(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    crashing = models / "crashing"
    crashing.mkdir()
    (crashing / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)\n")
    path = os.pathsep.join(filter(None, [str(crashing), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONPATH", path)
    row = (await served("qwen2.5-coder:0.5b"))["llamacpp.library"]
    assert row.status == "fail"
    assert "this processor lacks an instruction that it was built with (SIGILL)" in row.text
    assert (await served("qwen2.5-coder:0.5b", used=False))["llamacpp.library"].status == "warn"


@pytest.mark.parametrize(("used", "status"), [(True, "fail"), (False, "skip")])
async def test_a_model_that_is_not_there_names_the_command(models: Path, used: bool, status: str) -> None:
    row = (await served("qwen2.5-coder:0.5b", used=used))["llamacpp.model"]
    assert (row.status, row.hint) == (status, "stigmer models pull qwen2.5-coder:0.5b")
    assert row.facts["bytes"] == 491_400_064


async def test_a_file_that_is_no_model_is_told(models: Path) -> None:
    (models / "mine.gguf").write_text("no model")
    row = (await served(str(models / "mine.gguf")))["llamacpp.model"]
    assert row.status == "fail"
    assert "it is no GGUF file" in row.text


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (-100, "it is cut off: 100 bytes of its weights are missing"),
        (200, "it is damaged, or cut off in its head"),
    ],
)
async def test_a_file_that_is_cut_off_is_told_before_a_run_finds_out(
    models: Path, kept: int, words: str
) -> None:
    whole = tiny_gguf(models / "whole.gguf", {">": "hello", "hello": "</s>"})
    assert (await served(whole))["llamacpp.model"].status == "ok"
    cut = models / "cut.gguf"
    cut.write_bytes((models / "whole.gguf").read_bytes()[:kept])
    row = (await served(str(cut)))["llamacpp.model"]
    assert row.status == "fail"
    assert words in row.text


@pytest.fixture
def real_model() -> str:
    path = os.environ.get("STIGMER_TEST_GGUF", "")
    if not path:
        pytest.skip("STIGMER_TEST_GGUF names no model file")
    return path


@pytest.mark.model
async def test_a_model_that_is_there_is_told_with_its_window_and_memory(real_model: str) -> None:
    rows = await served(real_model, window=8192)
    assert rows["llamacpp.model"].status == "ok"
    assert "would be served with a window of 8,192 tokens" in rows["llamacpp.model"].text
    sizes = rows["llamacpp.memory"].facts
    assert sizes["needed_bytes"] > rows["llamacpp.model"].facts["bytes"]
    row = (await served(real_model, window=1_000_000))["llamacpp.model"]
    assert row.status == "fail"
    assert "context_window 1000000 is above the 32768 tokens" in row.text


# --- a real Ollama


@pytest.mark.ollama
async def test_a_real_ollama_is_looked_at(tmp_path: Path) -> None:
    binary = os.environ.get("STIGMER_TEST_OLLAMA_BIN", "")
    if not binary:
        pytest.skip("STIGMER_TEST_OLLAMA_BIN names no Ollama")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    environment = {
        **os.environ,
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(tmp_path),
        "HOME": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        binary,
        "serve",
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    asked = {
        "url": f"http://{address}",
        "source": "x",
        "named": True,
        "key": None,
        "window": None,
        "max_tokens": 0,
    }
    try:
        async with asyncio.timeout(60):
            while True:
                (row, *_) = await ollama.look({**asked, "model": None})
                if row.facts["reachable"]:
                    break
        assert row.status == "ok"
        assert row.text.endswith("no model is installed")
        rows = {one.id: one for one in await ollama.look({**asked, "model": "qwen3:8b"})}
        assert rows["ollama.model"].hint == "fetch it: stigmer models pull qwen3:8b"
    finally:
        process.terminate()
        await process.wait()
