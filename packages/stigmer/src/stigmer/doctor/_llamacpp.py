"""The llama.cpp that we serve ourselves: can it be loaded, is the model's file there, is there memory for it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from graphton._gguf import check_whole
from graphton.chat._llamacpp_file import ModelFile, choose_room, locate
from graphton.chat._machine import cores, free_memory, slots_worth
from graphton.chat._window import ROOM_TO_GROW
from graphton.errors import GraphtonError, ModelMissing

from stigmer.doctor._check import FAIL, OK, SKIP, WARN, Check, check
from stigmer.doctor._ollama_model import FIRST_PROMPT

__all__ = ["look"]

SECONDS = 8.0
"""A fifth of a second where the machine has nothing else to do."""
_INSTALL = "pip install 'stigmer[llamacpp]'"


async def look(asked: Mapping[str, Any]) -> list[Check]:
    """`asked`: model and window that llama.cpp would serve, and whether the default run goes there."""
    return [await _library(used=asked["used"]), *_model(asked)]


async def _library(*, used: bool) -> Check:
    """Loaded in a process of its own: on a processor that lacks an instruction it does not raise, it dies."""
    try:
        number = version("xllamacpp")
    except PackageNotFoundError:
        return check(
            "llamacpp.library",
            FAIL if used else SKIP,
            "llama.cpp (the package xllamacpp) is not installed",
            _INSTALL,
            version=None,
            loads=False,
        )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        "import xllamacpp",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        text = f"llama.cpp (xllamacpp {number}) was not loaded within {SECONDS:g} s"
        return check("llamacpp.library", WARN, text, "try again", version=number, loads=None)
    if process.returncode == 0:
        return check(
            "llamacpp.library",
            OK,
            f"llama.cpp (xllamacpp {number}) can be loaded; it would use {cores()} threads",
            version=number,
            loads=True,
            threads=cores(),
        )
    lines = said.decode(errors="replace").strip().splitlines()
    why = lines[-1] if lines else _signal(process.returncode or 0)
    return check(
        "llamacpp.library",
        FAIL if used else WARN,
        f"llama.cpp (xllamacpp {number}) cannot be loaded: {why}",
        f"install it anew: {_INSTALL.replace('install', 'install --force-reinstall')}",
        version=number,
        loads=False,
    )


def _signal(code: int) -> str:
    if code == -signal.SIGILL:
        return "this processor lacks an instruction that it was built with (SIGILL)"
    return f"its process ended with {signal.Signals(-code).name if code < 0 else code}"


def _model(asked: Mapping[str, Any]) -> list[Check]:
    used = asked["used"]
    try:
        file = locate(asked["model"])
        check_whole(file.path)
    except ModelMissing as error:
        return [
            check(
                "llamacpp.model",
                FAIL if used else SKIP,
                error.message,
                error.hint,
                model=asked["model"],
                installed=False,
                bytes=error.size or None,
            )
        ]
    except GraphtonError as error:
        return [_unusable(asked, error)]
    return _served(asked, file)


def _served(asked: Mapping[str, Any], file: ModelFile) -> list[Check]:
    """How the model would be served for a first short task, with the memory that is free."""
    free = free_memory()
    need = FIRST_PROMPT + int(asked["max_tokens"] or 0) + ROOM_TO_GROW
    try:
        room = choose_room(file, need, asked["window"], free=free, slots=slots_worth())
    except GraphtonError as error:
        return [_unusable(asked, error)]
    numbers = {
        "model": asked["model"],
        "installed": True,
        "path": str(file.path),
        "bytes": file.size,
        "window": room.window,
        "calls": room.slots,
        "context_length": file.context_window,
        "template": file.has_template,
    }
    text = (
        f"model {asked['model']} ({file.path}, {file.size / 1e9:.1f} GB) would be served with a window of "
        f"{room.window:,} tokens for each of {room.slots} calls at a time"
    )
    if file.has_template:
        found = [check("llamacpp.model", OK, text, **numbers)]
    else:
        text += "; the file holds no chat template, so llama.cpp takes its usual one"
        found = [check("llamacpp.model", WARN, text, "take a file that holds its template", **numbers)]
    needed = file.memory(room.window * room.slots)
    sizes = {"needed_bytes": needed, "free_bytes": free}
    text = f"it takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
    if needed > free or room.notice:
        hint = "end other programs, or take a smaller model: --model llamacpp:qwen2.5-coder:0.5b"
        return [*found, check("llamacpp.memory", WARN, room.notice or text, hint, **sizes)]
    return [*found, check("llamacpp.memory", OK, text, **sizes)]


def _unusable(asked: Mapping[str, Any], error: GraphtonError) -> Check:
    return check(
        "llamacpp.model",
        FAIL if asked["used"] else WARN,
        error.message,
        error.hint,
        model=asked["model"],
        installed=None,
    )
