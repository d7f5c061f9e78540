"""The table of commands, the options that all share, and the two doors by which failures leave."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import click
from graphton.errors import GraphtonError

from stigmer import __version__
from stigmer.cli._terminal import StdoutClosed, Terminal, harmless, terminal
from stigmer.errors import StigmerError, SystemRefused, UsageError

__all__ = [
    "INTERRUPTED",
    "USAGE",
    "Asked",
    "about_this_machine",
    "again",
    "asked",
    "exit_code",
    "json_option",
    "main",
]

FAILED, USAGE, BUG, WAITING, BUDGET, INTERRUPTED = 1, 2, 3, 4, 5, 130

COMMANDS = {
    "run": ("run", "Run an agent on a task and show what it does."),
    "chat": ("chat", "Talk with an agent, line by line."),
    "attach": ("executions", "Show an execution's events, past and to come."),
    "cancel": ("executions", "Stop a running execution."),
    "pause": ("executions", "Let a run rest; it holds nothing meanwhile."),
    "resume": ("executions", "Let a paused run go on."),
    "retry": ("retry", "Begin anew with what a failed run has recorded."),
    "get": ("executions", "Show an execution with its settings and result, or a session."),
    "list": ("executions", "List executions or sessions, newest first."),
    "delete": ("sessions", "Delete a session with its executions."),
    "prune": ("prune", "Delete executions that ended long ago, and free their room."),
    "approvals": ("approvals", "List the questions that wait for an answer."),
    "approve": ("approvals", "Allow a tool call that waits for an approval."),
    "reject": ("approvals", "Refuse a tool call that waits for an approval."),
    "config": ("config", "Show which settings apply and where each comes from; change them."),
    "secret": ("secret", "Keep API keys for later runs; list and forget them."),
    "key": ("key", "Make, list and end the keys that let callers in from elsewhere."),
    "trust": ("trust", "Trust the settings and agents that come with a folder."),
    "validate": ("validate", "Check agent files, every problem at once."),
    "models": ("models", "List models, here and at providers; fetch and remove files."),
    "doctor": ("doctor", "Say whether everything is there that a run needs, and what helps."),
    "up": ("server", "Start the daemon and let it stay."),
    "down": ("server", "Stop the daemon."),
    "serve": ("serve", "Serve others in the foreground."),
    "worker": ("serve", "Run the executions of a server, on Temporal."),
    "migrate": ("migrate", "Bring a database that servers share up to this version."),
    "status": ("server", "Say whether the daemon runs, and what it does."),
    "logs": ("server", "Show the daemon's log."),
}
"""Command: the module of stigmer.cli that holds it, and the line that `stigmer --help` shows."""

AT_A_SERVER = {
    "run",
    "chat",
    "attach",
    "cancel",
    "pause",
    "resume",
    "retry",
    "get",
    "list",
    "delete",
    "prune",
    "approvals",
    "approve",
    "reject",
    "config",
    "key",
    "status",
}
"""Commands that speak to a server; `--server` may name another one than this home's own. The rest is about this machine."""
OF_ITS_OWN = ("serve", "worker")
"""Processes of a shared installation: STIGMER_SERVER means nothing to the one, and is an option of the other."""
SAID = ("down", "doctor", "logs", "models", "secret", "up")
"""Where STIGMER_SERVER might let somebody expect something else."""

CONFIGURATION = {
    "config",
    "empty_task",
    "home",
    "model_missing",
    "model_name",
    "setting",
    "task_too_long",
    "tls",
    "usage",
    "workspace",
}
"""Error codes whose cure is another command line or setting."""


@dataclass(slots=True)
class Asked:
    """The global options, wherever they stood in the command line."""

    json: bool = False
    verbose: bool = False
    mode: str | None = None
    server: str | None = None
    here: bool = False
    """The command is about this machine, whatever STIGMER_SERVER says."""


class Commands(click.Group):
    """A group whose commands are imported when they are called, and whose list comes from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        found: click.Command = getattr(
            import_module(f"stigmer.cli.{COMMANDS[name][0]}"), name.replace("-", "_")
        )
        if name not in OF_ITS_OWN:
            _add_server_option(found, hidden=name not in AT_A_SERVER)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            fix = f"did you mean `stigmer {near[0]}`?" if near else f'to run a task: stigmer run "{args[0]}"'
            raise UsageError(f"no command {args[0]!r}", hint=f"{fix} All commands: stigmer --help")
        name, command, rest = super().resolve_command(ctx, args)
        state = ctx.ensure_object(Asked)
        if name is not None and name not in AT_A_SERVER and name != "worker":
            state.here = True
            if state.server is not None:
                raise _about_this_machine(name)
            if name in SAID and os.environ.get("STIGMER_SERVER", "").strip():
                terminal().say(f"note: `stigmer {name}` is about this machine, not about STIGMER_SERVER")
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value not in (None, False):
        setattr(ctx.ensure_object(Asked), str(parameter.name).removeprefix("as_"), value)
    return value


def _refuse_server(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        raise _about_this_machine(ctx.command_path.partition(" ")[2])
    return value


def _about_this_machine(command: str) -> UsageError:
    return UsageError(
        f"`stigmer {command}` is about this machine, and --server names a server", hint="leave --server out"
    )


def about_this_machine(command: str) -> None:
    """For a part of a command that speaks to servers otherwise. Raises UsageError where --server names one."""
    if asked().server is not None:
        raise _about_this_machine(command)
    asked().here = True


_SERVER_HELP = "A server elsewhere (STIGMER_SERVER; its key is in STIGMER_API_KEY): https://HOST:PORT, or `local` for your own daemon."


def _add_server_option(command: click.Command, *, hidden: bool) -> None:
    """Lets the command, and those below it, take --server; one that is about this machine refuses it in plain words."""
    if not any(one.name == "server" for one in command.params):
        command.params.append(
            click.Option(
                ["--server"],
                metavar="ADDRESS",
                expose_value=False,
                hidden=hidden,
                callback=_refuse_server if hidden else _remember,
                help=_SERVER_HELP,
            )
        )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _add_server_option(below, hidden=hidden)


json_option = click.option(
    "--json", "as_json", is_flag=True, expose_value=False, callback=_remember, help="One JSON object a line."
)
verbose_option = click.option(
    "-v", "verbose", is_flag=True, expose_value=False, callback=_remember, help="Tell more on stderr."
)


@click.command(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@json_option
@click.option(
    "--mode", metavar="local|cloud", expose_value=False, callback=_remember, help="Where the model runs."
)
@click.option("--server", metavar="ADDRESS", expose_value=False, callback=_remember, help=_SERVER_HELP)
@verbose_option
@click.version_option(__version__, message="stigmer %(version)s")
@click.pass_context
def stigmer(ctx: click.Context) -> None:
    """Run AI agents, on this machine or on a server.

    \b
    stigmer run "Which file in this folder is the largest?"
    """
    ctx.ensure_object(Asked)


def asked() -> Asked:
    """What the global options said."""
    return click.get_current_context().ensure_object(Asked)


def again(command: str) -> str:
    """A command as it is to be typed after this one: at the same server, where --server named it."""
    server = asked().server
    return f"stigmer --server {server} {command}" if server else f"stigmer {command}"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Known failures leave with one line and a hint, our own faults with a report file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    talk = terminal()
    state = Asked()
    signal.signal(signal.SIGTERM, _like_ctrl_c)
    try:
        code = stigmer.main(args=arguments, prog_name="stigmer", standalone_mode=False, obj=state)
        talk.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        talk.status("")
        return INTERRUPTED
    except StdoutClosed:
        _forget_stdout()
        return INTERRUPTED
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        talk.say(error.format_message())
        return USAGE
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "stigmer"
        fault = UsageError(error.format_message().rstrip("."), hint=f"{where} --help")
        return _known(fault, talk, state, arguments)
    except (GraphtonError, StigmerError) as error:
        return _known(error, talk, state, arguments)
    except OSError as error:
        known = SystemRefused.of(error)
        try:
            sys.stdout.flush()
        except OSError:  # The answer itself could not be written (`> /dev/full`).
            _forget_stdout()
        return (
            _our_fault(error, talk, state, arguments)
            if known is None
            else _known(known, talk, state, arguments)
        )
    except Exception as error:
        return _our_fault(error, talk, state, arguments)


def exit_code(code: str, status: str = "") -> int:
    """The exit code for a known error."""
    if code == "internal" or (code.startswith("rpc_") and status in ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED")):
        return BUG  # Of `internal` the server has written its own report, and its message names it.
    return USAGE if code in CONFIGURATION or status == "INVALID_ARGUMENT" else FAILED


def _known(error: GraphtonError | StigmerError, talk: Terminal, state: Asked, arguments: list[str]) -> int:
    code = max(exit_code(error.code, getattr(error, "status", "")), getattr(error, "exit_code", FAILED))
    if code == BUG and error.code != "internal":
        return _our_fault(error, talk, state, arguments)
    _tell(error.message, error.hint, error.code, talk, state)
    return code


def _our_fault(error: Exception, talk: Terminal, state: Asked, arguments: list[str]) -> int:
    """The second door: a report that a maintainer can use, and one line that names it."""
    from stigmer.cli._report import write

    try:
        hint = f"please report it with the file {write(error, arguments)}"
    except OSError as unwritable:
        hint = f"no report could be written: {unwritable}"
    _tell(f"this is our fault: {type(error).__name__}: {error}", hint, "bug", talk, state)
    return BUG


def _tell(message: str, hint: str, code: str, talk: Terminal, state: Asked) -> None:
    if state.json:
        import json

        try:
            talk.data(json.dumps({"type": "error", "code": code, "message": message, "hint": hint}) + "\n")
        except StdoutClosed:
            _forget_stdout()
        return
    # A server's words, and those of whoever is between us and it, are foreign text.
    talk.say(f"{talk.paint('error:', 'red')} {harmless(message)}")
    if hint:
        talk.say(f"{talk.paint('hint:', 'bold')} {harmless(hint)}")


def _forget_stdout() -> None:
    """Nobody reads stdout any more, or nobody can; without this Python complains when it closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _like_ctrl_c(sign: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
