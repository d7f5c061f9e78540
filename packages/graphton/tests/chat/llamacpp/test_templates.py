"""Chat templates of a user's own files: what is missing is told, thinking is told from the answer and can be switched."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from graphton.chat.base import Chunk, Done, Request
from graphton.chat.llamacpp import LlamaCppChat
from graphton.errors import SettingError
from graphton.messages import AssistantMessage, Thinking, UserMessage
from graphton.models import ModelRef, ModelSettings

THINKS = {">": "<think>", "<think>": "hm", "hm": "</think>", "</think>": "yes", "yes": "</s>", "#": "yes"}
MESSAGES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
OFF = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>#{% else %}>{% endif %}"
SWITCH = MESSAGES + "assistant" + OFF
EFFORT = MESSAGES + "{% if reasoning_effort == 'low' %}assistant#{% else %}assistant>{% endif %}"


def chat_with(path: str, **settings: Any) -> LlamaCppChat:
    return LlamaCppChat(ModelRef("llamacpp", path), ModelSettings(**{"max_tokens": 20, **settings}))


async def gather(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


async def reply(chat: LlamaCppChat) -> AssistantMessage:
    done = (await gather(chat.stream(Request("", [UserMessage("x")]))))[-1]
    assert isinstance(done, Done)
    return done.message


def thoughts(message: AssistantMessage) -> list[str]:
    return [block.text for block in message.blocks if isinstance(block, Thinking)]


async def test_what_a_model_thinks_is_no_part_of_its_answer(tiny: Callable[..., str]) -> None:
    message = await reply(chat_with(tiny("thinks", THINKS)))
    assert (message.text, thoughts(message)) == ("yes", ["hm"])


@pytest.mark.parametrize(("level", "thought"), [("off", []), ("low", ["hm"]), ("high", ["hm"])])
async def test_thinking_is_switched_where_the_template_has_a_switch(
    tiny: Callable[..., str], level: str, thought: list[str]
) -> None:
    chat = chat_with(tiny("switch", THINKS, template=SWITCH), thinking=level)
    message = await reply(chat)
    assert (message.text, thoughts(message), chat.notices) == ("yes", thought, ())


async def test_a_template_that_knows_efforts_is_told_the_level(tiny: Callable[..., str]) -> None:
    path = tiny("effort", THINKS, template=EFFORT)
    assert thoughts(await reply(chat_with(path, thinking="low"))) == []
    assert thoughts(await reply(chat_with(path, thinking="high"))) == ["hm"]
    chat = chat_with(path, thinking="off")
    await reply(chat)
    assert chat.notices == (f"thinking off is not sent: {path} always thinks",)


async def test_a_level_that_no_template_takes_is_said_and_not_sent(tiny: Callable[..., str]) -> None:
    path = tiny("plain", {">": "yes", "yes": "</s>"})
    chat = chat_with(path, thinking="high")
    await reply(chat)
    await reply(chat)
    said = f"thinking high is not sent: the chat template of {path} has no switch for it"
    assert chat.notices == (said,)
    silent = chat_with(path, thinking="off")
    await reply(silent)
    assert silent.notices == ()


def test_an_unknown_level_is_refused_before_anything_starts() -> None:
    with pytest.raises(SettingError, match="thinking 'max' is not known"):
        chat_with("x.gguf", thinking="max")


async def test_a_file_without_a_chat_template_is_served_with_the_usual_one_and_says_so(
    tiny: Callable[..., str],
) -> None:
    chat = chat_with(tiny("bare", {"\n": "yes", "yes": "</s>"}, template=None))
    assert (await reply(chat)).text == "yes"
    assert chat.notices == (
        "bare.gguf holds no chat template: llama.cpp takes its usual one (ChatML), "
        "which may not be what the model was trained with",
    )


async def test_the_files_own_template_is_used(tiny: Callable[..., str]) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}#"
    assert (await reply(chat_with(tiny("own", THINKS, template=template)))).text == "yes"
