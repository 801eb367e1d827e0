"""What holds whatever is sent."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.aggregator.reputation.world import World, flipped, noise

from covey_aggregator.reputation import OUT, TABLE, Reputation, State
from covey_aggregator.reputation.states import BANNED, DETAINED, RELEASED

VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, -1.7e308, 1e-9]),
    st.floats(-1e6, 1e6, allow_nan=False),
)
ROUNDS = st.lists(arrays.arrays(np.float64, (12, 4), elements=VALUES), min_size=1, max_size=6)
NAMES = [f"d-{number:02}" for number in range(12)]


def book(names: list[str] | None = None) -> Reputation:
    found = Reputation()
    for name in names or NAMES:
        found.admit(name, token=name)
    return found


@settings(max_examples=60, deadline=None)
@given(ROUNDS)
def test_no_number_that_is_sent_breaks_the_book(
    rounds: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]],
) -> None:
    found = book()
    for rows in rounds:
        ruling = found.settle(found.ruling(dict(zip(NAMES, rows, strict=True))))
        assert np.isfinite(ruling.reference_norm or 0.0) and 0 <= ruling.gate <= 1
        assert 0.01 <= ruling.contamination <= 1
        for verdict in ruling.verdicts.values():
            assert 0 <= verdict.evidence <= found.settings.worst
            parts = verdict.parts
            assert np.isfinite([parts.alignment, parts.norm, parts.clones, parts.isolation]).all()
    assert Reputation(state=found.encode()).encode() == found.encode()


@settings(max_examples=25, deadline=None)
@given(ROUNDS, st.permutations(NAMES), st.sets(st.sampled_from(NAMES), max_size=5))
def test_the_order_of_names_does_not_matter(
    rounds: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]], order: list[str], absent: set[str]
) -> None:
    one, other = book(), book(order)
    for rows in rounds:
        sent = {name: row for name, row in zip(NAMES, rows, strict=True) if name not in absent}
        first = one.settle(one.ruling(sent))
        second = other.settle(other.ruling({name: sent[name] for name in order if name in sent}))
        assert first.accepted == second.accepted and first.verdicts == second.verdicts
    assert one.encode() == other.encode()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(12, 60), st.floats(0.5, 3.0), st.floats(0.0, 0.6), st.sampled_from([8, 16, 64])
)
def test_honest_fleets_are_not_expelled(seed: int, devices: int, strength: float, away: float, k: int) -> None:
    world = World(devices, strength=strength, k=k, seed=seed)
    for _ in range(20):
        world.play(absent=[name for name in world.names if world.rng.random() < away])
    assert len(world.book.names(*OUT)) <= max(2, 0.03 * devices)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(0, 25))
def test_expulsions_keep_their_limits_and_states_their_table(seed: int, hostile: int, joining: int) -> None:
    world = World(30, hostile={number: flipped if number % 2 else noise for number in range(hostile)}, seed=seed)
    rules, expected = world.book.settings, dict.fromkeys(world.names, State.PROBATION)
    for number in range(14):
        if number == 7:
            expected |= dict.fromkeys(world.join(joining, flipped), State.PROBATION)
        ruling = world.play()
        events = {name: v.event for name, v in ruling.verdicts.items() if v.event}
        for name, verdict in ruling.verdicts.items():
            assert verdict.before is expected[name]
            expected[name] = TABLE[verdict.before][verdict.event] if verdict.event else verdict.before
            assert verdict.after is expected[name]
        assert not {BANNED, DETAINED, RELEASED} & set(events.values()), "evidence alone never does these"
        fresh = [name for name, event in events.items() if event == "expelled"]
        assert len(fresh) <= max(1, rules.quarantine_rate * len(ruling.verdicts))
        founders = [name for name in world.names[:30] if expected[name] in OUT]
        assert len(founders) <= rules.quarantine_share * 30
        assert not ruling.accepted & set(world.book.names(*OUT, State.SUSPECT))
