"""covey_protocol.signed_time: the floor never goes back, whatever order, duplicates, restarts or lies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol.rig import FLEET, SERVER, signing_key

from covey_protocol.errors import SignatureError
from covey_protocol.signed_time import RELEASED, STORE_SECONDS, DeviceClock, read_time, write_time

DAY = 86400
NOW = RELEASED + 100 * DAY


def test_a_time_is_the_aggregators_and_of_its_fleet() -> None:
    data = write_time(NOW, fleet=FLEET, key=SERVER)
    assert read_time(data, fleet=FLEET, aggregator_key=bytes(SERVER.verify_key)) == NOW
    for fleet, key in (("orchard", SERVER), (FLEET, signing_key("stranger"))):
        with pytest.raises(SignatureError):
            read_time(data, fleet=fleet, aggregator_key=bytes(key.verify_key))


def test_a_device_that_knows_nothing_lives_no_earlier_than_its_software_and_its_bundle() -> None:
    assert DeviceClock().now(0.0) == RELEASED
    assert DeviceClock(earliest=NOW).now(0.0) == NOW
    assert DeviceClock(earliest=5).now(0.0) == RELEASED
    assert DeviceClock(earliest=NOW, rows={"time": str(NOW + 7).encode()}).now(0.0) == NOW + 7


def test_time_passes_by_the_monotonic_clock() -> None:
    clock = DeviceClock(earliest=NOW, monotonic=50.0)
    assert clock.now(50.0 + 90.5) == NOW + 90
    assert clock.now(40.0) == NOW
    clock.hear(NOW + 1000, 0, 60.0)
    assert clock.now(61.0) == NOW + 1001


def test_a_synchronised_wall_clock_counts_and_moves_no_floor() -> None:
    clock = DeviceClock(earliest=NOW)
    assert clock.now(1.0, NOW + DAY) == NOW + DAY
    assert clock.now(1.0) == NOW + 1
    assert clock.now(1.0, NOW - DAY) == NOW + 1
    assert clock.hear(NOW + DAY, 0, 1.0) != []


def test_a_floor_is_stored_now_and_then() -> None:
    clock = DeviceClock(earliest=NOW, rows={"time": str(NOW).encode()})
    assert clock.hear(NOW + STORE_SECONDS - 1, 0, 0.0) == []
    [mark] = clock.hear(NOW + STORE_SECONDS, 0, 0.0)
    assert (mark.key, mark.value) == ("time", str(NOW + STORE_SECONDS).encode())


def test_what_was_signed_is_stored_though_this_devices_clock_runs_fast() -> None:
    clock = DeviceClock(earliest=NOW)
    clock.hear(NOW + 1, 0, 0.0)
    assert clock.hear(NOW + 2, 0, 10.0) == []
    [mark] = clock.hear(NOW + STORE_SECONDS + 1, 0, STORE_SECONDS + 90.0)
    assert mark.value == str(NOW + STORE_SECONDS + 1).encode()
    assert clock.now(STORE_SECONDS + 90.0) == NOW + 1 + STORE_SECONDS + 90


def test_a_lie_about_the_future_ends_the_liars_own_delegation_and_no_other() -> None:
    clock = DeviceClock(earliest=NOW)
    [mark] = clock.hear(NOW + 1000 * DAY, NOW + DAY, 0.0)
    assert clock.now(0.0) == NOW + DAY + 1
    again = DeviceClock(rows={mark.key: mark.value})
    assert again.now(0.0) == NOW + DAY + 1
    again.hear(NOW + 2 * DAY, NOW + 365 * DAY, 0.0)  # by the operator's next delegation
    assert again.now(0.0) == NOW + 2 * DAY


@st.composite
def events(draw: st.DrawFn) -> list[tuple[str, int, float]]:
    kinds = st.sampled_from(["hear", "wait", "restart"])
    return draw(
        st.lists(st.tuples(kinds, st.integers(-50, 400 * DAY), st.floats(0, 5000, allow_nan=False)), max_size=25)
    )


@given(events(), st.integers(0, 2 * DAY))
def test_the_floor_never_goes_back(story: list[tuple[str, int, float]], bundle: int) -> None:
    """Whatever is heard, in whatever order and however often, and whenever the power goes."""
    not_after = RELEASED + 300 * DAY
    clock, monotonic, rows = DeviceClock(earliest=RELEASED + bundle), 0.0, dict[str, bytes]()
    last, honest = clock.now(0.0), 0.0
    for kind, at, seconds in story:
        if kind == "wait":
            monotonic += seconds
            honest += seconds
        elif kind == "restart":
            before = clock.now(monotonic)
            counted = max([RELEASED + bundle, *(int(value) for value in rows.values())])
            monotonic = seconds
            clock = DeviceClock(earliest=RELEASED + bundle, rows=rows, monotonic=monotonic)
            last = clock.now(monotonic)
            assert last == counted  # nothing that was stored is lost; what was only counted, and ten minutes, may be
            assert before - last <= STORE_SECONDS + honest + 1
            continue
        else:
            rows |= {mark.key: mark.value for mark in clock.hear(RELEASED + at, not_after, monotonic)}
            assert clock.now(monotonic) >= min(RELEASED + at, not_after + 1)
        now = clock.now(monotonic)
        assert now >= last
        assert now <= max(not_after + 1, RELEASED + bundle) + honest + 1
        last = now
