"""Files of the user's own, and a mirror for those of the catalogue, as the command line has them."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from graphton.testing import tiny_gguf

CONTENT = b"GGUF" + bytes(range(256)) * 200
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(stigmer) -> Iterator[str]:
    """A web server with tiny.gguf and a page."""
    folder = stigmer.folder.parent / "site"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(CONTENT)
    (folder / "page.gguf").write_text("<!doctype html><title>no model</title>")

    gate = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/slow.gguf":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
            self.wfile.flush()
            gate.wait(60)
            return None

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stigmer.environment["OLLAMA_HOST"] = "http://127.0.0.1:9"
    yield f"http://127.0.0.1:{server.server_port}"
    gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(stigmer) -> Path:
    """The folder of models."""
    return Path(stigmer.environment["STIGMER_MODELS"])


def listed(stigmer) -> dict[str, dict[str, object]]:
    rows = [json.loads(line) for line in stigmer("models", "list", "--json").stdout.splitlines()]
    return {row["name"]: row for row in rows if row["kind"] == "file"}


def test_a_file_from_an_address_is_fetched_listed_and_removed(stigmer, site, folder) -> None:
    done = stigmer("models", "pull", f"{site}/tiny.gguf", "--sha256", DIGEST, "--name", "mine:q4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'mine-q4.gguf'}\n"
    assert "use it: --model llamacpp:mine:q4" in done.stderr
    assert (folder / "mine-q4.gguf").read_bytes() == CONTENT
    row = listed(stigmer)["mine:q4"]
    assert (row["installed"], row["licence"], row["sha256"]) == (True, None, DIGEST)
    assert row["sources"] == [f"{site}/tiny.gguf"]
    shown = stigmer("models", "list").stdout
    assert re.search(rf"mine:q4 +51\.2 kB  unknown     {folder / 'mine-q4.gguf'}\n", shown), shown
    preview = stigmer("run", "hello", "--model", "llamacpp:mine:q4", "--dry-run", "--json")
    assert json.loads(preview.stdout)["settings"]["model"]["value"] == "mine:q4"
    assert stigmer("models", "remove", "mine:q4", "--yes").returncode == 0
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == []
    assert "mine:q4" not in listed(stigmer)


def test_without_a_digest_nothing_is_fetched(stigmer, site, folder) -> None:
    done = stigmer("models", "pull", f"{site}/tiny.gguf")
    assert done.returncode == 2
    assert "a file from an address needs its sha256" in done.stderr
    assert "sha256sum FILE" in done.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("file", "digest", "words"),
    [
        ("tiny.gguf", "0" * 64, f"sha256 is '{DIGEST}', expected '{'0' * 64}': deleted"),
        ("page.gguf", DIGEST, "it is no GGUF file: it begins with b'<!doctype html><', a web page"),
        ("gone.gguf", DIGEST, "answers 404"),
    ],
)
def test_what_is_not_the_file_is_never_installed(stigmer, site, folder, file, digest, words) -> None:
    done = stigmer("models", "pull", f"{site}/{file}", "--sha256", digest)
    assert done.returncode == 1
    assert words in done.stderr
    assert not list(folder.glob("*.gguf"))


def test_ctrl_c_ends_a_pull_and_says_that_it_goes_on(stigmer, site, folder, at_a_terminal) -> None:
    pull = ("models", "pull", f"{site}/slow.gguf", "--sha256", DIGEST)
    code, shown = at_a_terminal(*pull, does=[("slow: from 127.0.0.1", signal.SIGINT)])
    assert code == 130, shown
    assert "stopped; what has come is kept, and the next pull of slow goes on from it" in shown
    assert not (folder / "slow.gguf").exists()


def test_a_file_that_is_here_gets_a_name_and_stays_where_it_is(stigmer, site, folder, at_a_terminal) -> None:
    mine = stigmer.folder / "Mine.gguf"
    tiny_gguf(mine, {">": "hello", "hello": "</s>"})
    content = mine.read_bytes()
    done = stigmer("models", "pull", "./Mine.gguf")
    assert done.returncode == 0, done.stderr
    assert "use it: --model llamacpp:mine" in done.stderr
    assert listed(stigmer)["mine"]["sources"] == [mine.as_uri()]
    code, shown = at_a_terminal("models", "remove", "mine", does=[("[y/N] ", "y")])
    assert code == 0, shown
    assert "only this link; the file itself stays" in shown
    assert mine.read_bytes() == content
    assert "mine" not in listed(stigmer)


def test_a_file_that_is_cut_off_gets_no_name(stigmer, folder) -> None:
    mine = stigmer.folder / "mine.gguf"
    tiny_gguf(mine, {">": "hello", "hello": "</s>"})
    mine.write_bytes(mine.read_bytes()[:-1_000])
    done = stigmer("models", "pull", "./mine.gguf")
    assert done.returncode == 1
    assert "it is cut off: 1,000 bytes of its weights are missing" in done.stderr
    assert "copy or fetch the file again" in done.stderr
    assert "mine" not in listed(stigmer)


def test_a_linked_file_that_is_gone_is_told(stigmer, site) -> None:
    mine = stigmer.folder / "mine.gguf"
    tiny_gguf(mine, {">": "hello", "hello": "</s>"})
    content = mine.read_bytes()
    stigmer("models", "pull", "./mine.gguf")
    mine.unlink()
    assert f"its file is not there any more: {mine.as_uri()}" in stigmer("models", "list").stdout
    done = stigmer("run", "hello", "--model", "llamacpp:mine")
    assert done.returncode == 2
    assert f"the file of model 'mine' is not where it was: {mine.as_uri()}" in done.stderr
    assert "stigmer models remove mine" in done.stderr
    again = stigmer("models", "pull", "mine")
    assert again.returncode == 1
    assert f"model file '{mine}' cannot be read: No such file or directory" in again.stderr
    mine.write_bytes(content)
    assert stigmer("models", "pull", "mine").returncode == 0
    assert stigmer("models", "remove", "mine", "--yes").returncode == 0


def test_a_file_of_ones_own_that_is_missing_is_fetched_by_its_name(stigmer, site, folder) -> None:
    stigmer("models", "pull", f"{site}/tiny.gguf", "--sha256", DIGEST)
    (folder / "tiny.gguf").unlink()
    done = stigmer("run", "hello", "--model", "llamacpp:tiny")
    assert done.returncode == 2
    assert "hint: stigmer models pull tiny" in done.stderr
    assert stigmer("models", "pull", "tiny").returncode == 0
    assert (folder / "tiny.gguf").read_bytes() == CONTENT


def test_a_mirror_is_asked_before_the_publisher(stigmer, site, folder) -> None:
    done = stigmer("config", "set", "models.mirror", f"{site}/models")
    assert done.returncode == 0, done.stderr
    assert f"models.mirror         {site}/models" in stigmer("config", "show").stdout
    # Nothing answers for the publisher: this machine's own proxy is not there.
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin", "UV": "/bin/false"}
    done = stigmer("models", "pull", "qwen2.5-coder:0.5b", **offline)
    assert done.returncode == 1
    first = done.stderr.partition("could not be downloaded; ")[2]
    assert first.startswith(f"{site}/models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf: 127.0.0.1 answers 404")
    wrong = stigmer("models", "pull", "qwen2.5-coder:0.5b", STIGMER_MODEL_MIRROR="models.corp", **offline)
    assert wrong.returncode == 2
    assert (
        "models.mirror 'models.corp' from env STIGMER_MODEL_MIRROR (your shell) is not an address"
        in wrong.stderr
    )
