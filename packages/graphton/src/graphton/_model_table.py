"""The model table: what each known model takes, how it thinks, and until when it lives.

Windows and prices stand in `_model_prices.py`, which scripts/model-table writes. What stands here is ours, with
its source. Output limits of Anthropic's models: the "Max output" line of each model's page under
platform.claude.com/docs/en/models; sampling: the list of models that reject it on the migration pages there;
retirement: `anthropic._data.DEPRECATED_MODELS`. OpenAI's output limits: "max output tokens" of each page under
developers.openai.com/api/docs/models; retirement: the docstring of `openai.types.shared.chat_model`. A test
compares the dates with the installed SDKs. Successors are our choice, after the makers' own recommendations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

from graphton._model_prices import PRICES

__all__ = [
    "FAMILIES",
    "GUESSES",
    "LOCAL_NAMES",
    "MODELS",
    "Family",
    "Guess",
    "Model",
    "Thinking",
    "TokensField",
    "ToolMode",
]

ToolMode = Literal["native", "recovery", "envelope"]
"""How a model is brought to use tools: its own API, calls recovered from its text, or a reply schema."""

Thinking = Literal["none", "budget", "adaptive", "effort", "think"]
"""How a model is told to think: not at all, a token budget, adaptive with an effort, a reasoning effort, `think`."""

TokensField = Literal["max_tokens", "max_completion_tokens"]
"""The field of a chat completions request that limits the output."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of one model. None means that nobody published it, or that there is no such limit."""

    provider: str
    id: str
    """The name that goes to the provider."""
    name: str = ""
    """The friendly name, where it differs from the id."""
    context_window: int | None = None
    max_output: int | None = None
    sampling: bool = True
    """Whether it takes a temperature."""
    thinking: Thinking = "none"
    thinking_off: str = ""
    """What turns thinking off: the value to send; "" to send nothing; "never" where it cannot be turned off."""
    tokens_field: TokensField = "max_tokens"
    dialect: str = ""
    """Where set, the dialect that this model needs at its provider's own host: responses."""
    price_input: float | None = None
    """USD per million tokens."""
    price_output: float | None = None
    price_cached: float | None = None
    price_cache_write: float | None = None
    long_prompt: tuple[int, float, float, float, float] | None = None
    """Prompts above this many tokens cost, per million: input, output, cached, cache write."""
    retires: date | None = None
    """From 00:00 UTC of this day the provider refuses it."""
    successor: str = ""
    """The friendly name that takes its place then."""
    tool_mode: ToolMode = "native"
    assumed: bool = False
    """True where the model is not in the table and its row was inferred."""


class Family(NamedTuple):
    """Local models that share a name before the tag, and what was measured of them (or what their makers say)."""

    name: str
    context_window: int | None
    tool_mode: ToolMode = "recovery"
    thinking: Thinking = "none"


def price(provider: str, model: str) -> dict[str, object]:
    """The generated columns of a row: window and prices, or nothing where the price list does not know it."""
    row = PRICES.get(f"{provider}:{model}")
    if row is None:
        return {"context_window": _WINDOWS[model]} if model in _WINDOWS else {}
    window, base, above = row
    columns: dict[str, object] = dict(
        zip(("price_input", "price_output", "price_cached", "price_cache_write"), base, strict=True)
    )
    return columns | {"context_window": _WINDOWS.get(model, window), "long_prompt": above}


# Where the price list rounds, or does not have the model yet: the "context window" of the maker's page.
_WINDOWS = {
    "gpt-4.1": 1_047_576,
    "gpt-4.1-mini": 1_047_576,
    "gpt-4.1-nano": 1_047_576,
    "gpt-5.5": 1_050_000,
    "gpt-6.2-sol": 1_050_000,
    "gemini-2.5-pro": 1_048_576,
    "gemini-3.8-flash": 1_048_576,
}
_NOV_30 = date(2026, 11, 30)
_JAN_22 = date(2027, 1, 22)

# id, friendly name, max output, takes sampling, thinking, what turns thinking off, end of life, successor
_ANTHROPIC: tuple[tuple[str, str, int, bool, Thinking, str, date | None, str], ...] = (
    ("claude-fable-5-2", "claude-fable-5.2", 128_000, False, "adaptive", "never", None, ""),
    ("claude-fable-5-1", "claude-fable-5.1", 128_000, False, "adaptive", "never", None, ""),
    ("claude-fable-5", "", 128_000, False, "adaptive", "never", None, ""),
    ("claude-mythos-5-2", "claude-mythos-5.2", 128_000, False, "adaptive", "never", None, ""),
    ("claude-mythos-5-1", "claude-mythos-5.1", 128_000, False, "adaptive", "never", None, ""),
    ("claude-mythos-5", "", 128_000, False, "adaptive", "never", None, ""),
    (
        "claude-mythos-preview",
        "",
        128_000,
        False,
        "adaptive",
        "never",
        date(2026, 6, 30),
        "claude-mythos-5.2",
    ),
    ("claude-opus-5-5", "claude-opus-5.5", 128_000, False, "adaptive", "never", None, ""),
    ("claude-opus-5", "", 128_000, False, "adaptive", "disabled", None, ""),
    ("claude-opus-4-8", "claude-opus-4.8", 128_000, False, "adaptive", "", None, ""),
    ("claude-opus-4-7", "claude-opus-4.7", 128_000, False, "adaptive", "", None, ""),
    ("claude-opus-4-6", "claude-opus-4.6", 128_000, True, "adaptive", "", None, ""),
    ("claude-opus-4-5-20251101", "claude-opus-4.5", 64_000, True, "budget", "", _JAN_22, "claude-opus-5.5"),
    ("claude-opus-4-5", "", 64_000, True, "budget", "", _JAN_22, "claude-opus-5.5"),
    ("claude-sonnet-5-5", "claude-sonnet-5.5", 128_000, False, "adaptive", "between_tools", None, ""),
    ("claude-sonnet-5", "", 128_000, False, "adaptive", "disabled", None, ""),
    ("claude-sonnet-4-6", "claude-sonnet-4.6", 128_000, True, "adaptive", "", None, ""),
    (
        "claude-sonnet-4-5-20250929",
        "claude-sonnet-4.5",
        64_000,
        True,
        "budget",
        "",
        _NOV_30,
        "claude-sonnet-5.5",
    ),
    ("claude-sonnet-4-5", "", 64_000, True, "budget", "", _NOV_30, "claude-sonnet-5.5"),
    ("claude-haiku-5-5", "claude-haiku-5.5", 128_000, False, "adaptive", "disabled", None, ""),
    ("claude-haiku-4-5-20251001", "claude-haiku-4.5", 64_000, True, "budget", "", None, ""),
    ("claude-haiku-4-5", "", 64_000, True, "budget", "", None, ""),
)

_OCT_23 = date(2026, 10, 23)
_DEC_11 = date(2026, 12, 11)
_JAN_14 = date(2027, 1, 14)
_APR_1 = date(2027, 4, 1)

# ids (the first has the window and the price of all), max output, sampling, off, dialect, end of life, successor
_OPENAI: tuple[tuple[tuple[str, ...], int, bool, str, str, date | None, str], ...] = (
    (("gpt-6-astra",), 128_000, False, "never", "responses", None, ""),
    (("gpt-6.2-astra",), 128_000, False, "never", "responses", None, ""),
    (("gpt-6.2-sol",), 128_000, False, "never", "responses", None, ""),
    (("gpt-6.1-sol",), 128_000, False, "never", "responses", None, ""),
    (("gpt-6.1-terra",), 128_000, False, "never", "responses", None, ""),
    (("gpt-6-sol",), 128_000, False, "none", "responses", None, ""),
    (("gpt-6-luna",), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.6-sol",), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.6-terra",), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.6-luna",), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.5", "gpt-5.5-2026-04-23"), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.4",), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.4-mini", "gpt-5.4-mini-2026-03-17"), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.4-nano", "gpt-5.4-nano-2026-03-17"), 128_000, False, "none", "responses", _APR_1, "gpt-6-luna"),
    (("gpt-5.2", "gpt-5.2-2025-12-11"), 128_000, False, "none", "responses", None, ""),
    (("gpt-5.1", "gpt-5.1-2025-11-13"), 128_000, False, "none", "responses", _APR_1, "gpt-6.1-sol"),
    (("gpt-5", "gpt-5-2025-08-07"), 128_000, False, "minimal", "responses", _DEC_11, "gpt-6.1-sol"),
    (
        ("gpt-5-mini", "gpt-5-mini-2025-08-07"),
        128_000,
        False,
        "minimal",
        "responses",
        _DEC_11,
        "gpt-6.1-terra",
    ),
    (("gpt-5-nano", "gpt-5-nano-2025-08-07"), 128_000, False, "minimal", "responses", _DEC_11, "gpt-6-luna"),
    (("o3", "o3-2025-04-16"), 100_000, False, "never", "responses", _DEC_11, "gpt-6.1-sol"),
    (("o4-mini", "o4-mini-2025-04-16"), 100_000, False, "never", "responses", _OCT_23, "gpt-6.1-terra"),
    (("o3-mini", "o3-mini-2025-01-31"), 100_000, False, "never", "", _OCT_23, "gpt-6.1-sol"),
    (("o1", "o1-2024-12-17"), 100_000, False, "never", "", _OCT_23, "gpt-6.1-sol"),
    (("gpt-4.1", "gpt-4.1-2025-04-14"), 32_768, True, "", "", _JAN_14, "gpt-6-luna"),
    (("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"), 32_768, True, "", "", _JAN_14, "gpt-6-luna"),
    (("gpt-4.1-nano", "gpt-4.1-nano-2025-04-14"), 32_768, True, "", "", _OCT_23, "gpt-6-luna"),
    (("gpt-4o", "gpt-4o-2024-11-20", "gpt-4o-2024-08-06"), 16_384, True, "", "", _JAN_14, "gpt-6-luna"),
    (("gpt-4o-mini", "gpt-4o-mini-2024-07-18"), 16_384, True, "", "", _JAN_14, "gpt-6-luna"),
    (("gpt-4-turbo", "gpt-4-turbo-2024-04-09"), 4_096, True, "", "", _OCT_23, "gpt-6.1-sol"),
    (("gpt-4", "gpt-4-0613"), 8_192, True, "", "", _OCT_23, "gpt-6.1-sol"),
    (("gpt-3.5-turbo", "gpt-3.5-turbo-0125"), 4_096, True, "", "", _OCT_23, "gpt-6-luna"),
)

# Other hosted models that are somebody's default. provider, id, max output (None: not published), thinking
_HOSTED: tuple[tuple[str, str, int | None, Thinking], ...] = (
    ("openrouter", "anthropic/claude-sonnet-5.5", 128_000, "effort"),  # as its maker's
    ("groq", "openai/gpt-oss-120b", 65_536, "effort"),  # console.groq.com/docs/models
    ("groq", "openai/gpt-oss-20b", 65_536, "effort"),  # the same
    ("mistral-api", "mistral-medium-latest", None, "none"),
    ("mistral-api", "mistral-small-latest", None, "none"),
    ("deepseek-api", "deepseek-flash", 384_000, "none"),  # api-docs.deepseek.com/quick_start/pricing
    ("deepseek-api", "deepseek-v4-pro", 384_000, "none"),  # the same
    ("gemini", "gemini-3.8-flash", 65_536, "effort"),  # ai.google.dev/gemini-api/docs/models
    ("gemini", "gemini-2.5-pro", 65_536, "effort"),  # the same
)

FAMILIES: tuple[Family, ...] = (
    # Windows: the `context_length` of the published GGUF files; None where it differs from tag to tag, so that the
    # server must be asked. Tool modes: measured where PEERS and bench/ say
    # so (qwen2.5-coder makes no native call at all; gemma3, phi4 and deepseek-coder-v2 have no tools template in
    # Ollama's library, which answers 400); every other family gets native calls with recovery from the text.
    Family("qwen2.5-coder", 32_768, "envelope"),
    Family("qwen2.5", 32_768),
    Family("qwen3-coder", None, "native"),
    Family("qwen3", None, "native", "think"),
    Family("qwq", None, "recovery", "think"),
    Family("llama3.1", 131_072),
    Family("llama3.2", 131_072),
    Family("llama3.3", 131_072),
    Family("llama3", 8_192, "envelope"),
    Family("mistral", None),
    Family("mistral-large", None),
    Family("mistral-nemo", None),
    Family("mistral-small", None),
    Family("magistral", None, "recovery", "think"),
    Family("devstral", None),
    Family("codestral", None, "envelope"),
    Family("mixtral", None),
    Family("gpt-oss", 131_072, "native", "think"),
    Family("deepseek-r1", None, "recovery", "think"),
    Family("deepseek-coder-v2", 163_840, "envelope"),
    Family("gemma3", None, "envelope"),
    Family("gemma2", 8_192, "envelope"),
    Family("phi4", 16_384, "envelope"),
    Family("phi4-mini", None),
    Family("phi3", None, "envelope"),
    Family("codellama", None, "envelope"),
    Family("granite3.3", None),
    Family("command-r", None),
    Family("smollm2", None),
)

LOCAL_NAMES = frozenset(family.name for family in FAMILIES)
"""Bare names that mean an Ollama model."""


class Guess(NamedTuple):
    """What is assumed of a hosted model that is not in the table but whose name fits."""

    provider: str
    pattern: re.Pattern[str]
    like: str
    """The known model whose way of being asked it gets; limits and prices stay unknown."""


GUESSES: tuple[Guess, ...] = (
    Guess("anthropic", re.compile(r"claude-([a-z]+-)?(3|4-[0156])(-|\.|$)"), "claude-haiku-4-5"),
    Guess("anthropic", re.compile(r""), "claude-sonnet-5-5"),
    Guess("openai", re.compile(r"gpt-(3|4)|chatgpt-4"), "gpt-4.1"),
    Guess("openai", re.compile(r"gpt-|chatgpt-|o\d"), "gpt-6.1-sol"),
)


def _rows() -> dict[str, Model]:
    table: dict[str, Model] = {}

    def add(model: Model) -> None:
        table[f"{model.provider}:{model.id}"] = model

    for id_, name, limit, sampling, thinking, off, end, successor in _ANTHROPIC:
        add(
            Model(
                "anthropic",
                id_,
                name,
                max_output=limit,
                sampling=sampling,
                thinking=thinking,
                thinking_off=off,
                retires=end,
                successor=successor,
                **price("anthropic", id_),  # type: ignore[arg-type]  # columns of the generated table
            )
        )
    for ids, limit, sampling, off, dialect, end, successor in _OPENAI:
        for id_ in ids:
            add(
                Model(
                    "openai",
                    id_,
                    max_output=limit,
                    sampling=sampling,
                    thinking="none" if sampling else "effort",
                    thinking_off=off,
                    tokens_field="max_completion_tokens",
                    dialect=dialect,
                    retires=end,
                    successor=successor,
                    **price("openai", ids[0]),  # type: ignore[arg-type]  # columns of the generated table
                )
            )
    for provider, id_, out, thinking in _HOSTED:
        add(
            Model(
                provider,
                id_,
                max_output=out,
                thinking=thinking,
                **price(provider, id_),  # type: ignore[arg-type]  # columns of the generated table
            )
        )
    return table


MODELS: dict[str, Model] = _rows()
"""Every known hosted model, by `provider:id`."""
