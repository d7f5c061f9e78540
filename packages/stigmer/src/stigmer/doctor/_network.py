"""What stands between this machine and the providers: proxies, and certificates that are believed."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from graphton._proxies import proxy_for

from stigmer.doctor._check import OK, WARN, Check, check

__all__ = ["network", "without_password"]

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


def network(environ: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """The variables of this shell; a running daemon has those that it was started with."""
    yield _proxies(environ)
    yield _certificates(environ)


def _said(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """A variable in either case; the lower one wins, as it does for a request."""
    for spelling in (name.lower(), name):
        if value := environ.get(spelling, "").strip():
            return spelling, value
    return name, ""


def _proxies(environ: Mapping[str, str]) -> Check:
    found = {
        name: without_password(value) for name, value in (_said(environ, row) for row in PROXIES) if value
    }
    past_name, past = _said(environ, "NO_PROXY")
    facts = {"proxies": found, "no_proxy": past}
    if not found:
        return check("network.proxies", OK, "no proxy is set", **facts)
    text = ", ".join(f"{name}={value}" for name, value in found.items())
    text += f"; past it: {past_name}={past}" if past else "; nothing goes past it but this machine itself"
    used = proxy_for("https://models.example/", environ)
    kind = urlsplit(used[0]).scheme if used else "http"
    if used and kind not in ("http", "https"):
        return check(
            "network.proxies",
            WARN,
            f"{text}: a {kind} proxy is of a kind that we do not speak",
            f"name an http:// proxy in {used[1]}, or go past it with NO_PROXY",
            **facts,
        )
    return check("network.proxies", OK, text, **facts)


def without_password(address: str) -> str:
    """A proxy's address as it may be shown."""
    head, mark, rest = address.rpartition("@")
    if not mark:
        return address
    scheme, sep, _ = head.partition("://")
    return f"{scheme}://***@{rest}" if sep else f"***@{rest}"


def _certificates(environ: Mapping[str, str]) -> Check:
    named = {
        name: environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environ.get(name, "").strip()
    }
    paths = ssl.get_default_verify_paths()
    facts = {"named": named, "file": paths.cafile, "folder": paths.capath}
    for name, value in named.items():
        if not os.path.exists(value):
            return check(
                "network.certificates",
                WARN,
                f"{name} names {value!r}, and that is not there: no https server may be believed",
                f"name a file or folder that is there, or unset {name}",
                **facts,
            )
    text = "TLS believes what this system believes"
    if named:
        text = "TLS believes what is named by " + ", ".join(
            f"{name}={value}" for name, value in named.items()
        )
    return check("network.certificates", OK, text, **facts)
