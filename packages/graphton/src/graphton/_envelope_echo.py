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
    """Whether a reply that begins like this may yet do so: until then it is not shown.

    >>> may_say_back("Rain is likely in the", "The user asked: will it rain?")
    False
    """
    words = _words(text)
    if len(words) >= HEAD or says_back(text, told):
        return says_back(text, told)
    sure = words[:-1]  # The last one may go on.
    heard = f" {plain(told)} "
    run = next((n for n in range(len(sure), 0, -1) if f" {' '.join(sure[-n:])} " in heard), 0)
    return run + HEAD - len(sure) >= RUN


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
