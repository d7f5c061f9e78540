"""What the file tools answer."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest


async def test_a_listing_shows_sizes_and_marks_the_largest(folder: Path, call: Any) -> None:
    (folder / "big.csv").write_bytes(b"\0" * 1000)
    (folder / "empty").mkdir()
    os.symlink("notes.txt", folder / "alias")
    assert (await call("list_files")).split("\n") == [
        "big.csv (1000 bytes, largest)",
        "notes.txt (38 bytes) begins: first line the zebra sleeps last line",
        "alias (link)",
        "empty/ (folder)",
        "src/ (folder)",
        "(read_file big.csv shows the whole file)",
    ]
    assert await call("list_files", path="src") == (
        "app.py (25 bytes) begins: def main(): return 1\n(read_file src/app.py shows the whole file)"
    )
    assert await call("list_files", path="empty") == "'empty' is empty"
    assert await call("list_files", path="notes.txt") == "error: 'notes.txt' is a file, not a folder"
    assert await call("list_files", path="scr") == "error: there is no 'scr'; did you mean 'src'?"


async def test_a_listing_of_a_folder_that_is_made_up_says_so_and_shows_the_whole(
    folder: Path, call: Any
) -> None:
    for made_up in ("path/to/folder", "this folder", "src/deeper/still"):
        said = (await call("list_files", path=made_up)).split("\n")
        assert said[0] == f"(there is no {made_up!r}; in the workspace there is:)"
        assert said[1:] == (await call("list_files")).split("\n")


async def test_a_search_for_a_pattern_of_names_shows_the_files_of_such_a_name(
    folder: Path, call: Any
) -> None:
    for pattern in ("*.py", ".py", "app*"):
        assert await call("search_files", text=pattern) == (
            f"no line in 2 files holds {pattern!r}\n(but these are the files of such a name:)\nsrc/app.py"
        )
    assert await call("search_files", text="*.rs") == "no line in 2 files holds '*.rs'"
    assert await call("search_files", text="def*main") == "no line in 2 files holds 'def*main'"


async def test_a_listing_tells_how_the_largest_files_begin(folder: Path, call: Any) -> None:
    for number in range(7):
        (folder / "src" / f"{number}.txt").write_text("word " * (200 - number))
    (folder / "src" / "image.bin").write_bytes(b"\0" * 5000)
    said = (await call("list_files", path="src")).split("\n")
    assert said[0] == "image.bin (5000 bytes, largest)"
    assert said[1] == f"0.txt (1000 bytes) begins: {('word ' * 12)}…"
    assert [" begins: " in line for line in said[:-1]] == [False, *[True] * 4, *[False] * 4]


async def test_a_long_file_named_in_a_search_is_shown_in_part(folder: Path, call: Any) -> None:
    (folder / "story.md").write_text("word " * 1000)
    assert (await call("search_files", text="story.md")).endswith("(read_file shows the rest)")


@pytest.mark.skipif(sys.platform == "darwin", reason="names are text there")
async def test_a_name_that_is_no_text_does_not_hurt(folder: Path, call: Any) -> None:
    odd = os.fsdecode(b"caf\xe9.txt")
    (folder / odd).write_text("zebra")
    for said in (
        await call("list_files"),
        await call("find_files", pattern="caf*"),
        await call("search_files", text="zebra"),
        await call("search_files", text="zebra", regex=True),
    ):
        assert "caf?.txt" in said
    assert await call("read_file", path="caf.txt") == "error: there is no 'caf.txt'; did you mean 'caf?.txt'?"
    assert "is a binary file" not in await call("read_file", path=odd)


NAMES_ONLY = "\n(names only; read_file shows what is in a file)"


async def test_find_takes_names_and_paths(folder: Path, call: Any) -> None:
    for name in (
        "docs/a/guide.md",
        "docs/guide.md",
        ".git/config.md",
        ".github/ci.md",
        "node_modules/x/y.md",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("guide")
    assert await call("find_files", pattern="*.md") == "docs/a/guide.md\ndocs/guide.md" + NAMES_ONLY
    assert await call("find_files", pattern="docs/*.md") == "docs/guide.md" + NAMES_ONLY
    assert await call("find_files", pattern="docs/**/*.md") == "docs/a/guide.md\ndocs/guide.md" + NAMES_ONLY
    assert await call("find_files", pattern="./docs/a/*") == "docs/a/guide.md" + NAMES_ONLY
    assert await call("find_files", pattern=f"{folder}/docs/*.md") == "docs/guide.md" + NAMES_ONLY
    assert await call("find_files", pattern=".github/*") == ".github/ci.md" + NAMES_ONLY
    assert await call("find_files", pattern="Guide") == "docs/a/guide.md\ndocs/guide.md" + NAMES_ONLY
    assert await call("find_files", pattern="*.rs") == "no file matches '*.rs'"


async def test_search_shows_file_line_and_text(folder: Path, call: Any) -> None:
    (folder / "binary").write_bytes(b"zebra\0zebra")
    (folder / ".git").mkdir()
    (folder / ".git" / "x").write_text("zebra")
    assert await call("search_files", text="ZEBRA") == "notes.txt:2: the zebra sleeps"
    assert await call("search_files", text="zebra", path="src") == (
        "(not in 'src', but elsewhere:)\nnotes.txt:2: the zebra sleeps"
    )
    assert await call("search_files", text="zebra", path="made_up") == (
        "(not in 'made_up', but elsewhere:)\nnotes.txt:2: the zebra sleeps"
    )
    assert await call("search_files", text="zebra", path="made/up.html") == (
        "(not in 'made/up.html', but elsewhere:)\nnotes.txt:2: the zebra sleeps"
    )
    assert await call("search_files", text="giraffe", path="src") == "no line in 1 files holds 'giraffe'"
    assert await call("search_files", text="src/app.py") == (
        "no line in 2 files holds 'src/app.py'\n"
        "(but there is a file 'src/app.py'; this is in it:)\ndef main():\n    return 1"
    )
    assert await call("search_files", text="return", path="src/app.py") == "src/app.py:2: return 1"
    assert await call("search_files", text="z.bra") == "no line in 2 files holds 'z.bra'"
    assert await call("search_files", text="z.bra|ret\\w+", regex=True) == (
        "notes.txt:2: the zebra sleeps\nsrc/app.py:2: return 1"
    )
    assert await call("search_files", text="(", regex=True) == (
        "error: '(' is not a regular expression: missing ), unterminated subpattern at position 0"
    )
    assert await call("search_files", text="") == "error: text is empty; give the text to search for"


async def test_search_results_are_bounded(folder: Path, call: Any) -> None:
    (folder / "many.txt").write_text("word\n" * 1000)
    (folder / "story.md").write_text("a" * 5000 + "needle" + "b" * 5000)
    for regex in (False, True):
        lines = (await call("search_files", text="word", regex=regex)).split("\n")
        assert len(lines) == 51
        assert lines[-1] == "(stopped at 50 lines; search a folder or a longer text)"
        (line,) = (await call("search_files", text="needle", regex=regex)).split("\n")
        assert "needle" in line
        assert len(line) < 300


async def test_a_hostile_pattern_is_ended(folder: Path, call: Any) -> None:
    (folder / "trap.txt").write_text("a" * 60)
    said = await call("search_files", text="(a+)+$x", regex=True)
    assert said == "error: the pattern '(a+)+$x' took more than 3 seconds; use a simpler one"


async def test_the_event_loop_runs_on_while_files_are_searched(folder: Path, call: Any) -> None:
    (folder / "trap.txt").write_text("a" * 60)
    search = asyncio.ensure_future(call("search_files", text="(a+)+$x", regex=True))
    for _ in range(3):
        assert "zebra" in await call("read_file", path="notes.txt")
    assert not search.done()
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search


async def test_reading_gives_the_text_as_it_is(folder: Path, call: Any) -> None:
    assert await call("read_file", path="notes.txt") == "first line\nthe zebra sleeps\nlast line"
    assert await call("read_file", path="notes.txt", start_line=3) == "last line"
    assert await call("read_file", path="notes.txt", start_line=1, end_line=2) == (
        "first line\nthe zebra sleeps\n(lines 1 to 2 of 3; read on with start_line 3)"
    )
    (folder / "empty").write_text("")
    assert await call("read_file", path="empty") == "('empty' is empty)"
    (folder / "odd.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 \x0c \xe2\x80\xa8 end")
    assert await call("read_file", path="odd.txt") == "caf\ufffd \x0c \u2028 end"


async def test_a_long_file_is_cut_and_says_how_to_read_on(folder: Path, call: Any) -> None:
    (folder / "story.md").write_text("".join(f"line {number}\n" for number in range(1, 5001)))
    said = (await call("read_file", path="story.md")).split("\n")
    last = int(said[-2].removeprefix("line "))
    assert said[-1] == f"(lines 1 to {last} of 5000; read on with start_line {last + 1})"
    assert (await call("read_file", path="story.md", start_line=last + 1)).startswith(f"line {last + 1}\n")
    assert len("\n".join(said)) < 17_000
    (folder / "one.txt").write_text("x" * 50_000)
    assert (await call("read_file", path="one.txt")).endswith("x\n(line 1 is cut: it has 50000 characters)")


async def test_what_is_not_there_is_answered_with_some_of_what_is(folder: Path, call: Any) -> None:
    for name in ("empty", "hidden", "dozen", "many"):
        (folder / name).mkdir()
    for name in (
        "hidden/.env",
        "dozen/.env",
        *(f"{at}/{n:02}" for at in ("dozen", "many") for n in range(12)),
    ):
        (folder / name).write_text("")
    (folder / "many/12").write_text("")
    names = ", ".join(f"{n:02}" for n in range(12))
    for where, said in (
        ("empty", "there are no files"),
        ("hidden", "there are only hidden files"),
        ("dozen", f"there is: {names}"),
        ("many", f"there is: {names}, …"),
    ):
        assert await call("read_file", path=f"{where}/q") == f"error: there is no '{where}/q'; {said}"


async def test_what_cannot_be_read_says_why(folder: Path, call: Any) -> None:
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    assert (
        await call("read_file", path="picture.png")
        == "error: 'picture.png' is a binary file of 6 bytes, not text"
    )
    assert (
        await call("read_file", path="note.txt") == "error: there is no 'note.txt'; did you mean 'notes.txt'?"
    )
    assert (
        await call("read_file", path="src/App.py")
        == "error: there is no 'src/App.py'; did you mean 'src/app.py'?"
    )
    assert (
        await call("read_file", path="qq") == "error: there is no 'qq'; there is: notes.txt, picture.png, src"
    )
    assert (
        await call("read_file", path="q/r") == "error: there is no 'q'; there is: notes.txt, picture.png, src"
    )
    assert await call("read_file", path="src/notes.txt") == (
        "error: there is no 'src/notes.txt'; did you mean 'notes.txt'?"
    )
    assert await call("read_file", path="src") == "error: 'src' is a folder; list_files shows what is in it"
    assert await call("read_file", path="") == "error: '.' is a folder; list_files shows what is in it"
    assert await call("read_file", path="notes.txt/x") == "error: 'notes.txt' is not a folder"
    assert await call("read_file", path="a\0b") == "error: path 'a\\x00b' holds a zero byte"
    assert await call("read_file", path="x" * 300) == f"error: cannot open '{'x' * 300}': File name too long"
    assert await call("read_file", path="notes.txt", start_line=9) == (
        "error: 'notes.txt' has 3 lines; line 9 is beyond its end"
    )
    assert await call("read_file", path="notes.txt", start_line=3, end_line=2) == (
        "error: end_line 2 is before start_line 3"
    )


async def test_a_huge_file_is_read_in_part(folder: Path, call: Any) -> None:
    (folder / "huge.txt").write_bytes(b"line of text\n" * 1_400_000)
    os.truncate(folder / "huge.txt", 1 << 40)  # a terabyte, nearly all of it a hole
    assert "of more than 1290556; read on with start_line" in await call("read_file", path="huge.txt")
    assert "is larger than 16777216 bytes" in await call("edit_file", path="huge.txt", old="text", new="x")
    assert "huge.txt:1: line of text" in await call("search_files", text="line of")
    assert f"huge.txt ({1 << 40} bytes, largest)" in await call("list_files")


async def test_a_huge_folder_is_looked_at_in_part(folder: Path, call: Any) -> None:
    (folder / "huge").mkdir()
    for number in range(20_010):
        os.close(os.open(folder / "huge" / f"{number:05}", os.O_CREAT | os.O_WRONLY))
    said = (await call("list_files", path="huge")).split("\n")
    assert said[-3:] == [
        "(19800 more not shown; name a folder or a narrower pattern)",
        "(more than 20000 names; only the first 20000 were looked at)",
        "(read_file huge/00000 shows the whole file)",
    ]
    assert "(stopped after 20000 names; name a folder to look further)" in await call(
        "find_files", pattern="*"
    )
    assert "(stopped after 20000 names; name a folder" in await call(
        "search_files", text="zebra", path="huge"
    )


async def test_a_deep_tree_ends(folder: Path, call: Any) -> None:
    deep = folder.joinpath(*["d"] * 60)
    deep.mkdir(parents=True)
    (deep / "bottom.txt").write_text("zebra")
    assert await call("find_files", pattern="bottom.txt") == "no file matches 'bottom.txt'"
    assert await call("read_file", path="/".join(["d"] * 60 + ["bottom.txt"])) == "zebra"


async def test_writing_makes_parents_and_keeps_the_mode(folder: Path, call: Any) -> None:
    assert await call("write_file", path="a/b/c.txt", content="grüße") == "created a/b/c.txt (7 bytes)"
    assert (folder / "a/b/c.txt").read_text(encoding="utf-8") == "grüße"
    os.chmod(folder / "notes.txt", 0o750)
    inode = (folder / "notes.txt").stat().st_ino
    assert await call("write_file", path="notes.txt", content="new\n") == "replaced notes.txt (4 bytes)"
    status = (folder / "notes.txt").stat()
    assert stat.S_IMODE(status.st_mode) == 0o750
    assert status.st_ino != inode  # replaced as a whole, never written in place
    assert sorted(os.listdir(folder)) == ["a", "notes.txt", "src"]


async def test_what_cannot_be_written_says_why(folder: Path, call: Any) -> None:
    assert await call("write_file", path="src", content="") == (
        "error: 'src' is a folder; list_files shows what is in it"
    )
    assert await call("write_file", path=".", content="") == "error: the path is a folder; name a file in it"
    assert await call("write_file", path="notes.txt/x", content="") == "error: 'notes.txt' is not a folder"
    assert await call("write_file", path="x" * 300, content="") == (
        f"error: cannot open '{'x' * 300}': File name too long"
    )


async def test_an_edit_replaces_exactly_one_place(folder: Path, call: Any) -> None:
    os.chmod(folder / "notes.txt", 0o640)
    assert await call("edit_file", path="notes.txt", old="zebra", new="lion") == "edited notes.txt at line 2"
    assert (folder / "notes.txt").read_text() == "first line\nthe lion sleeps\nlast line\n"
    assert stat.S_IMODE((folder / "notes.txt").stat().st_mode) == 0o640
    assert await call("edit_file", path="notes.txt", old="first line\nthe lion", new="a") == (
        "edited notes.txt at line 1"
    )


async def test_an_edit_leaves_other_bytes_alone(folder: Path, call: Any) -> None:
    (folder / "dos.txt").write_bytes(b"one\r\ntwo \xe9\r\nthree\r\n")
    assert await call("edit_file", path="dos.txt", old="three\n", new="3\n4\n") == "edited dos.txt at line 3"
    assert (folder / "dos.txt").read_bytes() == b"one\r\ntwo \xe9\r\n3\r\n4\r\n"


async def test_an_edit_that_cannot_be_made_helps(folder: Path, call: Any) -> None:
    (folder / "twice.txt").write_text("a = 1\nb = 2\na = 1\n")
    (folder / "story.md").write_text("first\nthe zebra sleeps\n" + "and so do I\n" * 60)
    expected = {
        (
            "twice.txt",
            "a = 1",
            "x",
        ): "old occurs 2 times in 'twice.txt' (lines 1, 3); add a line before or after it",
        ("story.md", "the zebra sleep!", "x"): (
            "old does not occur in 'story.md'; the nearest line is 2: \"the zebra sleeps\""
        ),
        (
            "story.md",
            "#######",
            "x",
        ): "old does not occur in 'story.md'; read the file and copy the text exactly",
        (
            "twice.txt",
            "a = 2",
            "x",
        ): "old does not occur in 'twice.txt'; the nearest line is \"b = 2\". The file holds:\na = 1\nb = 2\na = 1",
        (
            "twice.txt",
            "#####",
            "x",
        ): "old does not occur in 'twice.txt'; copy it from what the file holds:\na = 1\nb = 2\na = 1",
        (
            "twice.txt",
            "c = 3",
            "c = 3\n",
        ): "'c = 3' does not occur in 'twice.txt'; with an empty old, new is added at its end",
        ("notes.txt", "", ""): "old and new are the same text",
        ("notes.txt", "x", "x"): "old and new are the same text",
        ("nots.txt", "a", "b"): "there is no 'nots.txt'; did you mean 'notes.txt'?",
    }
    for (path, old, new), text in expected.items():
        assert await call("edit_file", path=path, old=old, new=new) == f"error: {text}"
    assert (folder / "twice.txt").read_text() == "a = 1\nb = 2\na = 1\n"


async def test_with_an_empty_old_lines_are_added_at_the_end(folder: Path, call: Any) -> None:
    for before, new, after in (
        (b"one\n", "two", b"one\ntwo\n"),
        (b"one", "two\n", b"one\ntwo\n"),
        (b"one\r\n", "two\nthree", b"one\r\ntwo\r\nthree\r\n"),
        (b"", "one", b"one\n"),
    ):
        (folder / "list.txt").write_bytes(before)
        said = await call("edit_file", path="list.txt", old="", new=new)
        assert said == "added to the end of list.txt"
        assert (folder / "list.txt").read_bytes() == after
    assert "there is no 'new.txt'" in await call("edit_file", path="new.txt", old="", new="x")


async def test_a_file_that_is_in_another_folder_is_named(folder: Path, call: Any) -> None:
    (folder / "docs" / "deep").mkdir(parents=True)
    (folder / "docs" / "deep" / "report.txt").write_text("x")
    said = await call("read_file", path="report.txt")
    assert said == "error: there is no 'report.txt'; did you mean 'docs/deep/report.txt'?"


async def test_edits_of_one_reply_do_not_lose_each_other(folder: Path, call: Any) -> None:
    (folder / "list.txt").write_text("".join(f"<{number}>\n" for number in range(30)))
    await asyncio.gather(
        *(call("edit_file", path="list.txt", old=f"<{number}>", new=f"[{number}]") for number in range(30))
    )
    assert (folder / "list.txt").read_text() == "".join(f"[{number}]\n" for number in range(30))
