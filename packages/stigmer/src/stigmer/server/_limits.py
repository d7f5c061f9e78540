"""How much one caller may ask of a server for others: calls a second, open streams; and how often anybody may fail to get in.

Nothing here is kept for ever: what was used longest ago is forgotten first, and what is forgotten begins anew.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from stigmer.errors import ConfigError

__all__ = ["Buckets", "Limits", "Streams", "address_of", "limits_of", "whole"]

RATE, BURST, STREAMS = "STIGMER_RATE_LIMIT", "STIGMER_RATE_BURST", "STIGMER_STREAM_LIMIT"
KEEPALIVE = "STIGMER_KEEPALIVE_SECONDS"
WORKERS_MORE = 20
"""So many times as much a worker's key may call: two hundred executions come back with it when a server was away."""
FAILURES, FAILURES_A_SECOND = 30, 1.0
"""So many callers whom we do not know, from one address, before we look no further."""
MOST = 10_000
"""Buckets that are remembered; 200 bytes each."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the environment says; 0 calls a second is no limit."""

    calls: int = 50
    burst: int = 100
    streams: int = 100
    keepalive: int = 30
    """Seconds of silence after which a connection is asked whether it still stands."""


_ROWS = {
    "calls": (RATE, 0, 1_000_000, "calls a second, 0 for no limit, e.g. 50"),
    "burst": (BURST, 1, 1_000_000, "calls at once, e.g. 100"),
    "streams": (STREAMS, 1, 1_000_000, "open streams, e.g. 100"),
    "keepalive": (KEEPALIVE, 1, 3600, "seconds from 1 to 3600, e.g. 30"),
}


def limits_of(environ: Mapping[str, str]) -> Limits:
    """The limits that the environment sets; an empty variable is not set. Raises ConfigError with all that is wrong.

    >>> limits_of({"STIGMER_RATE_LIMIT": "5"}).calls
    5
    """
    problems: list[str] = []
    said = {
        name: whole(environ, variable, getattr(Limits(), name), low, high, what, problems)
        for name, (variable, low, high, what) in _ROWS.items()
    }
    if problems:
        raise ConfigError(problems)
    return Limits(**said)


def whole(
    environ: Mapping[str, str],
    variable: str,
    otherwise: int,
    low: int,
    high: int,
    what: str,
    problems: list[str],
) -> int:
    """The whole number that a variable holds, `otherwise` where it is not set; what is wrong goes to `problems`."""
    text = environ.get(variable, "").strip()
    if not text:
        return otherwise
    if text.isascii() and text.isdecimal() and low <= int(text[:20]) <= high:
        return int(text)
    problems.append(f"{variable} {text!r} is not a whole number of {what}")
    return otherwise


class Buckets:
    """A token bucket for each name: `burst` at once, then `rate` a second. Rate 0 gives no limit."""

    def __init__(
        self, rate: float, burst: int, *, most: int = MOST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self._burst, self._most, self._clock = rate, burst, most, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def wait(self, name: str) -> float:
        """Seconds until there is one for this name; 0 when there is one now."""
        if not self.rate:
            return 0.0
        return max(0.0, (1.0 - self._now(name)) / self.rate)

    def take(self, name: str) -> float:
        """Takes one and gives 0; or takes none and gives the seconds until there is one."""
        wait = self.wait(name)
        if self.rate and not wait:
            self._left[name] = (self._now(name) - 1.0, self._clock())
            self._left.move_to_end(name)
            if len(self._left) > self._most:
                self._left.popitem(last=False)
        return wait

    def _now(self, name: str) -> float:
        left, at = self._left.get(name, (float(self._burst), 0.0))
        return min(float(self._burst), left + (self._clock() - at) * self.rate)


class Streams:
    """How many streams each caller has open."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: Counter[str] = Counter()

    def full(self, name: str) -> bool:
        """Whether the caller may open no more."""
        return self._open.get(name, 0) >= self.most

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """One more while the block runs."""
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]


def address_of(peer: str) -> str:
    """The address behind a gRPC peer; of IPv6 the network, since one machine has as many addresses as it likes.

    >>> address_of("ipv4:10.0.0.7:5123"), address_of("ipv6:%5B2001:db8:1:2:a::1%5D:443")
    ('10.0.0.7', '2001:db8:1:2::/64')
    """
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    if kind != "ipv6":
        return host or kind
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network(f"{host}/64", strict=False))
