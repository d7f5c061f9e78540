"""graphton.testing has a small public face, and costs nothing until something of it is used."""

from __future__ import annotations

import subprocess
import sys

import graphton.testing
import pytest


def test_every_public_name_is_there() -> None:
    assert graphton.testing.__all__ == sorted(graphton.testing.__all__)
    for name in graphton.testing.__all__:
        assert getattr(graphton.testing, name).__name__ == name
    assert set(graphton.testing.__all__) <= set(dir(graphton.testing))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'FakeProvider'"):
        graphton.testing.FakeProvider  # noqa: B018 (the access is the test)


def test_importing_it_imports_no_http_library() -> None:
    code = "import sys, graphton.testing; print(sorted({'aiohttp', 'orjson'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
