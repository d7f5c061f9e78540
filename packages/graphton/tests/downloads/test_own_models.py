"""A user's own models: from an address with a digest, or by a link; named, recorded, and served as any other."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graphton import _own_models as own
from graphton import catalog
from graphton.errors import DownloadError, GraphtonError, ModelNameError
from graphton.testing import tiny_gguf

CONTENT = b"GGUF" + random.Random(9).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models."""
    monkeypatch.setenv("STIGMER_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def url(server: Any) -> str:
    """An address with a model at it."""
    server.files["/Tiny-Q4.gguf"] = CONTENT
    return f"{server.url}/Tiny-Q4.gguf"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A model's file that lies elsewhere."""
    tiny_gguf(tmp_path / "mine.gguf", {">": "hello", "hello": "</s>"})
    return tmp_path / "mine.gguf"


def files_in(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_model_from_an_address_has_a_name_a_record_and_no_licence(url: str, folder: Path) -> None:
    path = own.pull_from(url, DIGEST.upper(), "Tiny:Q4")
    assert path == folder / "tiny-q4.gguf"
    assert path.read_bytes() == CONTENT
    assert catalog.path_of("tiny:q4") == path
    entry = catalog.find(" TINY:q4")
    assert (entry.licence, entry.sha256, entry.size) == ("", DIGEST, len(CONTENT))
    assert str(entry.sources[0]) == url
    assert files_in(folder) == ["tiny-q4.gguf", "tiny-q4.gguf.json"]


def test_an_address_suggests_a_name() -> None:
    assert own.name_from("https://host/a/Tiny-Q4_K_M.gguf?download=true") == "tiny-q4_k_m"
    assert own.name_from("/data/My%20Model.GGUF") == "my-model"
    assert own.name_from("https://host/") == ""


def test_another_file_than_the_digest_says_is_never_installed(url: str, folder: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        own.pull_from(url, "0" * 64, "tiny")
    assert DIGEST in str(caught.value)
    assert "expected '" + "0" * 64 in str(caught.value)
    assert files_in(folder) == []
    assert catalog.known("tiny") is None


def test_what_is_no_model_is_given_up_with_its_first_bytes(server: Any, folder: Path) -> None:
    page = b"<!DOCTYPE html><html>" + b"x" * 5_000_000
    server.files["/page.gguf"] = page
    with pytest.raises(DownloadError) as caught:
        own.pull_from(f"{server.url}/page.gguf", hashlib.sha256(page).hexdigest(), "page")
    assert "it is no GGUF file: it begins with b'<!DOCTYPE html><'" in str(caught.value)
    assert "/resolve/, not /blob/" in str(caught.value)
    assert files_in(folder) == []


def test_a_broken_download_is_taken_up_by_its_name(server: Any, url: str, folder: Path) -> None:
    server.cuts["/Tiny-Q4.gguf"] = [
        len(CONTENT),
        100_000,
        0,
        0,
        0,
        0,
        0,
    ]  # The first reply only tells the size.
    with pytest.raises(DownloadError, match="100,000 bytes are kept"):
        own.pull_from(url, DIGEST, "tiny")
    assert catalog.path_of("tiny") is None
    assert files_in(folder) == ["tiny.gguf.json", "tiny.gguf.part"]
    server.cuts.clear()
    server.asked.clear()
    own.pull_from(url, DIGEST, "tiny")
    assert server.asked[-1][1] == "bytes=100000-"
    assert catalog.path_of("tiny") == folder / "tiny.gguf"


def test_an_address_that_answers_nothing_good_leaves_nothing(server: Any, folder: Path) -> None:
    server.status["/gone.gguf"] = 404
    with pytest.raises(DownloadError, match="answers 404"):
        own.pull_from(f"{server.url}/gone.gguf", DIGEST, "gone")
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("name", "digest", "words"),
    [
        ("", DIGEST, "'' cannot be a model's name"),
        ("../x", DIGEST, "'../x' cannot be a model's name"),
        ("x.gguf", DIGEST, "'x.gguf' cannot be a model's name"),
        ("qwen2.5-coder:0.5b", DIGEST, "is the name of a model of the catalogue"),
        ("qwen2.5-coder-0.5b-instruct-q4_k_m", DIGEST, "is the name of a model of the catalogue"),
        ("tiny", "abc", "'abc' is no sha256"),
    ],
)
def test_a_name_or_a_digest_that_cannot_be_is_told(
    url: str, folder: Path, name: str, digest: str, words: str
) -> None:
    with pytest.raises(GraphtonError, match=words) as caught:
        own.pull_from(url, digest, name)
    assert caught.value.hint
    assert files_in(folder) == []


def test_a_name_that_is_taken_is_not_taken_again(server: Any, url: str, folder: Path) -> None:
    own.pull_from(url, DIGEST, "tiny:q4")
    other = CONTENT + b"more"
    server.files["/other.gguf"] = other
    with pytest.raises(ModelNameError, match="'tiny:q4' is another model already") as caught:
        own.pull_from(f"{server.url}/other.gguf", hashlib.sha256(other).hexdigest(), "tiny:q4")
    assert "stigmer models remove tiny:q4" in caught.value.hint
    with pytest.raises(ModelNameError, match="'tiny:q4' is another model already"):
        own.pull_from(url, DIGEST, "tiny-q4")  # Its file would be the same.
    server.asked.clear()
    assert own.pull_from(url, DIGEST, "tiny:q4").read_bytes() == CONTENT
    assert server.asked == []


def test_a_model_that_is_here_stays_whatever_its_address_holds_by_now(
    server: Any, url: str, folder: Path
) -> None:
    path = own.pull_from(url, DIGEST, "tiny")
    server.files["/Tiny-Q4.gguf"] = CONTENT + b"a later version"
    assert own.pull_from(url, DIGEST, "tiny") == path
    assert catalog.path_of("tiny") == path
    assert catalog.find("tiny").size == len(CONTENT)


def test_an_address_with_a_password_is_refused_and_not_repeated(folder: Path) -> None:
    with pytest.raises(DownloadError, match="the address on host holds a user or password") as caught:
        own.pull_from("https://me:hunter2@host/tiny.gguf", DIGEST, "tiny")
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert files_in(folder) == []


def test_a_file_that_lies_there_already_counts_by_its_digest(url: str, server: Any, folder: Path) -> None:
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ModelNameError, match="and it is another one"):
        own.pull_from(url, DIGEST, "tiny")
    (folder / "tiny.gguf").write_bytes(CONTENT)
    own.pull_from(url, DIGEST, "tiny")
    assert catalog.path_of("tiny") == folder / "tiny.gguf"
    assert server.asked == []


def test_a_file_elsewhere_is_kept_by_a_link(mine: Path, folder: Path) -> None:
    content = mine.read_bytes()
    path = own.register(mine, "mine")
    assert path.is_symlink()
    assert catalog.path_of("mine") == path
    assert catalog.find("mine").sha256 == hashlib.sha256(content).hexdigest()
    assert own.register(mine, "mine") == path
    assert own.forget(catalog.find("mine")) == 0
    assert files_in(folder) == []
    assert mine.read_bytes() == content


def test_what_stands_in_the_way_of_a_model_is_named(mine: Path, url: str, folder: Path) -> None:
    (folder / "tiny.gguf").mkdir(parents=True)
    with pytest.raises(DownloadError, match="already, and it cannot be read: Is a directory"):
        own.pull_from(url, DIGEST, "tiny")
    link = own.register(mine, "mine")
    link.unlink()
    link.mkdir()
    with pytest.raises(DownloadError, match=r"no link to .* can be made at .*: Is a directory") as caught:
        own.register(mine, "mine")
    assert caught.value.hint == f"use the file by its path: --model llamacpp:{mine}"
    assert not list(folder.glob(".link-*"))


def test_what_is_no_model_or_another_file_is_not_linked(tmp_path: Path, mine: Path, folder: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello, world")
    with pytest.raises(DownloadError, match=r"it is no GGUF file: it begins with b'hello, world'"):
        own.register(tmp_path / "text.gguf", "text")
    with pytest.raises(DownloadError, match=r"nowhere\.gguf' cannot be read: No such file"):
        own.register(tmp_path / "nowhere.gguf", "text")
    with pytest.raises(DownloadError, match=r"has sha256 '[0-9a-f]{64}', expected 'ff"):
        own.register(mine, "mine", sha256="ff" * 32)
    mine.write_bytes(mine.read_bytes()[:-1_000])
    with pytest.raises(
        DownloadError, match=r"cannot be used: it is cut off: 1,000 bytes of its weights"
    ) as caught:
        own.register(mine, "mine")
    assert caught.value.hint == "copy or fetch the file again"
    assert files_in(folder) == []


def test_a_model_whose_file_is_gone_is_not_there(mine: Path, folder: Path) -> None:
    own.register(mine, "mine")
    mine.unlink()
    assert catalog.path_of("mine") is None
    assert catalog.known("mine") is not None


def test_forgetting_frees_the_file_and_what_a_broken_download_left(
    server: Any, url: str, folder: Path
) -> None:
    own.pull_from(url, DIGEST, "tiny")
    assert own.forget(catalog.find("tiny")) == len(CONTENT)
    server.cuts["/Tiny-Q4.gguf"] = [len(CONTENT), 100_000, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError):
        own.pull_from(url, DIGEST, "tiny")
    assert own.forget(catalog.find("tiny")) > 100_000
    assert files_in(folder) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "no json", json.dumps({"name": "x", "size": "1", "sha256": "00", "source": "y"})]
)
def test_a_record_that_is_none_of_ours_is_no_model(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "x.gguf.json").write_text(text)
    assert catalog.own_entries() == ()
    with pytest.raises(ModelNameError):
        catalog.find("x")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from graphton import _own_models
from graphton.errors import DownloadError
try:
    _own_models.pull_from(sys.argv[1], sys.argv[2], "tiny")
except DownloadError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_is_told_and_goes_on_where_it_may(
    url: str, server: Any, folder: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, url, DIGEST], capture_output=True, text=True, timeout=60, check=True
    )
    assert "no file of more than 100,000 bytes may be written there (ulimit -f" in done.stdout
    assert files_in(folder) == ["tiny.gguf.json", "tiny.gguf.part"]
    assert catalog.path_of("tiny") is None
    server.asked.clear()
    own.pull_from(url, DIGEST, "tiny")
    assert server.asked[-1][1] == "bytes=100000-"


def test_the_signature_of_an_address_is_neither_shown_nor_kept(server: Any, url: str, folder: Path) -> None:
    server.files["/Tiny-Q4.gguf?signature=hunter22"] = CONTENT
    own.pull_from(f"{url}?signature=hunter22", DIGEST, "signed")
    assert "hunter22" not in (folder / "signed.gguf.json").read_text()
    assert str(catalog.find("signed").sources[0]) == url
    with pytest.raises(DownloadError) as caught:
        own.pull_from(f"{server.url}/none.gguf?signature=hunter22", DIGEST, "none")
    assert "hunter22" not in str(caught.value)
