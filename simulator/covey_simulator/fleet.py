"""A whole fleet on one machine: broker, aggregator and agents, set up by the commands that a user types.

Each simulated device is the real agent with its own identity, home, database, MQTT session and slice of the data; only
the processes are shared: agents run as threads here, the broker and the aggregator as processes of their own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey_agent.connect import RunningAgent
from covey_agent.data import Dataset
from covey_agent.home import enrol
from covey_agent.trainer import Trainer
from covey_aggregator.home import BUNDLES, DATABASE_FILE
from covey_aggregator.records import RoundRecord as ServerRecord
from covey_aggregator.reputation import OUT
from covey_aggregator.reputations import Reputations
from covey_aggregator.store import Store, TaskRow
from covey_protocol.bundle import Bundle
from covey_protocol.device_round import DeviceRound
from covey_protocol.errors import LocalError
from covey_simulator.attacks import Coalition, PoisoningTrainer, malicious_devices, round_class
from covey_simulator.broker import Kind, RunningBroker, start_broker
from covey_simulator.chronicle import Opinion
from covey_simulator.data import device_names
from covey_simulator.oddities import Diet, OddTrainer
from covey_simulator.scenario import Scenario

log = logging.getLogger("covey.simulator")

DEVICE_PREFIX = "pi"
FLEET = "demo"
TASK = "demo"
PROFILE = "container"
_STOP_SECONDS = 10.0
_COMMAND_SECONDS = 120.0


class FleetError(LocalError):
    """The simulated fleet could not be set up or broke down; the message ends with the failing part's last words."""

    cause = "fleet"


@dataclass(frozen=True)
class Traffic:
    """Bytes that all devices together have sent and received so far, MQTT headers included."""

    up: int
    down: int


class Fleet:
    """A running fleet.

    Args:
        folder: Where homes and logs go.
        scenario: What it is to do.
        slices: Each device's samples, which the attackers know.
        data: Each device's ``.npz`` file, by its name.
        prefer: Which broker; None takes Mosquitto if there is one.
    """

    def __init__(
        self,
        folder: Path,
        scenario: Scenario,
        *,
        slices: Sequence[Dataset],
        data: Mapping[str, Path],
        prefer: Kind | None = None,
    ) -> None:
        self._folder, self._scenario, self._names = folder, scenario, device_names(scenario.devices)
        self._malicious, self._slices, self._data, self._prefer = malicious_devices(scenario), slices, data, prefer
        self._hostile_round = round_class(scenario.attack, frozenset(self._names[index] for index in self._malicious))
        self.home = folder / "home"
        self.server_log = folder / "aggregator.log"
        self.broker: RunningBroker | None = None
        self.server: subprocess.Popen[bytes] | None = None
        self.agents: dict[str, RunningAgent] = {}
        self._stack = contextlib.ExitStack()
        self._trainer: Trainer | None = None
        self._coalition: Coalition | None = None
        self._executor: Executor | None = None

    def __enter__(self) -> Fleet:
        """Set everything up and wait for nothing: devices connect by themselves.

        Raises:
            FleetError: A part could not be started.
        """
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop agents, aggregator and broker, in this order."""
        self._stack.close()

    def _start(self) -> None:
        self.broker = self._stack.enter_context(start_broker(self._folder, prefer=self._prefer))
        operator, home = self._folder / "operator", self.home
        address = f"{self.broker.host}:{self.broker.port}"
        mqtt = "5" if self.broker.kind == "mosquitto" else "3.1.1"
        self.command("operator", "init", operator, "--fleet", FLEET)
        self.command("init", home, "--operator", operator, "--broker", address, "--mqtt", mqtt)
        count = str(len(self._names))
        self.command("device", "add", DEVICE_PREFIX, "--count", count, "--home", home, "--profile", PROFILE)
        self._start_server()
        self._executor = self._stack.enter_context(_executor())
        self._stack.callback(self._stop_agents)
        for index, name in enumerate(self._names):
            self._start_agent(index, name)

    def command(self, *arguments: object) -> str:
        """Run ``covey`` with some arguments and return what it prints.

        Raises:
            FleetError: It failed; with what it said.
        """
        words = [sys.executable, "-m", "covey_aggregator.cli", *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
        if done.returncode:
            raise FleetError(f"covey {' '.join(map(str, arguments[:2]))} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def start_task(self, bundle: Path, held_out: Path) -> None:
        """Write the scenario's task file and start it."""
        scenario, asked = self._scenario, self._scenario.attesting
        task = {
            "name": TASK,
            "bundle": str(bundle.absolute()),
            "held_out": str(held_out.absolute()),
            "rounds": scenario.rounds,
            "clip": scenario.clip,
            "group_size": scenario.group_size,
            "devices_min": len(self._names),
            "settle": 0.5,
            "rule": msgspec.to_builtins(scenario.rule),
            "contamination": scenario.contamination,
            "attestation": {"sketch": "off"} if asked is None else {"sketch": asked.sketch or "auto", "lot": asked.lot},
            "reputation": scenario.reputation,
            "probes": scenario.probes,
            "privacy": {k: v for k, v in msgspec.to_builtins(scenario.privacy).items() if v is not None},
            "epoch_rounds": scenario.epoch_rounds,
            "windows": {
                **{"join": 15, "shares": 15, "masked": 60, "survivors": 15, "attest": 30, "accept": 15},
                "unmask": 15,
            },
            "local": msgspec.to_builtins(scenario.plan),
        }
        path = self._folder / "task.yaml"
        path.write_bytes(msgspec.yaml.encode(task))
        self.command("task", "start", path, "--home", self.home)

    def rounds(self) -> Iterator[ServerRecord]:
        """Yield the records of the task's rounds as they close, until the task ends.

        Raises:
            FleetError: The aggregator died, or the task failed.
        """
        store = Store(self.home / DATABASE_FILE)
        seen: set[tuple[int, int]] = set()
        try:
            while True:
                row = store.task(TASK)
                for record in store.rounds(TASK):
                    if (record.round, record.attempt) not in seen:
                        seen.add((record.round, record.attempt))
                        yield record
                self._check(row)
                if row is not None and row.status == "done":
                    return
                time.sleep(0.1)
        finally:
            store.close()

    def opinions(self) -> dict[str, Opinion]:
        """Return what the aggregator thinks of each device; nothing where devices are not scored."""
        if self._scenario.attesting is None:
            return {}
        store = Store(self.home / DATABASE_FILE)
        try:
            books, found = Reputations(store), dict[str, Opinion]()
            for name in self._names:
                book = books.book(name)
                if book is not None:
                    standing = book.standing(name)
                    found[name] = Opinion(standing.state.value, standing.state in OUT, standing.score, standing.words)
            return found
        finally:
            store.close()

    def traffic(self) -> Traffic:
        """Return what all devices have sent and received so far."""
        states = [running.link.status for running in self.agents.values()]
        return Traffic(sum(state.bytes_up for state in states), sum(state.bytes_down for state in states))

    def _check(self, row: TaskRow | None) -> None:
        if self.server is None or self.server.poll() is not None:
            raise FleetError(f"the aggregator has ended; its log:\n{self._log_tail()}")
        if self.broker is None or self.broker.pid is None:
            raise FleetError("the broker has ended")
        if row is not None and row.status in ("failed", "stopped"):
            raise FleetError(f"the task has {row.status}: {row.reason}")

    def _start_server(self) -> None:
        log_file = self._stack.enter_context(self.server_log.open("wb"))
        words = [sys.executable, "-m", "covey_aggregator.cli", "serve", str(self.home)]
        self.server = subprocess.Popen(words, stdout=log_file, stderr=subprocess.STDOUT)
        self._stack.callback(self._stop_server)

    def _start_agent(self, index: int, name: str) -> None:
        home = enrol(
            self.home / BUNDLES / f"{name}.bundle",
            self._folder / "devices" / name,
            data=str(self._data[name].absolute()),
        )
        hostile = index in self._malicious
        self.agents[name] = RunningAgent(
            home,
            executor=self._executor,
            make_trainer=functools.partial(self._poisoner if hostile else self._learner, index),
            round_class=self._hostile_round if hostile else DeviceRound,
        )
        self.agents[name].start()

    def _honest(self, bundle: Bundle) -> Trainer:
        """Return the fleet's one trainer: a session serves many threads, each run has buffers of its own."""
        if self._trainer is None or self._trainer.bundle.digest != bundle.digest:
            trainer = Trainer(bundle)
            trainer.self_test()
            self._trainer = trainer
        return self._trainer

    def _learner(self, index: int, bundle: Bundle) -> Trainer:
        trainer, diet = self._honest(bundle), Diet(self._scenario, bundle, self._slices)
        return OddTrainer(trainer, diet, index) if index in diet.perturbing else trainer

    def _poisoner(self, index: int, bundle: Bundle) -> Trainer:
        trainer = self._honest(bundle)
        if self._coalition is None:
            self._coalition = Coalition(self._scenario, trainer, self._slices, self._malicious)
        return PoisoningTrainer(trainer, self._coalition, index)

    def _stop_agents(self) -> None:
        for running in self.agents.values():
            running.agent.stop()
        for running in self.agents.values():
            running.stop()

    def _stop_server(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.terminate()
            try:
                self.server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait(_STOP_SECONDS)

    def _log_tail(self) -> str:
        return self.server_log.read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def _executor() -> Iterator[Executor]:
    """Yield the threads on which all devices train; waiting jobs are dropped at the end."""
    executor = ThreadPoolExecutor(max(1, min(2, (os.cpu_count() or 1))), "covey-training")
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
