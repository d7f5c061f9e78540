"""How large a context window a local conversation needs, and whether its prompt was read whole."""

from __future__ import annotations

from dataclasses import dataclass

from graphton.chat._failures import origin_of
from graphton.errors import PromptTooLong

__all__ = ["LADDER", "ROOM_TO_GROW", "Prompt", "rung", "too_long", "was_cut"]

LADDER = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
"""The windows that we ask for when nobody says: few sizes, so that a loaded model serves many runs."""

ROOM_TO_GROW = 2048
"""Tokens for what tools will answer, so that a window lasts."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a prompt in bytes, measured without a tokenizer, and the room that the reply needs in tokens."""

    system: int
    tools: int
    messages: int
    tool_count: int
    message_count: int
    words: int
    """Words between blanks in what was said: no tokenizer makes fewer tokens of them."""
    reply: int

    @property
    def tokens(self) -> int:
        """The likely number of tokens: four bytes to each."""
        return (self.system + self.tools + self.messages) // 4 + 1


def rung(need: int, limit: int | None) -> int:
    """The smallest window of the ladder that holds `need` tokens; not above what the model was made for."""
    fits = next((size for size in LADDER if size >= need), LADDER[-1])
    return fits if limit is None else min(fits, limit)


def was_cut(prompt: Prompt, evaluated: int, window: int) -> bool:
    """Whether the server dropped a part of the prompt: it may not fit, and too few tokens were evaluated.

    Fewer tokens than words proves it. So does, in a window at least half full (as a cut prompt leaves it), less
    than half of the estimate, which is never that wrong for text.
    """
    if prompt.tokens <= window:
        return False
    return evaluated < prompt.words * 0.95 or window * 0.45 <= evaluated < prompt.tokens * 0.5


def too_long(
    why: str,
    prompt: Prompt,
    *,
    window: int,
    limit: int | None,
    provider: str,
    url: str,
    retryable: bool = False,
) -> PromptTooLong:
    """The error for a prompt that a window does not hold, with the budget by part."""
    need = prompt.tokens + prompt.reply
    table = "\n".join(
        f"  {name:<20}{size:>9,}"
        for name, size in (
            ("system text", prompt.system // 4),
            (f"tools ({prompt.tool_count})", prompt.tools // 4),
            (f"messages ({prompt.message_count})", prompt.messages // 4),
            ("room for the reply", prompt.reply),
            ("needed", need),
            ("context window", window),
        )
    )
    wanted = rung(need + ROOM_TO_GROW, limit)
    return PromptTooLong(
        f"{why} ({provider} at {origin_of(url)!r}); in tokens, estimated:\n{table}",
        hint=f"allow a larger window: context_window={wanted}"
        if wanted > window
        else "shorten the conversation, offer fewer tools, or use a model with a larger window",
        provider=provider,
        url=url,
        retryable=retryable,
    )
