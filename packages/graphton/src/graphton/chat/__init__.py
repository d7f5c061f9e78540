"""The wire dialects: one `Chat` speaks to one model. `create_chat` and `parse_model_string` make them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphton.chat.base import (
    Chat,
    Chunk,
    Done,
    Preview,
    Request,
    TextChunk,
    ThinkingChunk,
    ToolSpec,
    WaitChunk,
)
from graphton.errors import SettingError
from graphton.models import ModelRef, ModelSettings, Provider, dialect_at, find_provider

if TYPE_CHECKING:
    from graphton.chat.anthropic import AnthropicChat
    from graphton.chat.llamacpp import LlamaCppChat
    from graphton.chat.ollama import OllamaChat
    from graphton.chat.openai import OpenAIChat
    from graphton.chat.responses import ResponsesChat

__all__ = [
    "AnthropicChat",
    "Chat",
    "Chunk",
    "Done",
    "LlamaCppChat",
    "OllamaChat",
    "OpenAIChat",
    "Preview",
    "Request",
    "ResponsesChat",
    "TextChunk",
    "ThinkingChunk",
    "ToolSpec",
    "WaitChunk",
    "create_chat",
    "parse_model_string",
]

_DIALECTS = {
    "anthropic": ("graphton.chat.anthropic", "AnthropicChat"),
    "chat": ("graphton.chat.openai", "OpenAIChat"),
    "openai": ("graphton.chat.openai", "OpenAIChat"),
    "responses": ("graphton.chat.responses", "ResponsesChat"),
    "ollama": ("graphton.chat.ollama", "OllamaChat"),
}
_LLAMACPP = ("graphton.chat.llamacpp", "LlamaCppChat")
"""The embedded server. With a base_url somebody else runs llama.cpp, and it is any OpenAI-compatible host."""
_NOTHING_SET = ModelSettings()
_LAZY = {name: module for module, name in (*_DIALECTS.values(), _LLAMACPP)}


def create_chat(ref: ModelRef | str, settings: ModelSettings = _NOTHING_SET) -> Chat:
    """A chat with one model. Reads no environment: a key is given in the settings, or none is sent.

    >>> chat = create_chat("ollama:qwen2.5-coder:7b", ModelSettings(temperature=0.0))
    """
    if isinstance(ref, str):
        ref = ModelRef.parse(ref)
    row = find_provider(ref.provider)
    dialect = _dialect(row, settings)
    if dialect not in _DIALECTS:
        raise SettingError(
            f"dialect {dialect!r} is not one that we speak", hint=f"one of {', '.join(_DIALECTS)}"
        )
    embedded = ref.provider == "llamacpp" and not settings.base_url
    if not embedded and not settings.base_url and not row.base_url:
        raise SettingError(
            f"provider {ref.provider!r} has no address of its own",
            hint="give base_url='https://…', the address that its official client takes",
        )
    module, name = _LLAMACPP if embedded else _DIALECTS[dialect]
    chat: Chat = getattr(import_module(module), name)(ref, settings)
    return chat


def _dialect(row: Provider, settings: ModelSettings) -> str:
    """What somebody said, else what the provider speaks at this address."""
    if settings.dialect:
        return settings.dialect
    try:
        return dialect_at(row, settings.base_url)
    except ValueError as error:  # a port that is none
        raise SettingError(
            f"the base URL of {row.name} is no address: {error}",
            hint="write it like https://api.example.com/v1",
        ) from error


def parse_model_string(text: str, **settings: Any) -> Chat:
    """A chat with the model that a string names, such as `anthropic:claude-haiku-4.5`; keywords are ModelSettings.

    Like create_chat it reads no environment: `parse_model_string("claude-haiku-4.5", api_key=os.environ["…"])`.
    """
    ref = ModelRef.parse(text)
    try:
        given = ModelSettings(**settings)
    except TypeError as error:
        raise SettingError(
            f"{error}".replace("ModelSettings.__init__()", "parse_model_string()"),
            hint=f"settings are {', '.join(ModelSettings.__dataclass_fields__)}",
        ) from error
    return create_chat(ref, given)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
