"""An API key on its way into a header: checked, masked, and missed where the provider's own host needs one."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphton.chat._failures import origin_of
from graphton.errors import SettingError
from graphton.models import find_provider, origin

__all__ = ["Key", "check_key"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key for one provider at one address; `value` is empty where nobody gave one."""

    provider: str
    url: str
    value: str = field(default="", repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must appear in no text."""
        return (self.value,) if self.value else ()

    @property
    def masked(self) -> str:
        return "***" if self.value else ""

    def require(self) -> None:
        """Raise when this is the provider's own host, which needs a key, and there is none.

        At other addresses the server decides: a gateway may add the key itself.
        """
        row = find_provider(self.provider)
        if self.value or not row.needs_key or origin(self.url) not in row.origins:
            return
        raise SettingError(
            f"there is no API key for {self.provider} at {origin_of(self.url)!r}",
            hint=f"give api_key=…, or set {row.key_variable}",
        )


def check_key(provider: str, url: str, value: str | None) -> Key:
    """The key without the blanks that come with copying it; one that fits into no header is refused, unshown."""
    key = (value or "").strip(" \t\r\n\ufeff")
    wrong = next((i for i, sign in enumerate(key) if not "!" <= sign <= "~"), None)
    if wrong is not None:
        raise SettingError(
            f"the API key for {provider} holds a sign that no key has, at place {wrong + 1} of {len(key)}",
            hint="copy the key again, in one piece",
        )
    return Key(provider, url, key)
