"""Runs the default agent on the small tasks and prints a table: kind, right out of tries, mean steps, seconds.

python bench/local_tasks/run.py --model llamacpp:qwen2.5-coder:1.5b --kind report --limit 10
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphton import Agent, ModelSettings, create_chat, create_deep_agent
from graphton.budget import Budget
from graphton.chat import Chat
from graphton.errors import GraphtonError
from graphton.journal import MemoryJournal, ModelReplied, ToolDispatched, ToolFinished
from tasks import KINDS, Outcome, Task, tasks

MAX_STEPS = 12
"""A small model that needs more than this for a small task goes in circles."""


@dataclass
class Score:
    """What came out of one kind."""

    kind: str
    tries: int = 0
    right: int = 0
    steps: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def row(self) -> str:
        """One line of the table."""
        rate, tries = f"{self.right}/{self.tries}", max(1, self.tries)
        return f"{self.kind:<10}{rate:>8}{self.steps / tries:>8.1f}{self.seconds / tries:>8.1f}"


HEADING = f"{'kind':<10}{'right':>8}{'steps':>8}{'seconds':>8}"


async def attempt(chat: Chat, task: Task, tool_mode: str | None) -> tuple[str, MemoryJournal]:
    """Do one task in a fresh folder; what is wrong with the outcome ("" if nothing), and the record of the run."""
    journal = MemoryJournal()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in task.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, "utf-8")
        agent: Agent = create_deep_agent(
            chat, workspace=folder, tool_mode=tool_mode, budget=Budget(steps=MAX_STEPS)
        )
        try:
            result = await agent.run(task.request, journal=journal)
        except GraphtonError as error:
            return f"the run failed: {error}", journal
        if result.outcome != "completed":
            return f"ended as {result.outcome}", journal
        calls = [event.name for event in journal.events if isinstance(event, ToolDispatched)]
        return task.check(Outcome(result.text, folder, calls)), journal


def story(journal: MemoryJournal) -> Sequence[str]:
    """What the model said and what the tools answered, shortened."""
    lines = []
    for event in journal.events:
        match event:
            case ModelReplied():
                said = [f"{call.name} {call.arguments}" for call in event.message.calls]
                lines.append(f"    model: {event.message.text or '; '.join(said)}"[:300])
            case ToolFinished():
                lines.append(f"    {event.name}: {event.result}".replace("\n", " | ")[:300])
            case _:
                pass
    return lines


async def score(chat: Chat, kind: str, args: argparse.Namespace) -> Score:
    """Run the tries of a kind one after the other; each failure is told at once."""
    total = Score(kind)
    for number, task in enumerate(tasks(kind, args.limit, seed=args.seed)):
        begun = time.monotonic()
        wrong, journal = await attempt(chat, task, args.tool_mode)
        total.seconds += time.monotonic() - begun
        total.tries += 1
        total.right += not wrong
        total.steps += sum(isinstance(event, ModelReplied) for event in journal.events)
        if wrong or args.verbose:
            verdict = f"wrong: {wrong}" if wrong else "right"
            print(f"{kind} {number}, {time.monotonic() - begun:.1f} s, {verdict}: {task.request}", flush=True)
            print("\n".join(story(journal)), flush=True)
    return total


async def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llamacpp:qwen2.5-coder:1.5b")
    parser.add_argument("--base-url", help="where the model's server is, if not at its usual place")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="may be given several times")
    parser.add_argument("--limit", type=int, default=10, help="tries of each kind")
    parser.add_argument("--seed", type=int, default=0, help="another seed: other names, texts and pairings")
    parser.add_argument("--tool-mode", choices=["native", "recovery", "envelope"])
    parser.add_argument("-v", "--verbose", action="store_true", help="tell right tries too")
    args = parser.parse_args()
    chat = create_chat(args.model, ModelSettings(base_url=args.base_url, max_tokens=1024))
    try:
        scores = [await score(chat, kind, args) for kind in args.kind or KINDS]
    finally:
        await chat.close()
    print("\n".join([HEADING, *(one.row for one in scores)]))


if __name__ == "__main__":
    asyncio.run(main())
