"""A device that was away while rounds passed: it takes up with the present and answers nothing that is over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.aggregator.fleet import FLEET
from tests.aggregator.live import Agents, Live, Tap, enrol_agent, live_homes, live_task, until
from tests.network.proxy import Proxy

from covey_protocol import envelope, topics
from covey_protocol.messages import Windows
from covey_simulator.broker import RunningBroker, start_broker

NAMES = ["pi-0", "pi-1", "pi-2", "pi-3", "sleeper"]
WINDOWS = Windows(join=3, shares=3, masked=3, survivors=3, unmask=3)
CONFIG = """\
listener {port} {host}
allow_anonymous true
persistence %s
persistence_location %s/
max_queued_messages %d
set_tcp_nodelay true
"""


def make_broker(folder: Path, *, queue: int = 100_000, persistence: str = "false") -> RunningBroker:
    folder.mkdir()
    config = CONFIG % (persistence, folder, queue) + ("user root\n" if os.geteuid() == 0 else "")
    return start_broker(folder, prefer="mosquitto", config=config)


@pytest.fixture
def proxy_of() -> Iterator[list[Proxy]]:
    made: list[Proxy] = []
    yield made
    for each in made:
        each.__exit__(None, None, None)


@pytest.mark.parametrize("case", ["kept", "kept-3.1.1", "expired", pytest.param("overflow", marks=pytest.mark.slow)])
def test_a_device_that_wakes_joins_the_next_round_and_none_that_is_over(
    tmp_path: Path, proxy_of: list[Proxy], case: str
) -> None:
    with make_broker(tmp_path / "broker", queue=12 if case == "overflow" else 100_000) as broker:
        proxy = Proxy(broker.port)
        proxy_of.append(proxy.__enter__())
        operator, home = live_homes(tmp_path, broker)
        options: dict[str, Any] = {
            "session_expiry": 1 if case == "expired" else 3600,
            "protocol": "3.1.1" if "3.1" in case else "5",
        }
        homes = [
            enrol_agent(tmp_path, operator, home, name, **(options | {"port": proxy.port} if name == "sleeper" else {}))
            for name in NAMES
        ]
        with Tap(broker, f"covey/v1/{FLEET}/#") as tap, Live(home) as live, Agents(homes) as agents:
            sleeper = agents.running["sleeper"]

            def closed() -> int:
                return len([r for r in live.call(lambda: live.service.store.rounds("digits")) if r.accepted])

            task = live_task(tmp_path, rounds=60, devices_min=5, settle=0.1, windows=WINDOWS, attempts=100)
            live.service.store.add_task(task)
            until(lambda: closed() >= 1, "a round with all")
            proxy.refuse()
            proxy.cut()
            until(lambda: not sleeper.link.connected, "sleep")
            asleep = closed()
            until(lambda: closed() >= asleep + 3, "rounds without the sleeper")
            over = closed()
            heard = len(tap.heard)
            proxy.admit()

            def joins() -> list[int]:
                mine = [data for topic, data in tap.heard[heard:] if topic == topics.up(FLEET, "sleeper", topics.JOIN)]
                return [envelope.parse(data).round for data in mine]

            until(lambda: bool(joins()), "a join")
            until(
                lambda: any(
                    "sleeper" in group.survivors
                    for record in live.call(lambda: live.service.store.rounds("digits"))[over:]
                    for group in record.details
                ),
                "a round with the sleeper",
            )
            assert min(joins()) > over, "no round that was over was answered"
            if case.startswith("kept"):
                assert sum(sleeper.agent.refusals.counts.values()) > 0, "what is stale is counted"
            live.service.store.set_status("digits", "stopping", "enough")
            live.until_ended()


def test_a_broker_that_remembers_is_killed_in_a_round_and_the_round_closes(tmp_path: Path) -> None:
    with make_broker(tmp_path / "broker", persistence="true") as broker:
        operator, home = live_homes(tmp_path, broker)
        with Live(home) as live, Agents(enrol_agent(tmp_path, operator, home, name) for name in NAMES) as agents:
            task = live_task(tmp_path, rounds=3, devices_min=5, settle=0.1)
            live.service.store.add_task(task)
            until(lambda: live.call(lambda: live.service.coordinator.run is not None), "a round")
            broker.stop()  # with time to save sessions and retained messages
            broker.start()
            live.until_ended()
            assert live.status() == "done"
            records = live.service.store.rounds("digits")
            assert [(record.round, record.accepted) for record in records if record.accepted] == [
                (1, 5),
                (2, 5),
                (3, 5),
            ]
            assert all(agent.link.status.undeliverable == 0 for agent in agents.running.values())
