"""Whole learning tasks over poor networks: a real Mosquitto, a real aggregator, real agents, and a bad line between."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.aggregator.fleet import FLEET
from tests.aggregator.live import PATIENCE, Agents, Clock, Live, Tap, enrol_agent, live_homes, live_task, until
from tests.network.proxy import Proxy

from covey_protocol import envelope, topics
from covey_protocol.chunks import is_piece
from covey_protocol.errors import CoveyError
from covey_protocol.messages import Windows
from covey_simulator.broker import RunningBroker

NAMES = ["pi-0", "pi-1", "pi-2", "pi-3", "pi-4"]
ROUNDS = 2
WINDOWS = Windows(join=20, shares=20, masked=30, survivors=20, unmask=20)
FORGETFUL = """\
listener {port} {host}
allow_anonymous true
persistence false
max_queued_messages 100000
"""


def signed(tap: Tap) -> dict[tuple[Any, ...], set[bytes]]:
    """Return the payloads that each device signed, by device, kind and round."""
    said: dict[tuple[Any, ...], set[bytes]] = defaultdict(set)
    for topic, data in list(tap.heard):
        place = topics.parse(topic)
        if place.way != "up" or is_piece(data) or place.kind in (topics.STATE, topics.WANT):
            continue
        with contextlib.suppress(CoveyError):
            message = envelope.parse(data)
            said[place.device, place.kind, message.task, message.round, message.attempt].add(message.payload)
    return said


def check(live: Live, agents: Agents, tap: Tap, *, rounds: int = ROUNDS, joined: int = len(NAMES)) -> None:
    """Check that a task is done, that nobody signed two things in one place, and that all have the same model."""
    assert live.status() == "done"
    records = [record for record in live.service.store.rounds("digits") if record.accepted]
    assert [record.round for record in records] == list(range(1, rounds + 1))
    assert all(len(payloads) == 1 for payloads in signed(tap).values())
    models: dict[bytes, set[str]] = defaultdict(set)
    for name, weights, _ in agents.seen:
        models[weights.tobytes()].add(name)
    # Every round began with the model that the round before had ended with, bit by bit, on every device that trained.
    assert max(len(names) for names in models.values()) >= joined
    assert len(models) <= len(live.service.store.rounds("digits"))
    for agent in agents.running.values():
        assert agent.link.status.undeliverable == 0


@contextlib.contextmanager
def cutting(proxies: list[Proxy], seconds: float) -> Iterator[None]:
    """Cut every line every so many seconds, one after the other."""
    over = threading.Event()

    def run() -> None:
        number = 0
        while not over.wait(seconds / len(proxies)):
            proxies[number % len(proxies)].cut()
            number += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)


def test_devices_on_slow_lines_that_are_cut_learn_all_the_same(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(mosquitto.port, seed=number)) for number in range(len(NAMES))]
        for proxy in proxies:
            proxy.poor(delay=0.15, jitter=0.05, rate=20_000, cut_every=40_000)
        homes = [
            enrol_agent(tmp_path, operator, home, name, port=proxy.port)
            for name, proxy in zip(NAMES, proxies, strict=True)
        ]
        tap = stack.enter_context(Tap(mosquitto, f"covey/v1/{FLEET}/#"))
        live = stack.enter_context(Live(home))
        agents = stack.enter_context(Agents(homes))
        stack.enter_context(cutting(proxies, 4.0))
        live.service.store.add_task(
            live_task(tmp_path, rounds=ROUNDS, devices_min=5, settle=0.1, windows=WINDOWS, attempts=100)
        )
        live.until_ended()
        check(live, agents, tap, joined=4)
        assert sum(proxy.cuts for proxy in proxies) >= 5


def test_an_aggregator_on_a_line_that_is_cut_goes_on(mosquitto: RunningBroker, tmp_path: Path) -> None:
    with Proxy(mosquitto.port) as proxy:
        operator, home = live_homes(tmp_path, proxy)
        homes = [enrol_agent(tmp_path, operator, home, name, port=mosquitto.port) for name in NAMES]
        with Tap(mosquitto, f"covey/v1/{FLEET}/#") as tap, Live(home) as live, Agents(homes) as agents:
            proxy.poor(delay=0.05, jitter=0.05, rate=200_000, cut_every=100_000)
            with cutting([proxy], 1.5):
                live.service.store.add_task(
                    live_task(tmp_path, rounds=ROUNDS, devices_min=5, settle=0.1, windows=WINDOWS, attempts=100)
                )
                live.until_ended()
            check(live, agents, tap)
            assert live.service.link.connections >= 3


@pytest.mark.parametrize("kind", [topics.ROSTER, topics.SURVIVORS])
def test_a_broker_that_forgets_everything_in_a_round_is_told_again(
    mosquitto: RunningBroker, tmp_path: Path, kind: str
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    with Live(home) as live, Agents(enrol_agent(tmp_path, operator, home, name) for name in NAMES) as agents:
        done = threading.Event()

        def forget(topic: str) -> None:
            if not done.is_set() and f"/pub/{kind}/" in topic:
                mosquitto.kill()  # before the message has gone out
                done.set()

        publish = live.service.link.publish

        def watched(topic: str, payload: bytes, **options: Any) -> None:
            publish(topic, payload, **options)
            forget(topic)

        live.service.link.publish = watched  # type: ignore[method-assign]
        live.service.store.add_task(live_task(tmp_path, rounds=ROUNDS, devices_min=5, settle=0.1))
        until(done.is_set, "the crash")
        mosquitto.start()
        live.until_ended()
        assert live.status() == "done"
        records = live.service.store.rounds("digits")
        # The windows are ten minutes, so a round that had lost a message would still stand.
        assert [(record.round, record.attempt, record.accepted) for record in records] == [(1, 1, 5), (2, 1, 5)]
        assert live.service.link.connections == 2
        assert all(agent.link.status.connects >= 2 for agent in agents.running.values())


def test_everything_twice_and_too_late_changes_nothing(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    with Tap(mosquitto, f"covey/v1/{FLEET}/#") as tap:
        heard: list[tuple[str, bytes]] = []
        said: set[tuple[str, bytes]] = set()

        def parrot(_client: object, _data: object, message: Any) -> None:
            each = (message.topic, bytes(message.payload))
            tap.heard.append(each)
            if each in said:
                return
            said.add(each)
            heard.append(each)
            tap.client.publish(*each, qos=1)  # at once
            for old in heard[-60::20]:
                tap.client.publish(*old, qos=1)  # and much later

        tap.client.on_message = parrot
        with Live(home) as live, Agents(enrol_agent(tmp_path, operator, home, name) for name in NAMES) as agents:
            live.service.store.add_task(live_task(tmp_path, rounds=4, devices_min=5, settle=0.1))
            live.until_ended()
            check(live, agents, tap, rounds=4)
            assert all(record.accepted == 5 for record in live.service.store.rounds("digits"))
            assert [record.attempt for record in live.service.store.rounds("digits")] == [1] * 4


def test_what_a_broker_forgot_before_a_device_had_it_is_published_again(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    clock = Clock()
    with Proxy(mosquitto.port) as proxy:
        homes = [
            enrol_agent(tmp_path, operator, home, name, port=proxy.port if name == "pi-0" else mosquitto.port)
            for name in NAMES
        ]
        with Live(home, clock=clock) as live, Agents(homes):
            publish = live.service.link.publish

            def watched(topic: str, payload: bytes, **options: Any) -> None:
                if f"/pub/{topics.ROSTER}/" in topic and proxy.cuts == 0:
                    proxy.refuse()  # the roster is queued for this device, and nobody else's
                    proxy.cut()
                publish(topic, payload, **options)

            live.service.link.publish = watched  # type: ignore[method-assign]
            live.service.store.add_task(live_task(tmp_path, rounds=1, devices_min=5, settle=0.0))

            def awaited() -> set[str]:
                run = live.service.coordinator.run
                return {name for group in run.groups.values() for name in group.awaited()} if run else set()

            until(lambda: proxy.cuts > 0 and live.call(awaited) == {"pi-0"}, "the others' shares")
            mosquitto.kill()
            mosquitto.start()
            # What is published again while the device is still away finds no session to wait in.
            until(lambda: live.service.link.connections == 2, "the aggregator's second connection")
            proxy.admit()

            def ended() -> bool:
                clock.leap(0.05)  # a moment after the device is there again, its group's last words are said again
                return live.status() == "done"

            until(ended, "the end of task digits")
            (record,) = live.service.store.rounds("digits")
            assert (record.accepted, record.attempt) == (5, 1)
