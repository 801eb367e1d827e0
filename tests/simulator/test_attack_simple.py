"""attacks/ simple.py, labels.py, perturbed.py and riders.py: what one device does by itself, against the formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.simulator.views import attacker, cosine, make_view

from covey_agent.data import Dataset
from covey_protocol.bundle import Float32
from covey_simulator.adversarial import perturbed
from covey_simulator.attacks.labels import mirrored


@pytest.mark.parametrize(("kind", "factor"), [("sign-flip", -3.0), ("scaling", 3.0)])
def test_multiples(kind: str, factor: float) -> None:
    view = make_view()
    sent = attacker(kind, scale=3.0).updates(view)
    assert sent.keys() == view.own.keys()
    for index, update in sent.items():
        assert np.allclose(update, factor * view.own[index])


def test_noise_has_the_size_of_the_update_and_nothing_else_of_it() -> None:
    view = make_view(dimension=4000)
    sent = attacker("gaussian", scale=2.0).updates(view)
    for index, update in sent.items():
        assert np.linalg.norm(update) == pytest.approx(2 * np.linalg.norm(view.own[index]), rel=0.1)
        assert abs(cosine(update, view.own[index])) < 0.1
    first, second = list(sent.values())[:2]
    assert abs(cosine(first, second)) < 0.1
    again = attacker("gaussian", scale=2.0).updates(make_view(dimension=4000))
    assert all(np.array_equal(again[index], sent[index]) for index in sent)


def test_targeted_label_flip_relabels_one_class() -> None:
    view = make_view()
    seen: list[Dataset] = []

    def train(index: int, data: Dataset) -> Float32:
        seen.append(data)
        return view.own[index]

    view = dataclasses.replace(view, train=train)
    attacker("targeted-label-flip", source=2, target=3).updates(view)
    assert len(seen) == 4
    for index, data in zip(sorted(view.own), seen, strict=True):
        before = view.data(index)
        assert np.array_equal(data.x, before.x)
        assert (before.y == 2).any() and not (data.y == 2).any()
        assert np.array_equal(data.y[before.y != 2], before.y[before.y != 2])
        assert (data.y[before.y == 2] == 3).all()


def test_label_flip_mirrors_every_label() -> None:
    assert mirrored(Dataset(np.zeros((4, 1), np.float32), np.arange(4)), 4).y.tolist() == [3, 2, 1, 0]


def test_perturbed_inputs_climb_the_loss_and_stay_within_bounds() -> None:
    x = np.array([[0.5, 0.95, 0.02, 0.5]], np.float32)
    data, slope = Dataset(x, np.zeros(1, np.int64)), np.array([[3.0, 0.1, -2.0, 0.0]], np.float32)
    fgsm = perturbed(data, lambda _: slope, 0.1, 1, (0.0, 1.0))
    assert np.allclose(fgsm.x, [[0.6, 1.0, 0.0, 0.5]])
    assert np.array_equal(fgsm.y, data.y)
    # Five steps of 2.5 · 0.1 / 5 = 0.05: up at first, then down, as the slope turns.
    seen: list[float] = []

    def turning(given: Dataset) -> Float32:
        seen.append(float(given.x[0, 0]))
        return slope if len(seen) <= 3 else -slope

    pgd = perturbed(data, turning, 0.1, 5, (0.0, 1.0))
    assert seen == pytest.approx([0.5, 0.55, 0.6, 0.6, 0.55])
    assert pgd.x[0, 0] == pytest.approx(0.5)


def test_perturbed_inputs_trains_on_them() -> None:
    view = make_view()
    sent = attacker("perturbed-inputs", epsilon=0.1, steps=1).updates(view)
    moved = perturbed(view.data(13), view.input_gradient, 0.1, 1, view.span)
    assert np.array_equal(sent[13], view.train(13, moved))


def test_free_riders_send_nothing_noise_or_the_last_change() -> None:
    first, second, third = (make_view(number=number).weights for number in (1, 2, 3))
    late = make_view(number=6, history=(first, second, third), weights=third, dimension=40)
    assert not any(update.any() for update in attacker("free-rider").updates(late).values())
    stale = attacker("stale-rider", scale=2.0).updates(late)
    assert np.allclose(stale[12], 2 * (third - second))
    early = make_view(history=(first,), weights=first)
    for kind in ("stale-rider", "noise-rider"):
        assert not any(update.any() for update in attacker(kind).updates(early).values())


def test_noise_riders_noise_has_the_spread_of_the_first_change_and_falls() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(5000).astype(np.float32) for _ in range(2))
    view = make_view(number=6, history=(first, second, second), weights=second, dimension=5000)
    sigma = float(np.std(second - first))
    sent = attacker("noise-rider", scale=3.0, decay=1.0, start_round=3).updates(view)
    assert np.std(sent[12]) == pytest.approx(3 * sigma / 4, rel=0.05)
    assert abs(cosine(sent[12], sent[13])) < 0.1
    constant = attacker("noise-rider").updates(view)
    assert np.std(constant[12]) == pytest.approx(sigma, rel=0.05)
