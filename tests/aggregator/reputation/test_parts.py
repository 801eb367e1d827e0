"""The rule's parts one by one: norms, clones, centre, alignment, fellows, gate, evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from covey_aggregator.reputation import Settings, alignment, centre, clones, evidence, fellows, gate, norms
from covey_aggregator.reputation.alignment import Agreement
from covey_aggregator.reputation.fellows import Fellowship
from covey_aggregator.reputation.gate import Gate
from covey_aggregator.reputation.history import Page
from covey_aggregator.reputation.sketches import Array

S = Settings()


def gram(directions: Any) -> Array:
    """Return cosines with a diagonal of zero."""
    rows = np.array(directions, float)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.asarray(rows @ rows.T - np.diag((rows * rows).sum(axis=1)))


def fleet(honest: int, hostile: int = 0, *, turn: float = -1.0, k: int = 400, seed: int = 3) -> Array:
    """Return cosines of devices that agree to 0.5 and of others that turn the common direction round."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=k)
    signs = np.r_[np.ones(honest), np.full(hostile, turn)]
    return gram(signs[:, None] * common + rng.normal(size=(honest + hostile, k)))


# Norms


def test_the_norm_reference_is_that_of_a_normal_distribution() -> None:
    found = norms.reference(np.random.default_rng(1).normal(0.3, 0.5, 100_000))
    assert found.location == pytest.approx(0.3, abs=0.02) and found.scale == pytest.approx(0.5, abs=0.02)


def test_large_norms_do_not_move_the_norm_reference() -> None:
    honest = np.random.default_rng(1).normal(0, 0.3, 60)
    before, after = norms.reference(honest), norms.reference(np.r_[honest, np.full(30, 2.0)])
    assert after.location - before.location < 0.25 and after.scale < 1.5 * before.scale


def test_alike_norms_have_a_scale_all_the_same() -> None:
    assert norms.reference(np.zeros(20)).scale == 0.2


def test_one_absurd_norm_weighs_little_in_an_average() -> None:
    np.testing.assert_allclose(norms.logs(np.array([0.0, 2.0, 1e9]), 2.0), [-3, 0, 2])


# Clones


def test_copies_stand_out_by_their_likeness() -> None:
    cosines = fleet(30, 10)
    cosines[30:, 30:] = 0.95 * (1 - np.eye(10))
    found = clones.clones(clones.nearest(cosines, np.ones(40, bool), S), np.ones(40, bool), S)
    assert (found[:30] == 0).all() and (found[30:] == 1).all()


def test_less_alike_than_the_floor_is_nobody() -> None:
    cosines = fleet(30, 10)
    cosines[30:, 30:] = 0.8 * (1 - np.eye(10))
    near = clones.nearest(cosines, np.ones(40, bool), S)
    assert not clones.clones(near, np.ones(40, bool), S).any()
    lower = Settings(clone_floor=0.6)
    assert clones.clones(near, np.ones(40, bool), lower)[30:].all()


def test_where_all_are_alike_nobody_is_a_clone() -> None:
    near = np.r_[np.full(30, 0.96), np.full(5, 1.0)]
    assert not clones.clones(near, np.ones(35, bool), S).any()
    assert clones.clones(near, np.ones(35, bool), Settings(alike=1.0)).any()


def test_noise_does_not_lower_the_bar_for_clones() -> None:
    near = np.r_[np.full(30, 0.6) + np.linspace(0, 0.05, 30), np.full(15, 0.1)]
    assert not clones.clones(near, np.ones(45, bool), Settings(clone_floor=0.5)).any()


def test_a_handful_of_copies_is_too_few_to_be_seen_in_a_large_fleet() -> None:
    assert [clones.neighbours(np.ones(size, bool), S) for size in (100, 20, 3)] == [5, 3, 2]
    assert clones.neighbours(np.arange(1000) < 100, S) == 5


def test_clustering_tells_one_class_a_device_from_a_fleet_that_agrees() -> None:
    classes = np.repeat(np.eye(10), 10, axis=0)
    apart = gram(classes)
    assert clones.clustering(apart, clones.nearest(apart, np.ones(100, bool), S), np.ones(100, bool)) > 0.9
    together = fleet(100)
    assert clones.clustering(together, clones.nearest(together, np.ones(100, bool), S), np.ones(100, bool)) < 0.2
    assert clones.clustering(apart, clones.nearest(apart, np.ones(100, bool), S), np.arange(100) < 1) == 1


# Centre


@pytest.mark.parametrize("known", [False, True])
def test_the_centre_is_those_who_agree(known: bool) -> None:
    cosines = fleet(25, 15)
    found = centre.find(cosines, np.zeros(40), np.ones(40, bool), np.ones(40), known=known, s=S)
    assert found.core[:25].all() and not found.core[25:].any()
    assert found.share == 25 / 40
    assert found.usual == pytest.approx(0.5, abs=0.05)


def test_a_known_fleet_starts_from_everybody() -> None:
    """Half of the fleet, a little closer among themselves, does not become the measure of the other half."""
    cosines = np.full((40, 40), 0.3) * (1 - np.eye(40))
    cosines[:20, :20] = 0.45 * (1 - np.eye(20))
    found = centre.find(cosines, np.zeros(40), np.ones(40, bool), np.ones(40), known=True, s=S)
    assert found.core.all()


@pytest.mark.parametrize("known", [False, True])
def test_a_tight_minority_is_not_the_centre(known: bool) -> None:
    """Forty jittered copies of the opposite update are closer to one another than sixty honest devices are."""
    cosines = np.full((100, 100), 0.15)
    cosines[:60, 60:] = cosines[60:, :60] = -0.3
    cosines[60:, 60:] = 0.8
    np.fill_diagonal(cosines, 0)
    found = centre.find(cosines, np.zeros(100), np.ones(100, bool), np.ones(100), known=known, s=S)
    assert found.core[:60].all() and not found.core[60:].any()


def test_large_norms_are_no_part_of_the_centre() -> None:
    logs = np.r_[np.random.default_rng(2).normal(0, 0.2, 30), np.full(10, 1.5)]
    found = centre.find(fleet(40), logs, np.ones(40, bool), np.ones(40), known=True, s=S)
    assert not found.core[30:].any() and found.core[:30].sum() > 25


# Alignment


def page(rounds: int, size: int) -> Page:
    zeros = np.zeros((size, size), np.float32)
    return Page(tuple(map(str, range(size))), zeros, zeros, np.full((size, size), rounds, np.uint8), S.memory)


def test_disagreement_is_measured_in_the_fleets_spreads() -> None:
    agreement = Agreement(np.array([1.0, 0.5, -1.0]), np.ones(3))
    np.testing.assert_allclose(alignment.disagreement(agreement, 0.25, 10**6, S), [0, 2, 8], atol=1e-4)
    wide = alignment.disagreement(agreement, 0.6, 10**6, S)
    np.testing.assert_allclose(wide, [0, 0.5 / 1.2, 2 / 1.2], atol=1e-4)
    assert alignment.disagreement(agreement, 0.25, 6, S)[2] < 6


def test_pairs_that_meet_often_remember_for_themselves_and_others_do_not() -> None:
    middle = centre.find(fleet(40), np.zeros(40), np.ones(40, bool), np.ones(40), known=True, s=S)
    before = Agreement(np.full(40, -1.0), np.ones(40))
    often = alignment.remembered(before, middle, page(40, 40)).ratio()
    seldom = alignment.remembered(before, middle, page(1, 40)).ratio()
    assert often.min() > 0.5 and seldom.max() < 0


# Fellows


def test_fellowship_is_the_cosine_with_those_who_were_alike_before() -> None:
    past = np.zeros((6, 6))
    past[0, 1:4] = past[1:4, 0] = 0.4
    past[0, 4] = past[4, 0] = -0.5
    directions = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1.0]])
    found = fellows.cosines_with_fellows(past, directions, np.ones(6, bool), S)
    assert found[0] == pytest.approx(1)
    assert found[5] == 0
    turned = directions.copy()
    turned[0] = [-1, 0]
    assert fellows.cosines_with_fellows(past, turned, np.ones(6, bool), S)[0] == pytest.approx(-1)


def test_who_is_no_measure_is_nobodys_fellow() -> None:
    past = np.full((8, 8), 0.5)
    measure = np.arange(8) < 6
    directions = np.repeat([[1.0, 0.0]], 8, axis=0)
    directions[6:] = [0, 1]
    assert fellows.cosines_with_fellows(past, directions, measure, S)[6] == pytest.approx(0)
    assert fellows.cosines_with_fellows(past, directions, np.arange(8) > 4, S)[6] > 0


def test_an_average_of_fellowship_is_unbiased_and_surer_with_time() -> None:
    kept = Fellowship(np.zeros(2), np.zeros(2, int))
    errors = []
    for _ in range(5):
        kept = fellows.remembered(kept, np.array([0.6, 0.6]), np.array([True, False]), S)
        errors.append(kept.error(16, S)[0])
    np.testing.assert_allclose(kept.average(S), [0.6, 0])
    assert errors == sorted(errors, reverse=True) and errors[0] == pytest.approx(0.25)


def test_isolation_needs_more_than_an_error_of_the_sketch() -> None:
    rounds = np.full(12, 30)
    whole = 1 - S.fellow_memory**30
    kept = Fellowship(np.r_[np.full(10, 0.7), 0.3, 0.0] * whole, rounds)
    found = fellows.isolation(kept, np.ones(12, bool), 16, S)
    assert not found[:11].any() and found[11] == 1
    assert fellows.isolation(kept, np.ones(12, bool), 16, Settings(fellow_error=-1.0))[10] > 0
    young = Fellowship(np.r_[np.full(11, 0.7), 0.0] * (1 - S.fellow_memory), np.ones(12, int))
    assert fellows.isolation(young, np.ones(12, bool), 16, S)[11] < 1


# Gate


OPEN: dict[str, Any] = {"norm_share": 1.0, "agreement": 0.3, "core_share": 0.9, "clustering": 0.4, "s": S}


def test_the_gate_shuts_for_each_of_its_reasons() -> None:
    assert gate.gate(**OPEN) == Gate(1, 1, 1)
    for reason in ({"norm_share": 0.4}, {"agreement": 0.11}, {"core_share": 0.4}, {"clustering": 0.9}):
        assert gate.gate(**OPEN | reason).openness == 0
    assert 0 < gate.gate(**OPEN | {"norm_share": 0.45, "agreement": 0.15}).openness < 1


def test_only_a_fleet_with_one_centre_has_a_late_hour() -> None:
    for reason in ({"norm_share": 0.4}, {"agreement": 0.11}):
        assert gate.gate(**OPEN | reason).late == 1
    for reason in ({"core_share": 0.4}, {"clustering": 0.9}):
        assert gate.gate(**OPEN | reason | {"norm_share": 0.4}).late == 0
    assert gate.gate(**OPEN).late == 0


def test_large_norms_say_nothing_sooner_than_disagreement() -> None:
    found = gate.gate(**OPEN | {"norm_share": 0.5})
    assert found.openness > 0.6 and found.norms == 0


def test_the_bar_lies_above_what_the_trusted_do_and_higher_for_the_young() -> None:
    trusted = np.linspace(-2, 4, 101)
    bars = alignment.bar(trusted, np.array([2, 10, 1000]), S)
    assert bars[0] > bars[1] > bars[2] == pytest.approx(np.quantile(trusted, 0.9) + S.outstanding, abs=0.01)
    assert (alignment.bar(np.zeros(30), np.full(3, 100), S) == S.alignment_from).all()


# Evidence


def weighed(**fields: Any) -> evidence.Evidence:
    """Weigh one device that is as usual in all but what is given."""
    usual: dict[str, Any] = {
        "z": np.zeros(1),
        "bar": np.full(1, np.inf),
        "excess": np.zeros(1),
        "logs": np.zeros(1),
        "clone": np.zeros(1),
        "isolated": np.zeros(1),
        "relative_norms": np.ones(1),
        "buckets": 16,
        "gate": Gate(1, 1, 1),
        "quarantined": np.zeros(1, bool),
        "excused": np.zeros(1),
        "s": S,
    }
    return evidence.weigh(
        **usual | {k: np.array([v]) if k not in {"gate", "buckets"} else v for k, v in fields.items()}
    )


def test_a_usual_device_is_forgiven() -> None:
    assert weighed().change[0] == -0.5


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("alignment", {"z": 6.0}),
        ("norm", {"excess": 4.0, "logs": 1.0, "z": 3.0}),
        ("clones", {"clone": 0.9}),
        ("isolation", {"isolated": 1.0}),
        ("norm", {"relative_norms": 0.05}),
        ("norm", {"relative_norms": 4.0}),
    ],
)
def test_every_part_counts_and_is_shown(part: str, fields: dict[str, float]) -> None:
    found = weighed(**fields)
    assert found.change[0] > 0
    assert getattr(found, part)[0] > 0.9


def test_the_gate_holds_back_alignment_and_norm_and_nothing_else() -> None:
    assert weighed(z=9.0, excess=4.0, logs=1.0, gate=Gate(0, 1, 0)).change[0] == pytest.approx(-0.1)
    for fields in ({"clone": 1.0}, {"isolated": 1.0}, {"relative_norms": 9.0}, {"relative_norms": 0.01}):
        assert weighed(gate=Gate(0, 1, 0), **fields).change[0] >= 1


def test_a_shut_gate_lets_pass_what_stands_out_among_the_trusted() -> None:
    late, clusters = Gate(0, 0, 1), Gate(0, 0, 0)
    assert weighed(z=8.0, bar=5.0, gate=late).change[0] == pytest.approx(3 - S.drift - 0.1)
    assert weighed(z=8.0, bar=5.0, gate=late).alignment[0] > 2
    excused = weighed(z=8.0, bar=5.0, gate=late, excused=1.0)
    assert excused.change[0] < 0 and excused.excused[0] > 2
    assert weighed(z=4.9, bar=5.0, gate=late).change[0] < 0
    assert weighed(z=8.0, bar=5.0, gate=clusters).change[0] < 0
    assert weighed(z=8.0, gate=late).change[0] < 0


def test_large_norms_pass_a_gate_of_their_own() -> None:
    assert weighed(excess=4.0, logs=1.0, z=3.0, gate=Gate(1, 0, 1)).norm[0] == 0


def test_a_shut_gate_forgives_nobody_in_quarantine() -> None:
    assert weighed(gate=Gate(0, 0, 0), quarantined=True).change[0] == 0
    assert weighed(gate=Gate(0, 0, 0), quarantined=False).change[0] < 0


def test_a_small_excess_of_norm_is_nobodys_fault() -> None:
    assert weighed(excess=4.0, logs=0.2, z=3.5).norm[0] == 0


def test_a_whole_clone_and_an_absurd_norm_cannot_be_made_good_by_agreement() -> None:
    assert weighed(z=-9.0, clone=1.0).change[0] >= 1.5
    assert weighed(z=-9.0, relative_norms=9.0).change[0] == 2.0


def test_small_sketches_allow_for_their_error() -> None:
    assert evidence.largest_norm(4, S) > evidence.largest_norm(64, S) > S.band
