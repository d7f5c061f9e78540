"""What a run on an Ollama tells while it waits, and when it ends: progress, notices, errors with a way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphton.testing import FakeProviders, Reply
from stigmer.api import event_pb2 as pb

NO_MEMORY = "model requires more system memory (9.2 GiB) than is available (3.1 GiB)"


async def run(serving: Any, fake: FakeProviders) -> Sequence[pb.Event]:
    flags = {"provider": "ollama", "model": "qwen3:8b", "base_url": fake.ollama_url}
    events: Sequence[pb.Event] = await serving.run("hi", flags=flags)
    return events


def notices(events: Sequence[pb.Event]) -> list[str]:
    return [event.notice.text for event in events if event.HasField("notice")]


async def test_a_load_that_fails_is_told_with_what_was_tried(serving: Any, fake: FakeProviders) -> None:
    fake.library.become(models={"qwen3:8b": ["completion", "tools", "thinking"]})
    fake.library.load = Reply(status=500, error=NO_MEMORY)
    events = await run(serving, fake)
    end = events[-1].finished
    assert (end.outcome, end.error.code) == ("failed", "status")
    assert NO_MEMORY in end.error.message
    assert "a smaller window than context_window=4096" in end.error.hint
    assert "Ollama has too little memory for a window of 16,384 tokens: 8,192 are tried" in notices(events)


async def test_loading_and_reading_are_progress(serving: Any, fake: FakeProviders) -> None:
    fake.library.become(models={"qwen3:8b": ["completion", "tools", "thinking"]})
    fake.library.load = Reply(delay=1.3)
    fake.reply("Hello.", delay=1.3)
    events = await run(serving, fake)
    assert events[-1].finished.text == "Hello."
    told = [(e.progress.what, e.progress.unit, e.progress.text) for e in events if e.HasField("progress")]
    # Whoever watches in time hears of its start; everybody hears how long it takes.
    assert told[0][0] == "load"
    assert ("load", "s", "qwen3:8b (1.1 GB), window 16,384, 1 s so far") in told
    assert any(what == "prompt" and text.endswith("tokens, 1 s so far") for what, _, text in told)


async def test_a_model_that_only_thinks_ends_the_run_with_that(serving: Any, fake: FakeProviders) -> None:
    fake.library.become(models={"qwen3:8b": ["completion", "tools", "thinking"]})
    fake.add(Reply(body=ALL_THOUGHT))
    end = (await run(serving, fake))[-1].finished
    assert (end.outcome, end.error.code) == ("failed", "length")
    assert "thought for all of its 800 output tokens and wrote no answer" in end.error.message
    assert "--thinking off" in end.error.hint


ALL_THOUGHT = (
    b'{"model":"qwen3:8b","message":{"role":"assistant","content":"","thinking":"Hm."},"done":false}\n'
    b'{"model":"qwen3:8b","message":{"role":"assistant","content":""},"done":true,"done_reason":"length",'
    b'"prompt_eval_count":500,"prompt_eval_duration":1,"eval_count":800}\n'
)
