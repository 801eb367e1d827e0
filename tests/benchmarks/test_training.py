"""benchmarks/training.py: both sides get the same nets, and ours learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks._nets import NETS, STEPS, batch, weights
from benchmarks._training import Train
from benchmarks.training import GOALS, network

from covey_modelkit import build_bundle


def test_every_net_has_a_goal() -> None:
    assert set(GOALS) == set(NETS)


@pytest.mark.parametrize("name", ["mlp-64-64-10", "cnn-1d"])
def test_our_side_trains(tmp_path: Path, name: str) -> None:
    bundle = build_bundle(network(name), name=name)
    assert bundle.dimension == sum(array.size for array in weights(name))
    path = tmp_path / "net.bundle"
    path.write_bytes(bundle.encode())
    work = Train(name, str(path))
    losses = work.run(work.inputs())
    assert len(losses) == STEPS
    assert losses[-1] < 0.5 * losses[0]
    assert work.check(losses)["rss"] > 1 << 20


def test_the_batch_has_labels_of_every_net() -> None:
    for name in NETS:
        x, y = batch(name)
        assert x.shape[1:] == NETS[name][0]
        assert int(np.max(y)) < 6
