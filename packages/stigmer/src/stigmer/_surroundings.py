"""The variables that decide how servers are reached, which a daemon keeps from the moment it was started.

It leaves a mark of them beside its address, so that a command can tell whether its own shell has others. The marks say
nothing of the values: a proxy's address may hold a password.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping

__all__ = ["differing", "marks"]

VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def marks(environ: Mapping[str, str] = os.environ, *, salt: str = "") -> dict[str, str]:
    """A mark for each of the variables, comparable with others of the same salt, which is among them."""
    salt = salt or secrets.token_hex(8)
    return {
        "salt": salt,
        **{
            name: hashlib.sha256((salt + _value(environ, name)).encode()).hexdigest()[:16]
            for name in VARIABLES
        },
    }


def differing(theirs: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables that another process had otherwise when it made its marks; none where it made none."""
    if not theirs.get("salt"):
        return []
    ours = marks(environ, salt=theirs["salt"])
    return [name for name in VARIABLES if theirs.get(name) != ours[name]]


def _value(environ: Mapping[str, str], name: str) -> str:
    """As a request reads it: the lower case wins where both are set."""
    lower = environ.get(name.lower(), "").strip() if name.endswith("_PROXY") else ""
    return lower or environ.get(name, "").strip()
