"""When a small model is asked once more: its reply cannot be meant, only repeats words, or leaves out a file that was named.

And what it chooses among after a call that failed, where the tool knows. All of it goes by what tools say of themselves
(`graphton.tools.Knowledge`). Nobody is pressed to write a file but who says, asked for one word, that it is to be written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphton._envelope_course import PLANS, course_of
from graphton._envelope_echo import may_say_back, plain, says_back
from graphton._envelope_prompt import PLAIN_EXAMPLE, dump
from graphton._file_names import file_names
from graphton._reply_schema import ARGUMENTS, TEXT, TOOL, closed, reply_name, reply_only, reply_schema
from graphton.chat.base import Request, ToolSpec
from graphton.history import SUMMARY
from graphton.messages import AssistantMessage, Message, Text, ToolResults, UserMessage
from graphton.tools import Knowledge

__all__ = [
    "ANSWER",
    "ASKED",
    "Choices",
    "Choose",
    "Doubts",
    "Second",
    "choices_of",
    "doubts_of",
    "narrowed",
    "said",
    "short",
    "unused",
    "used_by",
]

Choices = Mapping[str, Mapping[str, Sequence[str]]]
"""Of a tool, by its name, what can stand in some of its arguments."""
Choose = Callable[[Request], Awaitable[str]]
"""Asks the model for one of the words that the request's schema allows."""
ANSWER = "answer"
"""The key of that word."""

LONG_QUESTION = 1_000
"""Characters of a question that is not repeated behind each result."""
FINDS = "find_files"
MOST_NAMES = 4
"""A question that names more files is a pasted text, or wants more than can be watched like this."""
SHORTEST_ECHO = 15
"""Characters: what is shorter stands in our words by chance."""

HEARD = "The user asked:"
ASKED = HEARD + " {asked}\n"
"""What stands behind a result: there the small models forget what it was for, and make the same call again."""

DOUBTED = (
    "That call was not made. {doubt} "
    + ASKED
    + 'If that is not about a file, answer it yourself with "{reply}"; if it cannot be answered, say so. Else use another tool.'
)
UNSEEN = "First read {names}. " + HEARD + " {asked}"
REPEATED = "That only repeats the question. Use a tool to find it out."
ECHOED = "Say what the result above says about this question: {asked}"
"""In place of what was repeated."""
SAID_BACK = (
    "That only says the request again. "
    + ASKED
    + 'If something of it is left to do, use the next tool. Else use "{reply}".'
)
UNREAD = "{name} has not been looked at. " + ASKED + 'If that is needed, read it now. Else use "{reply}".'
READ, WRITE, NOTHING = "read", "write", "nothing"
MEANT = 'Request: "{asked}"\nWhat does the request want done with {name}: read it, write it, or nothing? Answer with one word.'
MEANT_EXAMPLES = (
    ("What does log.txt say?", "log.txt", READ),
    ("Tidy up, but leave old.txt as it is.", "old.txt", NOTHING),
    ("Put the date from log.txt into now.txt", "now.txt", WRITE),
)
"""Without them the 0.5b said of 21 files that were to be written only that of 11 (llama.cpp) and 2 (Ollama), with them of 18
and 16; the 1.5b of 19 and 20. Of 21 that were not, at most 2."""
UNWRITTEN = "{name} has not been written. " + ASKED + "Use the next tool for that now, such as write_file."
UNCHANGED = "{name} has not been changed. " + ASKED + "Use the next tool for that now, such as edit_file."
"""As measured: asked whether anything is left to do, the small models say no."""
SUMMARISED = SUMMARY.partition("{")[0]


@dataclass(frozen=True, slots=True)
class Second:
    """What is asked once more, and why."""

    request: Request
    kind: str
    """Each kind of doubt is had once a reply."""
    why: str


@dataclass(frozen=True, slots=True)
class Doubts:
    """What the reply to a request is looked through for."""

    request: Request
    question: str
    there: Sequence[str] = ()
    """What the question names and is there; before the first call only."""
    left: Sequence[str] = ()
    """The files that the question names and no call has; behind results only."""
    missing: Sequence[str] = ()
    """The files that the question names and no call has written, whatever else was done with them; behind results only."""
    wrote: bool = False
    """Whether a call wrote something."""
    ours: str = ""
    """What we wrote behind the last result."""

    def holds(self, text: str) -> bool:
        """Whether a reply that begins like this may still be asked again: until then it is not shown."""
        if self.there or self.left:
            return True
        if self._is_first:
            return (self._writes and bool(self._names)) or self._begins_the_question(text)
        said, heard = plain(text), plain(HEARD)
        return said in plain(self.ours) or said.startswith(heard) or may_say_back(text, self.ours)

    async def second(
        self, sent: Request, message: AssistantMessage, choose: Choose, *, asked: Collection[str] = ()
    ) -> Second | None:
        """What is asked once more after this reply; None where it can be meant. `asked`: why that was done before."""
        found = await self._second_of(sent, message, choose, asked)
        return found if found is not None and found.kind not in asked else None

    async def _second_of(
        self, sent: Request, message: AssistantMessage, choose: Choose, asked: Collection[str]
    ) -> Second | None:
        if self._is_first:
            return await self._at_first(sent, message, choose, is_asked=bool(asked))
        if message.calls:
            return None
        return (
            await self._left_out(sent, message, choose)
            or self._echoed(sent, message)
            or await self._said_back(sent, message, choose)
        )

    # Before the first call

    @property
    def _is_first(self) -> bool:
        return isinstance(self.request.messages[-1], UserMessage)

    async def _at_first(
        self, sent: Request, message: AssistantMessage, choose: Choose, *, is_asked: bool
    ) -> Second | None:
        if is_asked and not message.calls and plain(HEARD) in plain(message.text):
            # It repeats why it is asked again: it is asked without these words, of what is never doubted.
            sure = [tool for tool in self.request.tools if tool.name != PLANS and not _doubts(tool)]
            schema = reply_schema(sure, reply=reply_name(self.request.tools))
            before = Request(sent.system, sent.messages[:-2], schema=schema)
            return Second(before, "echo", "the reply only repeats the question")
        if not is_asked and (doubt := await self._doubted(message)):
            # The same tool would be asked for the same thing again; what was named may be read after all.
            spent = {PLANS, *(call.name for call in message.calls if not self._names)}
            others = [tool for tool in self.request.tools if tool.name not in spent]
            return self._second(sent, message, DOUBTED, others, why=doubt, doubt=doubt)
        if unseen := await self._unseen(message):
            names = " and ".join(unseen)
            looks = [narrowed(tool, {"path": unseen}) for tool in self.request.tools if _shows(tool)]
            return self._second(
                sent, message, UNSEEN, looks, why=f"{names} was not looked at", names=names, must=True
            )
        if (
            self._writes
            and (name := await self._not_there(message))
            and await self._is_meant(name, choose) == WRITE
        ):
            return self._to_be_written(sent, message, name)
        looks = [tool for tool in self.request.tools if tool.reads and tool.knowledge is not None]
        if looks and not message.calls and self._repeats(message.text):
            why = "the reply only repeats the question"
            return self._second(sent, message, REPEATED, looks, why=why, must=True)
        return None

    async def _doubted(self, message: AssistantMessage) -> str:
        """Why a call cannot be meant. Later ones have errors to learn from."""
        knowing = {tool.name: tool.knowledge for tool in self.request.tools if tool.knowledge}
        words = ""
        for call in message.calls:
            if (knowledge := knowing.get(call.name)) is not None:
                words = words or "\n".join([self.request.system, *_words(self.request.messages)]).casefold()
                if doubt := await knowledge.doubt(call.arguments, words):
                    return doubt
        return ""

    async def _unseen(self, message: AssistantMessage) -> list[str]:
        """What is there, where the first thing is neither a look at files nor about it: it is written or told from nothing."""
        looks = {tool.name for tool in self.request.tools if tool.knowledge and tool.reads}
        if not self.there or any(call.name in looks for call in message.calls):
            return []
        knowing = {tool.name: tool.knowledge for tool in self.request.tools if tool.knowledge}
        about = [dump(call.arguments) for call in message.calls if "path" not in call.arguments]
        for call in message.calls:
            path, knowledge = call.arguments.get("path"), knowing.get(call.name)
            # Who adds a line has not seen that it is there already, to be changed; who replaces a text that is not
            # there has not seen what is: then, too, the 1.5b got 1 of 7 tasks right in the end.
            blind = call.arguments.get("old") == "" or (
                knowledge is not None and await knowledge.choices(call.arguments)
            )
            if isinstance(path, str) and not blind:
                about.append(path)
        return [name for name in self.there if not any(_is_about(one, name) for one in about)]

    def _repeats(self, text: str) -> bool:
        return self._begins_the_question(text) and _is_long(text, self.question)

    def _begins_the_question(self, text: str) -> bool:
        return plain(self.question).startswith(plain(text))

    # Behind results

    def _echoed(self, sent: Request, message: AssistantMessage) -> Second | None:
        """A reply that repeats what stands behind the result, or in the examples, as the 0.5b gives at times."""
        text, question = plain(message.text), plain(self.question)
        *before, last = sent.messages
        if not isinstance(last, UserMessage):
            return None
        own = self.ours.replace(short(self.question), " ")
        repeats = text in plain(self.ours) and text not in question and _is_long(text, "")
        if not (
            repeats or text.startswith(plain(HEARD)) or says_back(message.text, own) or self._is_bare(text)
        ):
            return None
        told = UserMessage(last.text.rpartition(HEARD)[0] + ECHOED.format(asked=short(self.question)))
        again = Request(sent.system, [*before, told], schema=reply_only(self.request.tools))
        return Second(again, "echo", "the reply only repeats the question")

    def _is_bare(self, text: str) -> bool:
        """Whether it is a word of our instructions, of which nobody spoke."""
        bare = (reply_name(self.request.tools), plain(PLAIN_EXAMPLE[1]))
        return text in bare and text not in plain("\n".join(_words(self.request.messages)))

    async def _said_back(self, sent: Request, message: AssistantMessage, choose: Choose) -> Second | None:
        """A reply that says the request again, as if that were the work."""
        if not self._writes or not says_back(message.text, self.question):
            return None
        for name in self.missing:
            is_there = await self._is_there(name)
            if (is_there and (self._names != [name] or "?" in self.question)) or await self._is_meant(
                name, choose
            ) != WRITE:
                continue
            return self._to_be_written(sent, message, name, UNCHANGED if is_there else UNWRITTEN)
        if self.wrote:
            return None  # It may say so what it has done.
        left = [tool for tool in self.request.tools if tool.name != PLANS]
        return self._second(sent, message, SAID_BACK, left, why="the reply only repeats the question")

    async def _left_out(self, sent: Request, message: AssistantMessage, choose: Choose) -> Second | None:
        """A file that the user named and nothing was done with: it is read; or written, where the model says it is to be."""
        for name in self.left:
            meant = await self._is_meant(name, choose)
            if meant != NOTHING and await self._is_there(name):
                # What is there is looked at before anything is made of it.
                looks = [narrowed(tool, {"path": [name]}) for tool in self.request.tools if _shows(tool)]
                why = f"{name} was not looked at"
                return self._second(sent, message, UNREAD, looks, why=why, name=name)
            if meant == WRITE and self._writes:
                return self._to_be_written(sent, message, name)
        return None

    async def _not_there(self, message: AssistantMessage) -> str:
        """A file that the question names, that is not there, and that is not written: it may be to be written."""
        missing = [name for name in self._names if not await self._is_there(name)]
        shows = [tool.knowledge for tool in self.request.tools if tool.knowledge and _shows(tool)]
        looks = {tool.name for tool in self.request.tools if tool.knowledge and tool.reads}
        paths = [(call.name in looks, str(call.arguments.get("path", ""))) for call in message.calls]
        if any(is_look and path not in missing for is_look, path in paths):
            return ""  # What is to be written may follow from what is looked at.
        for name in missing:
            if (False, name) not in paths and not any([await one.choices({"path": name}) for one in shows]):
                return name
        return ""

    async def _is_meant(self, name: str, choose: Choose) -> str:
        """What the model says that is to be done with a file."""
        turns: list[Message] = []
        for asked, file, answer in MEANT_EXAMPLES:
            turns.append(UserMessage(MEANT.format(asked=asked, name=file)))
            turns.append(AssistantMessage((Text(dump({ANSWER: answer})),)))
        turns.append(UserMessage(MEANT.format(asked=short(self.question), name=name)))
        return await choose(Request("", turns, schema=closed({ANSWER: {"enum": [READ, WRITE, NOTHING]}})))

    def _to_be_written(
        self, sent: Request, message: AssistantMessage, name: str, told: str = UNWRITTEN
    ) -> Second:
        """Nothing else is written: pressed to write, small models take the next best file."""
        left = [
            tool if tool.reads or not _has_path(tool) else narrowed(tool, {"path": [name]})
            for tool in self.request.tools
            if tool.name != PLANS
        ]
        return self._second(sent, message, told, left, why=f"{name} was not written", name=name, must=True)

    @property
    def _writes(self) -> bool:
        """Whether a tool could write a file, and another tells which are there."""
        tools = self.request.tools
        return any(map(_shows, tools)) and any(not tool.reads and _has_path(tool) for tool in tools)

    @property
    def _names(self) -> list[str]:
        return _named(self.question)

    async def _is_there(self, name: str) -> bool:
        return any([await tool.knowledge.named(name) for tool in self.request.tools if tool.knowledge])

    def _second(
        self,
        sent: Request,
        made: AssistantMessage,
        told: str,
        tools: Sequence[ToolSpec],
        *,
        why: str,
        must: bool = False,
        **words: str,
    ) -> Second:
        """The same request once more, with what was written and what is wrong with it behind; `must`: with a call."""
        reply = reply_name(self.request.tools)
        turns = [said(call.name, call.arguments) for call in made.calls[:1]] or [
            said(reply, {TEXT: made.text})
        ]
        turn = UserMessage(told.format(asked=short(self.question), reply=reply, **words))
        schema = reply_schema(tools, reply=None if must else reply)
        return Second(Request(sent.system, [*sent.messages, *turns, turn], schema=schema), told, why)


async def doubts_of(request: Request, sent: Request) -> Doubts:
    """What is to be looked for in the reply to a request, which is sent like this."""
    question, used, written = "", "", ""
    reading = {tool.name for tool in request.tools if tool.reads}
    for message in request.messages:
        match message:
            case UserMessage() if not message.text.startswith(SUMMARISED):
                question, used, written = message.text, "", ""
            case AssistantMessage():
                used += "".join(used_by(call.name, call.arguments) for call in message.calls)
                written += "".join(dump(call.arguments) for call in message.calls if call.name not in reading)
    known = [tool.knowledge for tool in request.tools if tool.knowledge]
    *_, last = sent.messages
    _, heard, ours = last.text.rpartition(HEARD) if isinstance(last, UserMessage) else ("", "", "")
    if not known:
        return Doubts(request, question, ours=heard + ours)
    if isinstance(request.messages[-1], UserMessage):
        there = [name for one in known for name in await one.named(question)] if _named(question) else []
        return Doubts(request, question, there=there)
    course = course_of(request.messages, request.tools)
    left = [] if course.enough else unused(question, used)
    missing = [name for name in _named(question) if name not in written]
    return Doubts(request, question, left=left, missing=missing, wrote=bool(written), ours=heard + ours)


def used_by(tool: str, arguments: Mapping[str, Any]) -> str:
    """What a call says of the file that it uses. Who only finds it has not used it."""
    if tool == FINDS:
        return ""
    return str(arguments["path"]) if "path" in arguments else dump(arguments)


def unused(question: str, used: str) -> list[str]:
    """The files that a question names and no call has."""
    return [name for name in _named(question) if name.rpartition("/")[2].casefold() not in used.casefold()]


def _named(question: str) -> list[str]:
    names = file_names(question)
    return names if len(names) <= MOST_NAMES else []


async def choices_of(request: Request) -> Choices:
    """What the next calls can hold, after one that failed."""
    if len(request.messages) < 2:
        return {}
    made, last = request.messages[-2:]
    if not isinstance(last, ToolResults) or not isinstance(made, AssistantMessage):
        return {}
    calls = {call.id: call for call in made.calls}
    knowing = {tool.name: tool.knowledge for tool in request.tools if tool.knowledge}
    return {
        result.name: await knowing[result.name].choices(calls[result.call].arguments)
        for result in last.results
        if result.is_error and result.name in knowing and result.call in calls
    }


def narrowed(tool: ToolSpec, choices: Mapping[str, Sequence[str]]) -> ToolSpec:
    """The tool with arguments that can only be one of these."""
    if not choices:
        return tool
    properties: dict[str, Any] = dict(tool.parameters.get("properties", {}))
    properties |= {key: {"enum": list(values)} for key, values in choices.items()}
    return replace(tool, parameters={**tool.parameters, "properties": properties})


def said(name: str, arguments: Mapping[str, Any]) -> AssistantMessage:
    """An envelope as the model writes it."""
    return AssistantMessage((Text(dump({TOOL: name, ARGUMENTS: arguments})),))


def short(question: str) -> str:
    """The question as it is repeated; of a long one its beginning and its end."""
    if len(question) <= LONG_QUESTION:
        return question
    return f"{question[: LONG_QUESTION // 2]} […] {question[-LONG_QUESTION // 2 :]}"


def _shows(tool: ToolSpec) -> bool:
    """Whether it shows the file at a path."""
    return tool.reads and tool.knowledge is not None and "path" in tool.parameters.get("required", ())


def _doubts(tool: ToolSpec) -> bool:
    return tool.knowledge is not None and type(tool.knowledge).doubt is not Knowledge.doubt


def _has_path(tool: ToolSpec) -> bool:
    return "path" in tool.parameters.get("properties", {})


def _is_about(said: str, name: str) -> bool:
    return said.strip("./").casefold() == name.strip("./").casefold() or ("{" in said and name in said)


def _is_long(text: str, question: str) -> bool:
    return len(text) >= max(SHORTEST_ECHO, len(question) // 2)


def _words(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if isinstance(message, ToolResults):
            yield from (result.text for result in message.results)
        else:
            yield message.text
