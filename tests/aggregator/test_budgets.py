"""Budgets: honest devices never notice them, floods cost nothing, nobody unknown leaves a trace."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, Device, make_homes
from tests.aggregator.live import Agents, Live, enrol_agent, live_homes, live_task, until

from covey_aggregator.budgets import (
    AGAIN_SECONDS,
    CALM_SECONDS,
    FLOOD,
    SLOTS,
    STRANGER,
    STRANGER_BURST,
    STRANGER_EVERY,
    WEIGHTS,
    Bucket,
    Budgets,
    BudgetSettings,
)
from covey_aggregator.service import Service
from covey_aggregator.store import Store
from covey_aggregator.transfers import QUEUE_SECONDS, Transfers
from covey_protocol import topics
from covey_protocol.chunks import split
from covey_protocol.digest import content_digest
from covey_protocol.effects import Expect
from covey_protocol.errors import RefusedError
from covey_simulator.broker import RunningBroker

SETTINGS = BudgetSettings(
    messages_per_second=1, messages_burst=20, bytes_per_second=100, bytes_burst=1000, newcomers_burst=50
)
WANT, STATE = topics.up(FLEET, "pi", topics.WANT), topics.up(FLEET, "pi", topics.STATE)


def budgets(settings: BudgetSettings = SETTINGS, known: str = "pi") -> Budgets:
    return Budgets(settings, lambda name: name == known, b"k" * 16)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 30)), max_size=60), st.floats(0.01, 100), st.floats(0.01, 1000)
)
def test_no_bucket_gives_more_than_it_held_and_what_came_back(
    asks: list[tuple[float, float]], rate: float, limit: float
) -> None:
    bucket, now, given_away = Bucket(rate, limit, 0.0), 0.0, 0.0
    for pause, amount in asks:
        now += pause
        if bucket.take(amount, now):
            given_away += amount
    assert given_away <= limit + now * rate + 1e-6 * (1 + given_away)


def test_messages_are_counted_by_what_they_cost() -> None:
    for kind, weight in ((topics.WANT, 1.0), *WEIGHTS.items()):
        own = budgets()
        topic = topics.up(FLEET, "pi", kind)
        taken = [own.admit(topic, 1, 0.0) for _ in range(30)]
        assert taken.count("") == 20 // weight
        assert set(taken) == {"", FLOOD}
        assert own.admit(topic, 1, weight - 0.01) == FLOOD
        assert own.admit(topic, 1, weight + 0.01) == ""


def test_bytes_are_counted_too_and_both_come_back() -> None:
    own = budgets()
    assert [own.admit(WANT, 400, 0.0) for _ in range(3)] == ["", "", FLOOD]
    assert own.admit(WANT, 400, 1.9) == FLOOD
    assert own.admit(WANT, 400, 2.1) == ""
    assert own.admit(WANT, 1001, 1e6) == FLOOD, "it is never more than the bucket holds"


def test_what_was_announced_comes_on_top_and_is_not_saved_up() -> None:
    own = budgets()
    piece = topics.up(FLEET, "pi", topics.MASKED, "ab")
    assert own.admit(piece, 900, 0.0) == ""
    for _ in range(100):
        own.announced("pi", 10_000, 0.0)
    taken = [own.admit(piece, 1000, 0.0) for _ in range(200)]
    assert 2 * 10 <= taken.count("") <= 2 * 10 + 1, "all of it, and once again"


@pytest.mark.parametrize("topic", ["", "a/b", f"covey/v1/{FLEET}/pub/time", WANT.replace("pi", "who"), "////////"])
def test_who_has_shown_no_identity_is_not_read(topic: str) -> None:
    own = budgets()
    assert own.admit(topic, 1, 0.0) == STRANGER
    assert own.strangers == 1


def test_a_loud_stranger_does_not_silence_another_and_neither_takes_any_memory() -> None:
    own = budgets()
    loud = topics.up(FLEET, "loud", topics.STATE)
    assert [own.admit(loud, 1, 0.0) for _ in range(1000)].count("") == STRANGER_BURST
    assert own.admit(topics.up(FLEET, "quiet", topics.STATE), 1, 0.0) == ""
    assert own.admit(loud, 1, STRANGER_EVERY + 0.1) == ""
    many = Counter(own.admit(topics.up(FLEET, f"n{index}", topics.STATE), 1, 0.0) for index in range(20_000))
    assert many[""] <= SETTINGS.newcomers_burst, "all of them together have a budget as well"
    assert len(own._slots) == SLOTS
    assert own._accounts == {}, "nothing was kept of any name"


def test_a_flood_is_told_once_when_it_begins_and_once_when_it_is_over() -> None:
    own = budgets()
    assert own.news(0.0) == []
    for _ in range(50):
        own.admit(WANT, 1, 0.0)
    (begun,) = own.news(1.0)
    assert (begun.device, begun.over) == ("pi", False)
    for second in range(1, 40):
        for _ in range(5):
            own.admit(WANT, 3, float(second))
        assert own.news(float(second)) == []
    assert own.news(39 + CALM_SECONDS - 1) == []
    (over,) = own.news(39 + CALM_SECONDS)
    assert (over.device, over.messages, over.over) == ("pi", 30 + 39 * 4, True)
    assert own.news(1e9) == []


def test_states_that_were_dropped_are_asked_for_again_when_it_is_calm() -> None:
    own = budgets()
    for _ in range(30):
        own.admit(WANT, 1, 0.0)
    assert not own.states_again(1e3), "nothing that is retained was dropped"
    own.admit(STATE, 1, 0.0)
    assert not own.states_again(AGAIN_SECONDS - 1)
    assert own.states_again(AGAIN_SECONDS)
    assert not own.states_again(1e9), "once"


# Room for vectors on their way


def expect(transfers: Transfers, device: str, blob: bytes, now: float = 0.0) -> None:
    transfers.expect(Expect(device, content_digest(blob), len(blob)), now)


def test_vectors_on_their_way_share_a_number_of_bytes() -> None:
    transfers = Transfers(FLEET, SigningKey.generate(), 2500)
    blobs = {name: os.urandom(1000) for name in ("a", "b", "c")}
    pieces = {name: list(split(blob, 512)) for name, blob in blobs.items()}
    for name, blob in blobs.items():
        expect(transfers, name, blob)
    for name in ("a", "b"):
        transfers.add(name, pieces[name][0], 0.0)
    with pytest.raises(RefusedError) as caught:
        transfers.add("c", pieces["c"][0], 1.0)
    assert caught.value.cause == "budget"
    assert transfers.add("a", pieces["a"][1], 1.0) == blobs["a"], "who was let in goes on"
    assert transfers.add("c", pieces["c"][0], 1.0) is None, "and its room is free when it is done"


def test_a_vector_that_stands_still_gives_its_room_to_another() -> None:
    transfers = Transfers(FLEET, SigningKey.generate(), 1500)
    blobs = {name: os.urandom(1000) for name in ("slow", "quick")}
    pieces = {name: list(split(blob, 512)) for name, blob in blobs.items()}
    for name, blob in blobs.items():
        expect(transfers, name, blob)
    transfers.add("slow", pieces["slow"][0], 0.0)
    with pytest.raises(RefusedError):
        transfers.add("quick", pieces["quick"][0], QUEUE_SECONDS - 1)
    assert [transfers.add("quick", piece, QUEUE_SECONDS + 1) for piece in pieces["quick"]][-1] == blobs["quick"]
    first, last = pieces["slow"]
    assert transfers.add("slow", last, QUEUE_SECONDS + 2) is None, "nothing of it is held any more"
    assert transfers.add("slow", first, QUEUE_SECONDS + 2) == blobs["slow"]


def test_one_vector_larger_than_the_room_is_taken_alone() -> None:
    transfers = Transfers(FLEET, SigningKey.generate(), 10)
    blob = os.urandom(1000)
    expect(transfers, "a", blob)
    assert [transfers.add("a", piece, 0.0) for piece in split(blob, 512)][-1] == blob


# In the service


def test_strangers_leave_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "covey.aggregator")
    operator, home = make_homes(tmp_path)
    service = Service(home, store=Store(":memory:"), clock=lambda: 0.0)
    try:
        service.on_message(STATE, Device("pi", operator, home).state())
        before, lines = service.store._db.total_changes, len(caplog.records)
        acknowledged = []
        for index in range(3000):
            kind = sorted(topics.UP_KINDS - {topics.STATE})[index % (len(topics.UP_KINDS) - 1)]
            service.on_message(topics.up(FLEET, f"n{index}", kind), b"x", lambda: acknowledged.append(1))
        assert len(acknowledged) == 3000, "the broker keeps none of it"
        assert service.store._db.total_changes == before
        assert len(caplog.records) == lines
        assert service.refusals.counts == {STRANGER: 3000}
        for second in range(3):
            service._watch_budgets(float(second))
        assert len(caplog.records) == lines + 1, "they are summed up"
        assert "3000 messages" in caplog.records[-1].getMessage()
    finally:
        service.store.close()


def test_an_announced_vector_is_not_held_against_its_device(tmp_path: Path) -> None:
    operator, home = make_homes(tmp_path)
    own = BudgetSettings(bytes_per_second=1, bytes_burst=5000)
    home = dataclasses.replace(home, settings=msgspec.structs.replace(home.settings, budgets=own))
    service = Service(home, store=Store(":memory:"), clock=lambda: 0.0)
    try:
        service.on_message(STATE, Device("pi", operator, home).state())
        service._carry([Expect("pi", bytes(32), 100_000)])
        topic = topics.up(FLEET, "pi", topics.MASKED, "ab")
        assert all(service.budgets.admit(topic, 1000, 0.0) == "" for _ in range(200))
        assert service.budgets.admit(topic, 5001, 0.0) == FLOOD
    finally:
        service.store.close()


def test_a_device_that_floods_is_named_once_and_the_others_learn(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    own = BudgetSettings(messages_per_second=5, messages_burst=100)
    home = dataclasses.replace(home, settings=msgspec.structs.replace(home.settings, budgets=own))
    names = [f"pi-{index}" for index in range(5)]
    homes = [enrol_agent(tmp_path, operator, home, name) for name in names]
    with Live(home) as live, Agents(homes) as agents:
        live.call(lambda: live.service.store.add_task(live_task(tmp_path, rounds=3, devices_min=5)))
        # Not before there are groups: opening an epoch waits for every device it lists, whatever keeps it silent.
        until(lambda: live.service.coordinator.run is not None, "a round")
        flooder = agents.running["pi-4"].link
        for _ in range(400):  # rubbish on the topic of a message that leads to checks
            flooder.outbox.put(topics.up(home.fleet, "pi-4", topics.UNMASK), bytes(64))
        flooder.kick()
        live.until_ended()
        assert live.status() == "done"
        until(lambda: live.service.budgets.dropped("pi-4") > 100, "the flood")
        records = live.call(lambda: live.service.store.rounds("digits"))
        assert all(record.accepted >= 4 for record in records if not record.groups_aborted)
        until(lambda: bool(live.call(lambda: live.service.coordinator.chronicle.alerts.after(0))), "the alert")
        (alert,) = live.call(lambda: live.service.coordinator.chronicle.alerts.after(0))
        assert (alert.kind, alert.device) == ("flood", "pi-4")
        floods = [
            text for _, _, cause, text in live.call(lambda: list(live.service.store.events(0))) if cause == "flood"
        ]
        assert len(floods) == 1


def test_states_that_did_not_fit_are_taken_later(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    agent = enrol_agent(tmp_path, operator, home, "pi-0")
    with Live(home) as live:
        admit = live.service.budgets.admit
        live.service.budgets.admit = lambda *_: STRANGER  # type: ignore[method-assign]
        with Agents([agent]) as agents:
            assert agents.running["pi-0"].link.wait_connected(20)
            assert agents.running["pi-0"].link.drain(20)
            until(lambda: live.service.refusals.counts[STRANGER] > 0, "its state")
            live.service.budgets.admit = admit  # type: ignore[method-assign]
            assert not live.call(lambda: live.service.coordinator.registry.knows("pi-0"))
            live.call(live.service.link.subscribe_again)
            until(lambda: live.call(lambda: live.service.coordinator.registry.knows("pi-0")), "enrolment")
