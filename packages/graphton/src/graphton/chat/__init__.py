"""The wire dialects: one `Chat` speaks to one model. `create_chat` and `parse_model_string` make them."""

from __future__ import annotations

from graphton.chat.base import Chat, Chunk, Done, Request, TextChunk, ThinkingChunk, ToolSpec, WaitChunk

__all__ = ["Chat", "Chunk", "Done", "Request", "TextChunk", "ThinkingChunk", "ToolSpec", "WaitChunk"]
