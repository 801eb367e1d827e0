"""attacks/simple.py and attacks/labels.py: what a device makes of its own update, held against the formulas."""

from __future__ import annotations

import numpy as np
import pytest
from tests.simulator.views import attacker, cosine, make_view


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
