"""Crash safety: an agent is killed at random instants of a task, over a real broker and a real aggregator.

The fleet is set up as a user would set it up. One device is a ``covey-agent run`` process that is killed and started
again; the others run here. A tap on the broker hears what the killed device says, and its database is read while it is
dead: what it has spent must be on its disk before a byte of it is heard.
"""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from tests.agent.links import SECONDS

from covey_agent.connect import RunningAgent
from covey_agent.home import enrol
from covey_agent.outbox import Outbox
from covey_agent.transport import LinkEvents, LinkOptions, MqttLink
from covey_aggregator.cli import cli
from covey_protocol import envelope, topics
from covey_protocol.errors import MalformedError
from covey_protocol.messages import Join, Masked
from covey_protocol.payload import read
from covey_simulator.broker import RunningBroker

NAMES = ["elm", "ash", "fir", "oak", "yew"]
VICTIM = "elm"
ROUNDS, KILLS, KEPT = 16, 4, 7  # KEPT: rounds that are left for the end, however slow the machine
TASK = f"""
name: points
bundle: points.bundle
rounds: {ROUNDS}
clip: 5
group_size: 5
devices_min: {len(NAMES)}
settle: 0.2
local: {{batch_size: 8}}
windows: {{join: 1, shares: 1.5, masked: 1.5, survivors: 1.5, attest: 1.5, accept: 1.5, unmask: 1.5}}
attempts: 100
"""
BIN = Path(sys.executable).parent


def covey(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class Tap:
    """Hears what the victim says about rounds, in order, and which rounds close."""

    def __init__(self) -> None:
        self.joins: list[tuple[tuple[int, int], int, bytes]] = []
        self.masked: dict[tuple[int, int], set[bytes]] = {}
        self.closed: list[int] = []
        self._lock = threading.Lock()

    def hear(self, topic: str, payload: bytes) -> None:
        place = topics.parse(topic)
        try:
            message = envelope.parse(payload)
        except MalformedError:
            return  # a piece of a transfer
        at = (message.round, message.attempt)
        with self._lock:
            if place.kind == topics.CLOSE:
                self.closed.append(message.round)
            elif place.kind == topics.JOIN:
                self.joins.append((at, read(Join, message.payload).sequence, payload))
            elif place.kind == topics.MASKED:
                self.masked.setdefault(at, set()).add(read(Masked, message.payload).vector.digest)

    def sequences(self) -> list[int]:
        """Return the sequence numbers of all different JOIN messages, in the order in which they came."""
        with self._lock:
            return [sequence for sequence, _ in dict.fromkeys((each[1], each[2]) for each in self.joins)]


def mark(home: Path, key: str) -> int:
    """Read a number from a dead device's database."""
    database = sqlite3.connect(home / "agent.db")
    row = database.execute("SELECT value FROM marks WHERE key = ?", (key,)).fetchone()
    database.close()
    return int(row[0]) if row else 0


@contextmanager
def process(log: Path, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        running = subprocess.Popen([str(word) for word in words], stdout=file, stderr=subprocess.STDOUT)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def set_up(folder: Path, broker: RunningBroker) -> Path:
    """Make a fleet; return the server's home."""
    server = folder / "server"
    covey("operator", "init", folder / "op", "--fleet", "meadow")
    covey("init", server, "--operator", folder / "op", "--broker", f"{broker.host}:{broker.port}")
    for name in NAMES:
        covey("device", "add", name, "--home", server)
    covey("model", "build", "--preset", "softmax", "--input", 20, "--classes", 4, "-o", folder / "points.bundle")
    (folder / "task.yaml").write_text(TASK)
    rng = np.random.default_rng(5)
    for name in NAMES:
        y = rng.integers(0, 4, 40)
        x = np.eye(4, 20)[y] * 3 + rng.normal(size=(40, 20))
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), y=y)
    return server


def status_of(server: Path) -> dict[str, Any]:
    [report] = json.loads(covey("task", "status", "points", "--home", server, "--json"))
    return dict(report)


def summed(report: dict[str, Any]) -> list[int]:
    """Return the rounds whose sum the victim is in."""
    return [
        record["round"]
        for record in report["rounds"]
        if any(VICTIM in group["survivors"] for group in record["details"])
    ]


def test_a_device_that_is_killed_again_and_again_never_repeats_itself(tmp_path: Path, mosquitto: RunningBroker) -> None:
    server = set_up(tmp_path, mosquitto)
    tap, chance = Tap(), random.Random()
    home = tmp_path / VICTIM
    with ExitStack() as stack:
        options = LinkOptions(host=mosquitto.host, port=mosquitto.port, client_id="tap")
        link = MqttLink(options, Outbox(":memory:"), LinkEvents(on_message=tap.hear))
        link.subscribe([topics.up("meadow", VICTIM, "+"), topics.pub("meadow", topics.CLOSE, "+")])
        link.start()
        stack.callback(link.stop)
        assert link.wait_connected(SECONDS)
        stack.enter_context(process(tmp_path / "server.log", BIN / "covey", "serve", server))
        for name in NAMES:
            enrolled = enrol(server / "bundles" / f"{name}.bundle", tmp_path / name, data=str(tmp_path / f"{name}.npz"))
            if name != VICTIM:
                agent = RunningAgent(enrolled)
                agent.start()
                stack.callback(agent.stop)
        covey("task", "start", tmp_path / "task.yaml", "--home", server)
        command = (tmp_path / "victim.log", BIN / "covey-agent", "run", "--home", home)
        kills = 0
        while kills < KILLS and max(tap.closed, default=0) < ROUNDS - KEPT:
            said = len(tap.sequences())
            with process(*command):
                if kills == 1:
                    time.sleep(chance.uniform(0.2, 1.0))  # while it starts, connects or waits for a round
                else:
                    wait_for(lambda: len(tap.sequences()) > said, f"a join after kill {kills}")  # noqa: B023
                    time.sleep(chance.uniform(0, 0.4))  # somewhere in a round
            kills += 1
            assert mark(home, "sequence") >= max(tap.sequences())
        assert kills > 1
        closed, said = max(tap.closed, default=0), len(tap.sequences())
        assert closed < ROUNDS, "the task was over before the last kill: there is nothing left to show"
        with process(*command):
            wait_for(lambda: status_of(server)["status"] != "running", "the end of the task")
        report = status_of(server)
    assert (report["status"], report["reason"], report["round"]) == ("done", "", ROUNDS)
    assert len(tap.sequences()) > said
    assert max(summed(report)) > closed  # it took part again, up to the sum
    sequences = tap.sequences()
    assert sequences == sorted(set(sequences))
    assert all(len(digests) == 1 for digests in tap.masked.values())
    # One JOIN for one round: nothing new is ever signed for a round whose secrets are lost.
    by_round: dict[tuple[int, int], set[bytes]] = {}
    for at, _, payload in tap.joins:
        by_round.setdefault(at, set()).add(payload)
    assert all(len(payloads) == 1 for payloads in by_round.values())
