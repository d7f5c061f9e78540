"""Organisations: the namespaces of executions, sessions, answers and keys. What a caller asks for is asked for in one."""

from __future__ import annotations

import re

__all__ = ["DEFAULT_ORGANISATION", "RULE", "is_organisation"]

DEFAULT_ORGANISATION = "default"
"""Where nobody named one, and what a database held before there were organisations."""
RULE = "up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
"""What organisations may be called, in words."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_organisation(name: str) -> bool:
    """Whether an organisation may be called so: see RULE.

    There is no list of organisations: one begins with its first key or execution. Case counts.
    """
    return _NAME.fullmatch(name) is not None
