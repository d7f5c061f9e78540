"""FakeProviders: one real HTTP server on loopback that answers as Anthropic, OpenAI and Ollama do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, ModuleType
from typing import Any, Self

import orjson
from aiohttp import web

from graphton.testing import _speak_anthropic, _speak_ollama, _speak_openai, _speak_responses
from graphton.testing._fake_library import Library, tagged
from graphton.testing._fake_script import Call, FakeRequest, Reply, Rule, script_from_json

__all__ = ["FakeProviders"]

_DIALECTS: Mapping[str, ModuleType] = MappingProxyType(
    {
        "/v1/messages": _speak_anthropic,
        "/v1/chat/completions": _speak_openai,
        "/v1/responses": _speak_responses,
        "/api/chat": _speak_ollama,
    }
)


class FakeProviders:
    """A model server for tests: Anthropic Messages, OpenAI's two APIs and Ollama's native one, on one port.

    It answers from a script, from rules, or both (rules are asked first), and records every request. A model call
    that neither answers gets a 500 that says what was missing. `Reply` lists the faults that can be ordered.

    ```python
    async with FakeProviders() as fake:
        fake.call("add", {"a": 17, "b": 25})             # the first model call gets a tool call
        fake.fail(529, retry_after=1)                    # the second an error, which the loop waits out
        fake.reply("It is 42.", input_tokens=120)        # the third an answer
        settings = ModelSettings(base_url=fake.ollama_url)
        agent = create_deep_agent("ollama:qwen3:8b", tools=[add], settings=settings)
        assert (await agent.run("What is 17 + 25?")).text == "It is 42."
        assert fake.chats[-1].tool_results[0].text == "42"
    ```

    `models` maps Ollama model names to their capabilities; a chat with another model is then a 404, and tools for
    a model without them a 400, as in Ollama. Without it every model name is served. `registry` are the models that
    its `/api/pull` finds. `strict=False` also takes conversations that the real servers refuse (a tool call without
    its result).
    """

    def __init__(
        self,
        *,
        models: Mapping[str, Sequence[str]] | None = None,
        registry: Mapping[str, Sequence[str]] | None = None,
        strict: bool = True,
    ) -> None:
        self.requests: list[FakeRequest] = []
        """Every request, in order of arrival."""
        self.strict = strict
        self.library = Library(models, registry)
        """What its Ollama has, and what that can pull."""
        self._replies: deque[Reply] = deque()
        self._rules: list[Rule] = []
        self._used = 0
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._closing = False

    # Where it is.

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self, port: int = 0) -> None:
        """Listen on loopback; port 0 takes a free one."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, auto_decompress=False, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        self._closing = True
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def anthropic_url(self) -> str:
        """The base URL as Anthropic's SDK takes it."""
        return self.url

    @property
    def openai_url(self) -> str:
        """The base URL as OpenAI's SDK takes it: it ends in /v1.

        `ModelSettings(base_url=fake.openai_url)` speaks chat completions, as with every host that is not OpenAI's
        own; add `dialect="responses"` for the Responses API.
        """
        return f"{self.url}/v1"

    @property
    def ollama_url(self) -> str:
        """The base URL as Ollama's SDK takes it."""
        return self.url

    # What it answers.

    def reply(self, text: str = "", **fields: Any) -> None:
        """Answer the next unanswered model call with text; `fields` are those of `Reply`, faults included."""
        self.add(Reply(text=text, **fields))

    def call(self, name: str, arguments: Mapping[str, Any] | str | None = None, **fields: Any) -> None:
        """Answer with one tool call."""
        self.add(Reply(calls=(Call(name, {} if arguments is None else arguments),), **fields))

    def calls(self, *calls: Call, **fields: Any) -> None:
        """Answer with several tool calls in one reply."""
        self.add(Reply(calls=calls, **fields))

    def fail(self, status: int, error: str = "", **fields: Any) -> None:
        """Answer with an HTTP error in the dialect's own form."""
        self.add(Reply(status=status, error=error, **fields))

    def add(self, *replies: Reply) -> None:
        """Append replies to the script."""
        self._replies.extend(replies)

    def rule(self, rule: Rule) -> None:
        """Ask `rule` about every model call from now on, after the rules added before."""
        self._rules.append(rule)

    def script(self, script: Mapping[str, Any]) -> None:
        """Add replies and rules from their JSON form; see `script_from_json`."""
        replies, rules = script_from_json(script)
        self.add(*replies)
        self._rules.extend(rules)

    @property
    def pending(self) -> tuple[Reply, ...]:
        """Scripted replies that nobody has asked for yet."""
        return tuple(self._replies)

    # What it saw.

    @property
    def chats(self) -> list[FakeRequest]:
        """The model calls among the requests."""
        return [r for r in self.requests if r.provider]

    async def wait_for_requests(
        self,
        n: int,
        timeout: float = 30.0,  # noqa: ASYNC109 (a test helper that says what it waited for)
        *,
        path: str = "",
    ) -> list[FakeRequest]:
        """The requests (only those to `path`, where given) as soon as there are `n`; TimeoutError names what came."""

        def wanted() -> list[FakeRequest]:
            return [r for r in self.requests if not path or r.path == path]

        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(lambda: len(wanted()) >= n)
        except TimeoutError:
            came = ", ".join(f"{r.method} {r.path}" for r in self.requests) or "none"
            raise TimeoutError(
                f"waited {timeout} s for {n} requests{f' to {path}' if path else ''}; came: {came}"
            ) from None
        return wanted()

    # How it serves.

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        request = FakeRequest(
            method=http.method,
            path=http.path,
            headers={k.lower(): v for k, v in http.headers.items()},
            body=await http.read(),
            time=time.time(),
        )
        with contextlib.suppress(orjson.JSONDecodeError):
            request.json = orjson.loads(request.body)
        if http.path.startswith("/_"):
            return self._control(request)
        dialect = _DIALECTS.get(http.path) if http.method == "POST" else None
        refusal = self._read(dialect, request) if dialect is not None else None
        self.requests.append(request)
        async with self._arrived:
            self._arrived.notify_all()
        if dialect is None:
            return self._page(request)
        if dialect is _speak_ollama and refusal is None and not request.json["messages"]:
            return await self._load(http, request)
        reply = refusal or self._decide(request)
        if dialect is _speak_ollama and _speak_ollama.is_too_long(request, reply):
            reply = Reply(status=400, error="the input length exceeds the context length")
        return await self._answer(http, request, dialect, reply)

    async def _load(self, http: web.Request, request: FakeRequest) -> web.StreamResponse:
        """A chat without messages only loads its model, or unloads it: it is no model call."""
        request.provider = ""
        load = self.library.load
        if load.status < 300:
            load = replace(load, body=orjson.dumps(_speak_ollama.loaded(request)))
            self._use(request)
        request.stream = False
        return await self._answer(http, request, _speak_ollama, load)

    def _use(self, request: FakeRequest) -> None:
        if request.json.get("keep_alive") == 0:
            self.library.loaded.pop(tagged(request.model), None)
        else:
            self.library.use(request.model, (request.json.get("options") or {}).get("num_ctx", 4096))

    def _read(self, dialect: ModuleType, request: FakeRequest) -> Reply | None:
        """Fill in the neutral form; what the real server would refuse is answered with its error."""
        request.provider = dialect.provider
        try:
            request.model = request.json["model"]
            request.stream = dialect.streams(request.json)
            dialect.read(request.json, request)
        except (KeyError, TypeError, AttributeError) as wrong:
            return Reply(status=400, error=f"invalid request body: {type(wrong).__name__}: {wrong}")
        if self.strict and (text := dialect.problem(request)):
            return Reply(status=400, error=text)
        return self._missing(request) if request.provider == "ollama" else None

    def _missing(self, request: FakeRequest) -> Reply | None:
        model = request.model if ":" in request.model else f"{request.model}:latest"
        able = self.library.capabilities(request.model)
        if able is None:
            return Reply(status=404, error=f"model '{request.model}' not found")
        if request.tools and "tools" not in able:
            return Reply(status=400, error=f"registry.ollama.ai/library/{model} does not support tools")
        if request.json.get("think") and "thinking" not in able:
            return Reply(status=400, error=f'"{model}" does not support thinking')
        if request.json["messages"]:
            self._use(request)
        return None

    def _decide(self, request: FakeRequest) -> Reply:
        for rule in self._rules:
            try:
                reply = rule(request)
            except (
                Exception
            ) as error:  # the client is told, else a failed assert in a rule looks like a lost server
                return Reply(
                    status=500, error=f"a rule of FakeProviders failed: {type(error).__name__}: {error}"
                )
            if reply is not None:
                return reply
        if self._replies:
            self._used += 1
            return self._replies.popleft()
        return Reply(
            status=500,
            headers={"x-should-retry": "false"},
            error=(
                f"FakeProviders has no reply for POST {request.path} (model {request.model!r}, "
                f"last user text {request.last_user_text[:200]!r}): {self._used} scripted replies are used up, "
                f"{len(self._rules)} rules said nothing. Add one with fake.reply(...), fake.call(...) or fake.rule(...)."
            ),
        )

    async def _answer(
        self, http: web.Request, request: FakeRequest, dialect: ModuleType, reply: Reply
    ) -> web.StreamResponse:
        try:
            await asyncio.sleep(reply.delay)
            frames, kind = _frames(dialect, request, reply)
            headers: dict[str, str] = {
                "Content-Type": kind,
                "request-id": f"req_fake_{len(self.requests)}",
                **reply.headers,
            }
            if reply.retry_after is not None:
                headers["Retry-After"] = f"{reply.retry_after:g}"
            response = web.StreamResponse(status=reply.status, headers=headers)
            writer = await response.prepare(http)
            if writer is not None:
                writer.send_headers()
            whole = await _Player(reply, dialect, response.write).play(frames, mixed=request.stream)
            if not whole and http.transport is not None:
                http.transport.close()
        except (ConnectionError, asyncio.CancelledError):
            if not self._closing:
                request.disconnected.set()
            raise
        request.answered.set()
        return response

    def _page(self, request: FakeRequest) -> web.Response:
        found = self.library.page(request.method, request.path, request.json or {})
        if found is not None:
            status, body = found
            return web.Response(body=body, status=status, content_type=_library_type(body))
        pages: Mapping[tuple[str, str], Callable[[FakeRequest], Any]] = {
            ("GET", "/"): lambda _: "Ollama is running",
            ("GET", "/health"): lambda _: {"status": "ok"},
            ("GET", "/v1/models"): self._list,
        }
        page = pages.get((request.method, request.path))
        if page is None:
            return _json({"error": f"FakeProviders serves no {request.method} {request.path}"}, 404)
        told = page(request)
        return web.Response(text=told) if isinstance(told, str) else _json(told)

    def _list(self, request: FakeRequest) -> dict[str, Any]:
        names = self.library.names
        if "anthropic-version" in request.headers:
            when = "2026-01-01T00:00:00Z"
            cards = [{"type": "model", "id": n, "display_name": n, "created_at": when} for n in names]
            return {"data": cards, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        data = [{"id": n, "object": "model", "created": 1764000000, "owned_by": "fake"} for n in names]
        return {"object": "list", "data": data}

    def _control(self, request: FakeRequest) -> web.Response:
        if (request.method, request.path) == ("GET", "/_requests"):
            return _json([_recorded(r) for r in self.requests])
        if (request.method, request.path) == ("POST", "/_models"):
            self.library.become(**request.json)
            return _json({"models": self.library.names})
        if (request.method, request.path) == ("POST", "/_script"):
            self.script(request.json)
            return _json({"pending": len(self._replies)})
        return _json(
            {
                "error": f"no {request.method} {request.path}; there are GET /_requests, POST /_script, POST /_models"
            },
            404,
        )


class _Player:
    """Writes the frames of one reply with the faults that were ordered."""

    def __init__(self, reply: Reply, dialect: ModuleType, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._reply = reply
        self._dialect = dialect
        self._write = write
        self._room = reply.break_after_bytes

    async def play(self, frames: Sequence[bytes], *, mixed: bool) -> bool:
        """Whether the body came to its own end; False asks for the connection to be cut."""
        reply = self._reply
        await asyncio.sleep(reply.first_token_delay)
        for index in range(len(frames) + 1):
            if index == reply.end_after_events:
                return True
            if index == reply.break_after_events:
                return False
            if index == reply.stall_after:
                await (_forever() if reply.stall is None else asyncio.sleep(reply.stall))
            if index == reply.error_event:
                message = reply.error or "the fake was told to fail"
                return await self._put(self._dialect.error_event(500, reply.error_kind, message))
            if index < len(frames) and not await self._put(self._frame(index, frames[index], mixed)):
                return False
        return self._room is None

    def _frame(self, index: int, frame: bytes, mixed: bool) -> bytes:
        reply, dialect = self._reply, self._dialect
        if index == reply.malformed_event:
            body = frame.rstrip(b"\n")
            frame = body[: max(1, (body.rfind(b"\ndata: ") + len(body)) // 2)] + frame[len(body) :]
        unknown = dialect.unknown_event if mixed and reply.unknown_events else b""
        return (dialect.keep_alive if mixed and reply.keep_alives else b"") + unknown + frame

    async def _put(self, data: bytes) -> bool:
        """Write; False when the order to break falls inside."""
        if self._room is not None:
            data, self._room = data[: self._room], self._room - len(data)
        size = self._reply.write_size or len(data)
        for start in range(0, len(data), size or 1):
            await self._write(data[start : start + size])
        return self._room is None or self._room > 0


async def _forever() -> None:
    """Wait until the handler is cancelled: the client went away, or the server is closed."""
    await asyncio.Event().wait()


def _frames(dialect: ModuleType, request: FakeRequest, reply: Reply) -> tuple[Sequence[bytes], str]:
    """What goes out, frame by frame, and its content type."""
    if reply.body is not None:
        return [reply.body], dialect.content_type if request.stream else "application/json"
    if reply.status >= 300:
        message = reply.error or f"the fake was told to answer {reply.status}"
        error = dialect.error(reply.status, reply.error_kind, message)
        return [orjson.dumps(error)], "application/json"
    if request.stream:
        return dialect.events(reply, request), dialect.content_type
    return [orjson.dumps(dialect.whole(reply, request))], "application/json"


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")


def _library_type(body: bytes) -> str:
    return "application/x-ndjson" if body.count(b"\n") > 1 else "application/json"


def _recorded(request: FakeRequest) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "headers": request.headers,
        "body": request.body.decode(errors="replace"),
        "json": request.json,
        "time": request.time,
        "provider": request.provider,
        "model": request.model,
        "last_user_text": request.last_user_text,
        "tools": [t.name for t in request.tools],
        "tool_results": [r.text for r in request.tool_results],
        "disconnected": request.disconnected.is_set(),
    }
