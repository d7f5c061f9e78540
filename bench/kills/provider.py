"""The agents' model server, as a process that can be killed: FakeProviders, with every request noted before it is answered.

python -m kills.provider --seed N --witness PORT --log FILE
It says `ready`, listens when it has read the port from its standard input, 0 for any, and then says its address.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from graphton.testing import FakeProviders, FakeRequest, Reply

from kills.scenario import Script


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--witness", type=int, required=True)
    parser.add_argument("--log", required=True)
    given = parser.parse_args()
    script = Script(given.seed, sys.executable, given.witness)
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def answer(request: FakeRequest) -> Reply | None:
        found = script.where(request)
        if found is None:
            return script.beside(request)
        who, step = found
        os.write(log, f"{who.run} {who.path or '-'} {step} {int(request.time * 1000)}\n".encode())
        return script.reply(who, step)

    fake = FakeProviders()
    fake.rule(answer)
    print("ready", flush=True)
    await fake.start(int(await asyncio.to_thread(sys.stdin.readline)))
    print(fake.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
