"""`stigmer worker`: what it says before it works."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("server", ["control.example:7244", "https://control.example:7244", "http://[::1"])
def test_the_homes_token_is_shown_to_no_other_machine(stigmer: Any, server: str) -> None:
    refused = stigmer("worker", "--mode", "local", "--server", server)
    assert refused.returncode == 2
    assert (
        f"the control plane at '{server}' is another machine, and STIGMER_API_KEY is not set"
        in refused.stderr
    )
    assert "stigmer key create --name worker-1 --scope worker" in refused.stderr
    assert not stigmer.home.token.exists()
