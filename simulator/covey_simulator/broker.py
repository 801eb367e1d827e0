"""A broker of one's own for demos, simulations and tests: Mosquitto if there is one, else the embedded amqtt.

It listens on loopback alone, on a port that was free, and is gone when the ``with`` block or the program
ends, by exception or not. Which process listens is not guessed from a port that answers: Mosquitto must say
that it runs, amqtt prints where it listens, and whoever loses the race for a port is started on another one.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Literal

from covey_protocol.errors import LocalError, StateError

Kind = Literal["mosquitto", "amqtt"]

HOST = "127.0.0.1"
START_SECONDS = 20.0
STOP_SECONDS = 5.0
PORT_ATTEMPTS = 8
LOG_TAIL = 2000

# Debian puts daemons where an ordinary user's PATH does not look.
SEARCH_PATH = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")

# Every limit is explicit: Mosquitto's defaults differ between 2.0 and 2.1, and some of them drop silently.
_MOSQUITTO = """\
listener {port} {host}
allow_anonymous true
persistence false
set_tcp_nodelay true
max_packet_size 1048576
message_size_limit 1048576
max_inflight_messages 64
max_inflight_bytes 0
max_queued_messages 100000
max_queued_bytes 0
max_connections -1
max_keepalive 3600
queue_qos0_messages false
retain_available true
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice
"""


class BrokerError(LocalError):
    """No broker could be started; the message ends with the last lines of its log."""

    cause = "broker"


def find_mosquitto() -> str | None:
    """Return the path of a Mosquitto on this machine, or None."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), *SEARCH_PATH]))


def mosquitto_config(port: int, host: str = HOST) -> str:
    """Return the configuration that a simulation's Mosquitto runs with."""
    return _MOSQUITTO.format(port=port, host=host)


class RunningBroker:
    """A broker process; stops at the end of its ``with`` block, at ``stop`` or with the interpreter."""

    host = HOST

    def __init__(self, folder: Path, kind: Kind, config: str | None = None) -> None:
        """Prepare a broker; ``start_broker`` is the way to get one.

        Args:
            folder: Where its configuration and log go.
            kind: Which broker.
            config: Mosquitto configuration with ``{port}`` and ``{host}`` in it, instead of the usual one.
        """
        self.kind: Kind = kind
        self.port = 0
        self.log_file = folder / "broker.log"
        self._folder = folder
        self._config = config or _MOSQUITTO
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., RunningBroker] | None = None

    @property
    def protocol(self) -> Literal["auto", "3.1.1"]:
        """What links should be told to speak; asking amqtt for MQTT 5 costs seconds of silence."""
        return "auto" if self.kind == "mosquitto" else "3.1.1"

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    def start(self) -> None:
        """Start it: on a free port, or after ``stop`` on the port it had.

        Raises:
            StateError: It runs already.
            BrokerError: It died, or does not come up; with the tail of its log.
        """
        if self.pid is not None:
            raise StateError("broker: started twice")
        had = self.port
        for _ in range(PORT_ATTEMPTS):
            self.port = had or _free_port()
            self._spawn()
            try:
                if self._wait_ready():
                    return
            except BaseException:
                self.stop()
                raise
            self.stop()
            if "in use" not in self._log_tail():
                break
        raise BrokerError(f"{self.kind} did not start on port {self.port}; its log:\n{self._log_tail()}")

    def stop(self) -> None:
        """End the process and wait for its end; safe to call twice."""
        if self._finalizer is not None:
            self._finalizer()

    def kill(self) -> None:
        """End the process as a power cut would."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def __enter__(self) -> RunningBroker:
        """Return the broker, which runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, whatever happened."""
        self.stop()

    def _spawn(self) -> None:
        if self.kind == "mosquitto":
            program = find_mosquitto()
            if program is None:
                raise BrokerError("no mosquitto on this machine: apt-get install mosquitto")
            config = self._folder / "mosquitto.conf"
            text = self._config.replace("{port}", str(self.port)).replace("{host}", self.host)
            config.write_text(text + "\nlog_type information\n")  # the line that says that it runs
            command = [program, "-c", str(config)]
        else:
            module = "covey_simulator.embedded_broker"
            command = [sys.executable, "-m", module, "--host", self.host, "--port", str(self.port)]
        with self.log_file.open("wb") as log:
            # The pipe at standard input is never written to: the embedded broker ends when we are gone.
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        self._finalizer = weakref.finalize(self, _end, self._process)

    def _wait_ready(self) -> bool:
        """Wait until our own process says that it listens and does; False if it died or stays silent."""
        deadline = time.monotonic() + START_SECONDS
        sign = " running" if self.kind == "mosquitto" else "listening on "
        while time.monotonic() < deadline and self.pid is not None:
            if sign in self._log_tail():
                try:
                    socket.create_connection((self.host, self.port), timeout=1).close()
                    return self.pid is not None
                except OSError:
                    pass
            time.sleep(0.01)
        return False

    def _log_tail(self) -> str:
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - LOG_TAIL))
            return log.read().decode(errors="replace")


def start_broker(folder: Path, *, prefer: Kind | None = None, config: str | None = None) -> RunningBroker:
    """Start a broker on loopback and wait until it accepts connections.

    Args:
        folder: An existing folder for its configuration and log.
        prefer: Insist on one of them; None takes Mosquitto if the machine has it, else amqtt.
        config: Mosquitto configuration with ``{port}`` and ``{host}`` in it, instead of the usual one.

    Returns:
        The broker, to be used as a context manager.

    Raises:
        BrokerError: It is not installed, died, or does not come up; with the tail of its log.
    """
    kind: Kind = prefer or ("mosquitto" if find_mosquitto() else "amqtt")
    broker = RunningBroker(folder, kind, config)
    broker.start()
    return broker


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End one process that we started, by its handle."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
