"""What tests of agents need: a scripted model in the process, and a real HTTP server that fakes the providers.

`ScriptedModel` is a `Chat` without any wire. `FakeProviders` is a server on loopback that speaks Anthropic Messages,
OpenAI's chat completions and Responses, and Ollama's native API; `python -m graphton.testing` starts it as a process.
`tiny_gguf` writes a model file for the built-in llama.cpp, which says what a table says.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphton.testing._fake_providers import FakeProviders
    from graphton.testing._fake_script import Call, FakeRequest, Reply, script_from_json, steps
    from graphton.testing._scripted import ScriptedModel, calls, says
    from graphton.testing._tiny_gguf import tiny_gguf

__all__ = [
    "Call",
    "FakeProviders",
    "FakeRequest",
    "Reply",
    "ScriptedModel",
    "calls",
    "says",
    "script_from_json",
    "steps",
    "tiny_gguf",
]

_HOMES = {
    "Call": "graphton.testing._fake_script",
    "FakeProviders": "graphton.testing._fake_providers",
    "FakeRequest": "graphton.testing._fake_script",
    "Reply": "graphton.testing._fake_script",
    "ScriptedModel": "graphton.testing._scripted",
    "calls": "graphton.testing._scripted",
    "says": "graphton.testing._scripted",
    "script_from_json": "graphton.testing._fake_script",
    "steps": "graphton.testing._fake_script",
    "tiny_gguf": "graphton.testing._tiny_gguf",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphton.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
