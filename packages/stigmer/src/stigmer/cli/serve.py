"""`serve` and `worker`: the two processes of a shared installation, in the foreground."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from stigmer.cli._main import asked
from stigmer.cli._options import check, flags_of, llm_options
from stigmer.errors import UsageError
from stigmer.home import Home

__all__ = ["serve", "worker"]

LISTEN = "127.0.0.1:7244"
HTTP = "127.0.0.1:7245"


def _http_option(default: str) -> Callable[..., Any]:
    return click.option(
        "--http",
        metavar="HOST:PORT",
        envvar="STIGMER_LISTEN_HTTP",
        default=default,
        show_default=bool(default),
        help="Where /livez, /readyz and /metrics are answered; empty: nowhere.",
    )


_engine_option = click.option(
    "--engine",
    type=click.Choice(["embedded", "temporal"]),
    envvar="STIGMER_ENGINE",
    default="embedded",
    show_default=True,
    help="What drives the runs: this process, or workers on Temporal (TEMPORAL_ADDRESS).",
)


@click.command()
@llm_options
@_engine_option
@click.option(
    "--listen",
    metavar="HOST:PORT",
    envvar="STIGMER_LISTEN_GRPC",
    default=LISTEN,
    show_default=True,
    help="Where calls are taken, besides the socket in STIGMER_HOME.",
)
@_http_option(HTTP)
@click.option("--plaintext", is_flag=True, help="No TLS, though others can reach it: the network is private.")
def serve(engine: str, listen: str, http: str, plaintext: bool, **given: Any) -> int:
    """Serve in the foreground, for others, until SIGTERM; the log goes to stderr.

    It does not start with a setting that is wrong, nor without a mode that somebody said. STIGMER_TLS_CERT and
    STIGMER_TLS_KEY name the files for TLS.
    """
    home, flags = Home.find(), _flags(given, command="serve")
    _address(listen, "--listen")
    home.create()
    arguments = ["--home", str(home.path), "--stays", "--alone", "--engine", engine, "--listen", listen]
    arguments += ["--http", _address(http, "--http") if http else ""]
    arguments += ["--plaintext"] if plaintext else []
    # By name: no command may reach the loop or a provider, not even through this file.
    return int(import_module("stigmer._daemon_process").main([*arguments, "--flags", json.dumps(flags)]))


@click.command()
@llm_options
@click.option(
    "--server",
    metavar="ADDRESS",
    envvar="STIGMER_SERVER",
    help="The control plane.  [default: this home's]",
)
@click.option(
    "--grace",
    type=click.FloatRange(0.0),
    default=30.0,
    show_default=True,
    help="Seconds after SIGTERM for what runs to end; the rest is handed over.",
)
@click.option(
    "--max-executions",
    "most",
    type=click.IntRange(1),
    envvar="STIGMER_MAX_EXECUTIONS",
    default=200,
    show_default=True,
    help="At once.",
)
@_http_option("")
def worker(server: str | None, grace: float, most: int, http: str, **given: Any) -> int:
    """Take executions from Temporal's queue and run them, until SIGTERM.

    It speaks to the control plane with STIGMER_API_KEY (scope worker), or the home's token, and needs no database.
    ADDRESS is HOST:PORT on this machine, https://HOST:PORT for TLS (STIGMER_TLS_CA names the authority's file), or
    http://HOST:PORT where the network is private.
    """
    home, flags = Home.find(), _flags(given, command="worker")
    home.create()
    target = server or asked().server or f"unix:{home.socket}"
    arguments = ["--home", str(home.path), "--server", target, "--grace", str(grace), "--most", str(most)]
    arguments += ["--http", _address(http, "--http") if http else ""]
    return int(import_module("stigmer.worker.__main__").main([*arguments, "--flags", json.dumps(flags)]))


def _address(text: str, option: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{option} {text!r} is not HOST:PORT", hint=f"{option} {LISTEN}")
    return text


def _flags(given: dict[str, Any], *, command: str) -> dict[str, str]:
    flags = flags_of(given)
    check(flags, command=command)
    return flags
