"""Records what the real Ollama says, for the tests: python record.py OLLAMA_BINARY 0.5B.gguf 1.5B.gguf [NAME…]

Each recording is one file of lines: first an object with the request and the head of the reply, then the reply's
body as it came, a line each. What is of this machine alone (paths, dates of files, the 339 tensors) is scrubbed.
It takes about five minutes on two idle cores.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSION = "0.17.4"
SMALL, LARGE, BARE, THINKER = "qwen2.5-coder:0.5b", "qwen2.5-coder:1.5b", "bare:0.5b", "thinker:1.5b"
CALLER = "caller:1.5b"
THOUGHT = "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
CHATML = HERE / "chatml.template"
OPTIONS = {"num_ctx": 2048, "num_predict": 60, "temperature": 0, "num_thread": 1}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of one city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name."}},
            "required": ["city"],
        },
    },
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
REPEAT = ("system", "Repeat exactly what the user writes, and nothing else.")
FENCE = ("assistant", "```json\n")
"""The model likes to begin so; begun for it, the first that it writes is the call."""


def chat(model: str, *said: tuple[str, str] | dict[str, Any], **more: Any) -> dict[str, Any]:
    """A chat request as we send it."""
    messages = [m if isinstance(m, dict) else {"role": m[0], "content": m[1]} for m in said]
    options = {**OPTIONS, **more.pop("options", {})}
    whole = {"truncate": False, "shift": False, "stream": True, "keep_alive": "30m"}
    return {"model": model, "messages": messages, **more, "options": options, **whole, **more}


def scenes() -> Iterator[tuple[str, str, str, Any]]:
    """What is recorded: name, method, path, body."""
    paris = ("user", "What is the capital of France? Answer with one word.")
    yield "version", "GET", "/api/version", None
    yield "tags", "GET", "/api/tags", None
    yield "show", "POST", "/api/show", {"model": LARGE}
    yield "show_missing", "POST", "/api/show", {"model": "nothing:1b"}
    yield "ps_empty", "GET", "/api/ps", None
    yield "load", "POST", "/api/chat", chat(LARGE)
    yield "ps", "GET", "/api/ps", None
    yield "text", "POST", "/api/chat", chat(LARGE, ("system", "Be brief."), paris)
    yield "text_again", "POST", "/api/chat", chat(LARGE, ("system", "Be brief."), paris)
    yield "text_whole", "POST", "/api/chat", chat(LARGE, ("system", "Be brief."), paris, stream=False)
    yield "length", "POST", "/api/chat", chat(LARGE, paris, options={"num_predict": 1})
    yield "format", "POST", "/api/chat", chat(LARGE, ("user", "Name the capital of France."), format=CITY)
    said = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    yield "tool_call", "POST", "/api/chat", chat(CALLER, REPEAT, ("user", said), FENCE, tools=[WEATHER])
    yield (
        "tool_call_whole",
        "POST",
        "/api/chat",
        chat(CALLER, REPEAT, ("user", said), FENCE, tools=[WEATHER], stream=False),
    )
    each = ("system", f"For each city of the user write one line of JSON like this: {said}")
    first = ("assistant", f"```json\n{said}\n")
    cities = ("user", "Oslo, Rome, Paris")
    yield "tool_calls", "POST", "/api/chat", chat(CALLER, each, cities, first, tools=[WEATHER])
    calls = [
        {"id": f"call_0000000{n}", "function": {"index": n, "name": "get_weather", "arguments": {"city": c}}}
        for n, c in enumerate(("Oslo", "Rome"))
    ]
    results = [
        {"role": "tool", "content": text, "tool_name": "get_weather", "tool_call_id": f"call_0000000{n}"}
        for n, text in enumerate(("It snows.", "Sun."))
    ]
    done = {"role": "assistant", "content": "", "tool_calls": calls}
    ask = ("user", "How is the weather in Oslo and in Rome? Answer with five words.")
    yield "tool_results", "POST", "/api/chat", chat(CALLER, ask, done, *results)
    xml = ("user", "Write an XML element named think with the text Hm., and on the next line the word Yes.")
    yield "think_tags", "POST", "/api/chat", chat(LARGE, xml, ("assistant", "```xml\n"))
    yield "think", "POST", "/api/chat", chat(THINKER, ("user", "Write: Hm.</think>Yes."), think=True)
    yield "think_refused", "POST", "/api/chat", chat(LARGE, paris, think=True)
    yield "missing", "POST", "/api/chat", chat("nothing:1b", paris)
    yield "no_tools", "POST", "/api/chat", chat(BARE, paris, tools=[WEATHER])
    yield "bad_option", "POST", "/api/chat", chat(LARGE, paris, options={"num_ctx": "many"})
    yield "bad_format", "POST", "/api/chat", chat(LARGE, paris, format="yaml")
    yield "no_json", "POST", "/api/chat", b"{"
    yield "no_route", "GET", "/api/nothing", None
    small = {"num_ctx": 64}
    yield "filled", "POST", "/api/chat", chat(SMALL, ("user", "Count from 1 to 500."), options=small)
    yield "too_long", "POST", "/api/chat", chat(SMALL, ("user", "a1,b2;" * 80), options=small)
    yield "unload", "POST", "/api/chat", {"model": SMALL, "messages": [], "keep_alive": 0}


class NoModels(http.server.BaseHTTPRequestHandler):
    """A registry that has no model."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def server(binary: str, home: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(home / "models"),
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([binary, "serve"], env=environment, stdout=log, stderr=log)
        try:
            while True:
                try:
                    ask(port, "GET", "/api/version", None)
                    break
                except OSError:
                    time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait(60)


def ask(port: int, method: str, path: str, body: Any) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1800)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, data, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    return reply.status, reply.headers.get("Content-Type", ""), reply.read()


def create(port: int, name: str, template: str, blob: str, **more: str) -> None:
    made = {"model": name, "files": {"model.gguf": blob}, "template": template, "stream": False, **more}
    status, _, said = ask(port, "POST", "/api/create", made)
    assert status == 200, said


def upload(port: int, file: Path) -> str:
    import hashlib

    with file.open("rb") as opened:
        digest = "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with file.open("rb") as opened:
        connection.request(
            "POST", f"/api/blobs/{digest}", opened, {"Content-Length": str(file.stat().st_size)}
        )
        assert connection.getresponse().status in (200, 201)
    return digest


def scrubbed(text: str, home: Path, registry: int) -> str:
    text = text.replace(str(home), "/home/ollama").replace(f"127.0.0.1:{registry}", "127.0.0.1:5000")
    return re.sub(
        r'("(modified_at|expires_at|created_at)":")[^"]*', r"\g<1>2026-12-01T01:02:03.123456789Z", text
    )


def trimmed(line: str) -> str:
    """A description without what is long: two of the tensors say how all of them look."""
    if '"tensors"' not in line:
        return line
    shown = json.loads(line)
    shown["tensors"] = shown["tensors"][:2]
    return json.dumps(shown, separators=(",", ":"))


def main() -> None:
    binary, small, large = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    registry = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoModels)
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    no_models = registry.server_address[1]
    only = sys.argv[4:]
    chatml = CHATML.read_text().rstrip("\n")
    begun = "<|im_start|>assistant\n"
    thinking = chatml.replace(begun + "{{ end }}\n{{- end }}", begun + "<think>\n{{ end }}\n{{- end }}")
    thinking = thinking.replace(begun + "{{ if .Content", begun + THOUGHT + "{{ if .Content")
    # Without the tags of its template, Ollama takes any JSON object with a tool's name for a call.
    calling = chatml.replace("<tool_call>\n", "").replace("</tool_call>", "")
    with tempfile.TemporaryDirectory() as folder, server(binary, Path(folder)) as port:
        home = Path(folder)
        blobs = upload(port, small), upload(port, large)
        create(port, SMALL, chatml, blobs[0])
        create(port, LARGE, chatml, blobs[1])
        create(port, BARE, "{{ .Prompt }}", blobs[0])
        create(port, THINKER, thinking, blobs[1])
        create(port, CALLER, calling, blobs[1])
        pull = {"model": f"http://127.0.0.1:{no_models}/library/nothing:1b", "insecure": True, "stream": True}
        for name, method, path, body in (*scenes(), ("pull_missing", "POST", "/api/pull", pull)):
            if only and name not in only:
                continue
            since = time.monotonic()
            status, kind, said = ask(port, method, path, body)
            sent = body.decode() if isinstance(body, bytes) else body
            head = {"ollama": VERSION, "request": {"method": method, "path": path, "json": sent}}
            head |= {"status": status, "content_type": kind}
            lines = [json.dumps(head, ensure_ascii=False)]
            lines += [trimmed(line) for line in said.decode().splitlines()]
            (HERE / f"{name}.jsonl").write_text(scrubbed("\n".join(lines) + "\n", home, no_models))
            print(
                f"{name}: {status} {kind}, {len(lines) - 1} lines, {time.monotonic() - since:.1f} s",
                flush=True,
            )
    registry.shutdown()


if __name__ == "__main__":
    main()
