"""conduct.py: aborts cost little once, and those who cause them again and again sit out for longer and longer."""

from __future__ import annotations

import random

import pytest

from covey_aggregator.conduct import (
    ABORTS_IN_A_ROW,
    DOUBLINGS,
    FORGET_ROUNDS,
    PROVEN_DOUBLINGS,
    REFORMED,
    SIT_OUT_ROUNDS,
    STRIKES,
    SUSPICIONS,
    WARNING,
    Conduct,
)

FLEET = [f"d-{number}" for number in range(12)]
GROUPS = {"g": FLEET[:6], "h": FLEET[6:]}


def quiet(conduct: Conduct, rounds: int) -> None:
    for _ in range(rounds):
        conduct.round_ended({}, ())


def convicted(name: str = "d-0", conduct: Conduct | None = None) -> Conduct:
    """Return a record in which a device has just been sentenced."""
    conduct = conduct or Conduct()
    for _ in range(STRIKES):
        conduct.round_ended({"g": {name}}, ())
    assert conduct.sentence(FLEET) == {name}
    conduct.regrouped()
    return conduct


def test_one_abort_changes_nothing() -> None:
    conduct = Conduct()
    conduct.round_ended({"g": {"d-0"}}, {"d-1"})
    assert conduct.fallen(GROUPS) == []
    assert conduct.sentence(FLEET) == conduct.sitting_out() == set()


def test_a_group_falls_by_aborts_in_a_row_with_a_member_who_caused_several() -> None:
    conduct = Conduct()
    for _ in range(STRIKES - 1):
        conduct.round_ended({"g": {"d-0"}, "h": {"d-6"}}, ())
    assert conduct.fallen(GROUPS) == []  # twice in a row, and nobody to leave out
    conduct.round_ended({"g": {"d-0"}}, ())
    assert conduct.fallen(GROUPS) == ["g"]
    conduct.round_ended({}, ())
    assert conduct.fallen(GROUPS) == []
    conduct.round_ended({"g": {"d-0"}}, ())
    assert conduct.fallen(GROUPS) == []  # not in a row
    for _ in range(ABORTS_IN_A_ROW - 1):
        conduct.round_ended({"g": ()}, ())
    assert conduct.fallen(GROUPS) == ["g"]
    conduct.regrouped()
    assert conduct.fallen(GROUPS) == []


def test_others_causing_each_abort_do_not_make_a_group_fall() -> None:
    conduct = Conduct()
    for number in range(6):
        conduct.round_ended({"g": {f"d-{number}"}}, ())
        assert conduct.fallen(GROUPS) == []
    assert conduct.sentence(FLEET) == set()


def test_at_a_new_grouping_everybody_on_a_last_warning_sits_out_and_comes_back() -> None:
    conduct = Conduct()
    for _ in range(WARNING):
        conduct.round_ended({"g": {"d-0"}}, ())
    assert conduct.sitting_out() == set()  # not before the groups are drawn anew
    assert conduct.sentence(FLEET) == {"d-0"}
    assert conduct.sentence(FLEET) == set()  # an opening that fails and is tried again makes it no longer
    for _ in range(SIT_OUT_ROUNDS):
        assert conduct.sitting_out() == {"d-0"}
        conduct.round_ended({}, ())
    assert conduct.sitting_out() == set()
    assert conduct.sentence(FLEET) == set()  # it has to fail again first


def test_whoever_comes_back_to_abort_again_sits_out_twice_as_long_each_time_up_to_a_cap() -> None:
    conduct = convicted()
    for served in range(1, DOUBLINGS + 3):
        quiet(conduct, SIT_OUT_ROUNDS * 2 ** min(served - 1, DOUBLINGS) - 1)
        assert conduct.sitting_out() == {"d-0"}
        quiet(conduct, 1)
        assert conduct.sitting_out() == set()
        conduct.round_ended({"g": {"d-0"}}, ())  # one abort is enough now
        assert conduct.strikes("d-0") == STRIKES
        assert conduct.sentence(FLEET) == {"d-0"}


def test_a_round_that_was_finished_clears_the_strikes_and_many_lift_a_sentence() -> None:
    conduct = Conduct()
    conduct.round_ended({"g": {"d-0"}}, ())
    conduct.round_ended({}, {"d-0"})
    conduct.round_ended({"g": {"d-0"}}, ())
    assert conduct.sentence(FLEET) == set()
    conduct = convicted()
    quiet(conduct, SIT_OUT_ROUNDS)
    for _ in range(REFORMED):
        conduct.round_ended({}, {"d-0"})
    convicted(conduct=conduct)
    quiet(conduct, SIT_OUT_ROUNDS)
    assert conduct.sitting_out() == set()  # ten rounds again, not twenty


def test_strikes_are_forgotten_one_by_one() -> None:
    conduct = Conduct()
    for _ in range(WARNING):
        conduct.round_ended({"g": {"d-0"}}, ())
    quiet(conduct, FORGET_ROUNDS - 1)
    assert conduct.strikes("d-0") == WARNING
    quiet(conduct, 1)
    assert conduct.strikes("d-0") == WARNING - 1
    assert conduct.sentence(FLEET) == set()
    quiet(conduct, FORGET_ROUNDS)
    assert conduct.strikes("d-0") == 0


def test_a_sentence_is_no_time_to_be_forgotten_in() -> None:
    conduct = convicted()
    quiet(conduct, SIT_OUT_ROUNDS + FORGET_ROUNDS - 1)
    assert conduct.strikes("d-0") == WARNING


def test_no_more_than_a_third_sits_out_the_worst_first_and_equals_are_spared() -> None:
    conduct = Conduct()
    for _ in range(STRIKES):
        conduct.round_ended({"g": set(FLEET)}, ())
    assert conduct.sentence(FLEET) == set()  # all of them: that is the network
    conduct.round_ended({"g": {"d-0", "d-1"}}, ())
    assert conduct.sentence(FLEET) == {"d-0", "d-1"}
    conduct.round_ended({"g": {f"d-{number}" for number in range(2, 5)}}, ())
    assert conduct.sentence(FLEET) == set()  # three for the two places that are left


def test_who_spoils_sums_unseen_is_found_by_drawing_groups_anew() -> None:
    conduct = Conduct()
    chance = random.Random(4)
    poisoner, epochs = "d-0", 0
    fleet = [f"d-{number}" for number in range(40)]
    while not conduct.sitting_out():
        epochs += 1
        listed = chance.sample(fleet, len(fleet))
        groups = {f"{epochs}-{place}": listed[place::4] for place in range(4)}
        while not conduct.fallen(groups):
            spoilt = {name: members for name, members in groups.items() if poisoner in members}
            finished = {name for group in groups.keys() - spoilt for name in groups[group]}
            conduct.round_ended(dict.fromkeys(spoilt, ()), finished, spoilt)
        conduct.sentence(fleet)
        conduct.regrouped()
    assert poisoner in conduct.sitting_out()
    assert len(conduct.sitting_out()) <= 2  # an honest one that was in the same group all three times
    assert epochs == -(-SUSPICIONS // ABORTS_IN_A_ROW)


def test_a_proven_cheat_has_its_group_drawn_anew_at_once_and_cannot_work_it_off() -> None:
    conduct = Conduct()
    conduct.round_ended({}, {"d-0"}, proven={"d-0"})
    assert conduct.fallen(GROUPS) == []  # its group closed all the same
    conduct.round_ended({}, {"d-0"})
    assert conduct.strikes("d-0") == STRIKES
    conduct.round_ended({"g": {"d-1"}}, {"d-0"})
    assert conduct.fallen(GROUPS) == ["g"]
    assert conduct.sentence(FLEET) == {"d-0"}
    quiet(conduct, SIT_OUT_ROUNDS * 2**PROVEN_DOUBLINGS - 1)
    assert conduct.sitting_out() == {"d-0"}
    quiet(conduct, 1)
    assert conduct.sitting_out() == set()


@pytest.mark.parametrize("rounds", [1, 3, 30])
def test_the_record_outlives_a_restart(rounds: int) -> None:
    conduct, twin = convicted(), convicted()
    for number in range(rounds):
        for one in (conduct, twin):
            one.round_ended({"g": {f"d-{number % 3}"}, "h": ()}, {"d-7"}, {"h": FLEET[6:]})
        twin = Conduct(twin.encode())
        assert twin.encode() == conduct.encode()
        assert twin.fallen(GROUPS) == conduct.fallen(GROUPS)
        assert twin.sitting_out() == conduct.sitting_out()
    assert twin.sentence(FLEET) == conduct.sentence(FLEET)
    assert twin.rounds == conduct.rounds == STRIKES + rounds


def test_devices_with_nothing_against_them_take_no_room() -> None:
    conduct = Conduct()
    conduct.round_ended({}, FLEET)
    assert conduct.encode() == Conduct(conduct.encode()).encode()
    conduct.round_ended({"g": {"d-0"}}, ())
    conduct.round_ended({}, {"d-0"})
    assert b"d-0" not in conduct.encode()
