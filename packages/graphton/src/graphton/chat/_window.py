"""How large a context window a local conversation needs, what may be had, and whether its prompt was read whole."""

from __future__ import annotations

from dataclasses import dataclass

from graphton.chat._failures import origin_of
from graphton.errors import PromptTooLong

__all__ = [
    "BYTES_PER_TOKEN",
    "LADDER",
    "ROOM_TO_GROW",
    "Bounds",
    "Choice",
    "Prompt",
    "bytes_per_token",
    "choose",
    "fits_loaded",
    "rung",
    "too_long",
    "was_cut",
]

LADDER = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
"""The windows that we ask for when nobody says: few sizes, so that a loaded model serves many runs."""

ROOM_TO_GROW = 2048
"""Tokens for what tools will answer, so that a window lasts."""

LEAST_REPLY = 512
"""The shortest reply that is worth a window."""

GOOD_REPLY = 2048
"""A reply of so many tokens is enough to take a loaded model as it is, where nobody asked for more."""

TOO_LARGE = 8
"""A loaded window of more than so many times what we would choose holds memory that others may need."""

BYTES_PER_TOKEN = 4.0
"""Of English text, and of code with its blanks; digits are counted one by one. Nothing is sent to find out: each reply
tells it for its prompt."""


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
    bytes_per_token: float = BYTES_PER_TOKEN
    digits: int = 0
    """Digits in the messages: qwen, gemma and mistral make a token of each."""

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self.system + self.tools + self.messages

    @property
    def tokens(self) -> int:
        """The likely number of tokens, rather too many than too few."""
        return self.of(self.size - self.digits) + self.digits + 1

    def of(self, size: int) -> int:
        """The likely number of tokens in a part of so many bytes."""
        return int(size / self.bytes_per_token)


def bytes_per_token(prompt: Prompt, evaluated: int | None) -> float:
    """How many bytes went into a token, by a reply's count; what was assumed before where the prompt was short."""
    text = prompt.size - prompt.digits
    if not evaluated or text < 2000:
        return prompt.bytes_per_token
    return min(BYTES_PER_TOKEN, max(BYTES_PER_TOKEN / 2, text / max(1, evaluated - prompt.digits)))


def rung(need: int, limit: int | None) -> int:
    """The smallest window of the ladder that holds `need` tokens; not above what the model was made for."""
    fits = next((size for size in LADDER if size >= need), LADDER[-1])
    return fits if limit is None else min(fits, limit)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest windows there can be, in tokens: for the model, and for the memory; None: not known."""

    model: int | None = None
    memory: int | None = None

    def largest(self, need: int = LADDER[-1]) -> int:
        """The smallest window that holds `need` tokens; where there is too little memory, the largest there can be."""
        wanted = rung(need, self.model)
        if self.memory is None or wanted <= self.memory:
            return wanted
        return max((size for size in LADDER if size <= self.memory), default=rung(1, self.model))


@dataclass(frozen=True, slots=True)
class Choice:
    """A window, the room for a reply in it, and the window that it would be with memory enough."""

    window: int
    reply: int
    wanted: int


def choose(tokens: int, reply: int, bounds: Bounds, *, said: bool) -> Choice:
    """The window for a conversation that begins with so many tokens.

    `said`: somebody asked for replies of that length. Nobody did, and they would fill a window that is smaller than
    they need: then half of it is left to them.
    """
    wanted = rung(tokens + reply + ROOM_TO_GROW, bounds.model)
    # What the prompt itself needs is tried in any case: the estimate of the memory may be too careful.
    window = max(bounds.largest(wanted), rung(tokens + LEAST_REPLY, bounds.model))
    return Choice(window, reply_in(window, reply, said=said), wanted)


def reply_in(window: int, reply: int, *, said: bool) -> int:
    """The room for a reply in a window."""
    return reply if said or reply + ROOM_TO_GROW <= window else min(reply, window // 2)


def fits_loaded(loaded: int, tokens: int, choice: Choice, *, said: bool) -> bool:
    """Whether a window that is in memory already serves as well as the chosen one: nothing is loaded again then."""
    least = tokens + choice.reply if said else tokens + min(choice.reply, GOOD_REPLY)
    return min(least + ROOM_TO_GROW, choice.window) <= loaded <= TOO_LARGE * choice.wanted


def was_cut(prompt: Prompt, evaluated: int, window: int) -> bool:
    """Whether the server dropped a part of the prompt: it may not fit, and too few tokens were evaluated.

    Fewer tokens than words proves it. So does, in a window at least half full (as a cut prompt leaves it), less
    than half of the estimate, which is never that wrong for text (digits counted like letters: llama takes three at once).
    """
    if prompt.tokens <= window:
        return False
    return evaluated < prompt.words * 0.95 or window * 0.45 <= evaluated < prompt.of(prompt.size) * 0.5


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
            ("system text", prompt.of(prompt.system)),
            (f"tools ({prompt.tool_count})", prompt.of(prompt.tools)),
            (
                f"messages ({prompt.message_count})",
                prompt.of(prompt.messages - prompt.digits) + prompt.digits,
            ),
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
