"""Whether a reply says back what it was told, as small models do, and take it for an answer."""

from __future__ import annotations

import difflib
import re

__all__ = ["may_say_back", "plain", "says_back"]

RUN = 6
"""Words in a row that nobody says again by chance."""
HEAD = 9
"""Words of a reply in which they begin, if it is one: what an answer quotes further on is its own affair."""


def plain(text: str) -> str:
    """A text as it is compared: a model that repeats it changes its marks."""
    return " ".join(_words(text))


def says_back(text: str, told: str) -> bool:
    """Whether a reply begins with words that were told to the model.

    >>> says_back("The call did not work. Correct it as the error says.", "That call did not work. Correct it as it says.")
    True
    """
    head, words = _words(text)[:HEAD], _words(told)
    match = difflib.SequenceMatcher(None, head, words, autojunk=False).find_longest_match()
    return match.size >= RUN


def may_say_back(text: str, told: str) -> bool:
    """The same of the beginning of a reply: True also while too little of it has come."""
    return len(_words(text)) < HEAD or says_back(text, told)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
