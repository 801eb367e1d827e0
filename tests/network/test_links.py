"""Both sides' links over a network that cuts, stalls and lies, with a real Mosquitto behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.links import Ears
from tests.agent.links import make_link as make_device_link
from tests.aggregator.live import PATIENCE, Tap
from tests.network.packets import PublishEar
from tests.network.proxy import HOST, SECONDS, Proxy

from covey_agent.outbox import Outbox
from covey_agent.transport import MqttLink
from covey_aggregator.home import BrokerSettings
from covey_aggregator.link import BrokerLink
from covey_protocol.errors import LocalError
from covey_simulator.broker import RunningBroker, start_broker

COUNT = 120


@pytest.fixture
def proxy(mosquitto: RunningBroker) -> Iterator[Proxy]:
    with Proxy(mosquitto.port) as proxy:
        yield proxy


@contextlib.contextmanager
def device(port: int, ears: Ears | None = None, **options: Any) -> Iterator[MqttLink]:
    link = make_device_link(port, "device", ears, Outbox(":memory:"), **options)
    link.start()
    try:
        yield link
    finally:
        link.stop()


class Aggregator:
    """A broker link on a loop of the test."""

    def __init__(self, port: int, folder: Path, **settings: Any) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.sessions: list[bool] = []
        place = BrokerSettings(host=HOST, port=port, **settings)
        self.link = BrokerLink(place, folder, ["up/#"], self.hear, self.sessions.append)

    def hear(self, topic: str, payload: bytes, acknowledge: Callable[[], object]) -> None:
        self.heard.append((topic, payload))
        acknowledge()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.link.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# Nothing is lost


@pytest.mark.parametrize("reset", [True, False])
def test_a_device_loses_nothing_on_a_line_that_is_cut_all_the_time(
    proxy: Proxy, mosquitto: RunningBroker, reset: bool
) -> None:
    proxy.reset = reset
    proxy.poor(delay=0.002, jitter=0.003, rate=300_000, cut_every=20_000)
    ears, rng = Ears(), random.Random(3)
    sizes = [rng.randrange(10, 3000) for _ in range(COUNT)]
    with Tap(mosquitto, "up/#") as tap, device(proxy.port, ears) as link:
        link.subscribe(["down/#"])
        assert link.wait_connected(SECONDS)
        for number, size in enumerate(sizes):
            link.publish(f"up/{number}", bytes(size))
            tap.publish(f"down/{number}", bytes(sizes[-number]))
        assert link.drain(PATIENCE)
        wait(lambda: len({topic for topic, _ in ears.messages.queue}) == COUNT, "all messages down")
        wait(lambda: len({topic for topic, _ in tap.heard}) == COUNT, "all messages up")
        assert {topic: len(payload) for topic, payload in tap.heard} == {f"up/{n}": s for n, s in enumerate(sizes)}
        firsts = list(dict.fromkeys(topic for topic, _ in tap.heard))
        assert firsts == [f"up/{number}" for number in range(COUNT)], "first copies come in order"
        assert proxy.cuts > 10
        assert link.outbox.used() == (0, 0)
        again = len(tap.heard) - COUNT
        assert again <= link.options.inflight * link.status.connects, "only what was in flight may come twice"


def test_the_aggregator_loses_nothing_on_a_line_that_is_cut_all_the_time(
    proxy: Proxy, mosquitto: RunningBroker, tmp_path: Path
) -> None:
    proxy.poor(delay=0.002, jitter=0.003, rate=300_000, cut_every=60_000)
    rng = random.Random(4)
    sizes = [rng.randrange(10, 3000) for _ in range(COUNT)]
    one = Aggregator(proxy.port, tmp_path)

    async def scene(tap: Tap) -> None:
        async with one.running():
            await until(one.link.connected.is_set)
            for number, size in enumerate(sizes):
                one.link.publish(f"down/{number}", bytes(size))
                tap.publish(f"up/{number}", bytes(size))
            async with asyncio.timeout(PATIENCE):
                await one.link.drained()
            await until(lambda: len({topic for topic, _ in one.heard}) == COUNT)

    with Tap(mosquitto, "down/#") as tap:
        asyncio.run(scene(tap))
        wait(lambda: len({topic for topic, _ in tap.heard}) == COUNT, "all messages")
    assert {topic: len(payload) for topic, payload in tap.heard} == {f"down/{n}": s for n, s in enumerate(sizes)}
    assert {topic: len(payload) for topic, payload in one.heard} == {f"up/{n}": s for n, s in enumerate(sizes)}
    assert proxy.cuts >= 5


def test_a_message_is_acknowledged_only_when_it_has_been_dealt_with(mosquitto: RunningBroker, tmp_path: Path) -> None:
    one, two = Aggregator(mosquitto.port, tmp_path), Aggregator(mosquitto.port, tmp_path)

    def die(topic: str, payload: bytes, acknowledge: Callable[[], object]) -> None:
        if len(one.heard) == 2:
            one.heard.append((topic, payload))
            raise KeyboardInterrupt  # the process ends in the middle of its work
        one.hear(topic, payload, acknowledge)

    one.link._on_message = die

    async def scene(tap: Tap) -> None:
        with contextlib.suppress(BaseException):
            task = asyncio.create_task(one.link.run())
            await until(one.link.connected.is_set)
            for number in range(5):
                tap.publish(f"up/{number}", b"x")
            await task

    with Tap(mosquitto, "nothing") as tap:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(scene(tap))
        assert [topic for topic, _ in one.heard] == ["up/0", "up/1", "up/2"]

        async def later() -> None:
            async with two.running():
                await until(lambda: len(two.heard) >= 3)

        asyncio.run(later())
    assert [topic for topic, _ in two.heard][:3] == ["up/2", "up/3", "up/4"]
    assert two.sessions == [True]


# Connections that are dead without saying so


def test_a_device_finds_a_connection_dead_and_comes_back(proxy: Proxy, mosquitto: RunningBroker) -> None:
    ears = Ears()
    with Tap(mosquitto, "up/#") as tap, device(proxy.port, ears, keepalive=1) as link:
        assert link.wait_connected(SECONDS)
        proxy.abandon()
        link.publish("up/1", b"kept")
        assert ears.ends.get(timeout=SECONDS)
        wait(lambda: [payload for _, payload in tap.heard] == [b"kept"], "the message")
        assert link.drain(SECONDS)
        assert link.status.connects == 2
        proxy.swallow()  # now even CONNECT is swallowed
        assert ears.ends.get(timeout=SECONDS)
        opened = proxy.opened
        wait(lambda: proxy.opened > opened, "another try")
        proxy.forward()
        assert link.wait_connected(SECONDS)


def test_a_connect_that_is_never_answered_is_tried_again(proxy: Proxy) -> None:
    proxy.swallow()
    with device(proxy.port, connect_timeout=0.3, protocol="5") as link:
        wait(lambda: proxy.opened >= 3, "several tries")
        assert "no answer to CONNECT" in link.status.last_error
        proxy.forward()
        assert link.wait_connected(SECONDS)


def test_the_aggregator_finds_a_connection_dead_and_comes_back(
    proxy: Proxy, mosquitto: RunningBroker, tmp_path: Path
) -> None:
    one = Aggregator(proxy.port, tmp_path, keepalive=1)

    async def scene(tap: Tap) -> None:
        async with one.running():
            await until(one.link.connected.is_set)
            await asyncio.to_thread(proxy.abandon)
            one.link.publish("down/1", b"kept")
            await until(lambda: len(tap.heard) == 1)
            assert one.link.connections == 2
            assert one.sessions == [False, True]

    with Tap(mosquitto, "down/#") as tap:
        asyncio.run(scene(tap))


@pytest.mark.parametrize("seed", [1, 2])
def test_devices_come_back_at_different_times(seed: int, proxy: Proxy) -> None:
    drawn: list[tuple[float, float]] = []

    class Jitter(random.Random):
        def uniform(self, a: float, b: float) -> float:
            drawn.append((a, b))
            return super().uniform(a, b) * 0.01

    with device(proxy.port, rng=Jitter(seed), backoff_base=1.0, backoff_cap=100.0) as link:
        for _ in range(6):
            assert link.wait_connected(SECONDS)
            connects = link.status.connects
            proxy.cut()
            wait(lambda: link.status.connects > connects, "a reconnection")  # noqa: B023
        proxy.refuse()
        proxy.cut()
        waits = len(drawn)
        wait(lambda: len(drawn) > waits + 4, "vain tries")
    assert all(low == 0.0 for low, _ in drawn), "from zero on, or a fleet would come back at one instant"
    ceilings = [high for _, high in drawn]
    assert ceilings[:6] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0], "who is let in is not kept waiting for long"
    assert max(ceilings) == 100.0, "who is refused is"


# Limits of brokers

TIGHT = "listener {port} {host}\nallow_anonymous true\nmax_packet_size 5000\n"


def test_what_the_broker_would_not_take_is_never_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start_broker(tmp_path, prefer="mosquitto", config=TIGHT) as broker, Proxy(broker.port) as proxy:
        ear = PublishEar()
        proxy.up.hear(ear)
        one = Aggregator(proxy.port, tmp_path)
        one.link.publish("down/queued", bytes(9000))  # the broker's limit is not known yet

        async def scene() -> None:
            async with one.running():
                await until(one.link.connected.is_set)
                assert one.link.max_payload == 5000 - 1024
                with pytest.raises(
                    LocalError, match=r"4990 bytes for down/1 make a packet of \d+; the broker takes 5000"
                ):
                    one.link.publish("down/1", bytes(4990))
                one.link.publish("down/2", bytes(5000 - 15 - len("down/2")))
                one.link.publish("down/3", b"last")
                async with asyncio.timeout(PATIENCE):
                    await one.link.drained()

        with caplog.at_level(logging.ERROR, "covey.aggregator.link"):
            asyncio.run(scene())
        assert [each.topic for each in ear.heard] == ["down/2", "down/3"]
        assert (one.link.connections, one.link.undeliverable) == (1, 1)
        assert "down/queued exceed the broker's 5000" in caplog.text


def test_the_configured_limit_holds_with_3_1_1(mosquitto: RunningBroker, tmp_path: Path) -> None:
    one = Aggregator(mosquitto.port, tmp_path, protocol="3.1.1", max_packet_bytes=6000)

    async def scene() -> None:
        async with one.running():
            await until(one.link.connected.is_set)
            assert one.link.max_payload == 6000 - 1024
            with pytest.raises(LocalError, match="the broker takes 6000"):
                one.link.publish("down/1", bytes(6000))

    asyncio.run(scene())


# Leaving


def test_who_is_stopped_first_hands_over_what_is_queued(proxy: Proxy, mosquitto: RunningBroker, tmp_path: Path) -> None:
    one = Aggregator(proxy.port, tmp_path)

    async def scene() -> None:
        async with one.running():
            await until(one.link.connected.is_set)
            proxy.poor(delay=0.02)
            for number in range(COUNT):
                one.link.publish(f"down/{number}", bytes(5000))

    with Tap(mosquitto, "down/#") as tap:
        asyncio.run(scene())
        wait(lambda: len(tap.heard) == COUNT, "everything")
    assert [topic for topic, _ in tap.heard] == [f"down/{number}" for number in range(COUNT)]


def test_a_broker_that_takes_nothing_does_not_keep_anybody_from_leaving(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("covey_aggregator.link.DRAIN_SECONDS", 0.3)
    one = Aggregator(proxy.port, tmp_path)

    async def scene() -> None:
        async with one.running():
            await until(one.link.connected.is_set)
            proxy.swallow()
            for number in range(10):
                one.link.publish(f"down/{number}", b"x")

    asyncio.run(scene())
    assert "10 messages were not handed over" in caplog.text
    assert [item.topic for item in one.link._outgoing] == [f"down/{number}" for number in range(10)]
