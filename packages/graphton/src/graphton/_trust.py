"""Which certificates TLS believes: those that the operating system believes, and what to say of any other.

Everything here that speaks https takes its context from `tls_context`: the model clients, downloads, preflight.
"""

from __future__ import annotations

import functools
import os
import ssl
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

__all__ = ["distrust", "tls_context"]


def tls_context() -> ssl.SSLContext:
    """The context for a connection to a server: the system's trust store, or what SSL_CERT_FILE and SSL_CERT_DIR name.

    As OpenSSL has it, the two variables stand in the place of the store's own file and folder; on macOS and Windows,
    whose stores are no files, they add to it.
    """
    return _context(os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", ""))


@functools.cache
def _context(cert_file: str, cert_dir: str) -> ssl.SSLContext:
    # OpenSSL reads both variables itself; they are arguments so that another value makes another context.
    import truststore  # 24 ms, and only for https.

    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.platform in ("darwin", "win32"):
        if cert_file or cert_dir:
            context.load_verify_locations(cert_file or None, cert_dir or None)
        return context
    # Elsewhere the store is files, and truststore would read them again for each connection (70 ms). The context
    # below its own one has them from the first time on, and OpenSSL does all the checking.
    context = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost").context
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # A company's intermediate authority is enough.
    return context


_EXPIRED, _NOT_YET = 10, 9
_WRONG_NAME = (62, 64)
_SELF_SIGNED = 18
_UNKNOWN_ISSUER = (2, 19, 20, 21, 27)
"""OpenSSL's numbers, X509_V_ERR_*."""


def distrust(
    error: ssl.SSLCertVerificationError, host: str, *, environ: Mapping[str, str] = os.environ
) -> tuple[str, str]:
    """Why the certificate that `host` showed is not believed, in words for people, and what helps."""
    code = getattr(error, "verify_code", 0)
    words = (getattr(error, "verify_message", "") or str(error)).rstrip(".")
    if code == _EXPIRED:
        return f"it has expired ({words})", f"{_clock()}; if that is right, who runs {host} must renew it"
    if code == _NOT_YET:
        return f"it is not valid yet ({words})", f"{_clock()}: set the clock right"
    if code in _WRONG_NAME:
        return (
            f"it was made for another name ({words})",
            f"check the host {host!r} in the address; a proxy or a captive network may have answered in its place",
        )
    if code == _SELF_SIGNED:
        return f"it is self-signed ({words})", _let_it_in("this certificate", environ)
    if code in _UNKNOWN_ISSUER:
        return f"its issuer is not known here ({words})", _let_it_in(
            "the certificate of the authority that signed it (your company's, or the proxy's)", environ
        )
    return words, _let_it_in("the certificate of the authority that signed it", environ)


def _clock() -> str:
    return f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _let_it_in(what: str, environ: Mapping[str, str]) -> str:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if (path := environ.get(name, "")) and not os.path.exists(path):
            return f"{name} names {path!r}, and that is not there; name a file or folder with {what}"
    named = environ.get("SSL_CERT_FILE", "")
    instead = f" (now {named!r}, which is read in place of the system's file)" if named else ""
    return (
        f"if you trust it, add {what} to the system's trust store, or name a file with it: "
        f"SSL_CERT_FILE=/path/to/ca.pem{instead}; a running daemon sees that after `stigmer down`"
    )
