"""A disk that is put back to an older state: refused, told how far it was, and let in again. All of it real."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.aggregator.fleet import FLEET
from tests.aggregator.live import Agents, Live, Tap, enrol_agent, live_homes, live_task, until

from covey_agent.connect import RunningAgent
from covey_agent.home import open_home
from covey_agent.status import read_status
from covey_protocol import envelope, topics
from covey_protocol.errors import MalformedError
from covey_protocol.messages import Join, Masked
from covey_protocol.payload import read
from covey_simulator.broker import RunningBroker

NAMES = [f"pi-{number}" for number in range(5)]
VICTIM = "pi-2"


@contextmanager
def running(home: Path) -> Iterator[RunningAgent]:
    agent = RunningAgent(open_home(home))
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()


def closed_with(live: Live) -> list[int]:
    """Return the rounds whose sum the victim is in."""
    records = live.call(lambda: live.service.store.rounds("digits"))
    return [record.round for record in records if any(VICTIM in group.survivors for group in record.details)]


@pytest.mark.parametrize("loss", ["image", "no database"])
def test_a_disk_that_was_put_back_is_refused_told_and_let_in_again(
    loss: str, tmp_path: Path, mosquitto: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    operator, server = live_homes(tmp_path, mosquitto)
    homes = [enrol_agent(tmp_path, operator, server, name) for name in NAMES]
    [home] = [home.path for home in homes if home.device == VICTIM]
    image = tmp_path / "image"
    with (
        Tap(mosquitto, f"covey/v1/{FLEET}/dev/{VICTIM}/#") as tap,
        Live(server) as live,
        Agents(home for home in homes if home.device != VICTIM),
    ):
        with running(home):
            until(lambda: len(live.service.coordinator.registry.online()) == len(NAMES), "everybody")
            live.call(lambda: live.service.store.add_task(live_task(tmp_path, rounds=5000)))
            until(lambda: len(closed_with(live)) >= 2, "two rounds")
        shutil.copytree(home, image)
        for _ in range(2):
            seen = len(closed_with(live))
            with running(home):
                until(lambda: len(closed_with(live)) >= seen + 2, "two more rounds")  # noqa: B023
        before = sequences(tap)
        if loss == "image":
            shutil.rmtree(home)
            shutil.copytree(image, home)
        else:
            for path in home.glob("agent.db*"):
                path.unlink()
        seen = len(closed_with(live))
        with running(home) as agent:
            until(lambda: len(closed_with(live)) >= seen + 3, "rounds after the disk was put back")
            until(lambda: bool((read_status(home / "status.json") or {})["exposure"]["forgotten"]), "the status")
            forgotten = agent.agent.ledger.forgotten
    assert tap.on(topics.down(FLEET, VICTIM, topics.RECALL))
    assert "this disk is older than what the device has signed" in caplog.text
    # Nobody heard a number again that had been used, and no vector was masked twice.
    after = [number for number in sequences(tap) if number not in before]
    assert min(after) > max(before)
    assert forgotten >= (max(before) if loss == "no database" else len(before) - 2)
    assert sequences(tap) == sorted(set(sequences(tap)))
    masked: dict[tuple[int, int], set[bytes]] = {}
    for data in tap.on(topics.up(FLEET, VICTIM, topics.MASKED)):
        message = envelope.parse(data)
        masked.setdefault((message.round, message.attempt), set()).add(read(Masked, message.payload).vector.digest)
    assert all(len(digests) == 1 for digests in masked.values())


def sequences(tap: Tap) -> list[int]:
    """Return the sequence numbers of all different joins, in the order in which they came."""
    found = dict.fromkeys(tap.on(topics.up(FLEET, VICTIM, topics.JOIN)))
    numbers = []
    for data in found:
        try:
            numbers.append(read(Join, envelope.parse(data).payload).sequence)
        except MalformedError:
            continue
    return numbers
