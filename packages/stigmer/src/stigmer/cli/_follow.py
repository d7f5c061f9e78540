"""Follows one execution to its end: shows it, answers its questions, and makes Ctrl-C mean something."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

from stigmer.api.event_pb2 import ApprovalRequested, Event, Finished
from stigmer.cli._main import BUDGET, FAILED, INTERRUPTED, WAITING, again, asked, exit_code
from stigmer.cli._terminal import StdoutClosed, Terminal, harmless, person_here, terminal
from stigmer.cli._view import JsonView, TextView, View, question
from stigmer.client import Client, Events, RemoteError

__all__ = ["Follower", "view_and_asks", "whoami"]


_ONE_PRESS = 0.4
"""Seconds in which several signals are one: a wrapper such as `uv run` passes on what the terminal sent us as well."""


def whoami() -> str:
    """Who decides or cancels, as the record will name them: `ann@laptop`."""
    import getpass
    import socket

    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # A user without a name, as in some containers.
        return f"uid {os.getuid()}@{socket.gethostname()}"


_GOODBYE = 5.0
"""Seconds that a command which nobody reads any more waits for its run to be cancelled."""


_WAITS_THERE = "the run waits for its API key, which the server is to have: its environment, or there: stigmer secret set NAME"
_WAITS = {
    "key": "the run waits for its API key; from a shell that has it: {resume}; "
    "`stigmer secret set NAME` keeps it",
    "pause": "the run is paused; to let it go on: {resume}",
}


def view_and_asks() -> tuple[View, bool]:
    """How this command shows events, and whether a person sits here who can answer a question."""
    talk, wish = terminal(), asked()
    if wish.json:
        return JsonView(talk), False
    return TextView(talk, verbose=wish.verbose), person_here()


_SAYS = {
    **dict.fromkeys(("a", "approve", "y", "yes"), "approve"),
    **dict.fromkeys(("w", "always"), "always"),
    **dict.fromkeys(("r", "reject", "n", "no"), "reject"),
}
"""What the words of an answer mean."""


def _path_of(call: str) -> str:
    """The sub-agent's path in a call as it is listed."""
    return call.rpartition(":")[0]


class Follower:
    """Reads an execution's events until it has finished, or waits for somebody who is not here.

    `cancels`: the first Ctrl-C (or SIGTERM) cancels the execution and waits for its end, the second leaves; else the
    first leaves. `asks`: a person sits here who can decide.
    """

    def __init__(self, client: Client, view: View, terminal: Terminal, *, cancels: bool, asks: bool) -> None:
        self._client, self._view, self._terminal = client, view, terminal
        self._cancels, self._asks = cancels, asks
        self.execution = ""
        self.finished: Finished | None = None
        self._interrupts, self._interrupted_at = 0, 0.0
        self._known = asyncio.Event()
        self._cancelling: asyncio.Task[None] | None = None
        self._answering: asyncio.Future[str] | None = None

    async def follow(self, events: Events) -> int:
        """The exit code."""
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._read(events))
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, self._interrupted, reading)
        try:
            return await reading
        except asyncio.CancelledError:
            if not self._interrupts:
                raise
            return INTERRUPTED
        except StdoutClosed:
            if self._cancels:  # The run was for whoever read it.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._cancel(), _GOODBYE)
            raise
        finally:
            if self._cancelling is not None:
                self._cancelling.cancel()
            for sign in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(sign)

    def _interrupted(self, reading: asyncio.Task[int]) -> None:
        now = asyncio.get_running_loop().time()
        if self._interrupts and now - self._interrupted_at < _ONE_PRESS:
            return
        self._interrupts, self._interrupted_at = self._interrupts + 1, now
        if not self._cancels or self._interrupts > 1:
            reading.cancel()
            return
        self._view.talk("stopping the run; press Ctrl-C again to leave at once")
        self._cancelling = asyncio.get_running_loop().create_task(self._cancel())
        if self._answering is not None:
            self._answering.cancel()

    async def _cancel(self) -> None:
        await self._known.wait()
        try:
            await self._client.cancel(self.execution, by=whoami())
        except RemoteError as error:
            self._view.talk(f"the run could not be cancelled: {error}")

    async def _read(self, events: Events) -> int:
        async for event in events:
            self.execution = events.execution
            self._known.set()
            self._view.show(self.execution, event, more=events.more)
            kind = event.WhichOneof("kind")
            if kind == "waiting" and not await self._answered(event):
                return WAITING
            if kind == "finished" and not event.path:
                self.finished = event.finished
                return self._outcome(event.finished)
        return FAILED

    def _outcome(self, finished: Finished) -> int:
        if self._interrupts:
            return INTERRUPTED
        codes = {"completed": 0, "budget_exceeded": BUDGET, "cancelled": FAILED}
        if finished.outcome in codes:
            return codes[finished.outcome]
        return exit_code(finished.error.code)

    async def _answered(self, event: Event) -> bool:
        """Whether the execution can go on: everything that was open has been decided, here or by somebody else."""
        now = await self._client.get(self.execution)
        if now.state != "waiting" or self._interrupts:
            return True  # An old question, or we have just cancelled.
        if event.waiting.reason in ("approval", "outcome") and not now.approvals:
            return True  # Answered long ago: what it waits for now stands further down.
        if now.waits_for and event.waiting.reason != now.waits_for:
            return True
        if event.waiting.reason not in ("approval", "outcome"):
            told = _WAITS.get(event.waiting.reason, f"the run waits: {event.waiting.reason}")
            if event.waiting.reason == "key" and self._client.address.remote:
                told = _WAITS_THERE
            self._view.talk(told.format(resume=again(f"resume {self.execution}")))
            self._view.talk(f"to see it go on: {again(f'attach {self.execution}')}")
            return False
        for open_ in now.approvals:
            if not self._asks:
                self._tell_how(open_)
            elif not await self._decide(open_):
                return bool(self._interrupts)
        return self._asks

    def _tell_how(self, asked: ApprovalRequested) -> None:
        self._view.talk(question(asked.name, asked.arguments, asked.reason, path=_path_of(asked.call)))
        self._view.talk(
            f"nobody here can answer. To go on: {again(f'approve {self.execution} {asked.call}')}\n"
            f"or: {again(f'reject {self.execution} {asked.call}')}; then: {again(f'attach {self.execution}')}"
        )
        if asked.always:
            self._view.talk(f"with --always all such calls may run from now on: {harmless(asked.always)}")

    async def _decide(self, asked: ApprovalRequested) -> bool:
        """Asks the person here; False when they went away without an answer."""
        self._terminal.say(question(asked.name, asked.arguments, asked.reason, path=_path_of(asked.call)))
        always = f", al[w]ays ({harmless(asked.always)})" if asked.always else ""
        while True:
            answer = await self._line(f"[a]pprove{always}, [r]eject, or `r` and a reason: ")
            if answer is None:
                if not self._interrupts:
                    self._tell_how(asked)
                return False
            word, _, reason = answer.partition(" ")
            said = _SAYS.get(word.lower(), "")
            if said and (said != "always" or asked.always):
                break
        try:
            await self._client.decide(
                self.execution,
                asked.call,
                approve=said != "reject",
                always=said == "always",
                digest=asked.digest,
                by=whoami(),
                reason=reason.strip(),
            )
        except RemoteError as error:
            if error.code != "decided":
                raise
            self._view.talk(harmless(error.message))  # Somebody else was faster; the message says who.
        return True

    async def _line(self, prompt: str) -> str | None:
        """A line from the terminal; None at its end or when Ctrl-C was pressed."""
        loop = asyncio.get_running_loop()
        self._answering = loop.create_future()
        source = sys.stdin.fileno()

        def readable() -> None:
            if self._answering is not None and not self._answering.done():
                self._answering.set_result(os.read(source, 4096).decode(errors="replace"))

        self._terminal.ask(prompt)
        loop.add_reader(source, readable)
        try:
            text = await self._answering
        except asyncio.CancelledError:
            if not self._interrupts:
                raise
            return None
        finally:
            loop.remove_reader(source)
            self._answering = None
        self._terminal.answered()
        return text.strip() if text else None
