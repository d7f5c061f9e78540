"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["LLM_FLAGS", "flags_of", "llm_options"]

LLM_FLAGS = (
    ("--mode", "local|cloud", "local keeps models on this machine; cloud uses hosted ones."),
    ("--provider", "NAME", "anthropic, openai, ollama, llamacpp, …"),
    ("--model", "NAME", "A model, e.g. qwen2.5-coder:7b or anthropic:claude-sonnet-4.5."),
    ("--base-url", "URL", "Where the provider answers."),
    ("--max-tokens", "N", "The longest reply."),
    ("--temperature", "X", "0 is the steadiest."),
    ("--context-window", "N", "How many tokens the model may see at once."),
    ("--thinking", "LEVEL", "off, low, medium or high."),
)


def llm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The LLM flags. They stay text: the cascade checks them, so that every layer's faults read alike."""
    fallback = "A model to go on with when the first cannot be reached; may be given again."
    command = click.option("--fallback", "fallbacks", metavar="MODEL", multiple=True, help=fallback)(command)
    for name, metavar, text in reversed(LLM_FLAGS):
        command = click.option(name, metavar=metavar, help=text)(command)
    return command


def flags_of(given: dict[str, Any]) -> dict[str, str]:
    """Takes the LLM flags out of a command's parameters: only those that somebody gave."""
    names = [name.removeprefix("--").replace("-", "_") for name, _, _ in LLM_FLAGS]
    flags = {name: value for name in names if (value := given.pop(name)) is not None}
    if fallbacks := given.pop("fallbacks"):
        flags["fallbacks"] = ",".join(fallbacks)
    return flags
