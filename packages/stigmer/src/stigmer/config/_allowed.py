"""STIGMER_ALLOWED_HOSTS: the addresses that a request over TCP may name, and whether the server's key may go there."""

from __future__ import annotations

from collections.abc import Mapping

from graphton.errors import ModelNameError
from graphton.models import find_provider, origin

from stigmer.config._address import read_address
from stigmer.config._own import shown_url
from stigmer.config._settings import BLANKS
from stigmer.errors import ConfigError

__all__ = ["allowed_hosts"]

_VARIABLE = "STIGMER_ALLOWED_HOSTS"
_EXAMPLE = f"{_VARIABLE}=ollama@http://gpu.lan:11434,openai@https://gw.example+key"


def allowed_hosts(env: Mapping[str, str]) -> dict[tuple[str, str], bool]:
    """The list as `resolve` takes it: `PROVIDER@ORIGIN` with commas between; `+key` lets the server's key go there.

    Without `+key` no key goes there. With it a key goes there that the server's own environment or user file has
    bound to this very address. Raises ConfigError with everything that is wrong.

    >>> allowed_hosts({"STIGMER_ALLOWED_HOSTS": "openai@https://gw.example+key"})
    {('openai', 'https://gw.example:443'): True}
    """
    allowed, problems = {}, []
    for part in env.get(_VARIABLE, "").split(","):
        entry = part.strip(BLANKS)
        if not entry:
            continue
        try:
            place, with_key = _place(entry)
        except ValueError as error:
            problems.append(f"{_VARIABLE}: {shown_url(entry)!r} {error}, e.g. {_EXAMPLE}")
        else:
            allowed[place] = with_key
    if problems:
        raise ConfigError(problems)
    return allowed


def _place(entry: str) -> tuple[tuple[str, str], bool]:
    name, sign, address = entry.partition("@")
    if not sign:
        raise ValueError("is no provider with an address")
    with_key = address.endswith("+key")
    try:
        provider = find_provider(name)
    except ModelNameError as error:
        raise ValueError(f"names a provider that we do not know: {error.hint}") from None
    try:
        url = read_address(address.removesuffix("+key"), provider).url
    except ValueError as error:
        raise ValueError(str(error).partition(", e.g.")[0]) from None
    if url.partition("://")[2].partition("/")[2]:
        raise ValueError("has a path, and a whole host is allowed or not")
    return (provider.name, origin(url)), with_key
