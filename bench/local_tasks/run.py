"""The scoreboard of local models: both models of the default family, on Ollama and on llama.cpp.

scripts/bench local                                        # the short form of four rows
scripts/bench local --full                                 # every task in three wordings
scripts/bench local --model llamacpp:qwen2.5-coder:0.5b    # one row
scripts/bench local --native --full                        # the other column, once per model and server
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

import native
from graphton.catalog import path_of
from stigmer.errors import StigmerError
from stigmer.modelbench.bench import Setup, today, tried
from stigmer.modelbench.results import Results, Try, judged_anew
from stigmer.modelbench.scores import Score, aims_for, native_for, score
from stigmer.modelbench.show import Progress, markdown, table
from stigmer.modelbench.tasks import case_of, cases

MODELS = ("qwen2.5-coder:0.5b", "qwen2.5-coder:1.5b")
NATIVE = Path(__file__).parents[2] / "packages/stigmer/src/stigmer/modelbench/native.json"
ROWS = tuple(f"{provider}:{model}" for provider in ("llamacpp", "ollama") for model in MODELS)


def main() -> int:
    """Parse the command line, try, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help=f"may be given again; default: {', '.join(ROWS)}")
    parser.add_argument("--base-url", default="http://localhost:11434", help="where Ollama is")
    parser.add_argument("--full", action="store_true", help="all tries instead of the balanced few")
    parser.add_argument("--native", action="store_true", help="the servers' own tools API, without our code")
    parser.add_argument(
        "--minutes", type=float, help="stop a row after so many; the same command goes on there"
    )
    parser.add_argument("--tool-mode", choices=["native", "recovery", "envelope"])
    parser.add_argument("--again", action="store_true", help="begin anew, even where a bench was broken off")
    parser.add_argument(
        "--rescore", action="store_true", help="run nothing: judge what is there by today's checks"
    )
    parser.add_argument("--markdown", action="store_true", help="print rows for docs/local.md")
    parser.add_argument(
        "--results", type=Path, default=Path("/tmp/stigmer-bench"), help="where they are kept"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tell each wrong try")
    args = parser.parse_args()
    for name in args.model or ROWS:
        provider, _, model = name.partition(":")
        url = args.base_url if provider == "ollama" else None
        setup = Setup(provider, model, url, args.tool_mode)
        try:
            asyncio.run(row(setup, args))
        except StigmerError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


async def row(setup: Setup, args: argparse.Namespace) -> None:
    """One row: what is not tried yet is tried, then all of it is counted."""
    form = "full" if args.full else "short"
    ids = [case.id for case in cases(form)]
    head = setup.head(form) | ({"column": "native"} if args.native else {})
    path = args.results / f"{'native-' if args.native else ''}{form}-{setup.file_name}"
    if args.rescore:
        results = Results.open(path, head, wanted=[*ids, "never finished"])
        results.tries = {id: judged_anew(one) for id, one in results.tries.items()}
    else:
        results = Results.open(path, head, wanted=ids, again=args.again)
        await fill(setup, results, ids, args)
    found = [results.tries[id] for id in ids if id in results.tries]
    for one in found:
        if args.verbose and one.wrong:
            print(f"  {one.id}: {case_of(one.id).wording.request!r}: {one.wrong}")
    if args.native:
        keep_native(setup, score(found), await native.version(setup.base_url))
    title = f"{setup.name}, {today()}: {len(found)} of {len(ids)} tries, {score(found).seconds:.0f} s"
    theirs = None if args.native else native_for(setup.provider, setup.model)
    if args.markdown:
        for line in markdown_rows(setup, score(found), len(ids)):
            print(line)
        return
    print(table(title, score(found), native=theirs, aims=aims_for(setup.model)) + "\n", flush=True)


def markdown_rows(setup: Setup, found: Score, wanted: int) -> list[str]:
    """Two rows for docs/local.md: ours, and the plain native API where that was measured."""
    server = {"ollama": "Ollama", "llamacpp": "llama.cpp"}[setup.provider]
    ours = (today(), setup.model, server, "stigmer", f"{found.total} of {wanted}")
    rows = [markdown(ours, found, aims_for(setup.model))]
    if theirs := native_for(setup.provider, setup.model):
        cells = (theirs.date, setup.model, server, "plain native API", str(sum(theirs.tries.values())))
        rows.append(markdown(cells, theirs))
    return rows


def keep_native(setup: Setup, found: Score, server: str) -> None:
    """Put the row into the file that the product carries; an earlier one of the same model and server goes."""
    rows = json.loads(NATIVE.read_text("utf-8"))
    rows = [row for row in rows if (row["provider"], row["model"]) != (setup.provider, setup.model)]
    rows.append(
        {
            "provider": setup.provider,
            "model": setup.model,
            "server": server,
            "date": today(),
            "right": {kind: found.right.get(kind, 0) for kind in found.tries},
            "tries": dict(found.tries),
            "ends": dict(found.ends),
        }
    )
    rows.sort(key=lambda row: (row["provider"], row["model"]))
    NATIVE.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


async def fill(setup: Setup, results: Results, ids: list[str], args: argparse.Namespace) -> None:
    """Try what is missing, for so many minutes at most."""
    wanted = [id for id in ids if id not in results.tries]
    progress = Progress(len(ids), len(results.tries), sum(not one.wrong for one in results.tries.values()))
    print(f"{setup.name}: {progress}; results in {results.path}", file=sys.stderr)
    source = _natively(setup, wanted) if args.native else tried(setup, wanted)
    last = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(args.minutes and args.minutes * 60), aclosing(source) as tries:
            async for one in tries:
                if isinstance(one, str):
                    print(f"{setup.name} on {one}", file=sys.stderr)
                    continue
                results.add(one)
                progress.count(right=not one.wrong)
                if time.monotonic() - last > 10:
                    last = time.monotonic()
                    print(f"{setup.name}: {progress}", file=sys.stderr, flush=True)


async def _natively(setup: Setup, ids: list[str]) -> AsyncGenerator[Try]:
    if setup.provider == "ollama":
        opened = native.ollama(setup.base_url or "", setup.model)
    else:
        path = path_of(setup.model)
        if path is None:
            raise SystemExit(f"{setup.model} is not on this machine: stigmer models pull {setup.model}")
        opened = native.llamacpp(path)
    async with opened as server:
        for id in ids:
            yield await native.attempt(server, case_of(id))


if __name__ == "__main__":
    sys.exit(main())
