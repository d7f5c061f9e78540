"""What the agents' commands run: an effect under a key that nothing else has. A copy lies in the workspace.

python witness.py post PORT KEY    one POST to the witness server, with the key as its idempotency key
python witness.py beat KEY         says every 20 ms for 0.3 s that it lives, in the file `beats`; while there is a file
                                   `hold` beside it, it goes on
python witness.py away KEY         leaves such a process behind, in a session of its own, that would go on for a minute
"""

import os
import socket
import sys
import time


def post(port: str, key: str) -> None:
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as server:
        server.sendall(f"POST /effects HTTP/1.0\r\nIdempotency-Key: {key}\r\n\r\n".encode())
        if b" 200 " not in server.recv(64):
            sys.exit("the witness server did not take it")


def beat(key: str, *, seconds: float = 0.3) -> None:
    file = os.open("beats", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    end = time.time() + seconds
    while (now := time.time()) < end or os.path.exists("hold"):
        os.write(file, f"{key} {int(now * 1000)}\n".encode())
        time.sleep(0.02)


def away(key: str) -> None:
    if os.fork() == 0:
        os.setsid()
        beat(key, seconds=60)
        os._exit(0)
    time.sleep(0.05)


if __name__ == "__main__":
    _, kind, *rest = sys.argv
    if kind == "post":
        post(*rest)
    elif kind == "beat":
        beat(*rest)
    else:
        away(*rest)
