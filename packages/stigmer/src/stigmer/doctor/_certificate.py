"""Which certificate a server has shown that TLS does not believe: who signed it tells who stands in between.

It is looked at on a connection of its own, over which nothing is sent.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import urlsplit

from graphton._proxies import proxy_for

__all__ = ["shown"]


async def shown(url: str, *, deadline: float) -> dict[str, Any]:
    """Names, issuer and dates of the certificate at an https address; empty where it cannot be looked at by `deadline`."""
    parts = urlsplit(url)
    if proxy_for(url) is not None:
        return {}  # The connection would be another one than the run's.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout_at(deadline):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 443, ssl=context, server_hostname=parts.hostname
            )
    except (OSError, TimeoutError, ValueError):
        return {}
    data = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return _read(data) if data else {}


def _read(data: bytes) -> dict[str, Any]:
    from cryptography import x509

    try:
        found = x509.load_der_x509_certificate(data)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        listed = [str(name) for name in names.get_values_for_type(x509.DNSName)]
    except x509.ExtensionNotFound:
        listed = []
    except ValueError:
        return {}
    return {
        "subject": found.subject.rfc4514_string(),
        "issuer": found.issuer.rfc4514_string(),
        "names": listed[:10],
        "from": f"{found.not_valid_before_utc:%Y-%m-%d}",
        "until": f"{found.not_valid_after_utc:%Y-%m-%d}",
    }
