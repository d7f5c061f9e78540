"""One thing that was looked at, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AREAS", "FAIL", "OK", "SKIP", "WARN", "Check", "check"]

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
"""FAIL: the default run would not work. WARN: something else would not, or not well. SKIP: not looked at, or not used."""

AREAS = {
    "program": "Program",
    "home": "Home",
    "settings": "Settings",
    "network": "Network",
    "ollama": "Ollama",
    "llamacpp": "Built-in llama.cpp",
    "provider": "Providers",
}
"""The areas in their order, and what each is called."""


@dataclass(frozen=True, slots=True)
class Check:
    """`id` is stable and begins with its area; `facts` are for programs, `text` and `hint` for people."""

    id: str
    status: str
    text: str
    hint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def area(self) -> str:
        return self.id.partition(".")[0]

    def to_json(self) -> dict[str, Any]:
        """As `doctor --json` prints it."""
        return {
            "id": self.id,
            "area": self.area,
            "status": self.status,
            "text": self.text,
            "hint": self.hint,
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Check:
        return cls(row["id"], row["status"], row["text"], row["hint"], row["facts"])


def check(id: str, status: str, text: str, hint: str = "", /, **facts: Any) -> Check:
    """A check with its facts as keywords."""
    return Check(id, status, text, hint, facts)
