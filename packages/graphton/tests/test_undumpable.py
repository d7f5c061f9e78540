"""What a process holds stays shut for other processes of the same user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows processes under /proc")

DROP = """
import ctypes, os, sys
from graphton._process import make_undumpable
prctl = ctypes.CDLL(None).prctl
if os.getuid() == 0:  # the superuser reads everything; be somebody else
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""
HOLDER = (
    DROP
    + """
prctl(4, 1, 0, 0, 0)  # changing the user has shut it already; open it, as a plain process is
if sys.argv[1] == "shut":
    make_undumpable()
print(prctl(3, 0, 0, 0, 0), flush=True)
sys.stdin.read()
"""
)
READER = (
    DROP
    + """
for name in ("environ", "mem"):
    try:
        with open(f"/proc/{sys.argv[1]}/{name}", "rb") as file:
            print(file.read() if name == "environ" else "opened")
    except PermissionError:
        print("refused")
"""
)


@pytest.mark.parametrize(("how", "dumpable"), [("open", "1"), ("shut", "0")])
def test_an_undumpable_process_shows_its_keys_to_nobody(how: str, dumpable: str) -> None:
    environment = os.environ | {"OPENAI_API_KEY": "sentinel-77aa"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, how],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == dumpable
        reader = [sys.executable, "-c", READER, str(holder.pid)]
        seen = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
        holder.communicate("")
    if how == "open":
        assert "sentinel-77aa" in seen  # else this test proves nothing
    else:
        assert seen.split() == ["refused", "refused"]
