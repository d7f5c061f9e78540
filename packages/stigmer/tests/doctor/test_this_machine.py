"""What the doctor sees on this machine: the home, its database, the network's variables, model files."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from graphton.catalog import CATALOG
from stigmer._surroundings import differing, marks
from stigmer.doctor import Check
from stigmer.doctor._database import sqlite_file
from stigmer.doctor._files import model_files
from stigmer.doctor._home import home_checks
from stigmer.doctor._network import network, without_password
from stigmer.home import Home


def by_id(checks: Iterable[Check]) -> dict[str, Check]:
    return {one.id: one for one in checks}


def look(home: Home) -> dict[str, Check]:
    return by_id(home_checks(home, database_url="", deep=False))


@pytest.fixture
def home(stigmer_home: Home) -> Home:
    return stigmer_home.create()


# --- the home


def test_a_home_that_is_not_there_yet_is_no_fault(stigmer_home: Home) -> None:
    rows = look(stigmer_home)
    assert {row.status for row in rows.values()} == {"ok"}
    assert rows["home.folder"].text.endswith("is not there yet; the first run makes it")
    assert rows["home.daemon"].text == "no daemon runs; the next run starts one"
    assert not stigmer_home.path.exists()


def test_a_home_that_others_may_look_into_is_told_with_the_files_that_they_may_read(home: Home) -> None:
    home.config.write_text("llm: {}\n")
    home.config.chmod(0o644)
    home.token.write_text("word")
    home.token.chmod(0o600)
    assert look(home)["home.folder"].status == "ok"
    home.path.chmod(0o755)
    row = look(home)["home.folder"]
    assert (row.status, row.facts["mode"]) == ("warn", "755")
    assert row.text == f"others on this machine may look into {home.path}, and config.yaml in it"
    assert row.hint == f"chmod -R go= {home.path}"


def test_a_home_that_others_may_write_to_decides(home: Home) -> None:
    home.path.chmod(0o777)
    row = look(home)["home.folder"]
    assert row.status == "fail"
    assert "may be written to by other users (mode 777)" in row.text
    assert row.hint == f"chmod 700 {home.path}"


def test_a_home_that_cannot_be_made_decides(tmp_path: Path) -> None:
    if subprocess.run(["id", "-u"], capture_output=True, text=True, check=True).stdout.strip() == "0":
        pytest.skip("the superuser may write everywhere")
    tmp_path.chmod(0o500)
    row = look(Home(tmp_path / "home"))["home.folder"]
    tmp_path.chmod(0o700)
    assert row.status == "fail"
    assert "is not there and cannot be made in" in row.text


def test_a_lock_that_somebody_holds_without_serving_decides(home: Home) -> None:
    hold = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX); "
        "os.write(fd, str(os.getpid()).encode()); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(home.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        row = look(home)["home.daemon"]
        holder.communicate()
    assert row.text == f"a process (pid {holder.pid}) holds {home.lock} and does not answer on the socket"
    assert (row.status, row.hint) == ("fail", "stigmer down")
    assert look(home)["home.daemon"].status == "ok"


def test_the_socket_of_a_deep_home_is_short(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    row = look(Home(short_folder / ("d" * 60) / ("e" * 60)))["home.socket"]
    assert row.status == "ok"
    assert row.facts["bytes"] < 100


# --- its database


def test_a_database_of_a_newer_program_decides(tmp_path: Path) -> None:
    path = tmp_path / "stigmer.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    row = sqlite_file(path, deep=False)
    assert row.status == "fail"
    assert "was written by a newer stigmer (schema 99" in row.text
    assert row.hint == "upgrade: pip install --upgrade stigmer"


def test_a_file_that_is_no_database_decides(tmp_path: Path) -> None:
    path = tmp_path / "stigmer.db"
    path.write_text("no database at all, but long enough to have a header of one hundred bytes" * 3)
    row = sqlite_file(path, deep=False)
    assert row.status == "fail"
    assert row.text == f"the database {str(path)!r} cannot be read: file is not a database"
    assert row.hint == f"stigmer down, then move it away: mv {path} {path}.old"


def filled(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE words (word TEXT)")
        db.execute("CREATE INDEX by_word ON words (word)")
        db.executemany("INSERT INTO words VALUES (?)", [(f"{i} {'word' * 20}",) for i in range(2000)])


def test_a_whole_database_is_looked_through(tmp_path: Path) -> None:
    filled(tmp_path / "stigmer.db")
    for deep in (False, True):
        row = sqlite_file(tmp_path / "stigmer.db", deep=deep)
        assert row.status == "ok"
        assert row.text.endswith("whole")


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "stigmer.db"
    filled(path)
    with path.open("r+b") as file:  # The body of one page of the table, not of the index.
        data = file.read()
        page = data.index(b"1000 wordword") // 4096
        file.seek(page * 4096 + 8)
        file.write(b"\xff" * 64)
    row = sqlite_file(path, deep=False)
    assert row.status == "warn"
    assert ": damaged: " in row.text
    assert row.facts["faults"]
    assert row.hint.startswith("save what can be read: stigmer down; sqlite3 ")


# --- the network's variables


def test_proxies_are_shown_without_their_password() -> None:
    environ = {"HTTPS_PROXY": "http://me:sentinel@proxy.example:3128", "no_proxy": "intern.example"}
    row = by_id(network(environ))["network.proxies"]
    assert row.text == "HTTPS_PROXY=http://***@proxy.example:3128; past it: no_proxy=intern.example"
    assert row.facts == {
        "proxies": {"HTTPS_PROXY": "http://***@proxy.example:3128"},
        "no_proxy": "intern.example",
    }


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://p:1", "http://p:1"),
        ("p:1", "p:1"),
        ("me:word@p:1", "***@p:1"),
        ("http://me:w@rd@p:1", "http://***@p:1"),
        ("http://me:w/rd@p:1", "http://***@p:1"),
    ],
)
def test_a_password_of_any_form_is_left_out(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_a_kind_of_proxy_that_we_do_not_speak_is_told() -> None:
    row = by_id(network({"ALL_PROXY": "socks5://proxy.example:1080"}))["network.proxies"]
    assert row.status == "warn"
    assert "a socks5 proxy is of a kind that we do not speak" in row.text
    assert row.hint == "name an http:// proxy in ALL_PROXY, or go past it with NO_PROXY"


def test_a_certificate_file_that_is_not_there_is_told() -> None:
    row = by_id(network({"SSL_CERT_FILE": "/nowhere/ca.pem"}))["network.certificates"]
    assert (row.status, row.text) == (
        "warn",
        "SSL_CERT_FILE names '/nowhere/ca.pem', and that is not there: no https server may be believed",
    )


def test_few_open_files_are_told() -> None:
    code = "from stigmer.doctor._program import program; print([c.text + '|' + c.hint for c in program()][2])"
    limited = ["sh", "-c", 'ulimit -n 64; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "only 64 files may be open at once|ulimit -n 4096\n"


# --- model files


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path))
    return tmp_path


def test_where_no_model_file_is_the_command_is_named(models: Path) -> None:
    (row,) = model_files(deep=False)
    assert (row.status, row.hint) == ("skip", f"stigmer models pull {CATALOG[0].name}")


def test_a_model_file_that_is_not_whole_is_told(models: Path) -> None:
    (models / CATALOG[1].file).write_bytes(b"GGUF")
    (row,) = model_files(deep=False)
    assert row.status == "warn"
    assert f"{CATALOG[1].name} has 4 bytes instead of {CATALOG[1].size:,}" in row.text
    assert row.hint.startswith(f"fetch it anew: stigmer models remove {CATALOG[1].name} --yes")


def test_deep_believes_only_the_digest(models: Path) -> None:
    (models / "mine.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    digest = hashlib.sha256(b"GGUF" + b"\1" * 100).hexdigest()
    record = {"name": "mine", "size": 104, "sha256": digest, "source": "https://models.example/mine.gguf"}
    (models / "mine.gguf.json").write_text(json.dumps(record))
    (row,) = model_files(deep=False)
    assert (row.status, row.facts["deep"]) == ("ok", False)
    (row,) = model_files(deep=True)
    assert row.status == "warn"
    assert f"instead of {digest}" in row.text


# --- what a daemon keeps


def test_marks_tell_which_variables_differ_and_nothing_of_their_values() -> None:
    theirs = {"HTTPS_PROXY": "http://me:proxy-sentinel@p:1", "SSL_CERT_FILE": "/a.pem"}
    left = marks(theirs)
    assert "sentinel" not in str(left)
    assert differing(left, theirs) == []
    assert differing(left, {"https_proxy": "http://me:proxy-sentinel@p:1", "SSL_CERT_FILE": "/a.pem"}) == []
    assert differing(left, {"SSL_CERT_FILE": "/b.pem"}) == ["HTTPS_PROXY", "SSL_CERT_FILE"]
    assert differing({}, theirs) == []
    assert marks(theirs)["HTTPS_PROXY"] != left["HTTPS_PROXY"]
