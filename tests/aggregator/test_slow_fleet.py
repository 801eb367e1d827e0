"""A fleet that sleeps: a round takes a day, devices wake for minutes, and server and broker are restarted meanwhile.

Hours pass when the test says so. In every hour some devices have their radio on until nothing moves any more; then they
are gone, as far as the broker knows, and what is said to them waits in their sessions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.aggregator.live import PATIENCE, Agents, Clock, Live, Tap, bundle, enrol_agent, live_homes, live_task, until

from covey_agent.config import BrokerSettings as AgentBroker
from covey_agent.connect import RunningAgent
from covey_aggregator.home import open_server
from covey_protocol import model
from covey_protocol.messages import WINDOW_MAX, Windows
from covey_protocol.round_table import GroupStage
from covey_simulator.broker import start_broker

HOUR = 3600.0
NAMES = [f"pi-{number}" for number in range(6)]
DEAD = "pi-5"  # wakes until it has joined, and never again
QUIET = 0.4  # real seconds without a byte, after which an hour's devices sleep again
BROKER = """\
user root
listener {port} {host}
allow_anonymous true
persistence true
persistence_location %s/
autosave_interval 3600
set_tcp_nodelay true
max_inflight_messages 64
max_queued_messages 1000
queue_qos0_messages false
persistent_client_expiration 9d
log_dest stderr
"""


class Sleepers:
    """Real agents whose links are down but for an hour now and then; they compute and remember all the time."""

    def __init__(self, agents: Agents, tap: Tap, clock: Clock) -> None:
        self._agents, self._tap, self._clock = agents.running, tap, clock
        self.dead: set[str] = set()
        self.hours = 0

    def sleep(self, names: Iterable[str]) -> None:
        """Switch radios off; the broker finds out and publishes the Last Will."""
        for name in names:
            running = self._agents[name]
            running.link.stop()
            topic, payload = running.agent.will()
            self._tap.publish(topic, payload, retain=True)

    def hour(self) -> None:
        """Let an hour pass, with every other device awake in it."""
        awake = [name for place, name in enumerate(NAMES) if place % 2 == self.hours % 2 and name not in self.dead]
        for name in awake:
            self._agents[name].link.start()
        for name in awake:
            assert self._agents[name].link.wait_connected(PATIENCE)
        self._until_quiet([self._agents[name] for name in awake])
        self.sleep(awake)
        self._clock.leap(HOUR)
        self.hours += 1

    def _until_quiet(self, running: list[RunningAgent]) -> None:
        last, since = None, time.monotonic()
        while time.monotonic() - since < QUIET:
            moved = [(each.link.status.bytes_up, each.link.status.bytes_down) for each in running]
            if moved != last or any(each.store.outbox.used()[0] for each in running):
                last, since = moved, time.monotonic()
            time.sleep(0.02)


def stage(live: Live) -> GroupStage | None:
    def look() -> GroupStage | None:
        run = live.service.coordinator.run
        return next(iter(run.groups.values())).stage if run is not None else None

    return live.call(look)


def hours_until(sleepers: Sleepers, live: Live, *stages: GroupStage) -> None:
    while stage(live) not in stages:
        assert sleepers.hours < 72, stage(live)
        sleepers.hour()


def test_a_round_of_a_day_closes_with_all_who_wake_although_server_and_broker_were_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "covey.aggregator")
    folder = tmp_path / "broker"
    folder.mkdir()
    windows = Windows(join=5 * HOUR, shares=5 * HOUR, masked=12 * HOUR, survivors=5 * HOUR, unmask=5 * HOUR)
    with start_broker(folder, prefer="mosquitto", config=BROKER % folder) as broker:
        operator, home = live_homes(tmp_path, broker)
        clock = Clock()
        wall = lambda: 1.7e9 + clock()  # noqa: E731
        homes = [enrol_agent(tmp_path, operator, home, name) for name in NAMES]
        with Tap(broker, "nothing") as tap, Agents(homes) as agents:
            sleepers = Sleepers(agents, tap, clock)
            with Live(home, clock=clock, wall_clock=wall) as live:
                live.service.store.add_task(
                    live_task(tmp_path, rounds=1, devices_min=6, settle=0.0, group_size=6, windows=windows, sleep=True)
                )
                known = live.service.coordinator.registry.knows
                until(lambda: all(live.call(lambda name=name: known(name)) for name in NAMES), "six devices")  # type: ignore[misc]
                sleepers.sleep(NAMES)
                hours_until(sleepers, live, GroupStage.SHARING, GroupStage.MASKING)
                sleepers.dead.add(DEAD)
                hours_until(sleepers, live, GroupStage.MASKING)
                sleepers.hour()
            for _ in range(4):  # while nobody serves
                sleepers.hour()
            began = clock()
            # Another process has another monotonic clock.
            with Live(open_server(home.path), clock=lambda: clock() - began, wall_clock=wall) as live:
                assert stage(live) in (GroupStage.MASKING, GroupStage.SIGNING)
                hours_until(sleepers, live, GroupStage.SIGNING, GroupStage.UNMASKING)
                broker.stop()
                broker.start()
                until(lambda: live.service.link.connections == 2, "the aggregator's second connection")
                until(tap.client.is_connected, "the tap's second connection")
                while live.status() != "done":
                    assert sleepers.hours < 72, stage(live)
                    sleepers.hour()
                (record,) = live.call(lambda: live.service.store.rounds("digits"))
            assert (record.attempt, record.resumed) == (1, 1)
            assert record.accepted >= 5  # the dead one may have come as far as its vector
            assert set(record.details[0].survivors) >= set(NAMES) - {DEAD}
            assert record.seconds > 8 * HOUR
            assert "lost the session" not in caplog.text  # the broker had kept on its disk what waited for sleepers
            clear = [update for name, _, update in agents.seen if name in record.details[0].survivors]
            clear = [update * min(1.0, 0.2 / float(np.linalg.norm(update))) for update in clear]
            after = model.from_bytes((home.path / "models" / record.model).read_bytes())
            np.testing.assert_allclose(after - bundle().weights, np.mean(clear, axis=0), atol=1e-3)


def test_sessions_outlive_every_window() -> None:
    assert AgentBroker().session_expiry > WINDOW_MAX
