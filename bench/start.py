"""How fast stigmer starts: `--help` over bare Python, and from `stigmer run` to the first model request, warm and cold.

    .venv/bin/python bench/start.py [--rounds 7]

Every round measures everything once, in turn, so that a busy machine disturbs all rows alike. The yardstick is what
a command must at least import: `python -c "import click, grpc.aio"`. Prints median and range in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

PYTHON = sys.executable


class Bench:
    """A fake model server and a home of its own, for as long as the measurement lasts."""

    def __init__(self, folder: Path) -> None:
        self.fake = subprocess.Popen(
            [PYTHON, "-m", "graphton.testing", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert self.fake.stdout is not None
        self.url = self.fake.stdout.readline().strip()
        self.workspace = folder / "work"
        self.workspace.mkdir()
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("STIGMER_", "OLLAMA_", "OPENAI_", "MODE"))
        }
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        self.env = {
            **kept,
            "STIGMER_HOME": str(folder / "home"),
            "OPENAI_API_KEY": "sk-bench-0000000000000000",
        }
        self.env |= {"OPENAI_BASE_URL": self.url + "/v1"}

    def close(self) -> None:
        self.stigmer("down")
        self.fake.terminate()
        self.fake.wait(10)

    def stigmer(self, *words: str) -> None:
        subprocess.run(
            [PYTHON, "-m", "stigmer", *words],
            env=self.env,
            cwd=self.workspace,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def python(self, code: str) -> float:
        return self.timed(lambda: subprocess.run([PYTHON, "-c", code], env=self.env, check=True))

    def help(self) -> float:
        return self.timed(lambda: self.stigmer("--help"))

    def timed(self, work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        return (time.perf_counter() - begun) * 1000

    def first_request(self) -> float:
        """Milliseconds from the start of `stigmer run` to its model request, by the server's clock (the same machine)."""
        self._post("/_script", {"replies": [{"text": "done"}]})
        seen = len(self._requests())
        begun = time.time()
        self.stigmer("run", "hello", "--provider", "openai", "--model", "gpt-4.1")
        made = self._requests()[seen:]
        if not made:
            raise SystemExit("the run made no model request; try it by hand: stigmer run --provider openai …")
        return (float(str(made[0]["time"])) - begun) * 1000

    def cold(self) -> float:
        self.stigmer("down")
        return self.first_request()

    def _requests(self) -> list[dict[str, object]]:
        with urllib.request.urlopen(self.url + "/_requests") as reply:
            found = json.load(reply)
        return [r for r in found if "chat/completions" in str(r["path"]) or "responses" in str(r["path"])]

    def _post(self, path: str, data: object) -> None:
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), method="POST")
        urllib.request.urlopen(request).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="stigmer-bench-") as folder:
        bench = Bench(Path(folder))
        try:
            measures: dict[str, Callable[[], float]] = {
                "python -c pass": lambda: bench.python("pass"),
                "stigmer --help": bench.help,
                "python -c 'import click, grpc.aio'": lambda: bench.python("import click, grpc.aio"),
                "stigmer run, cold daemon: first model request": bench.cold,
                "stigmer run, warm daemon: first model request": bench.first_request,
            }
            for number in range(rounds + 1):
                for name, measure in measures.items():
                    value = measure()
                    if number:  # The first round warms the caches.
                        rows.setdefault(name, []).append(value)
        finally:
            bench.close()
    for name, values in rows.items():
        print(f"{name:48} {statistics.median(values):7.0f} ms   ({min(values):.0f} to {max(values):.0f})")
    middle = {name: statistics.median(values) for name, values in rows.items()}
    names = list(middle)
    print(f"{'--help over bare Python':48} {middle[names[1]] - middle[names[0]]:7.0f} ms   target 80")
    print(f"{'cold over the yardstick':48} {middle[names[3]] - middle[names[2]]:7.0f} ms   target 450")
    print(f"{'warm over the yardstick':48} {middle[names[4]] - middle[names[2]]:7.0f} ms   target 100")


if __name__ == "__main__":
    main()
