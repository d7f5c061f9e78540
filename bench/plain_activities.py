"""The yardstick on Temporal that one would write first: a workflow that is the agent, an activity for each call.

    python bench/plain_activities.py --temporal HOST:PORT --model URL --work FOLDER

With the kind `remote` each model call and each tool is an activity, and the whole conversation goes in and out of it. `local`: both are
local activities, and the conversation lies in a SQLite file of the worker; only its length goes through Temporal. It says
`ready` when it polls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    import aiohttp
    from temporalio.client import Client
    from temporalio.worker import Worker

__all__ = ["QUEUE", "WORKFLOW"]

WORKFLOW, QUEUE = "plain/agent", "plain"
LIMIT = timedelta(seconds=60)
TOOL = {"name": "read_file", "description": "Reads a file.", "parameters": {"type": "object"}}
Messages = list[dict[str, Any]]


class Work:
    """What the activities do."""

    def __init__(self, model: str, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._http: aiohttp.ClientSession | None = None
        self._db = sqlite3.connect(folder / "plain.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS said (run TEXT, no INTEGER, body TEXT, PRIMARY KEY (run, no))"
        )

    async def _ask(self, messages: Messages) -> dict[str, Any]:
        if self._http is None:
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = {"model": "gpt-4.1", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}
        async with self._http.post(f"{self._model}/v1/chat/completions", json=body) as response:
            answer: dict[str, Any] = (await response.json())["choices"][0]["message"]
        return answer

    def _read(self, call: dict[str, Any]) -> dict[str, Any]:
        content = (self._folder / json.loads(call["function"]["arguments"])["path"]).read_text()
        return {"role": "tool", "tool_call_id": call["id"], "content": content}

    @activity.defn(name="plain/ask")
    async def ask(self, messages: Messages) -> dict[str, Any]:
        return await self._ask(messages)

    @activity.defn(name="plain/read")
    async def read(self, call: dict[str, Any]) -> dict[str, Any]:
        return self._read(call)

    @activity.defn(name="plain/say")
    async def say(self, run: str, no: int, message: dict[str, Any]) -> None:
        self._db.execute("INSERT OR REPLACE INTO said VALUES (?, ?, ?)", (run, no, json.dumps(message)))

    @activity.defn(name="plain/ask-kept")
    async def ask_kept(self, run: str, no: int) -> list[dict[str, Any]]:
        """The calls of the model's next message; the message is kept."""
        rows = self._db.execute("SELECT body FROM said WHERE run = ? AND no < ? ORDER BY no", (run, no))
        answer = await self._ask([json.loads(body) for (body,) in rows])
        await self.say(run, no, answer)
        return list(answer.get("tool_calls") or ())

    @activity.defn(name="plain/read-kept")
    async def read_kept(self, run: str, no: int, call: dict[str, Any]) -> None:
        await self.say(run, no, self._read(call))

    @property
    def activities(self) -> list[Callable[..., Any]]:
        return [self.ask, self.read, self.say, self.ask_kept, self.read_kept]


@workflow.defn(name=WORKFLOW)
class PlainAgent:
    """Asks and reads until there is nothing more to read."""

    @workflow.run
    async def run(self, task: str, kind: str) -> str:
        first = {"role": "user", "content": task}
        await (self._local(first) if kind == "local" else self._remote(first))
        return "done"

    async def _remote(self, first: dict[str, Any]) -> None:
        messages: Messages = [first]
        while True:
            answer = await workflow.execute_activity("plain/ask", messages, start_to_close_timeout=LIMIT)
            messages.append(answer)
            calls = answer.get("tool_calls") or ()
            for call in calls:
                messages.append(
                    await workflow.execute_activity("plain/read", call, start_to_close_timeout=LIMIT)
                )
            if not calls:
                return

    async def _local(self, first: dict[str, Any]) -> None:
        run, no = workflow.info().workflow_id, 1
        await self._locally("plain/say", run, 0, first)
        while calls := await self._locally("plain/ask-kept", run, no):
            for call in calls:
                no += 1
                await self._locally("plain/read-kept", run, no, call)
            no += 1

    async def _locally(self, name: str, *args: Any) -> Any:
        return await workflow.execute_local_activity(name, args=args, start_to_close_timeout=LIMIT)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--temporal", required=True, help="HOST:PORT")
    parser.add_argument("--model", required=True, help="the model server's address")
    parser.add_argument("--work", type=Path, required=True, help="the folder with the files")
    given = parser.parse_args()
    work = Work(given.model, given.work)
    worker = Worker(
        await Client.connect(given.temporal),
        task_queue=QUEUE,
        workflows=[PlainAgent],
        activities=work.activities,
        max_concurrent_activities=500,
        max_concurrent_workflow_tasks=200,
        max_concurrent_local_activities=500,
    )
    async with worker:
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
