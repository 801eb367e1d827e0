"""Samples: split, dealt and written so that no one is in two places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from covey_agent.data import Dataset, load_npz
from covey_modelkit import build_bundle, mlp, softmax
from covey_protocol.errors import ConfigError
from covey_simulator.data import device_names, load_corpus, make_bundle, partition, write_slices
from covey_simulator.scenario import Scenario, demo_scenario, parse_scenario


def scenario(**fields: Any) -> Scenario:
    return parse_scenario({"name": "test", "devices": 10, **fields}, origin="test", folder=Path())


def numbered(count: int, classes: int = 4) -> Dataset:
    """Samples that say which they are."""
    x = np.arange(count, dtype=np.float32)[:, None]
    return Dataset(x, (np.arange(count) % classes).astype(np.int64))


def ids(slices: list[Dataset]) -> list[int]:
    return [int(value) for part in slices for value in part.x[:, 0]]


def rows(dataset: Dataset) -> set[bytes]:
    return {row.tobytes() for row in dataset.x}


def test_digits_are_scaled_and_split_by_seed() -> None:
    corpus = load_corpus(demo_scenario())
    assert (len(corpus.train), len(corpus.held_out)) == (1438, 359)
    assert (corpus.input_shape, corpus.classes) == ([64], 10)
    assert (corpus.train.x.min(), corpus.train.x.max()) == (0.0, 1.0)
    assert not rows(corpus.train) & rows(corpus.held_out)
    assert np.array_equal(corpus.held_out.y, load_corpus(demo_scenario()).held_out.y)
    assert not np.array_equal(corpus.held_out.y, load_corpus(demo_scenario(seed=1)).held_out.y)


def test_breast_cancer_is_standardised_by_its_training_part() -> None:
    corpus = load_corpus(scenario(data={"source": "breast-cancer"}))
    inside = np.abs(corpus.train.x) < 2
    assert inside.mean() > 0.98
    for feature in range(30):
        if inside[:, feature].all():
            assert abs(corpus.train.x[:, feature].mean()) < 1e-5
            assert abs(corpus.train.x[:, feature].std() - 0.5) < 1e-5
    assert np.abs(corpus.held_out.x).max() <= 2
    assert np.abs(corpus.held_out.x.mean(axis=0)).max() > 1e-3  # nothing is learnt from it


def test_iid_deals_everything_once_and_evenly() -> None:
    slices = partition(numbered(103), scenario())
    assert sorted(ids(slices)) == list(range(103))
    assert {len(part) for part in slices} == {10, 11}
    assert ids(slices) != sorted(ids(slices))


@pytest.mark.parametrize("concentration", [0.01, 0.5, 100.0])
def test_dirichlet_deals_everything_once_and_evenly(concentration: float) -> None:
    slices = partition(numbered(103), scenario(partition={"dirichlet": concentration}))
    assert sorted(ids(slices)) == list(range(103))
    assert {len(part) for part in slices} == {10, 11}
    assert all(np.array_equal(part.y, part.x[:, 0].astype(int) % 4) for part in slices)


def test_small_concentrations_are_lopsided() -> None:
    def commonest(concentration: float) -> float:
        slices = partition(numbered(2000), scenario(partition={"dirichlet": concentration}, samples_per_device=40))
        return float(np.mean([np.bincount(part.y).max() / len(part) for part in slices]))

    assert commonest(0.05) > 0.7 > 0.45 > commonest(1000.0)


def test_labels_that_do_not_occur_are_nobody_s() -> None:
    gap = Dataset(numbered(40).x, np.where(np.arange(40) % 2, 3, 0).astype(np.int64))
    slices = partition(gap, scenario(partition={"dirichlet": 1.0}))
    assert sorted(ids(slices)) == list(range(40))


@pytest.mark.parametrize("how", [{"iid": True}, {"dirichlet": 0.5}])
def test_samples_per_device_are_exact(how: dict[str, Any]) -> None:
    slices = partition(numbered(103), scenario(samples_per_device=7, partition=how))
    assert [len(part) for part in slices] == [7] * 10
    assert len(set(ids(slices))) == 70


@pytest.mark.parametrize(("count", "each"), [(9, 0), (69, 7)])
def test_refuses_to_deal_more_than_there_is(count: int, each: int) -> None:
    with pytest.raises(ConfigError, match=f"the data has {count} to deal"):
        partition(numbered(count), scenario(samples_per_device=each))


def test_slices_are_files_that_agents_read(tmp_path: Path) -> None:
    slices = partition(numbered(103), scenario())
    files = write_slices(slices, tmp_path / "slices")
    manifest = build_bundle(softmax((1,), 4), name="read").manifest
    assert list(files) == device_names(10) == [f"pi-{n:02d}" for n in range(1, 11)]
    for path, part in zip(files.values(), slices, strict=True):
        read = load_npz(path, manifest)
        assert np.array_equal(read.x, part.x)
        assert np.array_equal(read.y, part.y)


def write(path: Path, **changes: Any) -> Scenario:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"x": rng.random((50, 2, 3)), "y": np.arange(50) % 3, **changes}
    kept = {name: value for name, value in arrays.items() if value is not None}
    np.savez(path, **kept)
    return scenario(data={"source": "file", "path": str(path)})


def test_file_is_split_or_brings_its_own_test(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "a.npz"))
    assert (len(corpus.train), len(corpus.held_out), corpus.classes) == (40, 10, 3)
    assert corpus.input_shape == [2, 3]
    test = {"x_test": np.zeros((5, 2, 3)), "y_test": np.array([0, 1, 2, 3, 3])}
    corpus = load_corpus(write(tmp_path / "b.npz", **test))
    assert (len(corpus.train), len(corpus.held_out), corpus.classes) == (50, 5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "needs arrays x and y"),
        ({"x_test": np.zeros((5, 2, 3))}, "x_test and y_test or neither"),
        ({"x": np.zeros((50, 6), int)}, "must be floating point"),
        ({"x": np.zeros(50)}, "must be floating point"),
        ({"x": np.full((50, 2, 3), np.nan)}, "NaN"),
        ({"y": np.zeros(50)}, "whole number"),
        ({"y": np.zeros(49, int)}, "whole number"),
        ({"y": np.full(50, -1)}, "labels -1 to -1"),
        ({"y": np.full(50, 1000)}, "labels 1000 to 1000"),
        ({"x_test": np.zeros((5, 6)), "y_test": np.zeros(5, int)}, "x_test of"),
        ({"x": np.array([None] * 50, object)}, "pickle"),
        ({"x": np.zeros((1, 2)), "y": np.zeros(1, int)}, "too few"),
    ],
)
def test_refuses_files_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_corpus(write(tmp_path / "bad.npz", **changes))


def test_refuses_files_that_are_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    this = scenario(data={"source": "file", "path": str(path)})
    with pytest.raises(ConfigError, match="No such file"):
        load_corpus(this)
    for content in (b"nothing of the kind", b"PK\x03\x04 cut short"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.npz: cannot be read as \.npz"):
            load_corpus(this)


def test_presets_and_onnx_files_become_bundles(tmp_path: Path) -> None:
    corpus = load_corpus(demo_scenario())
    assert make_bundle(demo_scenario(), corpus).dimension == 64 * 32 + 32 + 32 * 10 + 10
    assert make_bundle(scenario(model={"preset": "softmax"}), corpus).dimension == 650
    path = tmp_path / "model.onnx"
    onnx.save(mlp([64], 12, [4]), path)
    assert make_bundle(scenario(model={"onnx": str(path)}), corpus).manifest.classes == 12
    for model, message in ((mlp([63], 10), "shape"), (mlp([64], 9), "9 classes")):
        onnx.save(model, path)
        with pytest.raises(ConfigError, match=message):
            make_bundle(scenario(model={"onnx": str(path)}), corpus)
    path.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"model\.onnx"):
        make_bundle(scenario(model={"onnx": str(path)}), corpus)
    with pytest.raises(ConfigError, match="No such file"):
        make_bundle(scenario(model={"onnx": str(tmp_path / "none.onnx")}), corpus)
