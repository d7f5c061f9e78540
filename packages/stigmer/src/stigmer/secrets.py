"""Keys of model servers, in memory only: by execution, and by provider and origin. Never stored, logged or sent on."""

from __future__ import annotations

from collections.abc import Callable

from graphton.models import origin

from stigmer import redact

__all__ = ["Keys"]


class Keys:
    """What callers' shells, the process environment and the user file gave, for as long as this process lives."""

    def __init__(
        self, *, otherwise: Callable[[str, str], str | None] = lambda provider, base_url: None
    ) -> None:
        self._otherwise = otherwise
        self._own: dict[str, dict[tuple[str, str], str]] = {}
        self._shared: dict[tuple[str, str, str], str] = {}

    def put(self, execution: str, key: str, *, organisation: str, provider: str, base_url: str) -> None:
        """A key for one execution; others of its organisation, provider and origin that lack theirs may use it too."""
        redact.remember([key])
        place = (provider, origin(base_url))
        self._own.setdefault(execution, {})[place] = key
        self._shared[organisation, *place] = key

    def find(self, execution: str, *, organisation: str, provider: str, base_url: str) -> str | None:
        """The execution's own key, else one for the same provider and origin; never any other.

        Without its own `otherwise` is asked, before what other callers of the organisation gave: what this process's
        environment, a stored secret and the user file bind to that address now.
        """
        place = (provider, origin(base_url))
        own = self._own.get(execution, {}).get(place)
        return own or self._otherwise(provider, base_url) or self._shared.get((organisation, *place))

    def given(self, execution: str) -> list[tuple[str, str, str]]:
        """Provider, origin and key of those that were given for this execution."""
        own = self._own.get(execution, {})
        return [(provider, place, key) for (provider, place), key in own.items()]

    def forget(self, execution: str) -> None:
        self._own.pop(execution, None)
