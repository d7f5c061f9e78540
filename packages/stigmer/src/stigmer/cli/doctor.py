"""`doctor`: is everything there that a run needs; what is not, and what helps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from graphton.errors import GraphtonError

from stigmer.cli._main import FAILED, asked, json_option
from stigmer.cli._options import flags_of, llm_options
from stigmer.cli._terminal import harmless, terminal
from stigmer.errors import StigmerError

if TYPE_CHECKING:
    from stigmer.doctor import Check
    from stigmer.doctor._examination import Patient
    from stigmer.home import Address

__all__ = ["doctor"]

DAEMON_SECONDS = 2.0
"""How long a running daemon may take to say how it is."""

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗", "skip": "·"}
_PLAIN_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL", "skip": "-   "}


@click.command()
@llm_options
@click.option("--agent", metavar="NAME|FILE", help="An agent of .stigmer/agents, or an agent file.")
@click.option("--offline", is_flag=True, help="Ask no provider and no database server.")
@click.option("--deep", is_flag=True, help="Check every byte of model files and of the database.")
@json_option
def doctor(agent: str | None, offline: bool, deep: bool, **flags: Any) -> int:
    """Look at everything that a run needs, and say what is wrong and what helps.

    Each provider with a key is asked for its list of models, which costs nothing. No daemon is started. Exit code 0:
    the run that these flags would start works; 1: it does not.
    """
    from stigmer.doctor._examination import Examiner, decides, examine

    given = flags_of(flags)
    with Examiner() as beside:
        checks = examine(_patient(given, agent), beside, offline=offline, deep=deep)
    failed = decides(checks)
    if asked().json:
        report = {
            "ok": not failed,
            "decides": [one.id for one in failed],
            "checks": [one.to_json() for one in checks],
        }
        terminal().data(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        terminal().data("\n".join([*_lines(checks), "", *_verdict(failed)]) + "\n")
    return FAILED if failed else 0


def _patient(flags: dict[str, str], agent: str | None) -> Patient:
    """What is resolved for the default run and for each provider, by the daemon and from here."""
    from graphton.models import PROVIDERS

    from stigmer.cli._resolved import configurations, resolved
    from stigmer.daemon import find
    from stigmer.doctor._examination import Patient
    from stigmer.doctor._targets import as_told
    from stigmer.home import Home

    home = Home.find()
    daemon = find(home)
    trouble = "" if daemon is None else _trouble_with(daemon)
    answers = daemon is not None and not trouble
    found = Patient(
        home=home,
        settings={},
        notices=(),
        problems=(),
        by_daemon=answers,
        run=None,
        others={},
        daemon_trouble=trouble,
        database_url=os.environ.get("STIGMER_DATABASE_URL", "").strip(),
    )
    try:
        settings, notices, problems, *_ = resolved(flags, agent, ask_daemon=answers)
        run, *others = configurations([flags, *({"provider": name} for name in PROVIDERS)], agent)
    except (StigmerError, GraphtonError, OSError) as error:  # What keeps every run from beginning.
        return found._replace(problems=(str(error),))
    each = dict(zip(PROVIDERS, others, strict=True))
    return found._replace(
        settings=settings,
        notices=notices,
        problems=problems,
        run=as_told(run, each, settings) if answers else run,
        others=each,
    )


def _trouble_with(daemon: Address) -> str:
    """Why a daemon that listens does not answer; "" where it does."""
    import grpc

    from stigmer.api import service_pb2, service_pb2_grpc
    from stigmer.client import OPTIONS, credentials

    rpc: Any = service_pb2_grpc  # The generated stubs carry no types.
    with grpc.insecure_channel(daemon.target, options=OPTIONS) as channel:
        try:
            rpc.SystemServiceStub(channel).GetStatus(
                service_pb2.GetStatusRequest(), timeout=DAEMON_SECONDS, metadata=credentials(daemon)
            )
        except grpc.RpcError as error:
            return f"the daemon (pid {daemon.pid}) listens and does not answer: {error.details()}"
    return ""


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    from stigmer.doctor import AREAS

    marks = _marks()
    for area, title in AREAS.items():
        rows = [one for one in checks if one.area == area]
        if not rows:
            continue
        yield title
        for one in rows:
            yield f"  {marks[one.status]} {_indented(one.text)}"
            if one.id == "settings.run":
                yield from _settings(one)
            if one.hint and (one.status in ("warn", "fail") or asked().verbose):
                yield f"      hint: {_indented(one.hint)}"


def _settings(one: Check) -> Iterator[str]:
    """Setting, value and source, of those that say something."""
    rows = [
        (name, _plain(row["value"]), row["source"])
        for name, row in one.facts["settings"].items()
        if row["value"] is not None
    ]
    widths = [min(40, max(len(row[column]) for row in rows)) for column in (0, 1)]
    for name, value, source in rows:
        yield f"      {name:<{widths[0]}}  {harmless(value):<{widths[1]}}  {harmless(source)}"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _indented(text: str) -> str:
    return harmless(text).replace("\n", "\n      ")


def _verdict(failed: Sequence[Check]) -> Iterator[str]:
    if not failed:
        yield "The default run would work."
        return
    yield f"The default run would not work: {len(failed)} of these decide it."
    for one in failed:
        yield f"  {one.id}: {harmless(one.text.splitlines()[0])}"


def _marks() -> dict[str, str]:
    """Signs where the terminal has them, words elsewhere."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    if os.environ.get("TERM") == "dumb":
        return _PLAIN_MARKS
    try:
        "".join(_MARKS.values()).encode(encoding)
    except UnicodeEncodeError:
        return _PLAIN_MARKS
    return _MARKS
