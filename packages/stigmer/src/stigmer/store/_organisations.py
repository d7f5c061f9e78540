"""Organisations: namespaces of executions, sessions and keys. Each query that a caller reaches names one."""

from __future__ import annotations

import re

__all__ = ["DEFAULT_ORGANISATION", "is_organisation"]

DEFAULT_ORGANISATION = "default"
"""Where nobody named one, and what a database held before there were organisations."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_organisation(name: str) -> bool:
    """Whether an organisation may be called so: up to 100 letters, digits, `.`, `_` and `-`, none of these first.

    There is no list of organisations: one begins with its first key or execution. Case counts.
    """
    return _NAME.fullmatch(name) is not None
