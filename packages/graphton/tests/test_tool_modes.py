"""How a model is brought to use tools is known, said by its server, or tried out; then it is in the record, and holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graphton._probe import NOTE, Question, ShortChat, Verdict, verdict
from graphton._tool_modes import ToolModes
from graphton.agent import Agent, create_deep_agent
from graphton.budget import Budget
from graphton.chat import Chat, Done, Request, create_chat
from graphton.errors import StatusError
from graphton.journal import Event, MemoryJournal, ModelRequested, Notice, Progress
from graphton.messages import AssistantMessage, StopReason, Text, Thinking, ToolCall, UserMessage
from graphton.models import ModelSettings
from graphton.testing import Call, FakeProviders, ScriptedModel
from graphton.tools import tool
from graphton.toolsets.subagents import Subagent


def wrote(text: str, stop: StopReason = StopReason.END) -> AssistantMessage:
    return AssistantMessage((Text(text),), stop=stop)


CALL = AssistantMessage((ToolCall("read_note", {"name": "groceries"}),), stop=StopReason.TOOLS)
WRONG_CALL = AssistantMessage((ToolCall("read_note", {"title": "groceries"}),), stop=StopReason.TOOLS)
PRINTED = wrote('```json\n{"name": "read_note", "arguments": {"name": "groceries"}}\n```')
TALK = wrote("Your note says: milk and eggs.")
ENVELOPE = wrote('{"tool": "read_note", "arguments": {"name": "groceries"}}')
REPLY = wrote('{"tool": "reply", "arguments": {"text": "I cannot know."}}')
THOUGHT = AssistantMessage((Thinking("Let me see, "),), stop=StopReason.LENGTH)
REFUSED = AssistantMessage((), stop=StopReason.REFUSED)


@pytest.mark.parametrize(
    ("replies", "mode", "sure"),
    [
        ([CALL], "native", True),
        ([PRINTED, ENVELOPE], "envelope", True),
        ([PRINTED, REPLY], "recovery", True),
        ([PRINTED, TALK], "recovery", True),
        ([TALK, ENVELOPE], "envelope", True),
        ([TALK, REPLY], "envelope", True),
        ([WRONG_CALL, ENVELOPE], "envelope", True),
        ([REFUSED, ENVELOPE], "envelope", True),
        ([TALK, TALK], "recovery", False),
        ([TALK, wrote('{"tool": "read_note", "argum', StopReason.LENGTH)], "recovery", False),
        ([THOUGHT], "recovery", False),
    ],
)
def test_replies_to_at_most_two_questions_say_how_a_model_uses_tools(
    replies: list[AssistantMessage], mode: str, sure: bool
) -> None:
    for count in range(len(replies)):
        assert isinstance(verdict(replies[:count]), Question)
    found = verdict(replies)
    assert isinstance(found, Verdict)
    assert (found.mode, found.sure) == (mode, sure)


def test_it_is_asked_as_the_server_wants_it_and_then_held_to_a_schema() -> None:
    asked = [verdict(replies) for replies in ([], [TALK])]
    first, second = (question.request for question in asked if isinstance(question, Question))
    assert first.messages == second.messages == [UserMessage(NOTE)]
    assert (bool(first.tools), first.schema) == (True, None)
    assert not second.tools
    assert second.schema is not None


async def test_a_trial_that_takes_too_long_is_cut_and_counted() -> None:
    chat = ShortChat(ScriptedModel(["word\n" * 500]))
    chunks = [chunk async for chunk in chat.stream(Request("Be brief.", [UserMessage("hello")]))]
    assert isinstance(chunks[-1], Done)
    message = chunks[-1].message
    assert message.stop is StopReason.LENGTH
    assert 400 < len(message.text) < 410
    assert message.usage.output_tokens == len(message.text.splitlines())
    assert message.usage.input_tokens > 3


async def test_a_server_that_refuses_tools_has_answered_the_trial() -> None:
    refuses = StatusError("m does not support tools", status=400, provider="ollama", url="")
    (done,) = [chunk async for chunk in ShortChat(ScriptedModel([refuses])).stream(Request("", []))]
    assert isinstance(done, Done)
    assert done.message.stop is StopReason.REFUSED
    other = StatusError("no such field", status=400, provider="ollama", url="")
    with pytest.raises(StatusError, match="no such field"):
        [chunk async for chunk in ShortChat(ScriptedModel([other])).stream(Request("", []))]


# --- in a run -----------------------------------------------------------------------------------------------------


@tool(effect="read")
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


MODELS = {"mystery:3b": ["completion", "tools"], "mystery:8b": ["completion", "tools"]}


def agent_for(fake: FakeProviders, file: Path, *, model: str = "mystery:3b", **more: Any) -> Agent:
    chat = create_chat(f"ollama:{model}", ModelSettings(base_url=fake.ollama_url))
    return create_deep_agent(chat, tools=[add], tool_modes=file, **more)


def probes(events: list[Event]) -> list[ModelRequested]:
    return [event for event in events if isinstance(event, ModelRequested) and event.purpose == "probe"]


def modes(events: list[Event]) -> list[str]:
    asked = [event for event in events if isinstance(event, ModelRequested) and event.purpose == "turn"]
    return [event.tool_mode for event in asked]


async def test_an_unknown_model_is_tried_out_before_its_first_turn_which_is_seen_counted_and_recorded(
    tmp_path: Path,
) -> None:
    seen: list[Any] = []
    journal = MemoryJournal(on_event=seen.append)
    async with FakeProviders(models=MODELS) as fake, agent_for(fake, tmp_path / "modes.json") as agent:
        fake.reply("I do not know.", input_tokens=50, output_tokens=5)
        fake.reply(ENVELOPE.text, input_tokens=60, output_tokens=6)
        fake.reply('{"tool": "add", "arguments": {"a": 1, "b": 2}}', input_tokens=70, output_tokens=7)
        fake.reply(REPLY.text.replace("I cannot know.", "It is 3."), input_tokens=80, output_tokens=8)
        result = await agent.run("1 + 2?", journal=journal)
    assert result.text == "It is 3."
    assert result.steps == 2
    assert (result.usage.input_tokens, result.usage.output_tokens) == (260, 26)
    assert len(probes(journal.events)) == 2
    assert modes(journal.events) == ["envelope", ""]  # Once is enough.
    assert Progress("", "probe", 0, 0, "", "ollama:mystery:3b") in seen
    (notice,) = [event for event in journal.events if isinstance(event, Notice) and event.code == "tool_mode"]
    assert notice.text == (
        "ollama:mystery:3b makes no tool call that its server understands, and keeps to a schema: "
        "its replies are held to a schema"
    )


async def test_a_trial_that_a_limit_forbids_is_not_made_and_goes_on_when_there_is_more(
    tmp_path: Path,
) -> None:
    journal = MemoryJournal()
    async with FakeProviders(models=MODELS) as fake:
        fake.reply("I do not know.", input_tokens=50, output_tokens=5)
        async with agent_for(fake, tmp_path / "modes.json", budget=Budget(tokens=55)) as agent:
            result = await agent.run("Hello!", journal=journal)
        assert (result.outcome, result.limit, result.value) == ("budget_exceeded", "tokens", 55)
        assert (len(fake.chats), len(probes(journal.events))) == (1, 1)
        fake.reply(ENVELOPE.text)
        fake.reply(REPLY.text)
        async with agent_for(fake, tmp_path / "modes.json", budget=Budget(tokens=5000)) as agent:
            assert (await agent.run("Hello!", journal=journal)).text == "I cannot know."
        assert (len(fake.chats), len(probes(journal.events))) == (3, 2)


async def test_a_trial_of_a_forbidden_step_is_not_made_and_takes_no_step_itself(tmp_path: Path) -> None:
    async with FakeProviders(models=MODELS) as fake:
        async with agent_for(fake, tmp_path / "modes.json", budget=Budget(steps=0)) as agent:
            assert (await agent.run("Hello!")).limit == "steps"
        assert fake.chats == []
        fake.reply("I do not know.")
        fake.reply(ENVELOPE.text)
        fake.reply(REPLY.text)
        async with agent_for(fake, tmp_path / "modes.json", budget=Budget(steps=1)) as agent:
            assert (await agent.run("Hello!")).text == "I cannot know."


async def test_what_was_tried_out_is_remembered_by_the_models_digest(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "tool-modes.json"
    async with FakeProviders(models=MODELS) as fake:
        for model, tried in (("mystery:3b", 1), ("mystery:3b", 0), ("mystery:8b", 1)):
            journal = MemoryJournal()
            if tried:
                fake.call("read_note", {"name": "groceries"})
            fake.reply("Hello.")
            async with agent_for(fake, file, model=model) as agent:
                await agent.run("Hello!", journal=journal)
            assert len(probes(journal.events)) == tried
            assert modes(journal.events) == ["native"]
        assert fake.pending == ()
    assert len(json.loads(file.read_text())) == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"v1 x": 3}', '{"v1 x": {"mode": "magic"}}'])
def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "modes.json"
    file.write_text(content)
    assert ToolModes(file).recall("x") is None
    ToolModes(file).remember("x", "envelope", model="m")
    assert ToolModes(file).recall("x") == "envelope"


def test_a_memory_that_cannot_be_written_costs_nothing_but_another_trial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    modes = ToolModes(tmp_path / "file" / "modes.json")
    modes.remember("x", "envelope", model="m")
    assert modes.recall("x") == "envelope"
    assert ToolModes(tmp_path / "file" / "modes.json").recall("x") is None


async def test_a_run_that_goes_on_uses_the_mode_of_its_record(tmp_path: Path) -> None:
    file = tmp_path / "modes.json"
    journal = MemoryJournal()
    async with FakeProviders(models=MODELS) as fake:
        fake.call("read_note", {"name": "groceries"})
        fake.fail(400, "broken on purpose")
        async with agent_for(fake, file) as agent:
            with pytest.raises(StatusError, match="broken on purpose"):
                await agent.run("Hello!", journal=journal)
        assert modes(journal.events) == ["native"]
        file.write_text(file.read_text().replace("native", "envelope"))
        fake.reply("Hello.")
        async with agent_for(fake, file) as agent:
            await agent.run("Hello!", journal=journal)
        assert fake.chats[-1].schema is None
        assert len(probes(journal.events)) == 1


async def test_a_trial_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with FakeProviders(models=MODELS) as fake:
        fake.reply("I do not know.")
        fake.fail(400, "broken on purpose")
        async with agent_for(fake, tmp_path / "modes.json") as agent:
            with pytest.raises(StatusError, match="broken on purpose"):
                await agent.run("Hello!", journal=journal)
        asked = len(fake.chats)
        fake.reply(ENVELOPE.text)
        fake.reply(REPLY.text)
        async with agent_for(fake, tmp_path / "modes.json") as agent:
            result = await agent.run("Hello!", journal=journal)
        assert result.text == "I cannot know."
        assert [bool(request.tools) for request in fake.chats[asked:]] == [False, False]


async def test_the_servers_word_that_a_model_takes_no_tools_is_enough(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with (
        FakeProviders(models={"mystery:3b": ["completion"]}) as fake,
        agent_for(fake, tmp_path / "modes.json") as agent,
    ):
        fake.reply(REPLY.text)
        result = await agent.run("Hello!", journal=journal)
        assert fake.chats[-1].schema is not None
    assert result.text == "I cannot know."
    assert probes(journal.events) == []
    assert modes(journal.events) == ["envelope"]
    (notice,) = [event for event in journal.events if isinstance(event, Notice) and event.code == "tool_mode"]
    assert (
        notice.text == "ollama:mystery:3b takes no tools, its server says: its replies are held to a schema"
    )


@pytest.mark.parametrize(
    ("model", "mode"), [("qwen2.5-coder:7b", "envelope"), ("qwen3:8b", "native"), ("llama3.2:3b", "recovery")]
)
async def test_a_model_of_the_table_is_not_tried_out(model: str, mode: str, tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with FakeProviders() as fake, agent_for(fake, tmp_path / "modes.json", model=model) as agent:
        fake.reply(REPLY.text if mode == "envelope" else "Hello.")
        await agent.run("Hello!", journal=journal)
    assert probes(journal.events) == []
    assert modes(journal.events) == [mode]
    assert not [event for event in journal.events if isinstance(event, Notice) and event.code == "tool_mode"]


async def test_what_somebody_says_is_not_tried_out_either(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with FakeProviders() as fake, agent_for(fake, tmp_path / "modes.json", tool_mode="native") as agent:
        fake.reply("Hello.")
        await agent.run("Hello!", journal=journal)
    assert probes(journal.events) == []


async def test_an_agent_without_tools_asks_nothing_first() -> None:
    async with FakeProviders(models=MODELS) as fake:
        fake.reply("Hello.")
        chat = create_chat("ollama:mystery:3b", ModelSettings(base_url=fake.ollama_url))
        async with create_deep_agent(chat) as agent:
            assert (await agent.run("Hello!")).text == "Hello."


async def test_sub_agents_of_one_model_try_it_out_once(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with FakeProviders(models=MODELS) as fake:
        helper = Subagent("helper", "Helps.", "Help.")
        async with agent_for(fake, tmp_path / "modes.json", subagents=[helper]) as agent:
            fake.call("read_note", {"name": "groceries"})
            fake.calls(*(Call("task", {"agent": "helper", "task": one}) for one in ("one", "two")))
            for _ in range(3):
                fake.reply("Done.")
            result = await agent.run("Do both.", journal=journal)
    assert result.text == "Done."
    assert len(probes(journal.events)) == 1
    assert modes(journal.events) == ["native", "native", "native", ""]


async def test_a_model_file_is_known_by_what_it_is(tmp_path: Path) -> None:
    from graphton.chat._tool_facts import tool_facts

    named = create_chat("llamacpp:qwen2.5-coder:0.5b")
    assert (await tool_facts(named)).identity.startswith("gguf 1d9614638d18")
    gone = create_chat(f"llamacpp:{tmp_path}/mine.gguf")
    assert (await tool_facts(gone)).identity == ""


async def test_wrappers_show_what_the_chat_inside_says_later() -> None:
    from graphton._tool_modes import TaughtChat
    from graphton.envelope import EnvelopeChat
    from graphton.recovery import RecoveringChat

    inner = ScriptedModel([])
    around: list[Chat] = [
        EnvelopeChat(inner),
        RecoveringChat(inner),
        TaughtChat(inner, ToolModes()),
        ShortChat(inner),
    ]
    inner.notices = ("the window is smaller than asked for",)
    inner.settings = ModelSettings(context_window=4096)
    for chat in around:
        assert chat.notices == inner.notices
        assert chat.settings.context_window == 4096
