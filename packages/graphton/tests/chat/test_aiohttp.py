"""aiohttp's import reads no certificates: whom TLS believes is asked of `graphton._trust` alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

IMPORTED = """
import json, os
from graphton.chat._aiohttp import aiohttp
from aiohttp import connector
own = connector._SSL_CONTEXT_VERIFIED
print(json.dumps([len(own.get_ca_certs()), own.verify_mode.name, own.check_hostname,
                  os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")]))
"""


@pytest.mark.parametrize("said", [None, "/etc/ssl/cert.pem"])
def test_aiohttp_itself_believes_nobody_and_the_environment_is_as_it_was(said: str | None) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT_")}
    environment = kept | ({"SSL_CERT_FILE": said} if said else {})
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [0, "CERT_REQUIRED", True, said, None]
