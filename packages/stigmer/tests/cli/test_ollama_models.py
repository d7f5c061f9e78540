"""Models of an Ollama: pulled, removed, taken where the default is missing; what a run says that cannot have its model."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator

import pytest

TOOLS = ["completion", "tools"]
NOBODY = "http://127.0.0.1:9"


def source_of(stigmer, name: str, **environment: str) -> tuple[object, str]:
    """What `config show` says of a setting."""
    found = json.loads(stigmer("config", "show", "--json", **environment).stdout)["settings"][name]
    return found["value"], found["source"]


# ---- models list, pull, remove


def test_a_name_that_is_not_in_the_catalogue_is_pulled_by_the_ollama(stigmer, fake) -> None:
    there = fake.ollama(registry={"qwen3:8b": TOOLS})
    done = stigmer("models", "pull", "qwen3:8b", "--json", **there)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"name": "qwen3:8b", "base_url": fake.url}
    assert "qwen3:8b: pulling  0 B of 1.1 GB" in done.stderr
    assert "verifying sha256 digest" in done.stderr
    listed = stigmer("models", "list", **there).stdout.partition(f"Ollama at {fake.url}\n")[2]
    assert "qwen3:8b  1.1 GB  32,768  tools" in listed
    said = stigmer("models", "pull", "ollama:qwen3:8b", **there)
    assert (said.returncode, said.stdout) == (0, "")
    assert f"qwen3:8b is installed at the Ollama at {fake.url}" in said.stderr


def test_a_name_of_the_catalogue_is_pulled_by_the_ollama_where_somebody_says_so(stigmer, fake) -> None:
    there = fake.ollama(registry={"qwen2.5-coder:1.5b": TOOLS})
    done = stigmer("models", "pull", "qwen2.5-coder:1.5b", "--on", "ollama", "--json", **there)
    assert json.loads(done.stdout)["base_url"] == fake.url
    assert not (stigmer.folder.parent / "models").exists()


def test_the_list_says_what_is_loaded_and_what_is_not_served_here(stigmer, fake) -> None:
    there = fake.ollama(
        models={"gpt-oss:120b-cloud": TOOLS, "qwen3:8b": TOOLS}, remote={"gpt-oss:120b-cloud": "ollama.com"}
    )
    fake.script({"text": "hello"})
    assert stigmer("run", "hello", "--model", "qwen3:8b", **there).returncode == 0
    shown = stigmer("models", "list", **there).stdout
    assert "served by ollama.com, not here" in shown
    rows = [json.loads(line) for line in stigmer("models", "list", "--json", **there).stdout.splitlines()]
    held = {row["name"]: row for row in rows if row["kind"] == "ollama"}
    assert held["qwen3:8b"]["loaded"] is True
    assert f"loaded, window {held['qwen3:8b']['window']:,}" in shown
    assert held["qwen3:8b"]["capabilities"] == TOOLS
    assert (held["gpt-oss:120b-cloud"]["remote"], held["gpt-oss:120b-cloud"]["loaded"]) == (
        "ollama.com",
        False,
    )


def test_removing_asks_and_names_the_ollama(stigmer, fake, at_a_terminal) -> None:
    there = fake.ollama(models={"qwen3:8b": TOOLS})
    nobody = stigmer("models", "remove", "qwen3:8b", **there)
    assert (nobody.returncode, "hint: stigmer models remove qwen3:8b --yes" in nobody.stderr) == (2, True)
    stigmer.environment |= there
    code, shown = at_a_terminal("models", "remove", "qwen3:8b", does=[("[y/N] ", "n")])
    assert code == 1, shown
    assert f"Remove qwen3:8b from the Ollama at {fake.url} (1.1 GB)? [y/N]" in shown
    done = stigmer("models", "remove", "qwen3:8b", "--yes", "--json")
    assert json.loads(done.stdout) == {"name": "qwen3:8b", "base_url": fake.url, "bytes": 1_117_320_768}
    gone = stigmer("models", "remove", "qwen3:8b", "--yes")
    assert gone.returncode == 1
    assert "'qwen3:8b' is none of the models that stigmer keeps on this machine" in gone.stderr
    assert f"and the Ollama at {fake.url} has none of that name" in gone.stderr


def test_a_pull_that_fails_says_why_and_how_to_go_on(stigmer, fake) -> None:
    there = fake.ollama(registry={"qwen3:8b": TOOLS}, trouble="write /x-partial: no space left on device")
    full = stigmer("models", "pull", "qwen3:8b", **there)
    assert full.returncode == 1
    assert (
        f"error: model 'qwen3:8b' could not be pulled: the disk of the Ollama at {fake.url} is full"
        in full.stderr
    )
    assert "run it again: what has come is kept there, and it goes on" in full.stderr
    none = stigmer("models", "pull", "qwen33:8b", **there)
    assert none.returncode == 1
    assert "has no such model" in none.stderr
    gone = stigmer("models", "pull", "qwen3:8b", **{**there, "OLLAMA_HOST": NOBODY})
    assert gone.returncode == 1
    assert f"nothing listens at '{NOBODY}'" in gone.stderr
    assert "the built-in llama.cpp needs none, and has qwen2.5-coder:1.5b" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("qwen3:8b", "--sha256", "ff"), "--sha256 and --name are for files of your own"),
        (("qwen2.5-coder:1.5b", "--name", "x"), "--sha256 and --name are for files of your own"),
        (("qwen2.5-coder:1.5b", "--insecure"), "--insecure is for an Ollama's registry"),
        (("qwen3:8b", "--on", "llamacpp"), "'qwen3:8b' is not in the catalogue of built-in models"),
    ],
)
def test_what_does_not_go_together_is_told(stigmer, arguments, words) -> None:
    done = stigmer("models", "pull", *arguments, OLLAMA_HOST=NOBODY)
    assert done.returncode == 2
    assert words in done.stderr


def test_at_a_terminal_a_pull_is_one_bar(stigmer, fake, at_a_terminal) -> None:
    stigmer.environment |= fake.ollama(registry={"qwen3:8b": TOOLS})
    code, shown = at_a_terminal("models", "pull", "qwen3:8b")
    assert code == 0, shown
    assert "1.1/1.1 GB" in shown
    assert "is installed at the Ollama" in shown


# ---- a run whose default is not installed


def test_a_run_takes_the_best_installed_model_and_says_so(stigmer, fake) -> None:
    there = fake.ollama(
        models={"qwen3:1.7b": TOOLS, "llama3.2:3b": TOOLS, "nomic-embed": ["embedding"]},
        sizes={"qwen3:1.7b": 1_000_000, "llama3.2:3b": 2_000_000, "nomic-embed": 9_000_000},
    )
    said = ("llama3.2:3b", "installed at Ollama; the default qwen2.5-coder:7b is not")
    assert source_of(stigmer, "model", **there) == said
    fake.script({"text": "hello"})
    done = stigmer("run", "hello", **there)
    assert done.returncode == 0, done.stderr
    assert "the default qwen2.5-coder:7b is not installed" in done.stderr
    assert "for the default: stigmer models pull qwen2.5-coder:7b" in done.stderr
    assert fake.requests[-1]["model"] == "llama3.2:3b"
    assert source_of(stigmer, "model", **there) == said  # The daemon's word now.


def test_a_model_that_somebody_named_and_that_is_missing_is_never_replaced(stigmer, fake) -> None:
    there = fake.ollama(models={"llama3.1:8b": TOOLS, "qwen3:4b": TOOLS})
    done = stigmer("run", "hello", "--model", "qwen3:8b", **there)
    assert done.returncode == 1
    assert (
        f"model 'qwen3:8b' (flag --model) is not installed at the Ollama at {fake.url} (env OLLAMA_HOST (your shell))"
        in done.stderr
    )
    assert (
        "hint: stigmer models pull qwen3:8b; or take one that is installed: qwen3:4b, llama3.1:8b"
        in done.stderr
    )
    assert fake.requests == []
    assert stigmer("list", "--json").stdout == ""
    named = stigmer("run", "hello", "--model", "ollama:qwen2.5-coder:1.5b", "--json", **there)
    told = json.loads(named.stdout)
    assert (told["code"], named.returncode) == ("not_installed", 1)
    assert "stigmer models pull --on ollama qwen2.5-coder:1.5b" in told["hint"]


def test_at_a_terminal_a_missing_model_is_pulled_if_somebody_says_so(stigmer, fake, at_a_terminal) -> None:
    stigmer.environment |= fake.ollama(registry={"qwen3:8b": TOOLS})
    asks = f"model qwen3:8b (flag --model) is not installed at the Ollama at {fake.url}. Pull it now? [Y/n] "
    code, shown = at_a_terminal("run", "hello", "--model", "qwen3:8b", does=[(asks, "n")])
    assert code == 1, shown
    assert "is not installed at the Ollama" in shown
    fake.script({"text": "a heron"})
    code, shown = at_a_terminal("run", "hello", "--model", "qwen3:8b", does=[(asks, "")])
    assert code == 0, shown
    assert "1.1/1.1 GB" in shown
    assert "a heron" in shown


def test_in_a_chat_too(stigmer, fake, at_a_terminal) -> None:
    stigmer.environment |= fake.ollama(registry={"qwen3:8b": TOOLS})
    fake.script({"text": "a heron"})
    code, shown = at_a_terminal(
        "chat", "--model", "qwen3:8b", does=[("> ", "hello"), ("[Y/n] ", "y"), ("a heron", "/exit")]
    )
    assert code == 0, shown


def test_STIGMER_PULL_pulls_unasked(stigmer, fake) -> None:
    there = fake.ollama(registry={"qwen3:8b": TOOLS})
    fake.script({"text": "a heron"})
    done = stigmer("run", "hello", "--model", "qwen3:8b", STIGMER_PULL="always", **there)
    assert done.returncode == 0, done.stderr
    assert "fetching model qwen3:8b (flag --model); once" in done.stderr
    assert done.stdout == "a heron\n"


def with_agent(stigmer, model: str) -> None:
    agents = stigmer.folder / ".stigmer" / "agents"
    agents.mkdir(parents=True)
    spec = f"spec: {{instructions: Be brief., llm: {{model: '{model}'}}}}"
    (agents / "helper.yaml").write_text(
        f"apiVersion: stigmer/v1\nkind: Agent\nmetadata: {{name: helper}}\n{spec}\n"
    )


def test_what_an_agents_file_names_is_never_pulled_unasked(stigmer, fake) -> None:
    there = fake.ollama(registry={"host.example/x/y:1": TOOLS})
    with_agent(stigmer, "ollama:host.example/x/y:1")
    assert stigmer("trust").returncode == 0
    done = stigmer("run", "hello", "--agent", "helper", STIGMER_PULL="always", **there)
    assert done.returncode == 1, done.stderr
    assert "model 'host.example/x/y:1' (agent helper" in done.stderr
    assert "fetching" not in done.stderr


def test_an_agents_file_does_not_send_data_away_through_an_ollama(stigmer, fake) -> None:
    there = fake.ollama(
        models={"gpt-oss:120b-cloud": TOOLS}, remote={"gpt-oss:120b-cloud": "https://ollama.com"}
    )
    with_agent(stigmer, "ollama:gpt-oss:120b-cloud")
    assert stigmer("trust").returncode == 0
    done = stigmer("run", "hello", "--agent", "helper", **there)
    assert done.returncode == 2, done.stderr
    assert (
        "is served by https://ollama.com, which is outside this machine, and the mode is local" in done.stderr
    )
    assert "--model gpt-oss:120b-cloud" in done.stderr
    assert fake.requests == []


def test_a_retry_with_a_missing_model_is_offered_it_too(stigmer, fake, at_a_terminal) -> None:
    fake.script({"status": 400, "error": "no"}, {"text": "a heron"})
    assert stigmer("run", "hello").returncode == 1
    failed = json.loads(stigmer("list", "--json").stdout)["id"]
    stigmer.environment |= fake.ollama(registry={"qwen3:8b": TOOLS})
    code, shown = at_a_terminal("retry", failed, "--model", "qwen3:8b", does=[("[Y/n] ", "y")])
    assert code == 0, shown
    assert "a heron" in shown


# ---- no Ollama


def test_an_ollama_that_does_not_run_is_told_with_the_address_and_the_way_out(stigmer) -> None:
    done = stigmer("run", "hello", "--provider", "ollama", OLLAMA_HOST=NOBODY)
    assert done.returncode == 1
    assert f"nothing listens at '{NOBODY}' (ollama) (address: env OLLAMA_HOST (your shell))" in done.stderr
    assert "ollama serve" in done.stderr
    assert "--provider llamacpp" in done.stderr
    assert stigmer("list", "--json").stdout == ""


def test_a_fallback_takes_over_where_the_ollama_does_not_run(stigmer, fake) -> None:
    fake.script({"text": "a heron"})
    done = stigmer(
        "run",
        "hello",
        "--provider",
        "ollama",
        "--model",
        "qwen3:8b",
        "--fallback",
        "openai:test-model",
        OLLAMA_HOST=NOBODY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a heron\n"


@pytest.fixture
def website() -> Iterator[str]:
    """A web server that is no Ollama."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_no_ollama_is_told_as_that(stigmer, website) -> None:
    done = stigmer("run", "hello", "--provider", "ollama", OLLAMA_HOST=website)
    assert done.returncode == 1
    assert f"what listens at '{website}' is no Ollama but a web server" in done.stderr
    assert "(address: env OLLAMA_HOST (your shell))" in done.stderr


@pytest.fixture
def dead_end() -> Iterator[str]:
    """A port that takes connections and closes them, as one that is forwarded to where nothing runs."""

    class Handler(socketserver.BaseRequestHandler):
        """Hangs up."""

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_list_says_why_there_is_nothing_of_an_ollama(stigmer, website) -> None:
    done = stigmer("models", "list", OLLAMA_HOST=website)
    assert done.returncode == 0
    assert (
        f"Ollama: none answers at {website}: what listens at '{website}' is no Ollama but a web"
        in done.stdout
    )
    assert f"Ollama: none answers at {NOBODY}\n" in stigmer("models", "list", OLLAMA_HOST=NOBODY).stdout


@pytest.mark.parametrize("command", [("list",), ("pull", "qwen3:8b"), ("remove", "qwen3:8b")])
def test_an_address_that_is_none_is_the_users_slip_and_no_fault_of_ours(stigmer, command) -> None:
    done = stigmer("models", *command, OLLAMA_HOST="http://[::")
    assert "'http://[::' is not an address (Invalid IPv6 URL)" in done.stdout + done.stderr
    assert "our fault" not in done.stderr


def test_a_port_that_leads_nowhere_is_told_before_the_run_begins(stigmer, dead_end) -> None:
    done = stigmer("run", "hello", "--provider", "ollama", OLLAMA_HOST=dead_end)
    assert done.returncode == 1
    assert "(address: env OLLAMA_HOST (your shell))" in done.stderr
    assert "a forwarded port" in done.stderr
    assert "try 2" not in done.stderr
    assert stigmer("list", "--json").stdout == ""


def test_a_dry_run_asks_no_ollama(stigmer) -> None:
    done = stigmer("run", "hello", "--dry-run", "--model", "qwen3:8b", OLLAMA_HOST=NOBODY)
    assert done.returncode == 0, done.stderr
    assert f"POST {NOBODY}/api/chat" in done.stdout


def test_an_ollama_behind_a_proxy_is_asked_through_it(stigmer, fake) -> None:
    there = fake.ollama(models={"qwen3:8b": TOOLS}) | {
        "OLLAMA_HOST": "http://ollama.test",
        "HTTP_PROXY": fake.url,
    }
    fake.script({"text": "a heron"})
    listed = stigmer("models", "list", **there).stdout
    assert "Ollama at http://ollama.test:11434\n" in listed, listed
    done = stigmer("run", "hello", **there)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a heron\n"
    assert "qwen3:8b on ollama" in done.stderr
