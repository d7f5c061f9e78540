"""Servers that somebody names: how an address is written, what lets a caller in, and why one cannot be reached."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from graphton._proxies import is_loopback

from stigmer.errors import StigmerError, UsageError
from stigmer.home import Address, Home

__all__ = ["HERE", "KEY", "Obstacle", "certificates", "obstacle", "server_at"]

KEY = "STIGMER_API_KEY"
AUTHORITY, CERTIFICATE, CERTIFICATE_KEY = "STIGMER_TLS_CA", "STIGMER_TLS_CERT", "STIGMER_TLS_KEY"
HERE = "local"
"""As an address: this home's own daemon, whatever STIGMER_SERVER says."""
KNOCK_SECONDS = 5.0
"""So long a server may take for each word when we find out why it cannot be reached."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
"""What HTTP/2 begins with (RFC 9113, 3.4): the preface and an empty SETTINGS frame."""
_SETTINGS = 4
"""The type of the frame that an HTTP/2 server must say first."""


def server_at(
    text: str, *, source: str, home: Home, environ: Mapping[str, str] | None = None
) -> Address | None:
    """The server that `text` names, with what lets us in; None for `local`. `source` is who said it.

    `https://HOST:PORT` is TLS. HOST:PORT without a scheme is this machine; `http://HOST:PORT` says of another one that
    the network to it is private. The key is STIGMER_API_KEY; a server of this home on this machine takes the home's
    token, too. Raises UsageError.
    """
    environ = os.environ if environ is None else environ
    if text.strip() == HERE:
        return None
    scheme, host, port = _parts(text.strip(), source)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not scheme and not is_loopback(host):
        raise UsageError(
            f"the server {text!r} ({source}) is another machine, and nothing says how to reach it",
            hint=f"https://{target}; or http://{target}, in the clear, where the network is private",
        )
    token = _key(environ) or (_own_token(home) if is_loopback(host) else "")
    if not token:
        raise UsageError(
            f"the server {text!r} ({source}) wants a key, and {KEY} is not set",
            hint=f"there: stigmer key create --name {_name()} --scope run; here: export {KEY}=stk_…",
        )
    return Address(target, token, source=source, tls=scheme == "https")


def _parts(text: str, source: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises UsageError."""
    before, mark, rest = text.partition("://")
    scheme, place = (before.lower(), rest) if mark else ("", text)
    try:
        found = urlsplit(f"//{place}")
        host, port = found.hostname or "", found.port
    except ValueError:
        found, host, port = urlsplit(""), "", None
    if scheme == "https" and port is None:
        port = 443
    odd = found.username is not None or found.path not in ("", "/") or found.query or found.fragment
    if scheme not in ("", "http", "https") or not host or not port or odd:
        shown = text if "@" not in text else "…"  # It may hold a password.
        raise UsageError(
            f"the server {shown!r} ({source}) is no address of one",
            hint="https://HOST:PORT, or HOST:PORT on this machine; `local` is your own daemon",
        )
    return scheme, host, port


def _key(environ: Mapping[str, str]) -> str:
    """The key of the environment. Raises UsageError where it cannot stand in a header."""
    key = environ.get(KEY, "").strip()
    if not key.isascii() or any(sign.isspace() or not sign.isprintable() for sign in key):
        raise UsageError(
            f"{KEY} holds a blank or a sign that cannot stand in a header", hint="copy it again, in one piece"
        )
    return key


def _own_token(home: Home) -> str:
    with suppress(OSError):
        return home.token.read_text().strip()
    return ""


def _name() -> str:
    """A name for a key of this user's."""
    import getpass

    with suppress(KeyError, OSError):
        return getpass.getuser()
    return "me"


class Certificates(NamedTuple):
    """PEM texts, None where nobody named a file: gRPC's own list of public authorities, and no certificate of ours."""

    authority: bytes | None = None
    key: bytes | None = None
    certificate: bytes | None = None


def certificates(environ: Mapping[str, str] | None = None) -> Certificates:
    """What STIGMER_TLS_CA, STIGMER_TLS_KEY and STIGMER_TLS_CERT name. Raises UsageError."""
    environ = os.environ if environ is None else environ
    found = Certificates(_pem(environ, AUTHORITY), _pem(environ, CERTIFICATE_KEY), _pem(environ, CERTIFICATE))
    if (found.key is None) != (found.certificate is None):
        missing = CERTIFICATE if found.certificate is None else CERTIFICATE_KEY
        raise UsageError(
            f"{missing} is not set: a certificate of our own needs {CERTIFICATE} and {CERTIFICATE_KEY}",
            hint="set both, or neither",
        )
    return found


def _pem(environ: Mapping[str, str], variable: str) -> bytes | None:
    named = environ.get(variable, "").strip()
    if not named:
        return None
    try:
        text = Path(named).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(
            f"{variable} {named!r} cannot be read: {error.strerror}", hint=f"{variable} names a PEM file"
        ) from error
    if b"-----BEGIN " not in text:
        raise UsageError(f"{variable} {named!r} is no PEM file", hint=f"head -1 {named}")
    return text


# Why a server cannot be reached


class Obstacle(NamedTuple):
    """What stands between us and a server: `unavailable`, or `tls` where address or certificates do not fit."""

    code: str
    message: str
    hint: str


def obstacle(address: Address) -> Obstacle | None:
    """Finds out by knocking at the address, without the key; None where a connection comes about.

    gRPC itself says no more than that it failed to connect.
    """
    try:
        return _over_tls(address) if address.tls else _in_the_clear(address)
    except socket.gaierror as error:
        why = f"its name is not known here ({error.strerror})"
    except TimeoutError:
        why = f"no answer within {KNOCK_SECONDS:g} s"
    except ConnectionRefusedError:
        why = "nothing listens there"
    except OSError as error:
        why = error.strerror or str(error)
    return Obstacle(
        "unavailable",
        f"the server at {address.shown!r} ({address.source}) cannot be reached: {why}",
        "is it running, and is the address right? There: stigmer serve; `--server local` is your own daemon",
    )


def _connect(address: Address) -> socket.socket:
    host, _, port = address.target.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS)


def _over_tls(address: Address) -> Obstacle | None:
    where = f"the server at {address.shown!r} ({address.source})"
    with _connect(address) as plain:
        try:
            with _context().wrap_socket(plain, server_hostname=_host(address)) as line:
                line.sendall(_PREFACE)
                # A server that wants a certificate of ours says so only now, or hangs up.
                return None if line.recv(64) else _wants_ours(where, "it hangs up")
        except ssl.SSLCertVerificationError as error:
            why = error.verify_message.rstrip(".")
            named = os.environ.get(AUTHORITY, "").strip()
            known = f"{AUTHORITY} is {named!r}" if named else f"{AUTHORITY} is not set"
            fits = "mismatch" in why or "not valid for" in why
            return Obstacle(
                "tls",
                f"{where} shows a certificate that does not hold: {why}",
                "take the name that its certificate is made out to"
                if fits
                else f"{AUTHORITY} names the file of the authority that signed it; {known}",
            )
        except ssl.SSLError as error:
            if "CERTIFICATE_REQUIRED" in str(error) or "HANDSHAKE_FAILURE" in str(error):
                return _wants_ours(where, _reason(error))
            if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
                return Obstacle(
                    "tls",
                    f"{where} speaks no TLS",
                    f"--server {_plain(address)}; it then goes in the clear, keys too",
                )
            return Obstacle(
                "tls",
                f"TLS with {where} does not come about: {_reason(error)}",
                f"openssl s_client -connect {address.target} </dev/null",
            )


def _wants_ours(where: str, why: str) -> Obstacle:
    shown = certificates().certificate is not None
    wants = "takes another certificate than ours" if shown else "wants a certificate of ours"
    return Obstacle("tls", f"{where} {wants} ({why})", f"{CERTIFICATE} and {CERTIFICATE_KEY} name its files")


def _in_the_clear(address: Address) -> Obstacle | None:
    said = b""
    with _connect(address) as line:
        line.sendall(_PREFACE)
        with suppress(ConnectionError, TimeoutError):
            said = line.recv(64)
    if len(said) > 3 and said[3] == _SETTINGS and not said.startswith(b"HTTP/"):
        return None
    where = f"the server at {address.shown!r} ({address.source})"
    if _speaks_tls(address):
        return Obstacle("tls", f"{where} speaks TLS", f"--server https://{address.target}")
    return Obstacle(
        "unavailable",
        f"what answers at {address.shown!r} ({address.source}) is no stigmer server",
        "the port of calls is 7244 by itself; 7245 is for health checks alone",
    )


def _speaks_tls(address: Address) -> bool:
    """Whether a handshake comes about, with whatever certificate: nothing is said over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with _connect(address) as plain, context.wrap_socket(plain, server_hostname=_host(address)):
            return True
    except (ssl.SSLError, OSError):
        return False


def _context() -> ssl.SSLContext:
    found = certificates()
    authority = found.authority.decode("ascii", "replace") if found.authority is not None else None
    try:
        context = ssl.create_default_context(cadata=authority)
        if found.certificate is not None:
            context.load_cert_chain(
                Path(os.environ[CERTIFICATE].strip()).expanduser(),
                Path(os.environ[CERTIFICATE_KEY].strip()).expanduser(),
            )
    except ssl.SSLError as error:
        raise StigmerError(
            f"the files of {AUTHORITY}, {CERTIFICATE} and {CERTIFICATE_KEY} cannot be used: {_reason(error)}",
            hint="they are PEM files; a key must not want a password, and must be that of the certificate",
        ) from error
    context.set_alpn_protocols(["h2"])
    return context


def _host(address: Address) -> str:
    return address.target.rpartition(":")[0].strip("[]")


def _plain(address: Address) -> str:
    """The same address without TLS."""
    return address.target if is_loopback(_host(address)) else f"http://{address.target}"


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
