"""The one choke point that masks secrets in whatever leaves: events, errors, logs, reports.

Two rules. A value that the process knows to be secret is masked everywhere, events included. A text that only looks
like a key is masked where we speak ourselves (errors, notices, logs, reports), not in what a model or a tool said: a
journal is replayed, and a guess must not change what an approved call does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

__all__ = ["MASK", "forget", "held_back", "holds", "known", "mask", "mask_bytes", "remember", "scrub"]

MASK = "***"
_SHORTEST = 8
"""A shorter "secret" (such as `none`) would mask ordinary words."""

_known: dict[str, None] = {}
_pattern: re.Pattern[str] | None = None
_pattern_bytes: re.Pattern[bytes] | None = None

_SHAPES = re.compile(
    r"""(?x)
    \b(?:sk|pk|rk)-[A-Za-z0-9_\-]{12,}                  # Anthropic, OpenAI and those who copy them
  | \b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}
  | \bgithub_pat_[A-Za-z0-9_]{20,}
  | \bxox[abprs]-[A-Za-z0-9\-]{10,}
  | \bAKIA[0-9A-Z]{16}\b
  | \bAIza[0-9A-Za-z_\-]{30,}
  | \bhf_[A-Za-z0-9]{20,}
  | \beyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{5,}
  | (?<=://)[^/\s:@'"]+:[^/\s@'"]+(?=@)                 # user:password@ in an address
  | (?i:(?<=bearer\ ))[A-Za-z0-9._~+/\-]{8,}=*
  | (?i:(?<=x-api-key:\ ))\S{8,}
    """
)


def remember(secrets: Iterable[str]) -> None:
    """From now on these values, as they are and as JSON or a URL writes them, leave this process only as `***`."""
    global _pattern, _pattern_bytes
    before = len(_known)
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            _known.update(dict.fromkeys((secret, json.dumps(secret)[1:-1], quote(secret, safe=""))))
    if len(_known) == before:
        return
    alternatives = "|".join(re.escape(s) for s in sorted(_known, key=len, reverse=True))
    _pattern = re.compile(alternatives)
    _pattern_bytes = re.compile(alternatives.encode("utf-8", "surrogatepass"))


def forget() -> None:
    """Knows no secret any more. For tests, which live in one process and must not mask each other's words."""
    global _pattern, _pattern_bytes
    _known.clear()
    _pattern = _pattern_bytes = None


def known() -> tuple[str, ...]:
    """Every form of every secret that this process knows."""
    return tuple(_known)


def mask(text: str) -> str:
    """The text without known secrets."""
    return text if _pattern is None else _pattern.sub(MASK, text)


def mask_bytes(data: bytes) -> bytes:
    """The bytes without known secrets."""
    return data if _pattern_bytes is None else _pattern_bytes.sub(MASK.encode(), data)


def holds(data: bytes) -> bool:
    """Whether a known secret stands in these bytes."""
    return _pattern_bytes is not None and _pattern_bytes.search(data) is not None


def scrub(text: str) -> str:
    """The text without known secrets and without anything shaped like a key; for errors, notices, logs and reports."""
    return _SHAPES.sub(MASK, mask(text))


def held_back(text: str) -> int:
    """How many characters at the end of a stream's text may be the beginning of a known secret."""
    if _pattern is None:
        return 0
    longest = 0
    for secret in _known:
        at = text.find(secret[0], max(0, len(text) - len(secret) + 1))
        while at >= 0 and not secret.startswith(text[at:]):
            at = text.find(secret[0], at + 1)
        if at >= 0:
            longest = max(longest, len(text) - at)
    return longest
