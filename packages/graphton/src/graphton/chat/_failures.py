"""Foreign failures become ours here: aiohttp's exceptions and HTTP statuses, with no key in any text."""

from __future__ import annotations

import errno
import re
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import orjson

from graphton._trust import distrust
from graphton.errors import (
    BrokenStream,
    ConnectError,
    ProtocolError,
    ProviderError,
    ProviderTimeout,
    RedirectRefused,
    StatusError,
)
from graphton.models import PROVIDERS

__all__ = ["Peer", "Via", "mask", "origin_of", "retry_after", "retryable_status"]

_LONGEST_QUOTE = 600
"""Characters of a server's own words that an error repeats."""

_MOST_READ = 64 * 1024
"""Bytes of a body that are looked at for an error's text."""

_STATUS_HINTS = {
    401: "check the API key for {provider}{variable}, and that it belongs to {origin}",
    403: "this key may not do that at {origin}; check the account, the model and the region",
    404: "check the model's name and the base URL {url!r}",
    413: "the request is too large for this server; shorten the conversation",
    429: "wait a little, or ask the provider for a higher rate limit",
    529: "the provider is overloaded; try again later, or name a fallback model",
}


class Via(NamedTuple):
    """The proxy between us and a server: its origin, without user and password, and the variable that names it."""

    origin: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {self.origin!r} (from {self.variable})"


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom we talk to, as errors name it. `secrets` never appear in a text that goes through `quote`."""

    provider: str
    url: str
    secrets: tuple[str, ...] = ()
    via: Via | None = None

    @property
    def origin(self) -> str:
        return origin_of(self.url)

    @property
    def _host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def _variable(self) -> str:
        row = PROVIDERS.get(self.provider)
        return f" ({row.key_variable})" if row and row.key_variable else ""

    def quote(self, text: str) -> str:
        """A server's own words: on one line, cut to a readable length, without secrets."""
        line = " ".join(mask(text, self.secrets).split())
        return line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + "…"

    def excerpt(self, data: bytes) -> str:
        """The beginning of what a server sent, in quotes, without secrets."""
        return repr(mask(data[:_MOST_READ].decode("utf-8", "replace"), self.secrets)[:300])

    def connect_error(self, message: str, *, trouble: str, hint: str, retryable: bool = True) -> ConnectError:
        return ConnectError(
            message, trouble=trouble, hint=hint, provider=self.provider, url=self.url, retryable=retryable
        )

    def timed_out(self, limit: str, seconds: float, *, looking_up: bool = False) -> ProviderTimeout:
        """`looking_up`: the time of the connect limit went into finding the address of the host's name."""
        what = "lookup" if looking_up else "proxy" if self.via and limit == "connect" else limit
        message, hint = _TIMEOUTS[what]
        return ProviderTimeout(
            f"{self.provider} at {self.origin!r} "
            + message.format(seconds=f"{seconds:g}", host=self._host, via=self.via),
            limit=limit,
            hint=hint.format(double=f"{seconds * 2:g}", host=self._host, via=self.via),
            provider=self.provider,
            url=self.url,
        )

    def broken(self, why: str) -> BrokenStream:
        return BrokenStream(
            f"the reply of {self.provider} at {self.origin!r} ended before it was whole: {self.quote(why)}",
            hint="the same request may succeed when it is sent again",
            provider=self.provider,
            url=self.url,
        )

    def protocol(self, why: str, *, hint: str = "") -> ProtocolError:
        return ProtocolError(
            f"{self.provider} at {self.origin!r} sent {self.quote(why)}",
            hint=hint or f"check that the base URL {self.url!r} is one of {self.provider}'s API",
            provider=self.provider,
            url=self.url,
        )

    def redirect(self, status: int, location: str) -> RedirectRefused:
        goal = origin_of(urljoin(self.url, location)) if location else ""
        where = f"to {self.quote(goal)!r}" if goal else "without saying where to"
        return RedirectRefused(
            f"{self.provider} at {self.origin!r} answered {status} and wants to send us on {where}; nothing was sent there",
            hint="redirects are never followed, so that prompt and key stay where they were sent; "
            "set base_url to the final address if you trust it",
            provider=self.provider,
            url=self.url,
        )

    def status(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, kind: str = ""
    ) -> StatusError:
        """The error for an HTTP status, with what the server says in its body."""
        said_kind, said = _said(body)
        kind = self.quote(kind or said_kind)
        about = f" ({kind})" if kind else ""
        words = f": {self.quote(said)}" if said else ""
        hint = _STATUS_HINTS.get(status, "the server failed; try again later" if status >= 500 else "")
        return StatusError(
            f"{self.provider} at {self.origin!r} answered {status}{about}{words}",
            status=status,
            kind=kind,
            hint=hint.format(
                provider=self.provider, variable=self._variable, origin=repr(self.origin), url=self.url
            ),
            provider=self.provider,
            url=self.url,
            retryable=retryable_status(status),
            retry_after=retry_after(headers or {}),
        )

    def translate(self, error: BaseException) -> ProviderError:
        """Our error for one of aiohttp's; every ClientError has a place here."""
        import aiohttp

        match error:
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
                return self._tls(error)
            case aiohttp.ClientConnectorDNSError():
                if self.via and error.host != self._host:
                    return self._no_proxy(error)
                return self._unknown_host(error.os_error)
            case aiohttp.ClientProxyConnectionError():
                return self._no_proxy(error.os_error)
            case aiohttp.ClientHttpProxyError():
                return self.proxy_refused(error.status)
            case aiohttp.ClientConnectorError():
                return self._refused(error.os_error)
            case aiohttp.InvalidURL():
                return self.connect_error(
                    f"{self.url!r} is no URL that can be reached",
                    trouble="address",
                    hint="write it like https://api.example.com/v1",
                    retryable=False,
                )
            case aiohttp.ClientResponseError():
                return self.protocol(f"no valid HTTP: {error.message}")
            case aiohttp.ServerDisconnectedError():
                return self.broken("the server closed the connection without an answer")
            case aiohttp.ClientPayloadError():
                return self.broken("the connection was cut in the middle")
            case aiohttp.ClientError() | OSError():
                return self.broken(str(error) or type(error).__name__)
            case _:
                return self.broken(f"{type(error).__name__}: {error}")

    def _unknown_host(self, error: OSError) -> ConnectError:
        if getattr(error.__cause__ or error, "errno", None) == socket.EAI_AGAIN:
            return self.connect_error(
                f"the host name {self._host!r} of {self.provider} cannot be looked up just now: "
                "no name server answers",
                trouble="lookup",
                hint="this machine may be offline, or its DNS may be down; behind a company's proxy set HTTPS_PROXY",
            )
        return self.connect_error(
            f"the host name {self._host!r} of {self.provider} is not known here",
            trouble="host",
            hint=f"check the spelling of the base URL, {self.origin!r}, and this machine's network",
        )

    def _refused(self, error: OSError) -> ConnectError:
        # A name with several addresses fails with all their errors in one text.
        if error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in str(error):
            return self.connect_error(
                f"nothing listens at {self.origin!r} ({self.provider})",
                trouble="refused",
                hint="start the server, or set base_url to where it runs",
            )
        return self.connect_error(
            f"{self.origin!r} ({self.provider}) cannot be reached: {self.quote(str(error))}",
            trouble="unreachable",
            hint="check this machine's network and the base URL",
        )

    # --- proxies ------------------------------------------------------------------------------------------------

    def _no_proxy(self, error: OSError) -> ConnectError:
        import aiohttp

        why = self.quote(str(error))
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            why = "its name is not known here"
        return self.connect_error(
            f"{self._via} for {self.origin!r} cannot be reached: {why}",
            trouble="proxy",
            hint=self._past_the_proxy("check its address"),
        )

    def proxy_refused(self, status: int) -> ConnectError:
        """The error for what the proxy itself, not the server behind it, answered."""
        if status == 407:
            return self.connect_error(
                f"{self._via} wants a user and password before it lets us to {self.origin!r} (407)",
                trouble="proxy",
                hint=f"write them into its address: {self._proxy_variable}=http://USER:PASSWORD@HOST:PORT; "
                "if they stand there already, they are wrong",
                retryable=False,
            )
        if status < 500:
            return self.connect_error(
                f"{self._via} does not let us to {self.origin!r} (it answered {status})",
                trouble="proxy",
                hint=self._past_the_proxy("ask who runs it to allow that host"),
                retryable=status in (408, 429),
            )
        return self.connect_error(
            f"{self._via} could not connect us to {self.origin!r} (it answered {status})",
            trouble="proxy",
            hint=self._past_the_proxy("it may not know that host, or be overloaded"),
        )

    @property
    def _via(self) -> str:
        return str(self.via) if self.via else "the proxy"

    @property
    def _proxy_variable(self) -> str:
        return self.via.variable if self.via else "HTTPS_PROXY"

    def _past_the_proxy(self, advice: str) -> str:
        return f"{advice}, or go past it: NO_PROXY={self._host} (a running daemon: `stigmer down` first)"

    # --- TLS ----------------------------------------------------------------------------------------------------

    def _tls(self, error: Any) -> ConnectError:
        whose, host = self._tls_partner(error)
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            why, hint = distrust(cause, host)
            return self.connect_error(
                f"the TLS certificate of {whose} is not trusted: {self.quote(why)}",
                trouble="certificate",
                hint=hint,
                retryable=False,
            )
        address = "the base URL" if host == self._host else f"the address in {self._proxy_variable}"
        return self.connect_error(
            f"no TLS connection with {whose}: {self.quote(str(cause))}",
            trouble="tls",
            hint=f"if plain HTTP is spoken there, begin {address} with http://",
            retryable=False,
        )

    def _tls_partner(self, error: Any) -> tuple[str, str]:
        """Who failed the handshake: the server, or an https:// proxy before it."""
        host = getattr(error, "host", self._host)
        if self.via and host != self._host:
            return str(self.via), host
        return f"{self.origin!r} ({self.provider})", self._host


_TIMEOUTS = {
    "lookup": (
        "was not connected to: the address of the name {host!r} was not found within {seconds} s",
        "this machine's DNS does not answer: it may be offline, or wait for a VPN; behind a company's proxy set HTTPS_PROXY",
    ),
    "proxy": (
        "could not be connected to within {seconds} s through {via}",
        "check that the proxy runs, or go past it: NO_PROXY={host} (a running daemon: `stigmer down` first)",
    ),
    "connect": (
        "could not be connected to within {seconds} s",
        "check the network and the address, or allow more time: --connect-timeout {double}, or llm.timeouts.connect in a file",
    ),
    "first_token": (
        "was asked and sent no first token within {seconds} s",
        "a large model may need longer to load or to read the prompt: --first-token-timeout {double}, or llm.timeouts.first_token in a file",
    ),
    "idle": (
        "fell silent in the middle of its reply for {seconds} s",
        "the server may be stuck or overloaded; allow longer gaps: --idle-timeout {double}, or llm.timeouts.idle in a file",
    ),
}


def mask(text: str, secrets: Iterable[str]) -> str:
    """`text` with every secret replaced by `***`."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL: what a key is bound to. Never user, path or query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def retryable_status(status: int) -> bool:
    """Whether the same request may succeed later: 408, 409, 429, and every 5xx with 529."""
    return status in (408, 409, 429) or status >= 500


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """The seconds a server asks us to wait: `retry-after-ms`, or `Retry-After` in seconds or as an HTTP date."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    value = headers.get("Retry-After", headers.get("retry-after", "")).strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None  # absent, or nothing that we can read: the caller's own schedule applies
    return max(0.0, when - (time.time() if now is None else now))


def _said(body: bytes) -> tuple[str, str]:
    """The kind and the words of an error body, in any of the shapes that our providers use."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body.decode("utf-8", "replace").strip()
        return "", "" if text.startswith("<") else text
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return "", str(data)
    error = data.get("error", data)
    if not isinstance(error, dict):
        return "", str(error)
    kind = error.get("type") or error.get("code") or ""
    said = error.get("message") or error.get("detail") or error.get("error") or ""
    return str(kind), said if isinstance(said, str) else orjson.dumps(said).decode()
