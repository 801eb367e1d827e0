"""A broker for machines without Mosquitto: amqtt (MQTT 3.1.1) on loopback, in a process of its own.

``python -m covey_simulator.embedded_broker --port 0`` takes a free port, prints ``listening on HOST:PORT``,
and ends on SIGTERM, SIGINT or when a pipe at its standard input closes, so it cannot outlive its starter.
For the demo only: anybody on the machine may connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import Any

import click


def configuration(host: str, port: int) -> dict[str, Any]:
    """Return amqtt's configuration: one listener, anonymous clients, sessions kept in memory."""
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}", "max_connections": 5000}},
        "timeout_disconnect_delay": 0,
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }


async def serve(host: str, port: int) -> None:
    """Run the broker until told to stop."""
    from amqtt.broker import Broker  # noqa: PLC0415 - heavy, and only this process needs it

    if port == 0:
        port = _free_port(host)
    broker = Broker(configuration(host, port))
    await broker.start()
    print(f"listening on {host}:{port}", flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.suppress(OSError):  # standard input is /dev/null or a file: nothing that could end
        loop.add_reader(sys.stdin.fileno(), _on_input, stop)
    await stop.wait()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(broker.shutdown(), 5)


def _on_input(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 256):
        stop.set()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, help="0: any free port")
def main(host: str, port: int) -> None:
    """Run an MQTT 3.1.1 broker until SIGTERM or the end of standard input."""
    asyncio.run(serve(host, port))


if __name__ == "__main__":
    main()
