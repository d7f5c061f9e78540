"""Nothing outside the workspace, and nothing closed, is ever opened."""

from __future__ import annotations

import ctypes
import os
import pty
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graphton.errors import SettingError
from graphton.toolsets import open_workspace

OUTSIDE = "is outside the workspace"


@pytest.fixture
def links(folder: Path) -> Path:
    """The workspace with every kind of symlink in it."""
    for name, target in {
        "file_out": "../secret.txt",
        "file_out_absolute": str(folder.parent / "secret.txt"),
        "dir_out": "../outside",
        "dir_out_absolute": str(folder.parent / "outside"),
        "dangling_out": "../new.txt",
        "dangling_out_absolute": str(folder.parent / "new.txt"),
        "up_and_out": "src/../../secret.txt",
        "chain": "file_out",
        "parent": "..",
        "loop": "loop",
        "file_in": "notes.txt",
        "dir_in": "src",
        "dir_in_absolute": str(folder / "src"),
        "dangling_in": "src/new.txt",
        "src/up": "..",
    }.items():
        os.symlink(target, folder / name)
    return folder


ESCAPES = [
    "../secret.txt",
    "src/../../secret.txt",
    "src/up/../secret.txt",
    "./..//secret.txt",
    "/etc/passwd",
    "/",
    "~/.ssh/id_rsa",
    "/proc/self/environ",
    "/proc/self/cwd/notes.txt/..",
    "/proc/self/root/etc/passwd",
    "/dev/zero",
    "file_out",
    "file_out_absolute",
    "dir_out/secret.txt",
    "dir_out_absolute/secret.txt",
    "up_and_out",
    "chain",
    "parent/secret.txt",
    "src/up/file_out",
]


@pytest.mark.parametrize("path", ESCAPES)
async def test_no_path_leads_out(links: Path, call: Any, path: str) -> None:
    before = sorted(os.walk(links.parent / "outside"))
    assert OUTSIDE in await call("read_file", path=path)
    assert OUTSIDE in await call("write_file", path=path, content="x")
    assert OUTSIDE in await call("edit_file", path=path, old="outside", new="x")
    assert OUTSIDE in await call("list_files", path=path)
    assert OUTSIDE in await call("search_files", text="outside", path=path)
    assert (links.parent / "secret.txt").read_text() == "outside\n"
    assert sorted(os.walk(links.parent / "outside")) == before


@pytest.mark.parametrize("path", ["dangling_out", "dangling_out_absolute", "dir_out/new.txt", "../new.txt"])
async def test_nothing_is_created_outside(links: Path, call: Any, path: str) -> None:
    assert OUTSIDE in await call("write_file", path=path, content="x")
    assert not (links.parent / "new.txt").exists()
    assert os.listdir(links.parent / "outside") == ["secret.txt"]


async def test_an_absolute_path_inside_is_fine(links: Path, call: Any) -> None:
    assert "zebra" in await call("read_file", path=str(links / "notes.txt"))
    assert "zebra" in await call("read_file", path=str(links / "src" / ".." / "notes.txt"))
    assert OUTSIDE in await call("read_file", path=f"{links}2/notes.txt")
    assert OUTSIDE in await call("read_file", path=f"{links}/../secret.txt")


async def test_links_that_stay_inside_are_followed(links: Path, call: Any) -> None:
    assert "zebra" in await call("read_file", path="file_in")
    assert "main" in await call("read_file", path="dir_in/app.py")
    assert "main" in await call("read_file", path="dir_in_absolute/app.py")
    assert "zebra" in await call("read_file", path="src/up/notes.txt")
    assert await call("write_file", path="dangling_in", content="x") == "created src/new.txt (1 bytes)"
    assert (links / "dangling_in").is_symlink()
    assert await call("write_file", path="file_in", content="x") == "replaced notes.txt (1 bytes)"
    assert (links / "file_in").is_symlink()


async def test_a_link_to_itself_ends(links: Path, call: Any) -> None:
    assert "goes through more than 40 symlinks" in await call("read_file", path="loop")


async def test_the_path_as_somebody_wrote_it_works(folder: Path, call_in: Any) -> None:
    os.symlink(folder, folder.parent / "alias")
    call = call_in(folder.parent / "alias")
    assert "zebra" in await call("read_file", path=str(folder.parent / "alias" / "notes.txt"))
    assert "zebra" in await call("read_file", path=str(folder / "notes.txt"))


async def test_find_and_search_follow_no_link(links: Path, call: Any) -> None:
    assert (await call("find_files", pattern="*.txt")).splitlines()[:-1] == ["notes.txt"]
    assert "no line in 2 files" in await call("search_files", text="outside")
    assert "must be a file name or a path in the workspace" in await call("find_files", pattern="../*.txt")
    assert OUTSIDE in await call("find_files", pattern="/etc/*")


async def test_special_files_are_refused_at_once(folder: Path, call: Any) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # a socket's path may be 100 bytes only
        try:
            listener.bind("socket")
        finally:
            os.fchdir(here)
            os.close(here)
        for name in ("pipe", "socket"):
            for tool, more in {
                "read_file": {},
                "write_file": {"content": "x"},
                "edit_file": {"old": "a", "new": "b"},
            }.items():
                assert "is not a regular file" in await call(tool, path=name, **more)
            assert "is not a regular file" in await call("search_files", text="x", path=name)
        assert "no line in 2 files" in await call("search_files", text="nowhere")
        assert "pipe (special file)" in await call("list_files")


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="there is no /proc here")
async def test_the_kernels_files_are_closed_in_a_workspace_of_everything(call_in: Any) -> None:
    call = call_in(Path("/"), named=True)
    for path in ("/proc/self/environ", "/proc/self/status", "proc/1/cmdline", "/sys/kernel"):
        assert "belongs to the kernel and is closed to tools" in await call("read_file", path=path)
    main, other = pty.openpty()
    try:
        assert "error:" in await call("read_file", path=os.ttyname(other))
    finally:
        os.close(main)
        os.close(other)


# --- races -----------------------------------------------------------------------------------------------------


class Swapper(threading.Thread):
    """Exchanges a name with a symlink that leads outside, as fast as it can; the name always exists."""

    def __init__(self, place: Path, target: Path) -> None:
        super().__init__()
        self.place, self.link, self.target = place, place.with_name("other"), target
        self.stop, self.swaps = threading.Event(), 0
        self.libc = ctypes.CDLL(None, use_errno=True)

    def run(self) -> None:
        while not self.stop.is_set():
            os.symlink(self.target, self.link)
            self.exchange()
            self.exchange()
            os.unlink(self.link)
            self.swaps += 1

    def exchange(self) -> None:
        one, other = os.fsencode(self.place), os.fsencode(self.link)
        if self.libc.renameat2(-100, one, -100, other, 2) != 0:  # AT_FDCWD, RENAME_EXCHANGE
            raise OSError(ctypes.get_errno(), "renameat2")

    def __enter__(self) -> Swapper:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged with a call that only Linux has")
@pytest.mark.parametrize("component", ["folder", "folder/file.txt"])
async def test_a_component_swapped_for_a_link_never_leads_out(
    folder: Path, call: Any, component: str
) -> None:
    outside = folder.parent / "outside"
    (outside / "file.txt").write_text("outside")
    (folder / "folder").mkdir()
    (folder / "folder" / "file.txt").write_text("inside")
    target = outside if component == "folder" else outside / "file.txt"
    seen: set[str] = set()
    with Swapper(folder / component, target) as swapper:
        for _ in range(150):
            seen.add(await call("read_file", path="folder/file.txt"))
            seen.add(await call("search_files", text="outside", path="folder"))
            seen.add(await call("write_file", path="folder/file.txt", content="inside"))
            seen.add(await call("write_file", path="folder/new/file.txt", content="inside"))
            seen.add(await call("edit_file", path="folder/file.txt", old="outside", new="x"))
    assert swapper.swaps > 0
    assert not [text for text in seen if text.startswith(("outside", "folder/file.txt:", "edited"))]
    assert sorted(os.listdir(outside)) == ["file.txt", "secret.txt"]
    assert (outside / "file.txt").read_text() == "outside"


AT: dict[tuple[str, str], Callable[[], object]] = {}
"""What to do right before the kernel is asked: by audit event and the start of the name."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if AT and event in ("open", "os.mkdir", "os.rename"):
        for key in list(AT):
            if key[0] == event and os.fsdecode(args[0]).startswith(key[1]):
                AT.pop(key)()


@pytest.fixture(scope="module")
def audit() -> None:
    """Lets a test act between a check and its use: Python announces each open before it does it."""
    sys.addaudithook(_audit)


RACES: list[tuple[str, str, str, dict[str, str]]] = [
    # the event at which a component is swapped for a link that leads outside, that component, the call
    ("open:folder", "folder", "read_file", {}),
    ("open:file.txt", "folder", "read_file", {}),
    ("open:file.txt", "folder/file.txt", "read_file", {}),
    ("open:folder", "folder", "search_files", {"text": "outside"}),
    ("open:file.txt", "folder/file.txt", "search_files", {"text": "outside"}),
    ("open:folder", "folder", "write_file", {"content": "new"}),
    ("open:.file.txt", "folder", "write_file", {"content": "new"}),
    ("open:.file.txt", "folder/file.txt", "write_file", {"content": "new"}),
    ("os.rename:.file.txt", "folder", "write_file", {"content": "new"}),
    ("os.rename:.file.txt", "folder/file.txt", "write_file", {"content": "new"}),
    ("open:folder", "folder", "edit_file", {"old": "side", "new": "new"}),
    ("open:file.txt", "folder/file.txt", "edit_file", {"old": "side", "new": "new"}),
    ("os.rename:.file.txt", "folder/file.txt", "edit_file", {"old": "side", "new": "new"}),
]


@pytest.mark.usefixtures("audit")
@pytest.mark.parametrize(("when", "component", "name", "more"), RACES, ids=lambda one: str(one)[:30])
async def test_a_swap_between_check_and_use_never_leads_out(
    folder: Path, call: Any, when: str, component: str, name: str, more: dict[str, str]
) -> None:
    outside, place, swapped = folder.parent / "outside", folder / component, []
    (outside / "file.txt").write_text("outside")
    (folder / "folder").mkdir()
    (folder / "folder" / "file.txt").write_text("inside")

    def swap() -> None:
        os.rename(place, folder / "aside")
        os.symlink(outside if component == "folder" else outside / "file.txt", place)
        swapped.append(when)

    event, _, start = when.partition(":")
    AT[event, start] = swap
    said = await call(name, path="folder/file.txt", **more)
    assert swapped
    assert not AT
    assert "outside" not in said.replace("holds 'outside'", "")
    assert sorted(os.listdir(outside)) == ["file.txt", "secret.txt"]
    assert (outside / "file.txt").read_text() == "outside"


@pytest.mark.usefixtures("audit")
async def test_a_closed_folder_swapped_in_is_not_read(folder: Path, call_in: Any) -> None:
    (folder / "home").mkdir()
    (folder / "home" / "token").write_text("secret")
    (folder / "folder").mkdir()
    (folder / "folder" / "token").write_text("free")

    def swap() -> None:
        os.rename(folder / "folder", folder / "aside")
        os.rename(folder / "home", folder / "folder")
        os.symlink("folder", folder / "home")

    AT["open", "folder"] = swap
    call = call_in(folder, closed=(folder / "home",))
    assert "is closed to tools" in await call("read_file", path="folder/token")


# --- closed folders --------------------------------------------------------------------------------------------


async def test_a_closed_folder_inside_the_workspace_is_shut_for_every_tool(
    folder: Path, call_in: Any
) -> None:
    home = folder / "home"
    home.mkdir()
    (home / "token").write_text("zebra-token\n")
    os.symlink("home", folder / "alias")
    os.symlink("home/token", folder / "token_alias")
    call = call_in(folder, closed=(home,))
    for path in (
        "home/token",
        "alias/token",
        "token_alias",
        "src/../home/token",
        str(home / "token"),
        "home",
    ):
        assert "is closed to tools" in await call("read_file", path=path)
        assert "is closed to tools" in await call("write_file", path=path, content="x")
        assert "is closed to tools" in await call("edit_file", path=path, old="zebra", new="x")
        assert "is closed to tools" in await call("search_files", text="zebra", path=path)
    assert "is closed to tools" in await call("list_files", path="home")
    assert "is closed to tools" in await call("write_file", path="home/new/file", content="x")
    assert await call("search_files", text="zebra") == "notes.txt:2: the zebra sleeps"
    assert "token" not in await call("find_files", pattern="home/*")
    assert os.listdir(home) == ["token"]
    os.rename(home, folder / "moved")
    assert "there is no 'home'" not in await call("list_files", path="home")
    os.rename(folder / "moved", home)


async def test_a_closed_folder_is_known_by_what_it_is(folder: Path, call_in: Any) -> None:
    """By device and inode too: another spelling of its name reaches it on some file systems."""
    home = folder.parent / "home"
    home.mkdir()
    os.symlink(home, folder.parent / "spelled")
    call = call_in(folder, closed=(folder.parent / "spelled",))
    os.rename(home, folder / "home")
    os.symlink(folder / "home", home)
    assert "is closed to tools" in await call("list_files", path="home")


async def test_a_closed_folder_that_does_not_exist_cannot_be_made(folder: Path, call_in: Any) -> None:
    call = call_in(folder, closed=(folder / "later",))
    assert "is closed to tools" in await call("write_file", path="later/x", content="x")
    assert "is closed to tools" in await call("write_file", path="later", content="x")
    assert not (folder / "later").exists()


@pytest.mark.parametrize(
    "path", [".git/hooks/pre-commit", "src/.GIT/config", ".stigmer/config.yaml", "hooks/x"]
)
async def test_files_that_other_programs_obey_are_not_written(folder: Path, call: Any, path: str) -> None:
    (folder / ".git" / "hooks").mkdir(parents=True)
    os.symlink(".git/hooks", folder / "hooks")
    said = await call("write_file", path=path, content="x")
    assert "which file tools do not change; run_command can, and asks" in said
    assert os.listdir(folder / ".git" / "hooks") == []
    assert not (folder / "src" / ".GIT").exists()


# --- choosing a workspace --------------------------------------------------------------------------------------


def test_home_and_the_folders_above_it_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "users" / "ada"
    (home / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for path, reason in {home: "your home folder", home.parent: "a folder around your home folder"}.items():
        with pytest.raises(SettingError) as caught:
            open_workspace(path, named=False)
        assert f"{str(path)!r} is {reason}, and an agent may change every file" in str(caught.value)
        assert (
            f"hint: go to a project folder first, or name this one by hand: --workspace {str(path)!r}"
            in str(caught.value)
        )
        assert open_workspace(path, named=True).root == path
    with pytest.raises(SettingError, match="'/' is the root of the file system"):
        open_workspace("/", named=False)
    os.symlink(home, tmp_path / "alias")
    with pytest.raises(SettingError, match="is your home folder"):
        open_workspace(tmp_path / "alias", named=False)
    assert open_workspace("~/project", named=False).root == home / "project"


def test_a_workspace_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SettingError, match=r"workspace '.*/nowhere' does not exist\nhint: make it first: mkdir -p"
    ):
        open_workspace(tmp_path / "nowhere", named=True)
    with pytest.raises(SettingError, match=r"workspace '.*/file' is not a folder"):
        open_workspace(tmp_path / "file", named=True)
    (tmp_path / "home" / "runs").mkdir(parents=True)
    with pytest.raises(
        SettingError, match=r"lies in '.*/home', which is closed to tools\nhint: run in another"
    ):
        open_workspace(tmp_path / "home" / "runs", named=True, closed=[tmp_path / "home"])


async def test_a_workspace_that_is_gone_is_told(folder: Path, call: Any) -> None:
    os.rename(folder, folder.parent / "elsewhere")
    assert "cannot be opened: No such file or directory" in await call("list_files")
    assert "no command can be started in" in await call("run_command", command="true")
