"""Model files that say what a test wants to hear, served by a real llama.cpp."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from graphton.chat.llamacpp import close_all, served
from graphton.testing import tiny_gguf


@pytest.fixture
async def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., str]]:
    """Makes model files as `tiny_gguf` does, by name; no server of them outlives the test."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    yield lambda name, after, **more: tiny_gguf(tmp_path / f"{name}.gguf", after, **more)
    await close_all()
    assert served() == []
