"""From sums to a model, and models that differ only a little."""

from __future__ import annotations

import numpy as np
import pytest
from tests.aggregator.fleet import Vector

from covey_aggregator.combine import GroupMean, cap_step, combine, dithered, group_mean
from covey_aggregator.rules import RULES, cap_norms, rule, spoilt_groups
from covey_aggregator.rules.trimmed_mean import trimmed_mean
from covey_protocol import model, ring
from covey_protocol.errors import LocalError
from covey_protocol.ring import Metrics, RingScale

SCALE = RingScale(2.0, 5)
METRICS = Metrics(loss=0.7, accuracy=0.25, samples=100, norm=1.0)


def vector(seed: int, dimension: int = 40) -> Vector:
    values: Vector = np.random.default_rng(seed).normal(0, 0.2, dimension).astype(np.float32)
    return ring.clip_norm(values, SCALE.clip)[0]


def mean_of(seed: int, **metrics: float) -> GroupMean:
    fields = {"loss": 0.7, "accuracy": 0.25, "samples": 100, "norm": 1.0}
    return GroupMean(vector(seed), Metrics(**{**fields, **metrics}), 5)


def test_a_sum_becomes_the_members_mean() -> None:
    vectors = [vector(seed) for seed in range(5)]
    total = np.zeros(44, np.uint16)
    for seed, each in enumerate(vectors):
        total += ring.encode(each, METRICS, SCALE, bytes([seed]) * 32)
    found = group_mean(total, 5, SCALE)
    assert found is not None
    assert found.count == 5
    np.testing.assert_allclose(found.update, np.mean(vectors, axis=0), atol=SCALE.step)
    assert found.metrics is not None
    assert found.metrics.accuracy == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("place", [0, 39, 40, 43])
def test_a_sum_that_no_honest_members_can_have_made_is_none(place: int) -> None:
    total = np.zeros(44, np.uint16)
    total[place] = np.array([-32768], np.int16).view(np.uint16)[0]
    assert group_mean(total, 5, SCALE) is None
    total[place] = 0
    assert group_mean(total, 5, SCALE) is not None


@pytest.mark.parametrize("name", RULES)
def test_the_delta_leads_exactly_to_the_new_model_and_close_to_the_rules_step(name: str) -> None:
    weights, groups = vector(99), {f"1-s-{seed}": mean_of(seed) for seed in range(5)}
    outcome = combine(weights, groups, rule=rule(name), contamination=0.1, evaluator=None)
    np.testing.assert_array_equal(model.apply_delta(weights, outcome.delta), outcome.weights)
    assert spoilt_groups([5] * 5, 0.1) == 4  # as the groups' sizes have it; the rules cut two, the most they can
    rows = cap_norms([groups[key].update for key in sorted(groups)])
    step = rule(name)(rows, 4)
    if 0 < rule(name).withstands(5, 4) < 4:
        step = cap_step(step, rows, np.ones(5))
    np.testing.assert_allclose(outcome.weights, weights + step, atol=float(np.abs(step).max()) / 32767)
    assert (outcome.accuracy, outcome.loss) == (None, None)


def test_a_round_that_trimming_cannot_cover_takes_a_short_step_and_says_so() -> None:
    weights = vector(99)
    alike = {f"1-s-{number}": GroupMean(vector(7), METRICS, 10) for number in range(4)}
    sure = combine(weights, alike, rule=rule("trimmed-mean"), contamination=0.01, evaluator=None)
    assert sure.flag == ""
    unsure = combine(weights, alike, rule=rule("trimmed-mean"), contamination=0.3, evaluator=None)
    assert "4 of 4 groups may be spoilt and the rule withstands 1" in unsure.flag
    size = np.linalg.norm(sure.weights - weights)
    assert np.linalg.norm(unsure.weights - weights) == pytest.approx(size / 2, rel=1e-3)
    two = combine(weights, dict(list(alike.items())[:2]), rule=rule("trimmed-mean"), contamination=0.3, evaluator=None)
    assert two.flag == ""  # nothing can be trimmed of two, whatever is expected


def test_a_group_whose_mean_is_not_finite_is_named() -> None:
    groups = {f"1-s-{number}": mean_of(number) for number in (1, 2, 9)}
    groups["1-s-2"].update[3] = np.nan
    with pytest.raises(LocalError, match="group 1-s-2: its mean holds values that are not finite"):
        combine(vector(99), groups, rule=rule("median"), contamination=0, evaluator=None)


def test_more_groups_are_cut_where_more_devices_are_expected_to_be_hostile() -> None:
    weights, groups = vector(99), {str(number): mean_of(number) for number in range(9)}
    for contamination, cut in ((0.0, 1), (0.05, 4)):
        outcome = combine(weights, groups, rule=rule("trimmed-mean"), contamination=contamination, evaluator=None)
        step = trimmed_mean(cap_norms([mean.update for mean in groups.values()]), cut)
        np.testing.assert_allclose(outcome.weights, weights + step, atol=float(np.abs(step).max()) / 32767)


def test_metrics_are_medians_over_groups_and_the_new_model_is_what_is_measured() -> None:
    groups = {str(number): mean_of(number, loss=number, accuracy=number / 10, norm=2 * number) for number in (1, 2, 9)}
    measured: list[Vector] = []

    class Measure:
        def __call__(self, weights: Vector) -> tuple[float, float]:
            measured.append(weights)
            return 0.5, 0.75

    outcome = combine(vector(99), groups, rule=rule("median"), contamination=0, evaluator=Measure())  # type: ignore[arg-type]
    assert (outcome.loss, outcome.accuracy) == (0.5, 0.75)
    assert (outcome.federated_loss, outcome.federated_accuracy, outcome.update_norm) == (2, 0.2, 4)
    np.testing.assert_array_equal(measured[0], outcome.weights)


@pytest.mark.parametrize("weights", [vector(1, 1000), np.zeros(10, np.float32), np.ones(1, np.float32)])
def test_dither_gives_another_digest_and_hardly_another_model(weights: Vector) -> None:
    found = model.apply_delta(weights, dithered(weights, b"a" * 32))
    assert model.model_digest(found) != model.model_digest(weights)
    assert np.linalg.norm(found - weights) <= 1e-4 * max(np.linalg.norm(weights), np.sqrt(len(weights)))
    again = model.apply_delta(weights, dithered(weights, b"b" * 32))
    assert model.model_digest(again) != model.model_digest(found)


def test_groups_that_count_little_move_the_model_little() -> None:
    weights = np.zeros(40, np.float32)
    old = {f"1-s-{seed}": GroupMean(vector(1), METRICS, 5) for seed in range(4)}
    new = {f"2-s-{seed}": GroupMean(-vector(1), METRICS, 5) for seed in range(9)}
    influence = dict.fromkeys(old, 1.0) | dict.fromkeys(new, 1 / 9)

    def along(counts: dict[str, float] | None) -> float:
        outcome = combine(weights, old | new, rule=rule("mean"), contamination=0.01, evaluator=None, influence=counts)
        return float(outcome.weights @ vector(1) / (vector(1) @ vector(1)))

    assert along(influence) == pytest.approx(0.6, abs=1e-3)
    assert along(None) == pytest.approx(-5 / 13, abs=1e-3)
