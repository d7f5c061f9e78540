"""What a person, or a program, sees of an execution: one method per kind of event."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from stigmer.api.event_pb2 import Budget, ConfigResolved, Event, Usage
from stigmer.cli._main import again
from stigmer.cli._terminal import Terminal, harmless, size_text

__all__ = ["JsonView", "TextView", "View", "arguments_line", "question", "settings_lines"]


_encode = json.JSONEncoder(ensure_ascii=False).encode


class View(Protocol):
    """Shows the events of one execution, in order."""

    def show(self, execution: str, event: Event, *, more: bool = False) -> None:
        """Shows one event; `more`: another one follows at once."""
        ...

    def talk(self, text: str) -> None:
        """A line of our own, not of the execution."""
        ...


class JsonView:
    """One JSON object a line on stdout, as the documents name them; our own talk is for people and stays on stderr."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def show(self, execution: str, event: Event, *, more: bool = False) -> None:
        from stigmer.events import to_json

        self._terminal.data(_encode(to_json(event, execution)) + "\n", more=more)

    def talk(self, text: str) -> None:
        self._terminal.say(text)


class TextView:
    """stdout gets the answer, stderr what happens on the way.

    On a terminal the answer is streamed; what a broken stream left there is marked stale. Elsewhere stdout gets the
    final answer in one piece, because nothing can be taken back from a pipe.
    """

    def __init__(self, terminal: Terminal, *, verbose: bool = False) -> None:
        self._terminal = terminal
        self._verbose = verbose
        self._config: ConfigResolved | None = None
        self._named_model = False
        self._shown: dict[tuple[int, int], int] = {}
        self._last_text = ""
        self._execution = ""
        self._countdown: asyncio.Task[None] | None = None
        self._session = ""
        self._show: dict[str, Callable[[Event, Any], None]] = {
            "created": self._created,
            "config_resolved": self._config_resolved,
            "notice": self._notice,
            "model_requested": self._model_requested,
            "model_replied": self._model_replied,
            "text_delta": self._text_delta,
            "thinking_delta": self._thinking_delta,
            "stream_reset": self._stream_reset,
            "tool_dispatched": self._tool_dispatched,
            "tool_finished": self._tool_finished,
            "tool_outcome_unknown": self._tool_outcome_unknown,
            "arguments_repaired": self._arguments_repaired,
            "approval_decided": self._approval_decided,
            "rule_matched": self._rule_matched,
            "subagent_started": self._subagent_started,
            "subagent_finished": self._subagent_finished,
            "loop_warned": self._loop_warned,
            "compacted": self._compacted,
            "attempt_started": self._attempt_started,
            "retrying": self._retrying,
            "fallback": self._fallback,
            "history_changed": self._history_changed,
            "budget_exceeded": self._budget_exceeded,
            "pause_requested": self._pause_requested,
            "resumed": self._resumed,
            "cancel_requested": self._cancel_requested,
            "progress": self._progress,
            "finished": self._finished,
        }

    def show(self, execution: str, event: Event, *, more: bool = False) -> None:
        kind = event.WhichOneof("kind") or ""
        self._execution = execution
        if self._countdown is not None and kind != "stream_reset":  # That one only says what was broken off.
            self._countdown.cancel()
            self._countdown = None
        if kind in self._show:
            self._show[kind](event, getattr(event, kind))

    def talk(self, text: str) -> None:
        self._terminal.say(text)

    def next_turn(self) -> None:
        """Another execution of the same conversation follows: what was said of the model and the session holds."""
        self._shown.clear()
        self._last_text = ""

    def _line(self, event: Event, text: str, *, style: str = "") -> None:
        """A line about the execution: a sub-agent's stands under its path."""
        text = harmless(f"[{event.path}] {text}" if event.path else text)
        self._terminal.say(self._terminal.paint(text, style) if style else text)

    # ---- what serves the run ----

    def _created(self, event: Event, created: Any) -> None:
        if created.session and created.session != self._session:
            self._session = created.session
            self._line(event, f"session {created.session}", style="dim")

    def _config_resolved(self, event: Event, config: ConfigResolved) -> None:
        self._config = config  # Told after the line that names the model.

    def _notice(self, event: Event, notice: Any) -> None:
        if notice.code == "model":
            self._name_model(event, notice.text)
        else:
            self._line(event, f"note: {notice.text}", style="yellow")

    def _model_requested(self, event: Event, requested: Any) -> None:
        self._name_model(event, model_line(requested.model, self._config))
        if not event.path:
            self._terminal.status(_WAITS.get(requested.purpose, "waiting for the model …"))

    def _name_model(self, event: Event, text: str) -> None:
        """The first line of a run: which model, whose, and why; then what else there is to say of the settings."""
        if self._named_model:
            return
        self._named_model = True
        self._line(event, text, style="bold")
        config = self._config or ConfigResolved()
        if self._verbose:
            for line in settings_lines(config):
                self._line(event, line, style="dim")
        else:
            for notice in config.notices:
                self._line(event, f"note: {notice}", style="yellow")

    # ---- what the model says ----

    def _text_delta(self, event: Event, delta: Any) -> None:
        if event.path or not self._terminal.out_is_terminal:
            return
        self._say_from(delta.step, delta.attempt, delta.offset, delta.text)

    def _say_from(self, step: int, attempt: int, offset: int, text: str) -> None:
        """Shows what of this piece was not shown yet; pieces come again after a reconnection."""
        shown = self._shown.get((step, attempt), 0)
        self._terminal.data(text[max(0, shown - offset) :])
        self._shown[step, attempt] = max(shown, offset + len(text))

    def _thinking_delta(self, event: Event, delta: Any) -> None:
        if not event.path:
            self._terminal.status("the model is thinking … " + harmless(delta.text).replace("\n", " "))

    def _stream_reset(self, event: Event, reset: Any) -> None:
        stale = [key for key in self._shown if key[0] == reset.step]
        if any(self._shown.pop(key) for key in stale):
            self._line(event, "(the reply was broken off; what stands above is stale)", style="yellow")

    def _model_replied(self, event: Event, replied: Any) -> None:
        if event.path or replied.purpose not in ("", "turn"):
            return
        text = "".join(block.text for block in replied.blocks if block.WhichOneof("kind") == "text")
        calls = any(block.WhichOneof("kind") == "tool_call" for block in replied.blocks)
        self._last_text = text
        if not self._terminal.out_is_terminal:
            if calls and text.strip():
                self._line(event, text.strip(), style="dim")  # Said on the way; stdout is for the answer.
            return
        attempts = [attempt for step, attempt in self._shown if step == replied.step]
        self._say_from(replied.step, max(attempts, default=0), 0, text)
        if calls and text and not text.endswith("\n"):
            self._terminal.data("\n")

    # ---- what the tools do ----

    def _tool_dispatched(self, event: Event, call: Any) -> None:
        self._line(event, f"> {_short(call.name, 60)} {arguments_line(call.arguments)}".rstrip(), style="dim")
        self._terminal.status(f"{call.name} runs …")

    def _tool_finished(self, event: Event, call: Any) -> None:
        seconds = f", {call.seconds:.1f} s" if call.seconds >= 0.1 else ""
        if call.is_error:
            lines = call.result.strip().splitlines() or [""]
            self._line(
                event, f"  {_short(call.name, 60)} failed{seconds}: {_short(lines[0], 160)}", style="yellow"
            )
        else:
            self._line(
                event,
                f"  {_short(call.name, 60)}: {size_text(len(call.result.encode()))}{seconds}",
                style="dim",
            )
        if self._verbose:
            for line in call.result.splitlines()[:40]:
                self._line(event, f"  | {line}", style="dim")

    def _tool_outcome_unknown(self, event: Event, call: Any) -> None:
        self._line(
            event,
            f"  call {call.call} was running when the process died: whether it did its work is unknown, so it is "
            "not run again",
            style="yellow",
        )

    def _arguments_repaired(self, event: Event, call: Any) -> None:
        if self._verbose:
            self._line(
                event, f"  arguments of call {call.call} were mended: {call.after.decode(errors='replace')}"
            )

    def _approval_decided(self, event: Event, decided: Any) -> None:
        because = f": {decided.reason}" if decided.reason else ""
        self._line(event, f"  call {decided.call} {decided.decision} by {decided.by}{because}", style="dim")
        if decided.rule:
            self._line(event, f"  from now on: {decided.rule}", style="dim")

    def _rule_matched(self, event: Event, matched: Any) -> None:
        if matched.verdict == "deny" or self._verbose:
            self._line(event, f"  call {matched.call}: the rule says {matched.rule}", style="dim")

    def _subagent_started(self, event: Event, started: Any) -> None:
        limits = [
            f"{getattr(started.budget, name):g} {name}"
            for name in ("steps", "tokens", "usd")
            if started.budget.HasField(name)
        ]
        given = f" with at most {', '.join(limits)}" if limits else ""
        self._line(event, f"  agent {started.name} starts ({started.call}){given}", style="dim")

    def _subagent_finished(self, event: Event, finished: Any) -> None:
        if self._verbose:
            self._line(event, f"  the agent of call {finished.call} has ended", style="dim")

    def _loop_warned(self, event: Event, warned: Any) -> None:
        text = (
            f"the model made the same call with the same result {warned.times} times in a row; it was told so"
        )
        self._line(event, text, style="yellow")

    def _compacted(self, event: Event, done: Any) -> None:
        text = (
            f"summarised the older messages: about {done.tokens_before:,} tokens became {done.tokens_after:,}"
        )
        self._line(
            event, text if done.last else "a summary of the older messages came back empty", style="dim"
        )

    # ---- what goes wrong, and what takes long ----

    def _attempt_started(self, event: Event, attempt: Any) -> None:
        if attempt.attempt > 1:
            self._line(event, f"going on (attempt {attempt.attempt})", style="dim")

    def _retrying(self, event: Event, retry: Any) -> None:
        what = f"HTTP {retry.status}: {retry.reason}" if retry.status else retry.reason
        number = getattr(retry, "try")  # A keyword of the language, so no plain attribute.
        when = f"in {retry.in_seconds:.0f} s" if retry.in_seconds >= 0.5 else "at once"
        self._line(event, f"{what}; try {number} {when}", style="yellow")
        if self._terminal.updates and retry.in_seconds >= 1:
            self._countdown = asyncio.get_running_loop().create_task(self._count_down(retry.in_seconds))

    def _fallback(self, event: Event, change: Any) -> None:
        old = getattr(change, "from")  # A keyword of the language, so no plain attribute.
        self._line(event, f"{old} cannot go on ({change.reason}); {change.to} takes over", style="yellow")

    async def _count_down(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._terminal.status(f"next try in {left:.0f} s")
            await asyncio.sleep(min(1.0, left))
        self._terminal.status("waiting for the model …")

    def _history_changed(self, event: Event, changed: Any) -> None:
        self._line(
            event,
            "note: code or prompt changed since this run began; it goes on from its record",
            style="yellow",
        )

    def _budget_exceeded(self, event: Event, budget: Any) -> None:
        self._line(event, f"stopped by the limit of {budget.value:g} {budget.limit}", style="yellow")
        flag = {"tokens": "--max-tokens-total", "seconds": "--timeout"}.get(
            budget.limit, f"--max-{budget.limit}"
        )
        more = "" if budget.limit == "seconds" else ", what was used counting"
        self._terminal.say(f"to go on with a higher one{more}: {again(f'retry {self._execution} {flag} …')}")

    def _pause_requested(self, event: Event, pause: Any) -> None:
        self._line(event, f"to be paused, by {pause.by}; what runs may end", style="yellow")

    def _resumed(self, event: Event, resumed: Any) -> None:
        if self._verbose:
            self._line(event, f"resumed by {resumed.by}", style="dim")

    def _cancel_requested(self, event: Event, cancel: Any) -> None:
        self._line(event, f"cancelled by {cancel.by}" if cancel.by else "cancelled", style="yellow")

    def _progress(self, event: Event, progress: Any) -> None:
        self._terminal.status(
            progress_line(progress.what, progress.done, progress.total, progress.unit, progress.text)
        )

    def _finished(self, event: Event, finished: Any) -> None:
        if event.path:
            return
        if self._terminal.out_is_terminal:
            if finished.text and finished.text != self._last_text:
                self._terminal.data(finished.text)
        elif finished.text:
            self._terminal.data(finished.text if finished.text.endswith("\n") else finished.text + "\n")
        if finished.HasField("error"):
            error = finished.error
            self._terminal.say(f"{self._terminal.paint('error:', 'red')} {harmless(error.message)}")
            if error.hint:
                self._terminal.say(f"{self._terminal.paint('hint:', 'bold')} {harmless(error.hint)}")
        self._line(event, usage_line(finished.usage, finished.seconds), style="dim")
        if finished.HasField("carried"):
            self._line(event, carried_line(finished.carried), style="dim")


_WAITS = {
    "compaction": "summarising the older messages …",
    "probe": "trying how the model uses tools …",
}


def model_line(model: str, config: ConfigResolved | None) -> str:
    """`model · provider · why`, from the request and from what the cascade said."""
    provider, _, name = model.partition(":")
    sources = {s.name: s.source for s in config.settings} if config else {}
    why = sources.get("provider") or sources.get("model") or ""
    return " · ".join(part for part in (name or model, provider if name else "", why) if part)


def settings_lines(config: ConfigResolved) -> list[str]:
    """Each setting with its value, its source and what it hides; then the notices."""
    from stigmer.events import settings_json

    settings = settings_json(config)
    width = max(map(len, settings), default=0)
    lines = []
    for name, found in settings.items():
        ident = f" ({found['id']})" if "id" in found else ""
        hidden = "".join(f"; hides {_plain(s['value'])} ({s['source']})" for s in found["shadowed"])
        lines.append(f"{name:<{width}}  {_plain(found['value'])}{ident}  ({found['source']}{hidden})")
    return lines + [f"note: {notice}" for notice in config.notices]


def carried_line(carried: Usage) -> str:
    """What a retry did not use itself, for people."""
    counted = f"{carried.input_tokens:,} in, {carried.output_tokens:,} out"
    return f"not counted: {counted}, used before by the run that it goes on from"


def usage_line(usage: Usage, seconds: float) -> str:
    """`1,204 tokens in (1,000 cached), 88 out · 3.2 s · $0.0123`; without a reply, tokens would be our guess alone."""
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    counted = f"{usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out"
    parts = [counted, f"{seconds:.1f} s"] if usage.output_tokens else [f"{seconds:.1f} s"]
    if usage.HasField("usd") and usage.usd > 0:
        parts.append(
            f"${usage.usd:.4f}"
            + (f" + {usage.unpriced_calls} unpriced calls" if usage.unpriced_calls else "")
        )
    elif usage.unpriced_calls and not usage.HasField("usd"):
        parts.append("price not known")
    return " · ".join(parts)


def limits_line(limits: Budget) -> str:
    """`100 steps, 7200 seconds; 5 sub-agents at once, 2 levels`."""
    given = {field.name: value for field, value in limits.ListFields()}
    said = [f"{value:g} {name}" for name, value in given.items() if name not in ("children", "depth")]
    return f"{', '.join(said) or 'none'}; {limits.children} sub-agents at once, {limits.depth} levels"


def progress_line(what: str, done: float, total: float, unit: str, text: str) -> str:
    """One line for a wait: what it is, how far it is."""
    names = {
        "download": "downloading",
        "load": "loading the model",
        "prompt": "reading the prompt",
        "server": "waiting",
        "probe": "trying how the model uses tools",
        "tool": "tool",
    }
    head = names.get(what, what) + (f": {harmless(text)}" if text else "")
    head = " ".join(head.split())
    if not total:
        return f"{head} …"
    amount = (
        f"{size_text(int(done))} of {size_text(int(total))}"
        if unit == "bytes"
        else f"{done:,.0f} of {total:,.0f} {unit}"
    )
    return f"{head}  {done / total:.0%}  ({amount.strip()})"


def question(name: str, arguments: bytes, reason: str = "", *, path: str = "") -> str:
    """A call that somebody must decide about, whole: nothing is cut, nothing can steer the terminal."""
    try:
        given = json.loads(arguments or b"{}")
    except ValueError:
        given = {}
    if isinstance(given.get("command"), str):
        rest = {k: v for k, v in given.items() if k != "command"}
        body = given["command"] + (f"\n{json.dumps(rest, ensure_ascii=False)}" if rest else "")
    else:
        body = json.dumps(given, indent=2, ensure_ascii=False)
    who = f"[{harmless(path)}] " if path else ""
    head = f"{who}{harmless(name)} wants to run:"
    if reason == "outcome":
        head = (
            f"{who}{harmless(name)} was running when its process died; nobody knows whether it did its work. Look, "
            "then approve if it did not (it is run again), or reject if it did (it is not; the model reads --reason):"
        )
    return "\n".join((head, *("    " + line for line in harmless(body).split("\n"))))


def arguments_line(arguments: bytes) -> str:
    """The arguments of a call in one short line."""
    try:
        given = json.loads(arguments or b"{}")
    except ValueError:
        return _short(arguments.decode(errors="replace"), 120)
    if not isinstance(given, dict):
        return _short(str(given), 120)
    if len(given) == 1:
        (value,) = given.values()
        return _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 120)
    parts = (
        f"{name}={_short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 60)}"
        for name, value in given.items()
    )
    return _short(" ".join(parts), 160)


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(value: object) -> str:
    """A setting's value as people write it."""
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
