"""How fast a run goes on after kill -9: from the start of the next daemon to the first thing that it does.

    .venv/bin/python bench/resume.py [--rounds 7] [--steps 20] [--runs 1] [--busy N]

Each round lets `--runs` runs of `--steps` steps come to a command that would go on for ever, or to a model call that is
not answered; then the daemon is killed and another one started. Prints, in milliseconds since that process began: its
socket answers, the next attempt begins, the lost model call is asked again, or the model hears of the lost command; and
the CPU that the new daemon has used by then. `--busy` keeps so many processes busy meanwhile.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from start import Bench
from stigmer.api import event_pb2 as pb
from stigmer.daemon import find
from stigmer.home import Home

FOREVER = "sleep 600"


class Resumes:
    """One home whose daemon is killed again and again."""

    def __init__(self, folder: Path, *, steps: int, runs: int) -> None:
        self.bench, self.steps, self.runs = Bench(folder), steps, runs
        self.home = Home(folder / "home")

    def lost(self, last: dict[str, object]) -> dict[str, float]:
        """One kill while `last`, the last reply of each run, is under way or its command runs."""
        steps = [_command(f"echo line {n}") for n in range(self.steps)]
        for _ in range(self.runs):
            replies = [*steps, last, {"text": "done"}]
            self.bench._post("/_script", {"replies": replies})
            self.bench.stigmer("run", "--yes", "--detach", "work", "--model", "openai:gpt-4.1")
            self._until(lambda: self._stuck(last), "the last reply")
        found = find(self.home)
        assert found is not None
        asked = len(self.bench._requests())
        os.kill(found.pid, signal.SIGKILL)
        self._until(lambda: not os.path.exists(f"/proc/{found.pid}"), "the end of the daemon")
        with self._started() as process:
            begun = _began(process.pid)
            ready = time.time()
            self._until(lambda: len(self.bench._requests()) >= asked + self.runs, "the next requests")
            cpu = _cpu(process.pid)
            again = [float(str(r["time"])) for r in self.bench._requests()[asked:]]
            attempt = self._attempt()
            self.bench.stigmer("down")
            process.wait()
        return {
            "ready": (ready - begun) * 1000,
            "attempt": (attempt - begun) * 1000,
            "goes on": (max(again) - begun) * 1000,
            "cpu": cpu * 1000,
        }

    @contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        hears, tells = os.pipe()
        words = ("-P", "-m", "stigmer.daemon", "--home", str(self.home.path), "--ready-fd", str(tells))
        log = self.home.log.open("ab")
        process = subprocess.Popen(
            [sys.executable, *words], env=self.bench.env, pass_fds=(tells,), stdout=log, stderr=log
        )
        os.close(tells)
        os.read(hears, 16)
        os.close(hears)
        try:
            yield process
        finally:
            log.close()
            if process.poll() is None:
                process.kill()
                process.wait()

    def _stuck(self, last: dict[str, object]) -> bool:
        if "calls" in last:
            return any(r.process_started.call == f"{self.steps + 1}.0" for r in self._records())
        return len([r for r in self._records() if r.HasField("model_requested")]) > self.steps

    def _attempt(self) -> float:
        return max(r.time_ms for r in self._records() if r.HasField("attempt_started")) / 1000

    def _records(self) -> list[pb.Event]:
        """Those of the newest run."""
        db = sqlite3.connect(f"file:{self.home.database}?mode=ro", uri=True, timeout=30)
        try:
            rows = db.execute(
                "SELECT body FROM events WHERE key >> 24 = (SELECT max(no) FROM executions) ORDER BY key"
            ).fetchall()
        finally:
            db.close()
        return [pb.Event.FromString(body) for (body,) in rows]

    @staticmethod
    def _until(wanted: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 200
        while not wanted():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited in vain for {what}")
            time.sleep(0.003)


def _command(text: str) -> dict[str, object]:
    """The reply that calls for this command."""
    return {"calls": [{"name": "run_command", "arguments": {"command": text}}]}


def _began(pid: int) -> float:
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--busy", type=int, default=0)
    given = parser.parse_args()
    kinds: dict[str, dict[str, object]] = {
        "a command": _command(FOREVER),
        "a model call": {"text": "late", "delay": 600},
    }
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    try:
        for _ in range(given.rounds):
            for kind, last in kinds.items():
                with tempfile.TemporaryDirectory(prefix="resume-") as folder:
                    one = Resumes(Path(folder), steps=given.steps, runs=given.runs)
                    try:
                        rows[kind].append(one.lost(last))
                    finally:
                        one.bench.close()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    for kind, found in rows.items():
        print(f"killed in the middle of {kind} ({given.runs} runs of {given.steps} steps)")
        for name in found[0]:
            values = [one[name] for one in found]
            print(
                f"  {name:10} median {statistics.median(values):6.0f}  ({min(values):.0f} to {max(values):.0f})"
            )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
