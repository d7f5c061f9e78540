"""The child process that serves one GGUF file: `python -m graphton.chat._llamacpp_serve`, started by llamacpp.py.

One JSON line comes in on standard input: model, key, window, slots, cache_mib,
threads, batch, log. One goes out: `{"url": …}`
when the server answers on the loopback interface, or `{"error": …}`. It ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

from graphton._child import bind_to_parent, wait_for_parent_to_end

__all__: list[str] = []

_LARGEST_LOG = 1 << 20
_LOG_SECONDS = 2.0
_ALL_LAYERS = 999


def main() -> None:
    config = bind_to_parent()
    out, begin = _keep_stdout_for_us(config["log"])
    try:
        server, said = _serve(config)
    except Exception as error:
        server, said = None, {"error": f"{_complaint(config['log'], begin) or error}"}
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
    # Each slot has a cache of its own for the whole window: nothing is divided, and no call can take another's room.
    params.n_ctx = config["window"] * config["slots"]
    params.n_parallel = config["slots"]
    params.kv_unified = False
    params.fit_params = False  # the window is what we said, or loading fails
    # A reply that fills the window ends there; nothing is dropped from its beginning.
    params.ctx_shift = False
    params.cache_prompt = True
    # What loses its slot is kept here, and comes back into whatever slot its conversation gets. Below the similarity,
    # another conversation is assumed: the default of 0.1 takes the common beginning of all runs for the same one.
    params.cache_ram_mib = config["cache_mib"]
    params.cache_idle_slots = False
    params.slot_prompt_similarity = 0.9
    params.warmup = False  # the first prompt warms it; an empty run before it took seconds on a busy machine
    params.n_batch = params.n_ubatch = config["batch"]
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = config["threads"]
        # Waiting threads sleep: spinning ones starve the machine, and each other when it is busy.
        threads.poll = 0
    server, note = _started(xllamacpp, params)
    return server, {"url": server.listening_address, "note": note}


def _started(xllamacpp: Any, params: Any) -> tuple[Any, str]:
    """The server, on a graphics card where this build of llama.cpp finds one that holds the model; and what to say of it.

    The wheels of the package index know processors only (and Metal): the way over a card has not been tried.
    """
    cpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    cards = [device["description"] for device in xllamacpp.get_device_info() if device["type"] != cpu]
    if not cards:
        return xllamacpp.Server(params), ""
    try:
        params.n_gpu_layers = _ALL_LAYERS
        return xllamacpp.Server(params), ""
    except RuntimeError:
        params.n_gpu_layers = 0
        return xllamacpp.Server(params), f"{', '.join(cards)} cannot hold the model: it runs on the processor"


def _complaint(log: str, begin: int) -> str:
    """The first error line that llama.cpp wrote, which tells; those after it only say who gives up, too.

    A thread of its own writes them, so they may come a moment later than the failure.
    """
    until = time.monotonic() + _LOG_SECONDS
    while not (lines := _errors(log, begin)) and time.monotonic() < until:
        time.sleep(0.05)
    if not lines:
        return ""
    return re.sub(r"^\w+: (error loading model: )?", "", lines[0].split(" E ", 1)[1].strip())


def _errors(log: str, begin: int) -> list[str]:
    with open(log, encoding="utf-8", errors="replace") as file:
        if begin:
            file.seek(begin)
        return [line.strip() for line in file if " E " in line]


if __name__ == "__main__":
    main()
