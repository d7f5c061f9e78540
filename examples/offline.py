"""The same agent without any model: what it says is scripted, everything else is real. Good for your tests."""

import asyncio

from graphton import create_deep_agent, tool
from graphton.testing import ScriptedModel, calls


@tool(effect="read")
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


model = ScriptedModel([calls(("add", {"a": 17, "b": 25})), "17 + 25 is 42."])
agent = create_deep_agent(model, tools=[add])
print(asyncio.run(agent.run("What is 17 + 25?")).text)
assert model.requests[1].messages[-1].results[0].text == "42"
