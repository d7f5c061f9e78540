"""`stigmer chat`: a conversation with an agent, line by line; each line is a run of one session."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._limits import limit_options, limits_of
from stigmer.cli._main import INTERRUPTED, WAITING, again, asked, json_option, verbose_option
from stigmer.cli._options import flags_of, llm_options
from stigmer.cli._pull import FETCHABLE, fetch_or_refuse
from stigmer.cli._session import connected, named_server
from stigmer.cli._task import place_option, workspace
from stigmer.cli._terminal import Terminal, harmless, person_here, terminal
from stigmer.errors import StigmerError, UsageError
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import CreateExecutionRequest
    from stigmer.client import Client

__all__ = ["chat"]

EXIT = "/exit"
PROMPT = "> "


@click.command()
@llm_options
@click.option("--agent", metavar="NAME|FILE", help="An agent of .stigmer/agents, or an agent file.")
@click.option("--session", metavar="ID", default="new", help="Go on with this session. Default: a new one.")
@click.option("--workspace", metavar="DIR", help="The folder that the tools see. Default: the current one.")
@place_option
@click.option("--yes", is_flag=True, help="Answer every question of a tool with yes.")
@limit_options
@json_option
@verbose_option
def chat(**given: Any) -> int:
    """Talk with an agent: each line is a turn, and it remembers what was said before.

    Ctrl-C stops the turn that runs, Ctrl-D or /exit ends the chat. Piped in, every line is a turn; the chat then ends
    with the exit code of the first turn that failed. Limits hold for each turn.
    """
    flags, limits = flags_of(given), limits_of(given)
    folder = workspace(given["workspace"], elsewhere=named_server() is not None, place=given["place"])
    talk, here = terminal(), person_here() and not asked().json
    from stigmer.cli._project import find_project

    project = find_project(folder, agent=given["agent"], home=Home.find(), talk=talk, asks=here)
    project.agent_record()

    def base() -> CreateExecutionRequest:
        from stigmer.cli._request import build

        request = build(
            "",
            flags=flags,
            workspace=folder,
            named=given["workspace"] is not None,
            place=given["place"] or "",
            approve_all=given["yes"],
            budget=limits,
            idempotency_key="",
            home=Home.find(),
            talk=talk,
            project=project,
        )
        request.interactive = here
        return request

    conversation = _Conversation(base(), given["session"], talk, here=here)
    outcome = connected(conversation.go)
    if isinstance(outcome, StigmerError):
        fetch_or_refuse(outcome, talk)
        outcome = connected(conversation.go)
    if isinstance(outcome, StigmerError):
        raise outcome
    return outcome


class _Conversation:
    """Turns of one session, as long as somebody says something."""

    def __init__(self, request: CreateExecutionRequest, session: str, talk: Terminal, *, here: bool) -> None:
        from stigmer.cli._follow import view_and_asks

        self._request, self._session, self._talk, self._here = request, session, talk, here
        self._view, self._asks = view_and_asks()
        self._again: str | None = None
        """A line that could not be sent yet: its model is to be fetched first."""
        self._begun = False

    async def go(self, client: Client) -> int | StigmerError:
        """The exit code; or the error of a model that is to be fetched, after which it goes on."""
        if self._session != "new":
            await client.session(self._session)  # Raises where there is none.
        if self._here and self._again is None:
            self._talk.say(self._talk.paint(f"Ctrl-C stops a turn; Ctrl-D or {EXIT} ends the chat", "dim"))
            async with client.preloading(self._request):
                return await self._turns(client)
        return await self._turns(client)

    async def _turns(self, client: Client) -> int | StigmerError:
        failed = 0
        while (line := self._next()) is not None:
            if line == EXIT:
                break
            if not line:
                continue
            try:
                code = await self._turn(client, line)
            except StigmerError as error:
                if error.code in FETCHABLE and not self._begun and not client.address.remote:
                    self._again = line
                    return error
                if not self._here or not self._begun:
                    raise
                self._tell(error)
                continue
            failed = failed or code
            if not self._here and code in (WAITING, INTERRUPTED):
                break  # Nobody is here to decide, or to say more.
        if self._session != "new":
            self._talk.say(self._talk.paint(f"to go on: {again(f'chat --session {self._session}')}", "dim"))
        return 0 if self._here else failed

    async def _turn(self, client: Client, line: str) -> int:
        from stigmer.api.service_pb2 import CreateExecutionRequest
        from stigmer.cli._follow import Follower
        from stigmer.cli._view import TextView

        request = CreateExecutionRequest()
        request.CopyFrom(self._request)
        request.task, request.session = line, self._session
        if isinstance(self._view, TextView):
            self._view.next_turn()
        follower = Follower(client, self._view, self._talk, cancels=True, asks=self._asks)
        code = await follower.follow(client.run(request))
        self._begun = self._begun or bool(follower.execution)
        if self._session == "new" and follower.execution:
            self._session = (await client.get(follower.execution)).session
        return code

    def _tell(self, error: StigmerError) -> None:
        self._talk.say(f"{self._talk.paint('error:', 'red')} {harmless(error.message)}")
        if error.hint:
            self._talk.say(f"{self._talk.paint('hint:', 'bold')} {harmless(error.hint)}")

    def _next(self) -> str | None:
        """What is said next; None at the end."""
        if self._again is not None:
            line, self._again = self._again, None
            return line
        self._talk.flush()
        return _from_person(self._talk) if self._here else _from_pipe()


def _from_pipe() -> str | None:
    try:
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is no UTF-8 text (byte {error.start})", hint="one line of text is one turn"
        ) from None
    return line.strip() if line else None


def _from_person(talk: Terminal) -> str | None:
    """A line that is typed here. Ctrl-C drops what stands in it; None: Ctrl-D."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if not talk.out_is_terminal:  # Then stdout is for the answers alone.
            talk.ask(PROMPT)
            line = sys.stdin.readline()
            talk.answered()
            return line.strip() if line else None
        with suppress(ImportError):  # A Python may be built without it.
            import readline  # noqa: F401  # Lines can be edited, and called back.
        return input(PROMPT).strip()
    except KeyboardInterrupt:
        talk.say("")
        return ""
    except EOFError:
        talk.say("")
        return None
    finally:
        signal.signal(signal.SIGINT, before)
