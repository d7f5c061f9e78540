"""`stigmer serve` and `stigmer worker`: what they say before they work."""

from __future__ import annotations

from typing import Any

import pytest
from stigmer.daemon import find


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


def test_a_second_server_says_whom_it_waits_for(stigmer: Any) -> None:
    assert stigmer("up").returncode == 0
    first = find(stigmer.home)
    assert first is not None
    serving = stigmer.start("serve", "--mode", "local", "--listen", "127.0.0.1:1", "--http", "")
    try:
        said = serving.stderr.readline()
        assert said == (
            f"waiting for the server of {stigmer.home.path} (pid {first.pid}) to end; stigmer down ends it\n"
        )
        assert find(stigmer.home) == first
    finally:
        serving.kill()
        serving.communicate()
