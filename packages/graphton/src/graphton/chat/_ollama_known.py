"""What this process knows of one model of one Ollama: measured facts, the window it is loaded with, how fast it reads."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from graphton._proxies import is_loopback
from graphton.chat._machine import free_memory
from graphton.chat._ollama_wait import Speed
from graphton.chat.ollama_facts import Loaded, ModelFacts, Server, measure, model_facts
from graphton.errors import BrokenStream, ProviderTimeout, StatusError

__all__ = ["KEEP_ALIVE", "Known", "known_of"]

KEEP_ALIVE = timedelta(minutes=30)
"""How long the model stays loaded after a reply: Ollama's own five minutes are over before a long tool is, or a
person has read an answer and thought of the next question."""

FRESH_SECONDS = 60.0
"""So long after its last reply a model is taken to be loaded as it was. Then others may have changed that."""

ANSWER_SECONDS = 10.0
"""How long a run waits for an Ollama to say its version. One that works answers in milliseconds, on a machine without
a free core in a second or two."""

OVERHEAD = 300 << 20
"""Bytes that serving a model takes beside its file and its window. Measured with Ollama 0.17.4, 0.5b and 1.5b, windows
of 4k to 32k: 100 to 190 MB less than file and window together; larger models have larger buffers."""

_CARDS = tuple(map(Path, ("/dev/nvidiactl", "/dev/kfd")))


class Known:
    """All chats of one process with one model share it, so that they agree on the window and load the model once."""

    def __init__(self, base_url: str, model: str) -> None:
        self.base_url = base_url
        self.model = model
        self.server: Server | None = None
        self.facts: ModelFacts | None = None
        """None while nobody has asked, and where the server did not say."""
        self.in_memory: int | None = None
        """The num_ctx that the model is loaded with, as far as we know."""
        self.speed = Speed()
        self.patience = ANSWER_SECONDS
        self._seen = float("-inf")

    def is_fresh(self) -> bool:
        """Whether what is known of the server's memory can be relied on."""
        return time.monotonic() - self._seen < FRESH_SECONDS

    def replied(self, num_ctx: int | None) -> None:
        """The model has just answered, loaded with this num_ctx."""
        self.in_memory = num_ctx
        self._seen = time.monotonic()

    def forget(self) -> None:
        """Something went wrong: measure again before the next request."""
        self._seen = float("-inf")

    async def look(self, api_key: str | None, provider: str) -> str:
        """Measure; "" or why it could not be. Raises where nothing listens or answers, or something that is no Ollama."""
        # Other chats go by what is known: it is replaced in one step, never empty while the server is asked.
        server, facts = None, None
        try:
            server = await measure(self.base_url, api_key=api_key, provider=provider, seconds=self.patience)
            facts = await model_facts(server, self.model)
        except (ProviderTimeout, StatusError, BrokenStream) as error:
            if isinstance(error, ProviderTimeout) and error.limit == "connect":
                raise  # What does not say who it is, is sent no conversation: a load would be waited for without end.
            return error.message
        else:
            self._seen = time.monotonic()
            return ""
        finally:
            self.server, self.facts = server, facts
            self.in_memory = self.loaded.window if self.loaded else None

    @property
    def missing(self) -> bool:
        """Whether the server says that it has no such model."""
        return self.server is not None and self.server.installed_model(self.model) is None

    @property
    def loaded(self) -> Loaded | None:
        """The model in the server's memory, when it was last looked at."""
        return self.server.loaded_model(self.model) if self.server else None

    def takes(self, what: str) -> bool:
        """Whether this Ollama knows a thing of `SINCE`; one that was not measured is taken for a new one."""
        return self.server is None or self.server.takes(what)

    def keep_alive(self) -> str:
        """What to ask for; "" where the model is to stay longer than that already."""
        until = self.loaded.expires if self.loaded else None
        if until is not None and until > datetime.now(UTC) + KEEP_ALIVE:
            return ""
        return f"{KEEP_ALIVE.total_seconds() / 60:.0f}m"

    def needs(self, window: int) -> int:
        """Bytes of memory that the model takes with this window; 0 where that is not known."""
        if self.facts is None or self.facts.size is None or self.facts.kv_bytes is None:
            return 0
        return self.facts.size + self.facts.kv_bytes * window + OVERHEAD

    def free(self) -> int | None:
        """Bytes of memory that this model can have; None where that is not known: on another machine, or on a card.

        What Ollama holds already counts as free: it gives that up for another model, or for another window.
        """
        host = urlsplit(self.base_url).hostname or ""
        if self.server is None or not is_loopback(host.lower()) or sys.platform != "linux":
            return None
        if any(card.exists() for card in _CARDS) or any(one.vram for one in self.server.loaded):
            return None
        return free_memory() + sum(one.size or 0 for one in self.server.loaded)

    def largest_window(self) -> int | None:
        """The largest window that memory holds; None: not known."""
        free, needs = self.free(), self.needs(0)
        if free is None or not needs or self.facts is None or not self.facts.kv_bytes:
            return None
        return max(0, free - needs) // self.facts.kv_bytes


_all: dict[tuple[str, str], Known] = {}


def known_of(base_url: str, model: str) -> Known:
    """What is known of a model at an address; the same object for every chat with it."""
    return _all.setdefault((base_url, model), Known(base_url, model))
