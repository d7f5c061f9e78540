"""What a call is answered with that people or rules kept from running, or that a crash cut off: trying again is no way on."""

from __future__ import annotations

__all__ = ["FORBIDDEN", "LEFT", "REFUSED", "UNKNOWN", "is_final"]

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

_FINAL = (UNKNOWN, *REFUSED.values(), FORBIDDEN.partition("{")[0])


def is_final(result: str) -> bool:
    """Whether a result says that its call is not to be made again, in this form or another."""
    return result.startswith(_FINAL)
