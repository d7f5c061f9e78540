"""The child process that serves one GGUF file: `python -m graphton.chat._llamacpp_serve`, started by llamacpp.py.

One JSON line comes in on standard input: model, key, n_ctx, threads, parallel, batch, log. One goes out: `{"url": …}`
when the server answers on the loopback interface, or `{"error": …}`. It ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
from typing import Any

from graphton._child import bind_to_parent, wait_for_parent_to_end

__all__: list[str] = []

_LARGEST_LOG = 1 << 20


def main() -> None:
    config = bind_to_parent()
    out, begin = _keep_stdout_for_us(config["log"])
    try:
        server, said = _serve(config)
    except Exception as error:
        server, said = None, {"error": f"{_last_complaint(config['log'], begin) or error}"}
    out_line = json.dumps(said).encode() + b"\n"
    try:
        os.write(out, out_line)
    except BrokenPipeError:
        os._exit(0)  # nobody is there to read it
    if server is None:
        os._exit(1)
    wait_for_parent_to_end()
    # The library's own way out joins threads that may be in the middle of a long computation.
    os._exit(0)


def _keep_stdout_for_us(log: str) -> tuple[int, int]:
    """llama.cpp writes to the first two descriptors: they lead to the log file from here on.

    Returns the descriptor for our own line, and where in the log our part begins.
    """
    out = os.dup(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if os.fstat(file).st_size > _LARGEST_LOG:
        os.truncate(file, 0)
    begin = os.fstat(file).st_size
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    return out, begin


def _serve(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config["key"]]  # other users of this machine reach the port, too
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.n_ctx = config["n_ctx"]
    params.fit_params = False  # the window is what we said, or loading fails
    params.n_parallel = config["parallel"]
    params.kv_unified = True
    params.cache_prompt = True
    params.cache_ram_mib = 0
    params.warmup = False  # the first prompt warms it; an empty run before it took seconds on a busy machine
    params.n_batch = params.n_ubatch = config["batch"]
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = config["threads"]
        threads.poll = (
            0  # waiting threads sleep: spinning ones starve the machine, and each other when it is busy
        )
    server = xllamacpp.Server(params)
    return server, {"url": server.listening_address}


def _last_complaint(log: str, begin: int) -> str:
    """The last error line that llama.cpp wrote, but for the one that only says that it gives up."""
    with open(log, encoding="utf-8", errors="replace") as file:
        if begin:
            file.seek(begin)
        lines = [line.strip() for line in file if " E " in line]
    telling = [line for line in lines if "exiting due to" not in line]
    return telling[-1].split(" E ", 1)[1].strip() if telling else ""


if __name__ == "__main__":
    main()
