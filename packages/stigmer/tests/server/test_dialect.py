"""A whole run over the Responses API: what the model reasoned goes through the store and back, byte for byte."""

from __future__ import annotations

import json
from typing import Any

from graphton.messages import Thinking
from graphton.testing import FakeProviders

KEY = "sk-sentinel-0123456789abcdef"


async def test_a_run_over_the_responses_api_gives_reasoning_back_as_it_came(
    serving: Any, fake: FakeProviders
) -> None:
    (serving.workspace / "a.txt").write_text("42")
    fake.call("read_file", {"path": "a.txt"}, thinking="Where would it be?", signature="gAAA/+==")
    fake.reply("It is 42.")
    shell = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": fake.openai_url,
        "STIGMER_LLM_DIALECT": "responses",
    }
    events = await serving.run("What is in a.txt?", shell=shell, flags={"model": "openai:gpt-6-luna"})
    assert events[-1].finished.text == "It is 42."
    resolved = next(e.config_resolved for e in events if e.HasField("config_resolved"))
    assert resolved.models[0].dialect == "responses"
    shown = {s.name: (json.loads(s.value), s.source) for s in resolved.settings}
    assert shown["dialect"] == ("responses", "env STIGMER_LLM_DIALECT (your shell)")
    first, second = fake.chats
    assert (first.path, second.path) == ("/v1/responses", "/v1/responses")
    (thinking,) = [b for m in second.messages for b in getattr(m, "blocks", ()) if isinstance(b, Thinking)]
    assert json.loads(thinking.raw)["encrypted_content"] == "gAAA/+=="
    assert [r.text for r in second.tool_results] == ["42"]
    # Of the reply's record: live thoughts may have passed before anybody watched.
    blocks = [block for event in events for block in event.model_replied.blocks]
    assert [b.thinking.text for b in blocks if b.HasField("thinking")] == ["Where would it be?"]
