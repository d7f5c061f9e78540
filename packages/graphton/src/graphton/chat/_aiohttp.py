"""aiohttp, imported without the two trust stores that it makes for itself: it is never asked whom TLS believes.

Every https request brings its own context (`graphton._trust`). Those of aiohttp would be read from the system's
certificates at its import, 80 ms of CPU in every start. As they are made here they believe nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["aiohttp"]

_STORES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""What OpenSSL reads in the place of the system's certificates."""


@contextmanager
def _without_certificates() -> Iterator[None]:
    kept = {name: os.environ.get(name) for name in _STORES}
    os.environ.update(dict.fromkeys(_STORES, os.devnull))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


with _without_certificates():
    import aiohttp
