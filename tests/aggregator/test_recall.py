"""covey_aggregator.coordinator: a device whose disk was put back is told how far it was, by its own signatures."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from tests.aggregator.fleet import FLEET, Fleet

from covey_aggregator.coordinator import Phase
from covey_protocol import topics
from covey_protocol.effects import Deliver
from covey_protocol.errors import StaleError
from covey_protocol.ledger import DeviceLedger
from covey_protocol.recall import Recalled, read_recall

NAME = "pi-3"


def recalls(fleet: Fleet, state: bytes) -> list[Recalled]:
    """Say a state, and read what the device is told."""
    topic = topics.parse(topics.up(FLEET, NAME, topics.STATE))
    effects = fleet.coordinator.receive(topic, state, fleet.now)
    device = fleet.devices[NAME]
    return [
        read_recall(
            effect.data,
            fleet=FLEET,
            device=NAME,
            own_keys=[bytes(device.key.verify_key)],
            aggregator_key=bytes(fleet.home.key.verify_key),
        )
        for effect in effects
        if isinstance(effect, Deliver) and (effect.device, effect.kind) == (NAME, topics.RECALL)
    ]


def test_a_state_that_counts_too_low_is_answered(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.start(rounds=2)
    fleet.finish()
    device = fleet.devices[NAME]
    for _ in range(3):
        fleet.to_server(NAME, topics.STATE, device.state(again=True))
    counter, device.counter = device.counter, 1
    [recalled] = recalls(fleet, device.state())
    assert (recalled.counter, recalled.task, recalled.round) == (counter, "digits", 2)
    assert recalled.sequence == device.ledger.next_sequence()[0] - 1
    # Who plays that state back over and over gets no more out of it.
    with pytest.raises(StaleError):
        recalls(fleet, device.state())
    with pytest.raises(StaleError):
        recalls(fleet, device.state("lost"))
    fleet.now += 60
    with pytest.raises(StaleError):
        recalls(fleet, device.state("lost"))  # a Last Will that comes late is no offence
    fleet.restart()
    assert recalls(fleet, device.state()) == [recalled]
    assert [text for _, _, cause, text in fleet.store.events() if cause == "went-back"] == []  # notes are the service's


def test_a_join_whose_sequence_went_back_is_answered_and_the_next_round_taken(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    device = fleet.devices[NAME]
    image = copy.deepcopy(device.ledger._rows)
    fleet.start(rounds=4)
    fleet.run_until(lambda: len(fleet.records()) == 2)
    said: list[Recalled] = []
    device.ledger = DeviceLedger(image)
    take = device.take

    def remind(kind: str, id: str, data: bytes) -> list:  # type: ignore[type-arg]
        if kind != topics.RECALL:
            return take(kind, id, data)
        recalled = read_recall(
            data,
            fleet=FLEET,
            device=NAME,
            own_keys=[bytes(device.key.verify_key)],
            aggregator_key=bytes(fleet.home.key.verify_key),
        )
        said.append(recalled)
        device.ledger.put_back(recalled.sequence, recalled.task, recalled.round, recalled.attempt)
        return []

    device.take = remind  # type: ignore[method-assign]
    fleet.finish()
    assert [(recalled.sequence, recalled.round) for recalled in said] == [(2, 2)]
    assert [note.text for note in fleet.notes if note.cause == "went-back"] == [
        f"join sequence of {NAME!r} went back to 1: its disk was put back to an older state, or copied; "
        "it is told how far it was"
    ]
    took_part = [any(NAME in group.survivors for group in record.details) for record in fleet.records()]
    assert took_part == [True, True, False, True]
    assert device.ledger.forgotten == 2
    assert fleet.coordinator.phase is Phase.IDLE
