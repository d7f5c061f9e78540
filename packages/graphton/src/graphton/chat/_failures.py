"""Foreign failures become ours here: aiohttp's exceptions and HTTP statuses, with no key in any text."""

from __future__ import annotations

import errno
import re
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import orjson

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

__all__ = ["Peer", "mask", "origin_of", "retry_after", "retryable_status"]

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


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom we talk to, as errors name it. `secrets` never appear in a text that goes through `quote`."""

    provider: str
    url: str
    secrets: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        return origin_of(self.url)

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

    def connect_error(self, message: str, *, hint: str, retryable: bool = True) -> ConnectError:
        return ConnectError(message, hint=hint, provider=self.provider, url=self.url, retryable=retryable)

    def timed_out(self, limit: str, seconds: float) -> ProviderTimeout:
        message, hint = _TIMEOUTS[limit]
        return ProviderTimeout(
            f"{self.provider} at {self.origin!r} {message.format(seconds=f'{seconds:g}')}",
            limit=limit,
            hint=hint.format(double=f"{seconds * 2:g}"),
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
                host = urlsplit(self.url).hostname
                return self.connect_error(
                    f"the host name {host!r} of {self.provider} is not known here",
                    hint=f"check the spelling of the base URL {self.url!r}, and this machine's network",
                )
            case aiohttp.ClientProxyConnectionError():
                return self.connect_error(
                    f"the proxy for {self.origin!r} cannot be reached: {self.quote(str(error.os_error))}",
                    hint=f"check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, or exempt the host with "
                    f"NO_PROXY={urlsplit(self.url).hostname}",
                )
            case aiohttp.ClientHttpProxyError():
                return self.connect_error(
                    f"the proxy for {self.origin!r} refused the connection with status {error.status}",
                    hint="check the proxy's address, user and password in HTTPS_PROXY or ALL_PROXY",
                    retryable=error.status >= 500,
                )
            case aiohttp.ClientConnectorError():
                return self._refused(error.os_error)
            case aiohttp.InvalidURL():
                return self.connect_error(
                    f"{self.url!r} is no URL that can be reached",
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

    def _refused(self, error: OSError) -> ConnectError:
        # A name with several addresses fails with all their errors in one text.
        if error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in str(error):
            return self.connect_error(
                f"nothing listens at {self.origin!r} ({self.provider})",
                hint="start the server, or set base_url to where it runs",
            )
        return self.connect_error(
            f"{self.origin!r} ({self.provider}) cannot be reached: {self.quote(str(error))}",
            hint="check this machine's network and the base URL",
        )

    def _tls(self, error: Any) -> ConnectError:
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(cause):
            reason = getattr(cause, "verify_message", "") or str(cause)
            return self.connect_error(
                f"the TLS certificate of {self.origin!r} ({self.provider}) is not trusted: {self.quote(reason)}",
                hint="for a private certificate authority set SSL_CERT_FILE=/path/to/ca.pem",
                retryable=False,
            )
        return self.connect_error(
            f"no TLS connection with {self.origin!r} ({self.provider}): {self.quote(str(cause))}",
            hint="if the server speaks plain HTTP, begin the base URL with http://",
            retryable=False,
        )


_TIMEOUTS = {
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
