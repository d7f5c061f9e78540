"""What looks like names of files in a text."""

from __future__ import annotations

import re

__all__ = ["file_names"]

_NAME = re.compile(r"[\w./-]*\w\.[A-Za-z]\w{0,4}")


def file_names(text: str) -> list[str]:
    """What looks like names of files in a text; no addresses."""
    words = (word.strip("\"'`“”«»()[]{}<>,;:!?").rstrip(".") for word in text.split())
    return list(dict.fromkeys(word for word in words if _NAME.fullmatch(word)))
