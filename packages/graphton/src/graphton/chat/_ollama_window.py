"""The window of one chat with Ollama: chosen once, grown once at most, and what the server really gave."""

from __future__ import annotations

from collections.abc import Callable

from graphton.chat._ollama_known import Known
from graphton.chat._window import (
    BYTES_PER_TOKEN,
    GOOD_REPLY,
    LADDER,
    LEAST_REPLY,
    ROOM_TO_GROW,
    Bounds,
    Choice,
    Prompt,
    bytes_per_token,
    choose,
    fits_loaded,
    reply_in,
    too_long,
)
from graphton.errors import PromptTooLong
from graphton.models import ModelSettings

__all__ = ["Window"]

Say = Callable[[str], None]


class Window:
    """`num_ctx` is what goes out, the same in each request; `size` is what the server gave for it."""

    def __init__(
        self, known: Known, settings: ModelSettings, default_reply: int, table_limit: int | None
    ) -> None:
        self._known = known
        self._set = settings.context_window
        self._most_reply = settings.max_tokens or default_reply
        self._reply_said = self._most_reply != default_reply
        """Somebody asked for replies of that length. A default that was written out is nobody's wish."""
        self._table_limit = table_limit
        self._bounds = Bounds(table_limit)
        self._may_grow = self._set is None
        self.num_ctx = self._set
        self.size = self._set
        self.reply = self._most_reply
        self.bytes_per_token = BYTES_PER_TOKEN
        self.unverified = True

    # --- the choice -------------------------------------------------------------------------------------------------

    def check_setting(self, say: Say) -> None:
        """What to say of a window that somebody set."""
        known = self._table_limit
        if self._set is not None and known is not None and self._set > known:
            # Not an error: a family's later models may take more than its first, on which the table goes by.
            say(
                f"context_window {self._set} is above the {known} tokens known for {self._known.model}: "
                "Ollama may give less"
            )

    def fit(self, prompt: Prompt, model: str, say: Say) -> str:
        """Choose the window, or let it grow; what there is to say about a change that loads the model again."""
        if self._set is not None:
            return ""
        if self.num_ctx is None or self.size is None:
            self._choose(prompt, model, say)
            return ""
        if (self._known.in_memory or 0) > self.num_ctx:
            # Another run made the model's window larger: going with it loads nothing.
            self.num_ctx = self.size = self._known.in_memory
        need = self._need(prompt)
        return self._grow(need, model, say) if self.size is not None and need > self.size else ""

    def _need(self, prompt: Prompt) -> int:
        """What a window must hold: nobody's wish for a long reply is no reason to load the model again."""
        return prompt.tokens + (self.reply if self._reply_said else min(self.reply, GOOD_REPLY))

    def _choose(self, prompt: Prompt, model: str, say: Say) -> None:
        self._bounds = self._measured()
        choice = choose(prompt.tokens, self._most_reply, self._bounds, said=self._reply_said)
        loaded = self._known.in_memory
        if loaded is not None and fits_loaded(loaded, prompt.tokens, choice, said=self._reply_said):
            reply = reply_in(loaded, self._most_reply, said=self._reply_said)
            if reply < self._most_reply:
                say(f"replies are limited to {reply:,} tokens: {model} is loaded with a window of {loaded:,}")
            choice = Choice(loaded, reply, choice.wanted)
        else:
            self._say_if_short(choice, model, say)
        self.num_ctx = self.size = choice.window
        self.reply = choice.reply

    def _measured(self) -> Bounds:
        facts = self._known.facts
        limit = facts.context_length if facts and facts.context_length else self._table_limit
        return Bounds(limit, self._known.largest_window())

    def _say_if_short(self, choice: Choice, model: str, say: Say) -> None:
        free = self._known.free() or 0
        if choice.window < choice.wanted:
            less = f", and replies of at most {choice.reply:,}" if choice.reply < self._most_reply else ""
            say(
                f"memory is short: {model} gets a window of {choice.window:,} tokens{less}, not of {choice.wanted:,}, "
                f"which would take {_gb(self._known.needs(choice.wanted))}; {_gb(free)} are free"
            )
        elif self._bounds.memory is not None and choice.window > self._bounds.memory:
            say(
                f"memory is short: {model} takes about {_gb(self._known.needs(choice.window))} with a window of "
                f"{choice.window:,} tokens; {_gb(free)} are free"
            )

    def would_be(self, prompt: Prompt) -> tuple[int, int]:
        """The num_ctx and the room for a reply that a request with this prompt gets, if it is the first."""
        if self.num_ctx is not None:
            return self.num_ctx, self.reply
        choice = choose(prompt.tokens, self._most_reply, self._bounds, said=self._reply_said)
        return choice.window, choice.reply

    # --- its changes ------------------------------------------------------------------------------------------------

    def largest(self) -> int:
        """What the window may still become."""
        if self.size is None:
            return self._bounds.largest()
        return max(self.size, self._bounds.largest()) if self._may_grow else self.size

    @property
    def can_grow(self) -> bool:
        """Whether the one step up is still to be had, and leads anywhere."""
        return self._may_grow and self.size is not None and self._bounds.largest(2 * self.size) > self.size

    def _grow(self, need: int, model: str, say: Say) -> str:
        """The one step up, to at least twice the size where the model can; "" where there is none."""
        if not self.can_grow or self.size is None:
            return ""
        wanted = self._bounds.largest(max(need + ROOM_TO_GROW, 2 * self.size))
        said = f"context window raised from {self.size} to {wanted} tokens; {model} is loaded again"
        self.num_ctx = self.size = wanted
        self.reply = reply_in(wanted, self._most_reply, said=self._reply_said)
        self._may_grow, self.unverified = False, True
        say(said)
        return said

    def lower(self, prompt: Prompt, say: Say) -> str:
        """The next smaller window that still holds the prompt, after the server found too little memory; "": none."""
        if self._set is not None or self.size is None:
            return ""
        smaller = [w for w in LADDER if prompt.tokens + LEAST_REPLY <= w < self.size]
        if not smaller:
            return ""
        said = f"Ollama has too little memory for a window of {self.size:,} tokens: {smaller[-1]:,} are tried"
        self.num_ctx = self.size = smaller[-1]
        self.reply = reply_in(smaller[-1], self._most_reply, said=self._reply_said)
        self._bounds = Bounds(self._bounds.model, smaller[-1])
        say(said)
        return said

    def verify(self, given: int | None, model: str, say: Say, *, why: str = "") -> None:
        """The server has said what window it gave; None: it does not say, or `why` it could not be asked."""
        self.unverified = False
        if given is None:
            about = why or "this version of Ollama does not tell"
            say(f"the context window that {model} was really given is not known: {about}")
        elif self.num_ctx is not None and given < self.num_ctx:
            say(f"Ollama gave {model} a context window of {given} tokens, not the {self.num_ctx} asked for")
            self.size, self._may_grow = given, False

    def learn(self, prompt: Prompt, evaluated: int | None) -> None:
        """A reply has told how many tokens its prompt had: the next estimates go by that."""
        self.bytes_per_token = bytes_per_token(prompt, evaluated)

    def too_long(
        self, why: str, prompt: Prompt, provider: str, url: str, model: str, say: Say
    ) -> PromptTooLong:
        """The error with the budget; where the window can grow, it does, and the next try has room."""
        window = self.size or 0
        return too_long(
            why,
            prompt,
            window=window,
            limit=self._bounds.model,
            provider=provider,
            url=url,
            retryable=bool(self._grow(prompt.tokens + prompt.reply, model, say)),
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
