"""What went wrong with the built-in llama.cpp, in words that help: a table from its own complaints to ours."""

from __future__ import annotations

import re

from graphton.chat._llamacpp_file import ModelFile, Room
from graphton.errors import BrokenStream, ProviderError

__all__ = ["cannot_serve", "ended_midway"]

_MEMORY = (
    "there is not enough memory for it: {need} are needed, {free} are free",
    "stop other programs, take a smaller model, or a smaller window: --context-window {smaller}",
)
_TROUBLES: tuple[tuple[re.Pattern[str], tuple[str, str]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (
            r"No module named 'xllamacpp'",
            ("{why}", "install llama.cpp with: pip install 'graphton[llamacpp]'"),
        ),
        (
            r"unknown (model )?architecture",
            (
                "its architecture is not known to this llama.cpp: {why}",
                "a newer llama.cpp may know it: pip install -U xllamacpp; else take another model",
            ),
        ),
        (
            r"SIGKILL",
            (
                "its process {why}, as the system ends one when memory runs out: {need} are needed, {free} are free",
                _MEMORY[1],
            ),
        ),
        (r"failed to allocate|unable to allocate|out of memory|bad_alloc|ENOMEM", _MEMORY),
        (
            r"not within the file bounds|corrupt|incomplete|invalid magic|failed to read|unexpected(ly)? (eof|end)"
            r"|invalid GGUF|missing tensor|tensor .* not found|wrong (number of tensors|shape)|key not found",
            (
                "the file is damaged or incomplete: {why}",
                "fetch it again (stigmer models remove, then pull), or compare its digest with the publisher's",
            ),
        ),
        (
            r"SIG(ILL|SEGV|ABRT|BUS|FPE)",
            (
                "llama.cpp crashed: the process {why}",
                "its own words are in the folder `logs` beside the models",
            ),
        ),
    )
)
_UNKNOWN = ("{why}", "check that the file is a whole GGUF model, and that there is memory for it")


def cannot_serve(file: ModelFile, room: Room, why: str, free: int) -> ProviderError:
    """The error for a server that did not come up; `why` is what llama.cpp said, or how its process ended."""
    words, hint = next((found for pattern, found in _TROUBLES if pattern.search(why)), _UNKNOWN)
    values = {
        "why": why,
        "need": _gb(file.memory(room.window * room.slots)),
        "free": _gb(free),
        "smaller": max(1024, room.window // 2),
    }
    return ProviderError(
        f"llama.cpp cannot serve {str(file.path)!r} with a window of {room.window}: {words.format(**values)}",
        hint=hint.format(**values),
        provider="llamacpp",
    )


def ended_midway(file: ModelFile, why: str, url: str, free: int) -> BrokenStream:
    """The error for a child that is gone in the middle of a call."""
    killed = "SIGKILL" in why
    short = (
        f", as the system ends a process when memory runs out ({_gb(free)} are free now)" if killed else ""
    )
    return BrokenStream(
        f"the llama.cpp process that serves {file.path.name!r} {why}{short} in the middle of a call",
        hint="the next call starts it again; if that goes on, the machine is out of memory: take a smaller model or window"
        if killed
        else "the next call starts it again; its own words are in the folder `logs` beside the models",
        provider="llamacpp",
        url=url,
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
