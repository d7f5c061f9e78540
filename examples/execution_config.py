"""A program that says for one execution which model serves it; what it leaves out comes from the layers below."""

import asyncio
import sys

from stigmer.client import Client, CreateExecutionRequest, ExecutionConfig
from stigmer.daemon import ensure_running
from stigmer.home import Home


async def main(model: str, *fallbacks: str) -> None:
    config = ExecutionConfig(model=model, max_tokens=500, fallbacks=fallbacks)
    request = CreateExecutionRequest(task="Say hello.", execution_config=config)
    async with Client(ensure_running(Home.find())) as client:
        for setting in (await client.resolve(request)).config.settings:
            print(f"{setting.name} = {setting.value} ({setting.source})", file=sys.stderr)
        async for event in client.run(request):
            if event.HasField("finished"):
                print(event.finished.text)


asyncio.run(main(*sys.argv[1:]))
