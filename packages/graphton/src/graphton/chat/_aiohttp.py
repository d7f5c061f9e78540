"""aiohttp, imported without the two trust stores that it makes for itself: it is never asked whom TLS believes.

Every https request brings its own context (`graphton._trust`). Those of aiohttp would be read from the system's
certificates at its import, 80 ms of CPU in every start. As they are made here they believe nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["Pieces", "aiohttp"]

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


class Pieces(aiohttp.Payload):
    """A body in pieces, which go to the connection as they are: put together, each would be copied twice more."""

    _autoclose = True  # Nothing is held open.

    def __init__(self, pieces: Sequence[bytes | bytearray]) -> None:
        super().__init__(pieces)
        self._size = sum(map(len, pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        for piece in self._value:
            # A view, so that nobody can lengthen the piece before all of it is sent.
            await writer.write(memoryview(piece))

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        await self.write(writer)
