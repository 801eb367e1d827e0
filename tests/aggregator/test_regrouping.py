"""regrouping.py: groups are drawn anew for good reasons, and seldom before their time."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from covey_aggregator.regrouping import PURSE, REFILL_ROUNDS, Regrouping

CALM: dict[str, Any] = {
    "epoch_over": False,
    "rounds_in_epoch": 7,
    "under": [],
    "fallen": [],
    "waiting": 0,
    "grouped": 100,
    "roster_min": 4,
    "any_closed": True,
}


def after(regrouping: Regrouping, **what: Any) -> str:
    """Return the reason that one round gives, and draw the groups anew if there is one."""
    regrouping.round_ended(**{**CALM, **what})
    reason = regrouping.reason
    if reason:
        regrouping.grouped()
        assert regrouping.reason == ""
    return reason


def test_each_reason_is_given_in_words() -> None:
    regrouping = Regrouping()
    regrouping.ask("there are no groups yet")
    assert regrouping.reason == "there are no groups yet"
    regrouping.grouped()
    assert regrouping.purse == PURSE
    assert after(regrouping) == ""
    assert after(regrouping, epoch_over=True) == "7 rounds have passed"
    assert regrouping.purse == PURSE
    assert after(regrouping, under=["b", "a"]) == "group a, b fell under its floor"
    assert after(regrouping, fallen=["c"]) == "group c aborted again"
    assert regrouping.purse == PURSE - 2


def test_newcomers_wait_until_they_are_a_group_or_a_tenth() -> None:
    for waiting, grouped, roster_min, due in [
        (3, 100, 4, False),
        (4, 100, 4, True),
        (4, 100, 6, False),
        (1, 10, 4, True),
        (1, 11, 4, False),
        (0, 10, 4, False),
        (0, 0, 4, False),
    ]:
        found = after(Regrouping(), waiting=waiting, grouped=grouped, roster_min=roster_min)
        assert bool(found) is due, (waiting, grouped, roster_min)
        assert not due or found == f"{waiting} newcomers wait"


def test_newcomers_leave_the_last_early_epoch_to_groups_in_need() -> None:
    regrouping = Regrouping()
    for _ in range(PURSE - 1):
        assert after(regrouping, waiting=5)
    assert after(regrouping, waiting=5) == ""
    assert after(regrouping, fallen=["g"]) == "group g aborted again"
    assert after(regrouping, fallen=["g"]) == ""


def test_what_costs_nothing_or_cannot_be_repeated_needs_no_purse() -> None:
    regrouping = Regrouping()
    for _ in range(PURSE):
        assert after(regrouping, fallen=["g"])
    assert after(regrouping, fallen=["g"], any_closed=False)
    assert after(regrouping, under=["g"], any_closed=False)
    assert after(regrouping, waiting=100, grouped=100)
    assert after(regrouping, epoch_over=True)
    assert after(regrouping, waiting=99, grouped=100) == ""


@given(st.lists(st.sampled_from(["under", "fallen", "waiting", "calm"]), max_size=120))
def test_nobody_has_the_fleet_regrouped_more_often_than_the_purse_fills(rounds: list[str]) -> None:
    regrouping, early = Regrouping(), 0
    for what in rounds:
        happened: dict[str, dict[str, Any]] = {
            "under": {"under": ["g"]},
            "fallen": {"fallen": ["g"]},
            "waiting": {"waiting": 9},
            "calm": {},
        }
        early += bool(after(regrouping, **happened[what]))
    assert early <= PURSE + len(rounds) // REFILL_ROUNDS
    assert 0 <= regrouping.purse <= PURSE


@given(st.lists(st.booleans(), max_size=60))
def test_enough_newcomers_never_wait_longer_than_two_refills(aborts: list[bool]) -> None:
    regrouping = Regrouping()
    for fell in aborts:
        after(regrouping, fallen=["g"] * fell)
    assert any(after(regrouping, waiting=4) for _ in range(2 * REFILL_ROUNDS))


@given(st.lists(st.booleans(), max_size=40))
def test_purse_and_reason_outlive_a_restart(aborts: list[bool]) -> None:
    regrouping, twin = Regrouping(), Regrouping()
    for fell in aborts:
        for one in (regrouping, twin):
            one.round_ended(**{**CALM, "fallen": ["g"] * fell})
        twin = Regrouping(twin.encode())
        assert (twin.reason, twin.purse) == (regrouping.reason, regrouping.purse)
        if regrouping.reason:
            regrouping.grouped()
            twin.grouped()
    assert twin.encode() == regrouping.encode()
