"""The other column: a model through its server's own tools API and the plainest loop there is, without any of our code.

The same tasks, tools and checks. Ollama is asked at /api/chat with `tools`; llama.cpp at /v1/chat/completions, with the
chat template of the model (jinja), served by a process of its own.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from graphton._instructions import DEFAULT_INSTRUCTIONS
from graphton.errors import ToolError
from graphton.tools import Tool, ToolContext, ToolOutput, check_arguments
from graphton.toolsets import default_tools
from stigmer.modelbench._attempt import MAX_SECONDS, MAX_STEPS, files_of, folder_for
from stigmer.modelbench.own_tools import TOOLSETS, own_tools
from stigmer.modelbench.results import Try
from stigmer.modelbench.task import Case, Made, Outcome, judge

MAX_TOKENS = 512
WINDOW = 8192


class ServerError(Exception):
    """The server answered with an error: this try has failed, others may not."""


class Server:
    """One model of one server, and how its API spells a conversation."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, *, ollama: bool) -> None:
        self.session, self.url, self.model, self.ollama = session, url, model, ollama

    async def ask(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        """The reply as {content, tool_calls, prompt}."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, "tools": tools, "stream": False}
        if self.ollama:
            body |= {"options": {"temperature": 0, "num_predict": MAX_TOKENS, "num_ctx": WINDOW}}
            async with self.session.post(f"{self.url}/api/chat", json=body) as answer:
                data = await answer.json(content_type=None)
            if "error" in data:
                raise ServerError(str(data["error"]))
            return {**data["message"], "prompt": data.get("prompt_eval_count", 0)}
        body |= {"temperature": 0, "max_tokens": MAX_TOKENS, "cache_prompt": True}
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            data = await answer.json(content_type=None)
        if "error" in data:
            raise ServerError(str(data["error"]))
        return {**data["choices"][0]["message"], "prompt": data["usage"]["prompt_tokens"]}

    def result(self, call: dict[str, Any], text: str) -> dict[str, Any]:
        if self.ollama:
            return {"role": "tool", "tool_name": call["function"]["name"], "content": text}
        return {"role": "tool", "tool_call_id": call.get("id") or "", "content": text}


async def attempt(server: Server, case: Case) -> Try:
    """Ask, run what is called, ask again: until there is an answer."""
    begun, calls, replies = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(prefix="stigmer-native-") as name:
        folder = Path(name)
        folder_for(case, folder)
        set_ = TOOLSETS[case.task.tools]
        tools = {
            one.name: one
            for one in [*(default_tools(folder) if set_.files else ()), *own_tools(case.task.tools)]
        }
        offered = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
            }
            for t in tools.values()
        ]
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": set_.instructions or DEFAULT_INSTRUCTIONS},
            {"role": "user", "content": case.wording.request},
        ]
        ended, answer, tokens = "steps", "", 0
        try:
            async with asyncio.timeout(MAX_SECONDS):
                for _ in range(MAX_STEPS):
                    reply = await server.ask(messages, offered)
                    tokens = tokens or reply.pop("prompt")
                    answer = reply.get("content") or ""
                    wanted = reply.get("tool_calls") or []
                    replies.append(answer or json.dumps(wanted))
                    messages.append({k: reply[k] for k in ("role", "content", "tool_calls") if reply.get(k)})
                    for call in wanted:
                        done = await _run(tools, call)
                        calls.append(done)
                        messages.append(server.result(call, done.result))
                    if not wanted or case.first_reply_only:
                        ended = "stopped" if wanted else "completed"
                        break
        except TimeoutError:
            ended = "seconds"
        except ServerError as error:
            ended = f"error: server: {error}"[:400]
        outcome = Outcome(answer, tuple(calls), files_of(folder), ended)
    return Try(
        case.id,
        judge(case, outcome),
        outcome,
        "plain",
        tuple(replies),
        time.monotonic() - begun,
        first_tokens=tokens,
    )


async def _run(tools: dict[str, Tool], call: dict[str, Any]) -> Made:
    """One call, checked and mended by its schema as ours are."""
    name, given = call["function"]["name"], call["function"].get("arguments") or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return Made(name, {"text": given}, "the arguments are no JSON", True)
    tool = tools.get(name)
    if tool is None:
        return Made(name, given, f"there is no tool {name!r}", True)
    if tool.asks:
        return Made(name, given, "A person rejected this call; it was not run.", True)
    arguments, problems = check_arguments(tool, given)
    if problems:
        return Made(name, given, "; ".join(problems), True)
    try:
        done = await tool.run(arguments, ToolContext("1", "", "1"))
    except ToolError as error:
        return Made(name, arguments, error.message, True)
    if isinstance(done, ToolOutput):
        return Made(name, arguments, done.text[:2000], done.is_error)
    return Made(name, arguments, done[:2000])


async def version(url: str | None) -> str:
    """The server with its version."""
    if url is None:
        return f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')}), jinja"
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/version") as answer:
        return f"Ollama {(await answer.json())['version']}"


@asynccontextmanager
async def ollama(url: str, model: str) -> AsyncIterator[Server]:
    """A model of an Ollama that runs."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(MAX_SECONDS)) as session:
        yield Server(session, url, model, ollama=True)


@asynccontextmanager
async def llamacpp(path: Path) -> AsyncIterator[Server]:
    """A model file, served by llama.cpp as it comes: its own template, its own parser of calls."""
    key = secrets.token_urlsafe(16)
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        str(path),
        key,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        headers = {"authorization": f"Bearer {key}"}
        limit = aiohttp.ClientTimeout(MAX_SECONDS)
        async with aiohttp.ClientSession(headers=headers, timeout=limit) as session:
            yield Server(session, url, path.name, ollama=False)
    finally:
        process.kill()
        await process.wait()


def serve(path: str, key: str) -> None:
    """The process that `llamacpp` starts: serves until its standard input closes."""
    import xllamacpp

    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port, params.api_keys = path, ["127.0.0.1"], 0, [key]
    params.n_ctx, params.n_parallel, params.use_jinja, params.warmup = WINDOW, 1, True, False
    params.fit_params = False
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads, threads.poll = len(os.sched_getaffinity(0)), 0
    server = xllamacpp.Server(params)
    os.write(out, f"{server.listening_address}\n".encode())
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
