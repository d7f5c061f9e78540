"""Real providers, asked only where somebody wants it: STIGMER_LIVE=1 with a key or a server. Costs a few cents."""

from __future__ import annotations

import os

import pytest
from graphton.agent import create_deep_agent
from graphton.chat import create_chat
from stigmer import preflight
from stigmer.config import Known, clock, layer_from_environment, layer_from_flags, resolve
from stigmer.errors import ConfigError


@pytest.mark.parametrize("provider", ["anthropic", "openai", "ollama"])
async def test_a_real_provider_answers_what_the_cascade_resolves(provider: str) -> None:
    if os.environ.get("STIGMER_LIVE") != "1":
        pytest.skip("set STIGMER_LIVE=1 to ask real providers")
    layers = [layer_from_flags({"provider": provider}), layer_from_environment(os.environ)]
    try:
        config = resolve(layers, Known(ollama=True), clock(os.environ))
    except ConfigError as error:
        pytest.skip(error.message)
    if provider == "ollama":
        installed = await preflight.installed(config.settings.base_url or "")
        if not installed:
            pytest.skip(f"no Ollama with a model at {config.settings.base_url}")
        named = layer_from_flags({"provider": provider, "model": installed[0].name})
        config = resolve([named, *layers[1:]], Known(ollama=True), clock(os.environ))
    agent = create_deep_agent(create_chat(config.ref, config.settings), instructions="Be brief.")
    try:
        result = await agent.run("Answer with the single word: heron")
    finally:
        await agent.close()
    assert "heron" in result.text.lower()
    assert result.usage.input_tokens > 0
