"""An agent in ten lines. Needs a model: `python examples/ten_lines.py ollama:qwen2.5-coder:7b`."""

import asyncio
import sys

from graphton import create_deep_agent, tool


@tool(effect="read")
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


agent = create_deep_agent(sys.argv[1], instructions="Use the tools. Be brief.", tools=[add])
print(asyncio.run(agent.run("What is 17 + 25?")).text)
