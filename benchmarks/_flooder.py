"""One device that floods: a bare MQTT 3.1.1 client that publishes rubbish at QoS 1, paced, until its input ends.

Reads a line of JSON: host, port, topic, size and messages a second. Says how many it has sent when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from typing import Any

_BATCH_SECONDS = 0.01


def _field(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _packet(first: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128)[0], left % 128
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([first]) + length + body


def main() -> None:
    """Flood until told to stop."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    sock = socket.create_connection((task["host"], task["port"]))
    sock.sendall(_packet(0x10, _field(b"MQTT") + b"\x04\x02\x00\x3c" + _field(b"flooder")))
    sock.recv(4)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    topic, rubbish = _field(task["topic"].encode()), os.urandom(task["size"])
    sent, began = 0, time.monotonic()
    with contextlib.suppress(OSError):
        while not ended.is_set():
            due = int((time.monotonic() - began) * task["rate"]) - sent
            if due > 0:
                ids = (number % 65535 + 1 for number in range(sent, sent + due))
                sock.sendall(b"".join(_packet(0x32, topic + struct.pack(">H", each) + rubbish) for each in ids))
                sent += due
            while select.select([sock], [], [], 0)[0]:
                if not sock.recv(65536):
                    ended.set()
                    break
            time.sleep(_BATCH_SECONDS)
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
