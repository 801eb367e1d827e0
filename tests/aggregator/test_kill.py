"""A real ``covey serve`` is killed at its durable writes, over a real broker, with real agents: no round is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.aggregator.live import PATIENCE, Agents, Live, Tap, bundle, enrol_agent, live_homes, live_task

from covey_agent.home import AgentHome
from covey_agent.trainer import Trainer, TrainResult
from covey_aggregator.cli import cli
from covey_aggregator.home import DATABASE_FILE, MODELS, SPOOLS, ServerHome, open_server
from covey_aggregator.records import RoundRecord
from covey_aggregator.store import Store
from covey_aggregator.task import Attestation
from covey_protocol import envelope, model, topics
from covey_protocol.bundle import Bundle
from covey_protocol.chunks import is_piece
from covey_simulator.broker import RunningBroker

SCRIPT = Path(__file__).parent / "dying_serve.py"
NAMES = [f"pi-{number}" for number in range(5)]
CLIP = 0.2


class Server:
    """``covey serve`` processes on one home, one after the other."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._log = (home.path.parent / "serve.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self, *, die_at: int = 0, when: str = "before") -> None:
        """Start one that dies at a durable write, or one that does not die."""
        path = str(self._home.path)
        words = [str(SCRIPT), path, str(die_at), when] if die_at else ["-m", "covey_aggregator.cli", "serve", path]
        self._process = subprocess.Popen([sys.executable, *words], stdout=self._log, stderr=self._log)

    def wait_for(self, done: Callable[[], bool]) -> bool:
        """Wait until it has killed itself, or until something is done; tell whether the latter."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            if done():
                return True
            assert time.monotonic() < deadline, (self._home.path.parent / "serve.log").read_text()[-3000:]
            time.sleep(0.05)
        assert self._process.returncode == -9, (self._home.path.parent / "serve.log").read_text()[-3000:]
        self.kills += 1
        return done()

    def stop(self) -> int | None:
        """End it as an operator would; return its exit code."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode if self._process is not None else None

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.stop()
        self._log.close()


class Gated(Agents):
    """Agents of which one trains only while a gate is open: until then no round goes beyond MASKED."""

    def __init__(self, homes: list[AgentHome], gate: threading.Event) -> None:
        self.gate = gate
        super().__init__(homes)

    def _maker(self, name: str) -> Callable[[Bundle], Trainer]:
        make, gate = super()._maker(name), self.gate

        def gated(of: Bundle) -> Trainer:
            trainer = make(of)
            train = trainer.train

            def wait(*values: Any, **options: Any) -> TrainResult:
                assert gate.wait(PATIENCE)
                return train(*values, **options)

            trainer.train = wait  # type: ignore[method-assign]
            return trainer

        return gated if name == NAMES[-1] else make


class Scene:
    """A home, its database as another process sees it, and what was heard on the broker."""

    def __init__(self, folder: Path, broker: RunningBroker, rounds: int) -> None:
        operator, self.home = live_homes(folder, broker)
        self.homes = [enrol_agent(folder, operator, self.home, name) for name in NAMES]
        self.store = Store(self.home.path / DATABASE_FILE)
        # With sketches, so that it is killed in every stage there is. What devices learn here is noise: observe it.
        sketches = {"attestation": Attestation(), "reputation": "observe"}
        self.store.add_task(live_task(folder, rounds=rounds, devices_min=len(NAMES), settle=0.0, clip=CLIP, **sketches))
        self.server = Server(self.home)
        self.gate = threading.Event()
        self.gate.set()
        self.agents = Gated(self.homes, self.gate)
        self.tap = Tap(broker)

    @contextmanager
    def running(self) -> Iterator[Scene]:
        with self.tap, self.agents:
            try:
                yield self
            finally:
                self.gate.set()
                self.server.close()
                self.store.close()

    def over(self) -> bool:
        row = self.store.task("digits")
        return row is not None and row.status in ("done", "failed")

    def records(self) -> list[RoundRecord]:
        return self.store.rounds("digits")

    def check(self) -> None:
        """Nothing was said in two ways, masked twice or repeated, and the sums are those of the survivors."""
        self.server.stop()
        row = self.store.task("digits")
        assert row is not None
        assert (row.status, row.reason) == ("done", "")
        self._check_messages()
        weights, checked = bundle().weights, 0
        for record in self.records():
            path = self.home.path / MODELS / record.model
            if not path.exists():  # only the newest are kept
                assert record.round < self.records()[-1].round - 8
                weights = np.zeros(0, np.float32)
                continue
            after = model.from_bytes(path.read_bytes())
            if record.accepted and len(weights):
                mine = [update for _, before, update in self.agents.seen if np.array_equal(before, weights)]
                assert len(mine) == record.accepted == len(NAMES)
                clear = [update * min(1.0, CLIP / float(np.linalg.norm(update))) for update in mine]
                np.testing.assert_allclose(after - weights, np.mean(clear, axis=0), atol=1e-3)
                checked += 1
            weights = after
        assert checked >= min(2, sum(record.accepted > 0 for record in self.records()))
        assert row.model.hex() == self.records()[-1].model
        places = [(record.round, record.attempt) for record in self.records()]
        assert places == sorted(set(places))
        assert list((self.home.path / SPOOLS).iterdir()) == []
        assert self.store.head() is None

    def _check_messages(self) -> None:
        versions = defaultdict[tuple[object, ...], set[bytes]](set)
        sketches = (topics.ATTEST, topics.ACCEPT)
        once = (topics.OPEN, topics.ROSTER, topics.SURVIVORS, *sketches, topics.UNMASK, topics.ABORT, topics.CLOSE)
        mine = (topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, *sketches, topics.UNMASK)
        for topic, data in list(self.tap.heard):
            place = topics.parse(topic)
            if not data or is_piece(data):
                continue
            if (place.way == "pub" and place.kind in once) or (place.way == "up" and place.kind in mine):
                message = envelope.parse(data)
                versions[place.way, place.kind, place.device, place.id, message.round, message.attempt].add(data)
        assert {len(bodies) for bodies in versions.values()} == {1}
        refused = Counter[str]()
        for running in self.agents.running.values():
            refused.update(running.agent.refusals.counts)
        assert set(refused) <= {"stage", "stale", "wrong-round", "replayed", "repeated", "old-round"}, refused


def kills(scene: Scene, numbers: Iterator[int]) -> None:
    """Kill and start again until the task is over."""
    for count, number in enumerate(numbers):
        scene.server.start(die_at=number, when=("before", "after")[count % 2])
        if scene.server.wait_for(scene.over):
            return
    scene.server.start()
    assert scene.server.wait_for(scene.over)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "numbers", [range(1, 11), pytest.param([n for n in range(3, 40) for _ in range(2)], marks=pytest.mark.slow)]
)
def test_rounds_go_on_through_kills_at_durable_writes(
    mosquitto: RunningBroker, tmp_path: Path, numbers: range | list[int]
) -> None:
    rounds = 2 if isinstance(numbers, range) else 25
    with Scene(tmp_path, mosquitto, rounds).running() as scene:
        kills(scene, iter(numbers))
        scene.check()
        assert [(record.round, record.attempt) for record in scene.records()] == [(n, 1) for n in range(1, rounds + 1)]
        assert {record.accepted for record in scene.records()} == {len(NAMES)}
        assert sum(record.resumed for record in scene.records()) >= 3
        assert scene.server.kills >= 6
        deaths = set((tmp_path / "deaths").read_text().splitlines())
        assert {"before commit", "after commit"} <= deaths


def test_a_round_that_cannot_go_on_is_aborted_and_its_updates_are_not_sent_again(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    with Scene(tmp_path, mosquitto, 1).running() as scene:
        scene.gate.clear()
        scene.server.start()
        assert scene.server.wait_for(lambda: scene.store.count_entries("vector") == len(NAMES) - 1)
        scene.server.kill()
        for path in (scene.home.path / SPOOLS).glob("*.key"):
            path.unlink()
        scene.gate.set()
        scene.server.start()
        assert scene.server.wait_for(scene.over)
        scene.check()
        (aborted,) = {data for topic, data in scene.tap.heard if topics.parse(topic).kind == topics.ABORT}
        assert envelope.parse(aborted).attempt == 1
        assert [(record.attempt, record.accepted) for record in scene.records()] == [(1, 0), (2, len(NAMES))]


def covey(*words: str) -> str:
    result = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_signal_stops_at_once_and_the_round_goes_on_at_the_next_start(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    with Scene(tmp_path, mosquitto, 1).running() as scene:
        home = str(scene.home.path)
        scene.gate.clear()
        scene.server.start()
        assert scene.server.wait_for(lambda: scene.store.count_entries("vector") == len(NAMES) - 1)
        assert scene.server.stop() == 0
        assert "round    1.1  is open\n" in covey("task", "status", "--home", home)
        scene.server.start()
        assert scene.server.wait_for(lambda: scene.store.count_entries("resumed") == 1)
        assert "round    1.1  is open, resumed 1 times" in covey("task", "status", "--home", home)
        assert '"resumed": 1' in covey("task", "status", "--home", home, "--json")
        scene.gate.set()
        assert scene.server.wait_for(scene.over)
        scene.check()
        (record,) = scene.records()
        assert (record.attempt, record.accepted, record.resumed) == (1, len(NAMES), 1)
        assert "resumed 1 times" in covey("task", "status", "--home", home)
        assert "masked vectors resumed after" in covey("events", home)


def test_two_aggregators_on_one_home_are_one_too_many(mosquitto: RunningBroker, tmp_path: Path) -> None:
    _, home = live_homes(tmp_path, mosquitto)
    with Live(home):
        second = subprocess.run(
            [sys.executable, "-m", "covey_aggregator.cli", "serve", str(home.path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 2
    assert f"covey: {home.path}: `covey serve` runs on it already, as process {os.getpid()}" in second.stderr
    assert "Traceback" not in second.stderr
    with Live(open_server(home.path)):  # and the next one may
        pass
