"""TLS of a server for others: where certificate and key come from, and when it may do without."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import grpc
from graphton._proxies import is_loopback

from stigmer.errors import ConfigError

__all__ = ["credentials"]

CERTIFICATE, KEY, CLIENTS = "STIGMER_TLS_CERT", "STIGMER_TLS_KEY", "STIGMER_TLS_CLIENT_CA"


def credentials(
    address: str, *, plaintext: bool, environ: Mapping[str, str] | None = None
) -> grpc.ServerCredentials | None:
    """What the environment's files come to; None where it names none, which is for loopback only.

    STIGMER_TLS_CERT and STIGMER_TLS_KEY are PEM files; with STIGMER_TLS_CLIENT_CA callers must show a certificate that
    it signed. `plaintext` allows any address without TLS. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    named = {name: environ.get(name, "").strip() for name in (CERTIFICATE, KEY, CLIENTS)}
    if not named[CERTIFICATE] and not named[KEY]:
        if plaintext or is_loopback(address.rpartition(":")[0].strip("[]")):
            return None
        raise ConfigError(
            [
                f"{address!r} can be reached from elsewhere and has no TLS: set {CERTIFICATE} and {KEY}, or pass "
                "--plaintext where the network is private"
            ]
        )
    if missing := [name for name in (CERTIFICATE, KEY) if not named[name]]:
        raise ConfigError([f"{missing[0]} is not set; TLS needs {CERTIFICATE} and {KEY}"])
    clients = _read(CLIENTS, named[CLIENTS]) if named[CLIENTS] else None
    return grpc.ssl_server_credentials(
        [(_read(KEY, named[KEY]), _read(CERTIFICATE, named[CERTIFICATE]))],
        root_certificates=clients,
        require_client_auth=clients is not None,
    )


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError([f"{name} {path!r} cannot be read: {error.strerror}"]) from error
