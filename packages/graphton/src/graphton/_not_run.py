"""What a call is answered with by others than its tool: people, rules, a crash, and the guard against loops."""

from __future__ import annotations

__all__ = ["FORBIDDEN", "LEFT", "REFUSED", "REPEATED", "UNKNOWN", "is_final", "of_the_tool"]

UNKNOWN = (
    "The program stopped while this call was running, so it is not known whether it did its work. "
    "It was not run again. Look at the current state before you go on."
)
REFUSED = {
    "rejected": "A person rejected this call; it was not run.",
    "expired": "Nobody answered in time whether this call may run; it was not run.",
}
LEFT = {
    "rejected": "A person looked into it and said not to run the call again.",
    "expired": "Nobody said in time whether to run the call again.",
}
FORBIDDEN = "A rule forbids this call; it was not run. The rule: {rule}"

REPEATED = "\n\n[You made the same call with the same result {times} times in a row. Do something else, or answer now.]"
"""Stands behind what the tool answered."""

_FINAL = (UNKNOWN, *REFUSED.values(), FORBIDDEN.partition("{")[0])


def is_final(result: str) -> bool:
    """Whether a result says that its call is not to be made again, in this form or another."""
    return result.startswith(_FINAL)


def of_the_tool(result: str) -> str:
    """A result without the note that the guard against loops put behind it."""
    return result.partition(REPEATED.partition("{")[0])[0]
