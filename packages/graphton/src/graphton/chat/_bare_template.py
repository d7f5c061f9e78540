"""Ollama models whose template is a bare `{{ .Prompt }}`: all that is said goes into one message, in their own form.

Such a model sees what the user says and nothing else: no system text, no turns. `ollama create` makes one of a model
file whose own template it does not know. The marks in a message's text count as the marks that they are, so the
conversation can be written out here instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphton.chat._wire import result_text
from graphton.chat.base import Request
from graphton.messages import AssistantMessage, Message, ToolResults, UserMessage

__all__ = ["flattened"]

MARKED = ("qwen2", "qwen3")
"""Families whose turns stand between <|im_start|> and <|im_end|>; any other gets plain text."""


def flattened(request: Request, family: str) -> Request:
    """The same request as one message, the way in which a family of models is talked to."""
    turns = list(_turns(request))
    if family.startswith(MARKED):
        said = "".join(f"<|im_start|>{who}\n{_unmarked(text)}<|im_end|>\n" for who, text in turns)
        text = f"{said}<|im_start|>assistant\n"
    else:
        named = {"system": "", "user": "User: ", "assistant": "You: "}
        text = "\n\n".join(f"{named[who]}{text}" for who, text in turns) + "\n\nYou:"
    return Request("", [UserMessage(text)], request.tools, request.schema)


def _turns(request: Request) -> Iterator[tuple[str, str]]:
    if request.system.strip():
        yield "system", request.system
    for message in request.messages:
        yield from _turn(message)


def _turn(message: Message) -> Iterator[tuple[str, str]]:
    match message:
        case UserMessage():
            yield "user", message.text
        case AssistantMessage():
            if message.text:
                yield "assistant", message.text
        case ToolResults():
            for result in message.results:
                yield "user", f"Result of {result.name}:\n{result_text(result)}"


def _unmarked(text: str) -> str:
    """The text without marks of its own: what a file holds must not end a turn."""
    return text.replace("<|im_start|>", "<|im start|>").replace("<|im_end|>", "<|im end|>")
