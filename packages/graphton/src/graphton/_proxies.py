"""Which proxy stands between us and a URL: read from the environment here and nowhere else.

aiohttp's own `trust_env` would bring netrc passwords along, so it stays off and the transport asks this function.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["is_loopback", "proxy_for"]


def proxy_for(url: str, environ: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """The proxy for `url` and the variable that names it, or None for a direct connection.

    `HTTPS_PROXY` and `HTTP_PROXY` go by the URL's scheme, `ALL_PROXY` serves both, `NO_PROXY` exempts; each may be
    written in lower case, which wins. This machine itself is never reached through a proxy.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if is_loopback(host) or _exempt(host, parts.port, _get(environ, "no_proxy")[0]):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        value, variable = _get(environ, name)
        if value:
            return (value if "://" in value else f"http://{value}"), variable
    return None


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: `localhost`, a name under it, or a loopback address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _get(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    # In a CGI program HTTP_PROXY is a request header that anybody can send ("httpoxy"): only the lower case counts.
    names = [name] if name == "http_proxy" and "REQUEST_METHOD" in environ else [name, name.upper()]
    return next(((environ[n].strip(), n) for n in names if environ.get(n, "").strip()), ("", name))


def _exempt(host: str, port: int | None, no_proxy: str) -> bool:
    return any(_covers(entry.strip().lower(), host, port) for entry in no_proxy.split(",") if entry.strip())


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether one NO_PROXY entry covers the host: `*`, a name with its sub-domains, an address, or a network."""
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass  # a name on either side: compare names
    name, _, wanted_port = entry.rpartition(":") if entry.rpartition(":")[2].isdigit() else (entry, "", "")
    if wanted_port and port != int(wanted_port):
        return False
    name = name.removeprefix("*").lstrip(".")
    return host == name or host.endswith(f".{name}")
