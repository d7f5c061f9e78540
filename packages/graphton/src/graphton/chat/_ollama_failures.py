"""Ollama's refusals as ours: each with a way out that works for Ollama."""

from __future__ import annotations

import re
from typing import NamedTuple

from graphton.chat._failures import origin_of
from graphton.chat.ollama_facts import START, Server
from graphton.errors import ConnectError, ProviderError, StatusError

__all__ = ["explained", "no_memory", "no_tools", "says_too_long"]

_TOO_LONG = re.compile(r"exceeds? the (available )?context (length|size|window)|input length exceeds")


class _Refusal(NamedTuple):
    """Words of the server, and what to do about them."""

    words: re.Pattern[str]
    hint: str
    passes: bool = False
    """Whether it may pass by waiting."""


_MEMORY = _Refusal(
    re.compile(
        r"requires more system memory|out of memory|cudaMalloc failed|unable to load full model|unable to allocate"
    ),
    "free some memory, use a smaller model, or a smaller window than context_window={window}",
)
_REFUSALS = (
    _Refusal(re.compile(r"model .* not found"), "fetch the model: ollama pull {model}{installed}"),
    _Refusal(
        re.compile(r"does not support tools"),
        "use a model that does (see `ollama show {model}`: capabilities), or offer its tools in the envelope mode",
    ),
    _Refusal(re.compile(r"does not support thinking"), "leave thinking unset, or set thinking='off'"),
    _Refusal(re.compile(r"does not support chat"), "it is no model to talk to; `ollama list` names others"),
    _Refusal(
        re.compile(r"option .* must be|invalid format"),
        "this Ollama takes the settings otherwise than we send them; update it, or report it to us",
    ),
    _MEMORY,
    _Refusal(
        re.compile(r"unexpectedly stopped|runner process has terminated|runner process no longer running"),
        "the model's process died, as a rule for lack of memory: use a smaller window than context_window={window}, "
        "or a smaller model; the server's log says why",
        passes=True,
    ),
    _Refusal(
        re.compile(r"timed out waiting for llama runner"),
        "loading came to a stop; start Ollama with a longer OLLAMA_LOAD_TIMEOUT where its disk is slow",
    ),
    _Refusal(
        re.compile(r"server busy"),
        "others wait for this Ollama too; OLLAMA_MAX_QUEUE and OLLAMA_NUM_PARALLEL allow more at a time",
        passes=True,
    ),
    _Refusal(
        re.compile(r"may be incompatible with your version|unknown model architecture|unsupported"),
        "update Ollama, and then the model: ollama pull {model}",
    ),
)


def says_too_long(error: ProviderError) -> bool:
    """Whether the server refused a prompt for its length."""
    return isinstance(error, StatusError) and bool(_TOO_LONG.search(error.message))


def no_memory(error: ProviderError) -> bool:
    """Whether the server says that there is too little memory."""
    return isinstance(error, StatusError) and bool(_MEMORY.words.search(error.message))


def no_tools(model: str, url: str) -> StatusError:
    """What Ollama would say of tools for a model that takes none, said before the model is loaded for it."""
    return StatusError(
        f"{model} does not support tools, says ollama at {origin_of(url)!r}",
        status=400,
        provider="ollama",
        url=url,
    )


def explained(
    error: ProviderError, *, model: str, window: int | None, server: Server | None
) -> ProviderError:
    """The same error with a hint that works for Ollama."""
    if isinstance(error, ConnectError) and error.trouble == "refused":
        error.hint = START
    if not isinstance(error, StatusError):
        return error
    refusal = next((one for one in _REFUSALS if one.words.search(error.message)), None)
    if refusal is not None:
        error.hint = refusal.hint.format(model=model, window=window, installed=_others(server))
        error.retryable = refusal.passes
    elif error.status == 500 and error.message.endswith(" answered 500"):
        error.hint = (
            f"Ollama fails without a word: its log says why; where the model's file is damaged, ollama rm {model}, and "
            f"fetch it again: ollama pull {model}"
        )
    elif error.status in (404, 405, 501):
        error.hint = f"what listens there may be no Ollama; see: curl {origin_of(error.url)}/api/version"
        error.retryable = False
    return error


def _others(server: Server | None) -> str:
    if server is None or not server.installed:
        return ""
    names = [one.name for one in server.installed]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"; installed are {', '.join(names[:5])}{more}"
