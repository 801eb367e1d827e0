"""conduct.py: aborts cost little once, and those who cause them again sit out for a while."""

from __future__ import annotations

from covey_aggregator.conduct import ABORTS_IN_A_ROW, SIT_OUT_ROUNDS, STRIKES, Conduct


def test_one_abort_changes_nothing() -> None:
    conduct = Conduct()
    conduct.round_ended({"g": {"a"}}, {"b"})
    assert conduct.fallen() == []
    assert conduct.sitting_out() == set()


def test_a_group_falls_by_aborts_in_a_row_only() -> None:
    conduct = Conduct()
    conduct.round_ended({"g": ()}, ())
    conduct.round_ended({}, ())
    conduct.round_ended({"g": ()}, ())
    assert conduct.fallen() == []
    for _ in range(ABORTS_IN_A_ROW - 1):
        conduct.round_ended({"g": (), "h": ()}, ())
    assert conduct.fallen() == ["g"]
    conduct.regrouped()
    assert conduct.fallen() == []


def test_who_causes_aborts_again_sits_out_and_comes_back() -> None:
    conduct = Conduct()
    for _ in range(STRIKES):
        conduct.round_ended({"g": {"a"}}, {"b"})
    assert conduct.sitting_out() == {"a"}
    for _ in range(SIT_OUT_ROUNDS - 1):
        conduct.round_ended({}, ())
        assert conduct.sitting_out() == {"a"}
    conduct.round_ended({}, ())
    assert conduct.sitting_out() == set()


def test_a_round_that_was_finished_clears_the_record() -> None:
    conduct = Conduct()
    conduct.round_ended({"g": {"a"}}, ())
    conduct.round_ended({}, {"a"})
    conduct.round_ended({"g": {"a"}}, ())
    assert conduct.sitting_out() == set()
