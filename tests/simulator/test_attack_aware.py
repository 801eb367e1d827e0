"""attacks/aware.py, disguised.py and shadow.py: attackers who know the reputation rule, held against its numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.simulator.views import attacker, cosine, make_view

from covey_aggregator.reputation import Reputation, Settings
from covey_simulator.attacks.aware import Crowd, agreement_forgiven, largest
from covey_simulator.attacks.disguised import RuleSearch
from covey_simulator.attacks.shadow import Shadow, sketched
from covey_simulator.attacks.view import View

WIDE = 2000


def wide(number: int = 1, **fields: Any) -> View:
    return make_view(honest=30, malicious=8, number=number, dimension=WIDE, **fields)


def mind(kind: str, **settings: Any) -> Any:
    return attacker(kind, honest=30, malicious=8, **settings)


def norms(updates: Any) -> list[float]:
    return [float(np.linalg.norm(update)) for update in updates]


def agreement(update: Any, view: View) -> float:
    """Return the mean cosine with the honest updates."""
    return float(np.mean([cosine(update, other) for other in view.honest.values()]))


def test_norm_skew_is_tiny_and_agrees() -> None:
    view = wide()
    sent = mind("norm-skew", scale=0.15).updates(view)
    usual = np.median(norms(view.honest.values()))
    for index, update in sent.items():
        assert cosine(update, view.own[index]) == pytest.approx(1, abs=1e-5)
        assert np.linalg.norm(update) == pytest.approx(0.15 * usual, rel=1e-4)
    assert Settings().smallest_norm < 0.15  # or they would not be summed


def test_gate_closing_inflates_first_and_then_parts_in_two() -> None:
    attackers = mind("gate-closing", inner="sign-flip", scale=5.0, on_rounds=2, start_round=2)
    for number in (2, 3):
        view = wide(number)
        for index, update in attackers.updates(view).items():
            assert cosine(update, view.own[index]) == pytest.approx(1, abs=1e-5)
            assert np.linalg.norm(update) == pytest.approx(2 * np.median(norms(view.honest.values())), rel=1e-4)
    view = wide(4)
    usual = np.median(norms(view.honest.values()))
    sent = attackers.updates(view)
    for place, index in enumerate(sorted(sent)):
        keeper = place % 2 == 0
        assert cosine(sent[index], view.own[index]) == pytest.approx(1 if keeper else -1, abs=1e-5)
        assert np.linalg.norm(sent[index]) == pytest.approx(usual * (0.25 if keeper else 1), rel=1e-4)


def test_crowd_measures_what_the_rule_measures() -> None:
    view = wide()
    crowd = Crowd.of(view)
    rows = list(view.honest.values())
    found = [np.mean([cosine(one, other) for other in rows if other is not one]) for one in rows]
    assert crowd.usual == pytest.approx(np.median(found), rel=1e-4)
    assert crowd.spread == pytest.approx((np.quantile(found, 0.84) - np.median(found)) / np.median(found), rel=1e-3)
    assert crowd.norm == pytest.approx(np.median(norms(rows)))


@pytest.mark.parametrize("reach", [0.3, 0.8])
def test_decay_riders_disagree_exactly_as_much_as_is_forgiven(reach: float) -> None:
    view = wide()
    crowd, s = Crowd.of(view), Settings()
    for update in mind("decay-rider", reach=reach).updates(view).values():
        width = float(np.clip(crowd.spread, 0.2, 1))
        z = (1 - agreement(update, view) / crowd.usual) / (width * max(1.0, width / s.spread_typical))
        assert z == pytest.approx(reach * (s.alignment_from + s.drift), rel=0.01)
        assert np.linalg.norm(update) == pytest.approx(crowd.norm, rel=1e-4)


def test_decay_riders_stop_where_updates_are_not_summed() -> None:
    assert agreement_forgiven(1.0, 1.0, Settings()) == Settings().opposed
    assert agreement_forgiven(0.1, 1.0, Settings()) == pytest.approx(1 - 3.8 * 0.2)


def test_a_hidden_backdoor_has_the_norm_and_the_direction_of_the_honest() -> None:
    view = wide()
    door = np.random.default_rng(5).standard_normal(WIDE)
    view = dataclasses.replace(view, train=lambda index, data: (view.own[index] + door).astype(np.float32))
    sent = mind("hidden-backdoor", blend=0.6).updates(view)
    directions = [update / np.linalg.norm(update) for update in view.honest.values()]
    along = np.mean(directions, axis=0)
    usual = np.median([cosine(update, along) for update in view.honest.values()])
    ahead = along / np.linalg.norm(along)
    beside = door - (door @ ahead) * ahead
    for update in sent.values():
        assert cosine(update, along) == pytest.approx(usual, abs=1e-3)
        assert np.linalg.norm(update) == pytest.approx(np.median(norms(view.honest.values())), rel=1e-4)
        assert cosine(update - (update @ ahead) * ahead, beside) == pytest.approx(0.6, abs=0.08)
    first, second = list(sent.values())[:2]
    assert cosine(first, second) < 0.8  # no clones


def test_rule_search_finds_the_most_that_passes() -> None:
    hunter = mind("rule-search", reach=0.75, start_round=4)
    assert isinstance(hunter, RuleSearch)
    book = Reputation()
    for number in range(1, 9):
        view = wide(number)
        sent = hunter.updates(view)
        updates = {**view.honest, **sent}
        for index in updates:
            if str(index) not in book:
                book.admit(str(index))
        # Another matrix than the attackers': what they found holds under this one too, nearly always.
        rows = sketched(np.stack(list(updates.values())), np.random.default_rng([9, number]))
        ruling = book.settle(book.ruling({str(i): row for i, row in zip(updates, rows, strict=True)}))
        hidden = [str(index) in ruling.accepted for index in sent]
        assert sum(hidden) >= 6, number
        crowd = Crowd.of(view)
        harm = [agreement(update, view) / crowd.usual for update in sent.values()]
        if number >= 4:
            assert np.median(harm) < 0.95, number
            along = -crowd.norm * crowd.mean / np.linalg.norm(crowd.mean)
            index = min(sent)
            # sent = (1 − a) x + a h: the a of one device is that of all, and a step of the search more does not pass.
            a = float((sent[index] - view.own[index]) @ (along - view.own[index]))
            a /= float(np.linalg.norm(along - view.own[index])) ** 2
            more = {i: ((1 - a - 0.04) * x + (a + 0.04) * along).astype(np.float32) for i, x in view.own.items()}
            assert a >= 0.96 or not hunter._passes(view, more), number
        else:
            assert all(np.array_equal(sent[index], view.own[index]) for index in sent)


def test_a_shadow_takes_each_round_once() -> None:
    shadow = Shadow()
    for number in (1, 1, 2):
        view = wide(number)
        shadow.open(view)
        shadow.ask(view, dict(view.own))
        shadow.ask(view, dict(view.own))
    assert shadow._book.rounds == 1
    shadow.open(wide(3))
    assert shadow._book.rounds == 2


def test_a_shadow_foresees_rounds_without_writing_them() -> None:
    shadow, view = Shadow(), wide()
    shadow.open(view)
    copies = dict.fromkeys(view.own, np.ones(WIDE, np.float32))
    rulings = list(shadow.foresee(view, copies, 4))
    assert [ruling.round for ruling in rulings] == [1, 2, 3, 4]
    evidence = [ruling.verdicts[str(min(view.own))].evidence for ruling in rulings]
    assert evidence[:2] == [0, 0] and 0 < evidence[2] < evidence[3]  # the rule warms up, and then clones are clones
    assert shadow._book.rounds == 0


def test_rule_search_is_not_taken_in_by_a_rule_that_warms_up() -> None:
    hunter, view = mind("rule-search"), wide()
    hunter._shadow.open(view)
    usual = np.median(norms(view.honest.values()))
    noise = {index: view.rng.standard_normal(WIDE) for index in view.own}
    sent = {index: (usual * row / np.linalg.norm(row)).astype(np.float32) for index, row in noise.items()}
    verdicts = hunter._shadow.ask(view, sent).verdicts
    assert all(verdicts[str(index)].accepted and not verdicts[str(index)].evidence for index in sent)
    assert not hunter._passes(view, sent)
    assert hunter._passes(view, dict(view.own))


def test_sketches_are_linear_and_keep_lengths() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, WIDE))
    once = sketched(rows, np.random.default_rng(1))
    assert np.allclose(sketched(rows[:1] + rows[1:2], np.random.default_rng(1)), once[:1] + once[1:2])
    assert np.mean(np.square(norms(once))) == pytest.approx(WIDE, rel=0.2)
    assert once.shape[1] in (8, 15, 16)


def test_largest_bisects() -> None:
    assert largest(lambda value: value <= 0.3, 1.0) == pytest.approx(0.3)
    assert largest(lambda value: True, 2.0) == 2.0
    assert largest(lambda value: False, 2.0) == pytest.approx(0.0)
