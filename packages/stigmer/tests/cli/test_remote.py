"""Commands at a server elsewhere: a real `stigmer serve` with TLS and keys, and a client in an empty home of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from stigmer.api import service_pb2_grpc
from stigmer.daemon import find
from stigmer.home import Home
from stigmer.remote import server_at

LIMIT = 60.0
KEY_OF_THIS_SHELL = "sk-of-this-shell-0123456789"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class There:
    """A server with a home of its own; `stigmer` is the command there, by hand."""

    stigmer: Any
    port: int
    tls: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        listen = ("--listen", f"127.0.0.1:{self.port}", "--http", "")
        self.process = self.stigmer.start("serve", "--mode", "local", *listen, **self.tls)
        self.stigmer.wait_for(lambda: find(self.stigmer.home), "the server")

    def end(self, *, kill: bool = False) -> None:
        if self.process is not None:
            (self.process.kill if kill else self.process.terminate)()
            print(f"--- the server\n{self.process.communicate(timeout=LIMIT)[1]}")
            self.process = None

    def key(self, *scopes: str) -> str:
        wanted = [
            word for scope in scopes for word in (("--admin",) if scope == "admin" else ("--scope", scope))
        ]
        made = self.stigmer("key", "create", "--name", "ann", *wanted)
        assert made.returncode == 0, made.stderr
        return str(made.stdout.strip())


@pytest.fixture
def there(stigmer: Any, fake: Any, short_folder: Path, certificate_for: Any) -> Iterator[There]:
    """A server over TLS; the fake model server's key and address are in its environment alone."""
    pem, key = certificate_for("127.0.0.1")
    home = short_folder / "there"
    environment = {**stigmer.environment, "HOME": str(home), "STIGMER_HOME": str(home / ".stigmer")}
    home.mkdir()
    server = There(
        type(stigmer)(Home(home / ".stigmer"), home, environment),
        free_port(),
        {"STIGMER_TLS_CERT": str(pem), "STIGMER_TLS_KEY": str(key)},
    )
    for name in fake.environment:
        del stigmer.environment[name]
    server.start()
    yield server
    server.end()


@pytest.fixture
def here(stigmer: Any, there: There, short_folder: Path) -> Any:
    """The command at the client: an empty home, the address, a key of scope run and the authority's file."""
    stigmer.environment |= {
        "STIGMER_SERVER": f"https://127.0.0.1:{there.port}",
        "STIGMER_API_KEY": there.key("run"),
        "STIGMER_TLS_CA": str(short_folder / "server.pem"),
    }
    return stigmer


def test_a_run_at_a_server_needs_nothing_of_this_machine(here: Any, there: There, fake: Any) -> None:
    fake.script({"text": "Hello."})
    done = here("run", "Say hello.")
    assert (done.returncode, done.stdout) == (0, "Hello.\n"), done.stderr
    assert not here.home.path.exists()
    listed = json.loads(here("list", "--json").stdout)
    assert (listed["task"], listed["workspace"], listed["state"]) == ("Say hello.", "", "completed")
    assert listed["id"] in there.stigmer("list").stdout
    shown = here("status")
    assert shown.returncode == 0
    assert f"address    https://127.0.0.1:{there.port} (env STIGMER_SERVER)" in shown.stdout
    assert "stigmer down" not in shown.stdout


def test_neither_keys_nor_files_of_this_machine_go_to_a_server(here: Any, fake: Any) -> None:
    (here.folder / ".stigmer").mkdir()
    (here.folder / ".stigmer" / "config.yaml").write_text("llm: {max_tokens: 77}\n")
    (here.folder / "secret.txt").write_text("private")
    fake.script({"text": "Hello."})
    done = here(
        "run", "--max-tokens", "55", "Hi.", OPENAI_API_KEY=KEY_OF_THIS_SHELL, STIGMER_LLM_MODEL="openai:other"
    )
    assert done.returncode == 0, done.stderr
    assert "OPENAI_API_KEY, STIGMER_LLM_MODEL of this shell and" in done.stderr
    assert ".stigmer/config.yaml stay here: the server at https://127.0.0.1" in done.stderr
    (request,) = fake.requests
    assert request["model"] == "test-model"
    assert request["json"].get("max_completion_tokens", request["json"].get("max_tokens")) == 55
    assert KEY_OF_THIS_SHELL not in json.dumps(request)
    assert "read_file" not in json.dumps(request["json"])


def test_an_agent_of_this_machine_travels_with_the_request(here: Any, fake: Any) -> None:
    (here.folder / "poet.yaml").write_text(
        "apiVersion: stigmer/v1\nkind: Agent\nmetadata: {name: poet}\n"
        "spec: {instructions: Answer in rhymes., llm: {max_tokens: 33}}\n"
    )
    fake.script({"text": "Roses."})
    shown = here("run", "--dry-run", "--agent", "./poet.yaml", "Flowers?")
    assert "Answer in rhymes." in shown.stdout
    assert "note: the server at https://127.0.0.1" in shown.stderr
    settings = json.loads(here("config", "show", "--agent", "./poet.yaml", "--json").stdout)
    assert settings["settings"]["max_tokens"]["value"] == 33
    assert settings["settings"]["model"]["source"] == "env STIGMER_LLM_MODEL"
    assert "says what a run would use there" in settings["notices"][0]
    done = here("run", "--agent", "./poet.yaml", "Flowers?")
    assert (done.returncode, done.stdout) == (0, "Roses.\n"), done.stderr
    assert "Answer in rhymes." in json.dumps(fake.requests[0]["json"])


def test_a_chat_remembers_at_the_server(here: Any, fake: Any) -> None:
    fake.script({"text": "One."}, {"text": "Two."})
    done = here("chat", stdin="first\nsecond\n")
    assert (done.returncode, done.stdout) == (0, "One.\nTwo.\n"), done.stderr
    session = json.loads(here("list", "sessions", "--json").stdout)
    assert session["count"] == 2
    assert "One." in json.dumps(fake.requests[1]["json"])
    assert here("get", "session", session["id"]).returncode == 0
    assert here("delete", "session", session["id"]).returncode == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("up",), "`stigmer up` is about this machine"),
        (("down",), "`stigmer down` is about this machine"),
        (("logs",), "`stigmer logs` is about this machine"),
        (("doctor",), "`stigmer doctor` is about this machine"),
        (("trust",), "`stigmer trust` is about this machine"),
        (("secret", "list"), "`stigmer secret list` is about this machine"),
        (("models", "pull", "x"), "`stigmer models pull` is about this machine"),
        (("config", "set", "model", "x"), "`stigmer config set` is about this machine"),
        (("approvals", "rules"), "`stigmer approvals rules` is about this machine"),
    ],
)
def test_what_is_about_this_machine_says_so(stigmer: Any, command: tuple[str, ...], says: str) -> None:
    refused = stigmer(*command, "--server", "https://control.example:7244")
    assert refused.returncode == 2
    assert refused.stderr == (f"error: {says}, and --server names a server\nhint: leave --server out\n")
    before = stigmer("--server", "https://control.example:7244", *command)
    assert before.returncode == 2
    assert "is about this machine, and --server names a server" in before.stderr
    assert find(stigmer.home) is None


def test_a_variable_leaves_such_commands_alone_and_is_told_of(stigmer: Any) -> None:
    done = stigmer("down", STIGMER_SERVER="https://control.example:7244")
    assert (done.returncode, done.stderr) == (
        0,
        "note: `stigmer down` is about this machine, not about STIGMER_SERVER\nno daemon was running\n",
    )


def test_local_is_the_own_daemon_whatever_the_variable_says(stigmer: Any, fake: Any) -> None:
    fake.script({"text": "Here."})
    done = stigmer("run", "--server", "local", "Hi.", STIGMER_SERVER="https://control.example:7244")
    assert (done.returncode, done.stdout) == (0, "Here.\n"), done.stderr


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("https://", "the server 'https://' (--server) is no address of one"),
        ("", "the server '' (--server) is no address of one"),
        ("ftp://h:1", "the server 'ftp://h:1' (--server) is no address of one"),
        ("http://h", "the server 'http://h' (--server) is no address of one"),
        ("https://h:1/path", "is no address of one"),
        ("https://ann:pw@h:1", "the server '…' (--server) is no address of one"),
        ("control.example:7244", "is another machine, and nothing says how to reach it"),
        ("https://control.example", "wants a key, and STIGMER_API_KEY is not set"),
        ("127.0.0.1:7244", "wants a key, and STIGMER_API_KEY is not set"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_before_anything_is_sent(
    stigmer: Any, server: str, says: str
) -> None:
    refused = stigmer("list", "--server", server)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "hint: " in refused.stderr
    assert "pw" not in refused.stderr


def test_a_port_is_taken_from_https_and_the_homes_token_serves_this_machine_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.token.write_text("t" * 64)
    key = {"STIGMER_API_KEY": "stk_1"}
    far = server_at("https://Control.Example/", source="--server", home=home, environ=key)
    assert far is not None
    assert (far.target, far.tls, far.token) == ("control.example:443", True, "stk_1")
    near = server_at("[::1]:7244", source="--server", home=home, environ={})
    assert near is not None
    assert (near.target, near.tls, near.token) == ("[::1]:7244", False, "t" * 64)
    with pytest.raises(Exception, match="wants a key"):
        server_at("https://control.example", source="--server", home=home, environ={})


def test_a_key_that_is_wrong_or_may_not_is_told_with_the_servers_address(here: Any, there: There) -> None:
    unknown = here("list", STIGMER_API_KEY="stk_000000000000_" + "x" * 43)
    assert unknown.returncode == 1
    assert (
        f"error: the server at 'https://127.0.0.1:{there.port}' (env STIGMER_SERVER): the server does not know"
        in unknown.stderr
    )
    may_read = there.key("read")
    refused = here("run", "Hi.", STIGMER_API_KEY=may_read)
    assert refused.returncode == 1
    assert "the key 'ann' may read, and this needs run" in refused.stderr
    assert may_read not in refused.stderr
    assert here("list", STIGMER_API_KEY=may_read).returncode == 0
    broken = here("list", STIGMER_API_KEY="stk with blanks")
    assert broken.returncode == 2
    assert "STIGMER_API_KEY holds a blank" in broken.stderr


def test_keys_and_prune_need_an_admin(here: Any, there: There) -> None:
    refused = here("prune", "--older-than", "1", "--dry-run")
    assert refused.returncode == 1
    assert "this needs admin" in refused.stderr
    admin = {"STIGMER_API_KEY": there.key("admin")}
    assert here("prune", "--older-than", "1", "--dry-run", **admin).returncode == 0
    made = here("key", "create", "--name", "ci", "--json", **admin)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["id"] in there.stigmer("key", "list").stdout


# --- TLS


def test_a_certificate_that_nobody_signed_is_told_with_the_way_out(here: Any) -> None:
    refused = here("list", STIGMER_TLS_CA="")
    assert refused.returncode == 2
    assert "shows a certificate that does not hold: self" in refused.stderr
    assert (
        "hint: STIGMER_TLS_CA names the file of the authority that signed it; STIGMER_TLS_CA is not set"
        in refused.stderr
    )
    assert json.loads(here("list", "--json", STIGMER_TLS_CA="").stdout)["code"] == "tls"


def test_a_certificate_of_another_authority_or_another_name_is_told(
    here: Any, there: There, certificate_for: Any
) -> None:
    other, _ = certificate_for("127.0.0.1", name="other")
    refused = here("list", STIGMER_TLS_CA=str(other))
    assert refused.returncode == 2
    assert f"STIGMER_TLS_CA is '{other}'" in refused.stderr
    named = here("list", "--server", f"https://localhost:{there.port}")
    assert named.returncode == 2
    assert "Hostname mismatch" in named.stderr
    assert "hint: take the name that its certificate is made out to" in named.stderr
    for file, says in (("/nowhere", "cannot be read"), (str(here.folder / "x"), "is no PEM file")):
        (here.folder / "x").write_text("no certificate")
        wrong = here("list", STIGMER_TLS_CA=file)
        assert wrong.returncode == 2
        assert f"STIGMER_TLS_CA '{file}' {says}" in wrong.stderr


def test_plain_to_a_tls_server_and_the_reverse_say_what_to_write(here: Any, there: There) -> None:
    plain = here("list", "--server", f"127.0.0.1:{there.port}")
    assert plain.returncode == 2
    assert f"the server at '127.0.0.1:{there.port}' (--server) speaks TLS" in plain.stderr
    assert f"hint: --server https://127.0.0.1:{there.port}" in plain.stderr
    there.end()
    there.tls = {}
    there.start()
    secure = here("list")
    assert secure.returncode == 2
    assert (
        f"the server at 'https://127.0.0.1:{there.port}' (env STIGMER_SERVER) speaks no TLS" in secure.stderr
    )
    assert f"hint: --server 127.0.0.1:{there.port}; it then goes in the clear" in secure.stderr
    assert here("list", "--server", f"127.0.0.1:{there.port}").returncode == 0


def test_a_server_that_wants_a_certificate_gets_one(here: Any, there: There, certificate_for: Any) -> None:
    ours, key = certificate_for("127.0.0.1", name="ours")
    there.end()
    there.tls["STIGMER_TLS_CLIENT_CA"] = str(ours)
    there.start()
    refused = here("list")
    assert refused.returncode == 2
    assert "wants a certificate of ours" in refused.stderr
    assert "hint: STIGMER_TLS_CERT and STIGMER_TLS_KEY name its files" in refused.stderr
    half = here("list", STIGMER_TLS_CERT=str(ours))
    assert half.returncode == 2
    assert "STIGMER_TLS_KEY is not set" in half.stderr
    pem, others = certificate_for("127.0.0.1", name="other")
    other = {"STIGMER_TLS_CERT": str(pem), "STIGMER_TLS_KEY": str(others)}
    assert "takes another certificate than ours" in here("list", **other).stderr
    shown = here("list", STIGMER_TLS_CERT=str(ours), STIGMER_TLS_KEY=str(key))
    assert shown.returncode == 0, shown.stderr


# --- Servers that are away


def test_a_server_that_cannot_be_reached_is_told_with_its_address_and_who_named_it(stigmer: Any) -> None:
    port = free_port()
    for named, source in (("--server", "--server"), ("", "env STIGMER_SERVER")):
        arguments = ("list", named, f"127.0.0.1:{port}") if named else ("list",)
        environment = {} if named else {"STIGMER_SERVER": f"127.0.0.1:{port}"}
        away = stigmer(*arguments, STIGMER_API_KEY="stk_1", **environment)
        assert away.returncode == 1
        assert (
            f"error: the server at '127.0.0.1:{port}' ({source}) cannot be reached: nothing listens there"
            in away.stderr
        )
    unknown = stigmer("status", "--server", "https://no-such-host.invalid:1", STIGMER_API_KEY="stk_1")
    assert unknown.returncode == 1
    assert "cannot be reached: its name is not known here" in unknown.stderr


@pytest.fixture
def answers_http(stigmer: Any) -> Iterator[int]:
    """The port of a web server."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server.server_port
    server.shutdown()
    serving.join()
    server.server_close()


def test_what_is_no_stigmer_server_is_told(stigmer: Any, answers_http: int) -> None:
    refused = stigmer("list", "--server", f"127.0.0.1:{answers_http}", STIGMER_API_KEY="stk_1")
    assert refused.returncode == 1
    assert f"what answers at '127.0.0.1:{answers_http}' (--server) is no stigmer server" in refused.stderr


class Hostile(service_pb2_grpc.SystemServiceServicer):
    """A server whose words would steer a terminal."""

    def GetStatus(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no\x1b[2J way")


def test_what_a_server_says_steers_no_terminal(stigmer: Any) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_SystemServiceServicer_to_server(Hostile(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    refused = stigmer("status", "--server", f"127.0.0.1:{port}", STIGMER_API_KEY="stk_1")
    server.stop(None).wait()
    assert refused.returncode == 1
    assert "(--server) failed: no\\x1b[2J way" in refused.stderr


@pytest.mark.parametrize("kill", [False, True])
def test_a_watch_goes_on_where_it_stopped_when_the_server_is_restarted(
    here: Any, there: There, fake: Any, kill: bool
) -> None:
    fake.script({"text": "one two three four", "stall_after": 3}, {"text": "whole"})
    running = here.start("run", "--json", "Go.")
    fake.wait_for_requests(1)
    lines: list[dict[str, Any]] = [json.loads(running.stdout.readline())]
    while lines[-1]["type"] != "model_requested":
        lines.append(json.loads(running.stdout.readline()))
    there.end(kill=kill)
    there.start()
    out, talk = running.communicate(timeout=LIMIT)
    lines += [json.loads(line) for line in out.splitlines()]
    assert running.returncode == 0, talk
    assert lines[-1]["text"] == "whole"
    seqs = [line["seq"] for line in lines if line["seq"]]
    assert seqs == list(range(1, len(seqs) + 1))
    assert f"the server at 'https://127.0.0.1:{there.port}' is away; waiting for it" in talk
    assert "it is back; going on where it stopped" in talk


def test_what_is_steered_from_here_happens_there(here: Any, fake: Any, there: There) -> None:
    fake.script({"text": "slow", "stall_after": 1}, {"text": "done"})
    started = here("run", "--detach", "Go.")
    execution = started.stdout.strip()
    fake.wait_for_requests(1)
    assert here("cancel", execution).returncode == 0
    attached = here("attach", "--json", execution)
    last = json.loads(attached.stdout.splitlines()[-1])
    assert (attached.returncode, last["outcome"]) == (1, "cancelled")
    cancelled = next(
        e for e in map(json.loads, attached.stdout.splitlines()) if e["type"] == "cancel_requested"
    )
    assert cancelled["by"] == "key ann"
    again = here("retry", execution)
    assert (again.returncode, again.stdout) == (0, "done\n"), again.stderr
