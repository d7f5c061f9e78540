"""The table of LLM settings: what each is called in a flag, a variable and a file, and what it may be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from graphton.errors import ModelNameError
from graphton.models import find_provider

__all__ = ["BLANKS", "SETTINGS", "Setting", "mask", "nearest", "setting_for_key"]

BLANKS = " \t\r\n\ufeff"
"""What is taken off both ends of every value: blanks, line ends and a byte order mark."""


class Setting(NamedTuple):
    """One row. `parse` gives the value, or raises ValueError with what is accepted and an example that works."""

    name: str
    help: str
    variables: tuple[str, ...]
    """Environment variables, the strongest first."""
    flag: str
    key: str
    """Where it stands in a file, with dots: `llm.model`."""
    parse: Callable[[object, bool], object]
    """Takes the raw value and whether it came as text (a flag, a variable); a file's value has a type of its own."""
    secret: bool = False


def _whole(raw: object, text: bool) -> int:
    wanted = "is not a whole number of at least 1, e.g. 8192"
    if text and isinstance(raw, str) and re.fullmatch(r"\d{1,10}", raw):
        raw = int(raw)
    if isinstance(raw, bool) or not isinstance(raw, int) or not 1 <= raw < 10**10:
        raise ValueError(wanted)
    return raw


def _number(raw: object, text: bool) -> float | None:
    if text and isinstance(raw, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", raw):
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not math.isfinite(raw):
        return None
    return float(raw)


def _temperature(raw: object, text: bool) -> float:
    value = _number(raw, text)
    if value is None:
        raise ValueError("is not a number from 0 to 2, e.g. 0.7")
    if not 0 <= value <= 2:
        raise ValueError("is out of 0..2, e.g. 0.7")
    return value


def _seconds(raw: object, text: bool) -> float:
    value = _number(raw, text)
    if value is None or not 0 < value <= 86_400:
        raise ValueError("is not a number of seconds above 0 and up to a day, e.g. 30")
    return value


def _one_of(*words: str) -> Callable[[object, bool], str]:
    def parse(raw: object, text: bool) -> str:
        word = str(raw).lower() if isinstance(raw, str) else ""
        if word in words:
            return word
        near = nearest(word, words)
        said = f": did you mean {near!r}?" if near else ""
        raise ValueError(f"is none of {', '.join(words)}{said or f', e.g. {words[0]}'}")

    return parse


def _provider(raw: object, text: bool) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("is not a provider's name, e.g. ollama")
    try:
        return find_provider(raw).name
    except ModelNameError as error:
        raise ValueError(f"is not a provider that we know: {error.hint}") from None


def _text(what: str, example: str) -> Callable[[object, bool], str]:
    def parse(raw: object, text: bool) -> str:
        if not isinstance(raw, str) or not raw:
            raise ValueError(f"is not {what}, e.g. {example}")
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in raw):
            raise ValueError(f"holds a control character; {what} is, e.g., {example}")
        return raw

    return parse


def _key(raw: object, text: bool) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("is not a text")
    if not raw.isascii() or any(sign.isspace() or ord(sign) < 32 for sign in raw):
        raise ValueError("holds a blank or a sign that cannot stand in a header; copy it again, in one piece")
    return raw


def _variable(raw: object, text: bool) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", raw):
        raise ValueError("is not the name of an environment variable, e.g. ANTHROPIC_API_KEY")
    return raw


def _models(raw: object, text: bool) -> tuple[str, ...]:
    example = "openai:gpt-6-luna,ollama:qwen3:8b" if text else "[openai:gpt-6-luna, ollama:qwen3:8b]"
    parts: Iterable[object] = raw.split(",") if text and isinstance(raw, str) else ()
    if isinstance(raw, list | tuple):
        parts = raw
    names = [part.strip(BLANKS) if isinstance(part, str) else part for part in parts]
    names = [name for name in names if name != ""] if text else names
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"is not a list of models, e.g. {example}")
    return tuple(str(name) for name in names)


def _mirror(raw: object, text: bool) -> str:
    wanted = "is not an address like https://models.example.com/gguf"
    if not isinstance(raw, str) or not re.fullmatch(r"https?://[^\s?#@]+", raw):
        raise ValueError(f"{wanted}, without user, query and fragment")
    return raw.rstrip("/")


_PREFIX = "STIGMER_LLM_"

SETTINGS: dict[str, Setting] = {
    row.name: row
    for row in (
        Setting(
            "mode",
            "Where the model runs when nobody names one: on this machine, or at a provider.",
            ("STIGMER_MODE", "MODE"),
            "--mode",
            "mode",
            _one_of("local", "cloud"),
        ),
        Setting(
            "provider",
            "Who serves the model.",
            (_PREFIX + "PROVIDER",),
            "--provider",
            "llm.provider",
            _provider,
        ),
        Setting(
            "model",
            "The model; its name may carry its provider: anthropic:claude-haiku-4.5.",
            (_PREFIX + "MODEL",),
            "--model",
            "llm.model",
            _text("the name of a model", "qwen2.5-coder:7b"),
        ),
        Setting(
            "base_url",
            "The provider's address, as its official client takes it.",
            (_PREFIX + "BASE_URL",),
            "--base-url",
            "llm.base_url",
            _text("an address", "http://localhost:11434"),
        ),
        Setting(
            "api_key",
            "The provider's key. It goes only where it is bound to go.",
            (_PREFIX + "API_KEY",),
            "",
            "llm.api_key",
            _key,
            secret=True,
        ),
        Setting(
            "api_key_env",
            "The environment variable that holds the key.",
            (),
            "",
            "llm.api_key_env",
            _variable,
        ),
        Setting(
            "max_tokens",
            "The longest reply, in tokens.",
            (_PREFIX + "MAX_TOKENS",),
            "--max-tokens",
            "llm.max_tokens",
            _whole,
        ),
        Setting(
            "temperature",
            "How freely the model chooses its words, 0 to 2.",
            (_PREFIX + "TEMPERATURE",),
            "--temperature",
            "llm.temperature",
            _temperature,
        ),
        Setting(
            "context_window",
            "The tokens that prompt and reply share.",
            (_PREFIX + "CONTEXT_WINDOW",),
            "--context-window",
            "llm.context_window",
            _whole,
        ),
        Setting(
            "fallbacks",
            "Models that take over, in this order, when the model cannot be reached.",
            (_PREFIX + "FALLBACKS",),
            "--fallback",
            "llm.fallbacks",
            _models,
        ),
        Setting(
            "thinking",
            "How much the model reasons before it answers.",
            (_PREFIX + "THINKING",),
            "--thinking",
            "llm.thinking",
            _one_of("off", "low", "medium", "high"),
        ),
        Setting(
            "dialect",
            "How a host of OpenAI's kind is asked: by chat completions, or by the Responses API.",
            (_PREFIX + "DIALECT",),
            "",
            "llm.dialect",
            _one_of("chat", "responses"),
        ),
        Setting(
            "timeouts.connect",
            "Seconds until the server must have answered the call.",
            (_PREFIX + "CONNECT_TIMEOUT",),
            "--connect-timeout",
            "llm.timeouts.connect",
            _seconds,
        ),
        Setting(
            "timeouts.first_token",
            "Seconds until the first word of a reply.",
            (_PREFIX + "FIRST_TOKEN_TIMEOUT",),
            "--first-token-timeout",
            "llm.timeouts.first_token",
            _seconds,
        ),
        Setting(
            "timeouts.idle",
            "Seconds between two words of a reply.",
            (_PREFIX + "IDLE_TIMEOUT",),
            "--idle-timeout",
            "llm.timeouts.idle",
            _seconds,
        ),
        Setting(
            "models.mirror",
            "Where model files of the catalogue are looked for first: ADDRESS/FILE.gguf.",
            ("STIGMER_MODEL_MIRROR",),
            "",
            "models.mirror",
            _mirror,
        ),
    )
}
"""Every setting of a model, in the order in which they are shown. Nothing else needs editing for a new one."""


def setting_for_key(key: str) -> Setting | None:
    """The setting that stands at a dotted key of a file; `model` is understood as `llm.model`."""
    return next((row for row in SETTINGS.values() if key in (row.key, row.name)), None)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that somebody most likely meant; two letters swapped are the likeliest slip."""
    from difflib import get_close_matches

    names = list(known)
    swapped = next((one for one in names if sorted(one) == sorted(name)), None)
    return swapped or next(iter(get_close_matches(name, names, n=1)), None)


def mask(secret: str) -> str:
    """A secret as it may be shown: `***`, and the last four signs of one that is at least 20 long."""
    return "***" + (secret[-4:] if len(secret) >= 20 else "")
