"""A real aggregator on a thread of its own, and real agents, for tests with a broker."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import msgspec
import numpy as np
import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.enums import CallbackAPIVersion
from tests.aggregator.fleet import make_homes, make_task, provision

from covey_agent.connect import RunningAgent
from covey_agent.data import Dataset, load_npz
from covey_agent.home import AgentHome, enrol, open_home
from covey_agent.profile import profile_folder
from covey_agent.trainer import Trainer, TrainResult
from covey_aggregator.home import BrokerSettings, ServerHome, open_server
from covey_aggregator.operator import OperatorHome
from covey_aggregator.service import Service
from covey_aggregator.task import Task
from covey_modelkit.build import build_bundle
from covey_modelkit.presets import softmax
from covey_protocol import provisioning
from covey_protocol.bundle import Bundle
from covey_protocol.messages import Windows
from covey_protocol.plan import Plan
from covey_protocol.provisioning import Broker
from covey_simulator.broker import RunningBroker

T = TypeVar("T")
FEATURES, CLASSES, SAMPLES = 30, 10, 24
PATIENCE = 90.0  # seconds; nothing waits this long when all is well
LONG = Windows(join=600, shares=600, masked=600, survivors=600, unmask=600)
# One step over all samples: the update does not depend on their order.
ONE_STEP = Plan(steps=1, batch_size=SAMPLES, learning_rate=0.5, momentum=0.0, balance=0.0)


@functools.cache
def bundle() -> Bundle:
    """Softmax regression of 310 parameters."""
    return build_bundle(softmax([FEATURES], CLASSES), name="live")


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


class Clock:
    """Seconds that pass only when a test lets them, so that no window runs out because a machine is slow."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now

    def leap(self, seconds: float) -> None:
        self._now += seconds


class Live:
    """A service that runs in a ``with`` block; a finished block can be entered again only as a new object."""

    def __init__(self, home: ServerHome, **options: Any) -> None:
        self._path, self._options = home.path, options
        self.service = Service(home, **options)
        self.error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="test-aggregator", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._serve())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        """As ``covey serve`` does."""
        while True:
            await self.service.run()
            if not self.service.home_changed:
                return
            self.service = Service(open_server(self._path), **self._options)

    def call(self, function: Callable[[], T]) -> T:
        """Run something on the service's own thread."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)

    def __enter__(self) -> Live:
        self._thread.start()
        until(self.service.link.connected.is_set, "the aggregator's connection")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive() and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if kind is None:
            assert self.error is None, self.error

    def status(self, task: str = "digits") -> str:
        """Return a task's status."""
        row = self.call(lambda: self.service.store.task(task))
        return row.status if row else ""

    def until_ended(self, task: str = "digits") -> None:
        """Wait for the end of a task."""
        until(lambda: self.status(task) in ("done", "failed", "stopped"), f"the end of task {task}")


class Place(Protocol):
    """Where a broker is: the broker itself, or something in front of it."""

    host: str
    port: int


def live_homes(folder: Path, broker: Place, **changes: Any) -> tuple[OperatorHome, ServerHome]:
    """Make homes for a broker."""
    return make_homes(folder, broker=BrokerSettings(host=broker.host, port=broker.port, **changes))


def live_task(folder: Path, **changes: Any) -> Task:
    """Make a task of the live bundle."""
    path = folder / "live.bundle"
    path.write_bytes(bundle().encode())
    return make_task(folder, **{"bundle": str(path), "local": ONE_STEP, "windows": LONG, "clip": 0.2, **changes})


def enrol_agent(
    folder: Path, operator: OperatorHome, home: ServerHome, name: str, reach: Broker | None = None, **broker: Any
) -> AgentHome:
    """Enrol a device with data of its own that reconnects quickly.

    Args:
        folder, operator, home, name: Where, by whom and as whom.
        reach: The broker as its bundle names it; usually the home's, without TLS or password.
        broker: Overrides its settings of that name.
    """
    invitation, data, place = folder / f"{name}.txt", folder / f"{name}.npz", folder / "agents" / name
    bundle = provision(operator, home, name, home.settings.broker.port)
    if reach is not None:
        bundle = msgspec.structs.replace(bundle, broker=reach)
    invitation.write_text(provisioning.encode(bundle))
    rng = np.random.default_rng(list(name.encode()))
    np.savez(data, x=rng.normal(size=(SAMPLES, FEATURES)).astype(np.float32), y=rng.integers(0, CLASSES, SAMPLES))
    profile = yaml.safe_load((profile_folder() / "pi-4.yaml").read_text())
    quick = folder / "quick.yaml"
    quick.write_text(yaml.safe_dump({**profile, "name": "quick", "backoff_base": 0.05, "backoff_cap": 0.3}))
    enrol(invitation, place, data=str(data))
    settings = place / "agent.yaml"
    settings.write_text(yaml.safe_dump({"data": str(data), "profile": str(quick), "threads": 1, "broker": broker}))
    return open_home(place)


def samples(home: AgentHome) -> Dataset:
    """Return a device's data."""
    return load_npz(home.data_path, build_bundle(softmax((FEATURES,), CLASSES), name="read").manifest)


class Witness(Trainer):
    """A trainer that tells the test what it made: the incoming weights and the clear update."""

    def __init__(self, of: Bundle, name: str, seen: list[tuple[str, Any, Any]]) -> None:
        super().__init__(of)
        self._name, self._seen = name, seen

    def train(self, weights: Any, data: Dataset, plan: Plan, **options: Any) -> TrainResult:
        result = super().train(weights, data, plan, **options)
        self._seen.append((self._name, weights.copy(), result.update.copy()))
        return result


class Agents:
    """Real agents in this process, in a ``with`` block; ``seen`` holds every training's weights and update."""

    def __init__(self, homes: Iterable[AgentHome]) -> None:
        self.seen: list[tuple[str, Any, Any]] = []
        self.running = {home.device: RunningAgent(home, make_trainer=self._maker(home.device)) for home in homes}

    def _maker(self, name: str) -> Callable[[Bundle], Trainer]:
        return lambda of: Witness(of, name, self.seen)

    def __enter__(self) -> Self:
        for agent in self.running.values():
            agent.start()
        return self

    def __exit__(self, *_: object) -> None:
        threads = [threading.Thread(target=agent.stop) for agent in self.running.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)


class Tap:
    """A client that hears everything on a broker, in a ``with`` block."""

    def __init__(self, broker: RunningBroker, topic: str = "#") -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="tap")

        def on_message(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
            self.heard.append((message.topic, bytes(message.payload)))

        def on_connect(client: mqtt.Client, *_: object) -> None:
            client.subscribe(topic, qos=1)

        def on_subscribe(*_: object) -> None:
            self._ready.set()

        self.client.on_message, self.client.on_connect = on_message, on_connect
        self.client.on_subscribe = on_subscribe
        self._broker = broker

    def __enter__(self) -> Tap:
        self.client.connect(self._broker.host, self._broker.port)
        self.client.loop_start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Say something as a stranger."""
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE)

    def on(self, topic: str) -> list[bytes]:
        """Return the payloads heard on a topic."""
        return [payload for place, payload in list(self.heard) if place == topic]
