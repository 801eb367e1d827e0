"""windows.py: stages wait for what devices need, and nobody can make them wait longer or too short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_aggregator.windows import ENOUGH, FACTOR, FLOOR, FOR_ALL, FOR_QUORUM, MARGIN, STAGES, Answers, Paces
from covey_protocol.messages import Windows
from covey_protocol.thresholds import threshold

WHOLE = Windows(join=100, shares=100, masked=600, survivors=100, unmask=100)
NAMES = [f"d-{number}" for number in range(10)]
TASK = "digits"


def answers(seconds: Mapping[str, float], missed: Iterable[str] = (), stages: Iterable[str] = STAGES) -> Answers:
    result = Answers()
    for stage in stages:
        result.seconds[stage] = dict(seconds)
        result.missed[stage] = set(missed)
    return result


def after(*rounds: Answers, paces: Paces | None = None, groups: list[list[str]] | None = None) -> Paces:
    """Return a book in which rounds with the windows that it gave itself are written down."""
    paces, groups = paces or Paces(), groups or [NAMES]
    members = [name for group in groups for name in group]
    for shown in rounds:
        paces.round_ended(TASK, shown, paces.windows(TASK, WHOLE, groups), WHOLE, members)
    return paces


def windows(paces: Paces, *groups: list[str]) -> Windows:
    return paces.windows(TASK, WHOLE, groups or [NAMES])


def even(seconds: float, names: Iterable[str] = NAMES) -> dict[str, float]:
    return dict.fromkeys(names, seconds)


def test_windows_are_whole_until_enough_has_been_seen() -> None:
    for rounds in range(ENOUGH):
        assert windows(after(*[answers(even(1.0))] * rounds)) == WHOLE
    paces = after(*[answers(even(1.0))] * ENOUGH)
    assert windows(paces) == Windows(**dict.fromkeys(STAGES, FACTOR + MARGIN))
    assert paces.windows("other", WHOLE, [NAMES]) == WHOLE
    paces.round_ended("other", answers(even(1.0)), WHOLE, WHOLE, NAMES)
    assert windows(paces) == WHOLE


def test_never_under_the_floor_nor_over_the_tasks_window() -> None:
    assert windows(after(*[answers(even(0.01))] * ENOUGH)).join == FLOOR
    assert windows(after(*[answers(even(90.0))] * ENOUGH)).join == WHOLE.join
    short = Windows(join=1, shares=2, masked=3, survivors=4, attest=3, accept=2, unmask=60)
    found = after(*[answers(even(0.01))] * ENOUGH).windows(TASK, short, [NAMES])
    assert found == Windows(join=1, shares=2, masked=3, survivors=4, attest=3, accept=2, unmask=FLOOR)


def test_one_slow_round_changes_little() -> None:
    usual = [answers(even(2.0))] * 4
    assert windows(after(*usual, answers(even(33.0)))) == windows(after(*usual))


def test_the_slow_twentieth_is_left_behind_but_never_the_tth_of_a_group() -> None:
    names = [f"d-{number}" for number in range(200)]
    spread = [names[place::20] for place in range(20)]  # the slow ones each in another group
    seconds = {name: 20.0 if number < 10 else 2.0 for number, name in enumerate(names)}
    assert windows(after(*[answers(seconds)] * ENOUGH, groups=spread), *spread).join == FACTOR * 2 + MARGIN
    together = [names[place : place + 10] for place in range(0, 200, 10)]  # all of them in one group
    assert windows(after(*[answers(seconds)] * ENOUGH, groups=together), *together).join == FACTOR * 20 + MARGIN


def test_the_quorums_stages_wait_for_t_and_no_more() -> None:
    t = threshold(len(NAMES))
    seconds = {name: 2.0 if place < t else 30.0 for place, name in enumerate(NAMES)}
    found = windows(after(*[answers(seconds)] * ENOUGH))
    assert [getattr(found, stage) for stage in FOR_QUORUM[:1]] == [FACTOR * 2 + MARGIN]
    assert (found.accept, found.unmask) == (FACTOR * 2 + MARGIN, FACTOR * 2 + MARGIN)
    assert [getattr(found, stage) for stage in FOR_ALL if stage != "attest"] == [FACTOR * 30 + MARGIN] * 3
    assert found.attest == WHOLE.attest  # no more than that
    sketching = after(*[answers(seconds)] * ENOUGH).windows(TASK, WHOLE, [NAMES], sketching=True)
    assert sketching.survivors == FACTOR * 30 + MARGIN  # whose draw is left out cannot attest
    only_quorum = windows(after(*[answers(even(2.0, NAMES[:t]), stages=FOR_QUORUM)] * ENOUGH))
    assert only_quorum.survivors == FACTOR * 2 + MARGIN  # whoever was not among the first t was never measured
    assert windows(after(*[answers(even(2.0, NAMES[: t - 1]))] * ENOUGH)) == WHOLE


def test_a_window_that_was_too_short_is_whole_in_the_next_round() -> None:
    paces = after(*[answers(even(1.0))] * 5)
    late = answers(even(1.0, NAMES[1:]), missed=NAMES[:1])
    assert windows(after(late, paces=paces)).join == WHOLE.join
    slow = answers({**even(1.0), "d-0": 20.0})
    assert windows(after(*[slow] * ENOUGH, paces=paces)).join == FACTOR * 20 + MARGIN  # and then it is long enough


def test_whoever_misses_whole_windows_makes_nobody_wait() -> None:
    silent = answers(even(1.0, NAMES[1:]), missed=NAMES[:1])
    paces = after(*[silent] * ENOUGH)
    assert windows(paces).masked == FACTOR + MARGIN
    assert windows(after(silent, paces=paces)).masked == FACTOR + MARGIN  # also when it misses a short one after that
    back = after(answers(even(1.0)), paces=paces)
    assert windows(back).masked == WHOLE.masked  # it is there again, and nobody knows how fast


def test_newcomers_get_whole_windows() -> None:
    paces = after(*[answers(even(1.0))] * 5)
    assert windows(paces, [*NAMES, "new"]).join == WHOLE.join


@given(
    seconds=st.lists(st.floats(0, 50), min_size=4, max_size=32),
    rounds=st.integers(0, 6),
    faults=st.lists(st.tuples(st.sampled_from(STAGES), st.integers(0, 31)), max_size=20),
)
def test_windows_are_never_shorter_than_the_fastest_t_need(
    seconds: list[float], rounds: int, faults: list[tuple[str, int]]
) -> None:
    names = [f"d-{number}" for number in range(len(seconds))]
    paces = Paces()
    for number in range(rounds):
        shown = answers(dict(zip(names, seconds, strict=True)))
        for stage, place in faults[number::6]:
            name = names[place % len(names)]
            shown.seconds[stage].pop(name, None)
            shown.missed[stage].add(name)
        paces = after(shown, paces=paces, groups=[names])
    found = windows(paces, names)
    fastest = sorted(seconds)[threshold(len(names)) - 1]
    assert all(min(fastest, getattr(WHOLE, s)) <= getattr(found, s) <= getattr(WHOLE, s) for s in STAGES)


@given(early=st.integers(0, 6), need=st.floats(0.1, 30))
def test_early_answers_of_fewer_than_t_shorten_the_window_for_nobody(early: int, need: float) -> None:
    assert early < threshold(len(NAMES))
    honest = after(*[answers(even(need))] * ENOUGH)
    cheated = after(*[answers({**even(need), **even(0.0, NAMES[:early])})] * ENOUGH)
    assert windows(cheated) == windows(honest)


@given(late=st.lists(st.sampled_from(NAMES), unique=True), seconds=st.floats(0, 1e6))
def test_late_answers_stretch_a_stage_to_the_tasks_window_at_most(late: list[str], seconds: float) -> None:
    found = windows(after(*[answers({**even(1.0), **even(seconds, late)})] * 5))
    assert all(FLOOR <= getattr(found, stage) <= getattr(WHOLE, stage) for stage in STAGES)


def test_the_book_outlives_a_restart_and_forgets_who_is_in_no_group() -> None:
    paces = after(*[answers(even(1.5), missed=NAMES[:2])] * 4)
    again = Paces(paces.encode())
    assert again.encode() == paces.encode()
    assert windows(again) == windows(paces)
    again.round_ended(TASK, Answers(), WHOLE, WHOLE, NAMES[5:])
    assert b'"d-0"' not in again.encode()
    assert b'"d-5"' in again.encode()


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_a_pace_of_its_own(stage: str) -> None:
    others = [other for other in STAGES if other != stage]
    shown = answers(even(1.0), stages=others)
    shown.seconds[stage] = even(9.0)
    found = windows(after(*[shown] * ENOUGH))
    assert getattr(found, stage) == FACTOR * 9 + MARGIN
    assert {getattr(found, other) for other in others} == {FACTOR + MARGIN}
