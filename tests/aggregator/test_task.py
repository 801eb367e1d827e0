"""Task files: what they may say, and what is answered when they say something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from covey_aggregator.rules import AnyRule
from covey_aggregator.rules.centred_clipping import CentredClipping
from covey_aggregator.rules.geometric_median import GeometricMedian
from covey_aggregator.rules.mean import Mean
from covey_aggregator.rules.median import Median
from covey_aggregator.rules.multi_krum import MultiKrum
from covey_aggregator.rules.trimmed_mean import TrimmedMean
from covey_aggregator.task import Task, load_task
from covey_protocol.errors import ConfigError

GOOD: dict[str, Any] = {"name": "digits", "bundle": "models/tiny.bundle", "rounds": 5, "clip": 1.5}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.bundle").write_bytes(b"bundle")
    (tmp_path / "held.npz").write_bytes(b"data")
    return tmp_path / "task.yaml"


def write(file: Path, **changes: object) -> Path:
    fields = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    file.write_text(yaml.safe_dump(fields))
    return file


def test_paths_start_at_the_tasks_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    task = load_task(write(file, held_out="held.npz"))
    assert Path(task.bundle) == file.parent / "models" / "tiny.bundle"
    assert Path(task.held_out) == file.parent / "held.npz"
    assert load_task(write(file, held_out="held.npz", probes=True)).probes
    absolute = load_task(write(file, bundle=str(file.parent / "held.npz")))
    assert Path(absolute.bundle) == file.parent / "held.npz"


def test_everything_but_four_fields_has_a_default(file: Path) -> None:
    task = load_task(write(file))
    assert (task.group_size, task.rule, task.held_out, task.local.epochs) == (10, "trimmed-mean", "", 1)


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, TrimmedMean()),
        ({"beta": 0.2}, TrimmedMean(beta=0.2)),
        ({"rule": {"name": "trimmed-mean", "beta": 0.3}}, TrimmedMean(beta=0.3)),
        ({"rule": {"name": "trimmed-mean"}, "beta": 0.2}, TrimmedMean(beta=0.2)),
        ({"rule": "median", "beta": 0.2}, Median()),
        ({"rule": "multi-krum"}, MultiKrum()),
        ({"rule": {"name": "multi-krum", "f": 2}}, MultiKrum(f=2)),
        ({"rule": {"name": "centred-clipping", "radius": 1, "iterations": 5}}, CentredClipping(radius=1, iterations=5)),
        ({"rule": {"name": "geometric-median", "smoothing": 0.1}}, GeometricMedian(smoothing=0.1)),
        ({"rule": {"name": "mean"}}, Mean()),
    ],
)
def test_a_rule_is_a_name_or_a_map(file: Path, changes: dict[str, object], chosen: AnyRule) -> None:
    task = load_task(write(file, **changes))
    assert task.across_groups == chosen
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task  # as the store keeps it


REFUSED = [
    ({"name": None}, "name"),
    ({"bundle": None}, "bundle"),
    ({"rounds": None}, "rounds"),
    ({"clip": None}, "clip"),
    ({"name": "Big Name"}, "name"),
    ({"name": "a/b"}, "name"),
    ({"name": ""}, "name"),
    ({"name": 7}, "name"),
    ({"bundle": "gone.bundle"}, "bundle"),
    ({"bundle": "models"}, "bundle"),
    ({"bundle": ""}, "bundle"),
    ({"held_out": "gone.npz"}, "held_out"),
    ({"rounds": 0}, "rounds"),
    ({"rounds": 1.5}, "rounds"),
    ({"rounds": "many"}, "rounds"),
    ({"clip": 0}, "clip"),
    ({"clip": -1}, "clip"),
    ({"clip": float("nan")}, "clip"),
    ({"clip": float("inf")}, "clip"),
    ({"group_size": 3}, "group_size"),
    ({"group_size": 32}, "group_size"),
    ({"group_size": 33}, "group_size"),
    ({"devices_min": 3}, "devices_min"),
    ({"settle": -1}, "settle"),
    ({"settle": float("nan")}, "settle"),
    ({"local": {"learning_rate": -1}}, "learning_rate"),
    ({"local": {"learning_rate": float("nan")}}, "learning_rate"),
    ({"local": {"momentum": 1}}, "momentum"),
    ({"local": {"epochs": 0}}, "epochs"),
    ({"local": {"batch_size": 0}}, "batch_size"),
    ({"local": {"lr": 0.1}}, "lr"),
    ({"rule": "krum"}, "rule"),
    ({"rule": {"name": "krum"}}, "rule.name"),
    ({"rule": {"f": 2}}, "rule"),
    ({"rule": 2}, "rule"),
    ({"rule": {"name": "median", "f": 2}}, "rule"),
    ({"rule": {"name": "multi-krum", "f": -1}}, "rule.f"),
    ({"rule": {"name": "multi-krum", "f": 0.2}}, "rule.f"),
    ({"rule": {"name": "trimmed-mean", "beta": 0.5}}, "rule.beta"),
    ({"rule": {"name": "trimmed-mean", "beta": 0.1}, "beta": 0.1}, "beta"),
    ({"rule": {"name": "geometric-median", "smoothing": 0}}, "rule.smoothing"),
    ({"rule": {"name": "geometric-median", "tolerance": float("nan")}}, "rule.tolerance"),
    ({"rule": {"name": "geometric-median", "iterations": 0}}, "rule.iterations"),
    ({"rule": {"name": "centred-clipping", "radius": 0}}, "rule.radius"),
    ({"rule": {"name": "centred-clipping", "radius": float("inf")}}, "rule.radius"),
    ({"rule": {"name": "centred-clipping", "iterations": 0}}, "rule.iterations"),
    ({"contamination": 0.5}, "contamination"),
    ({"contamination": -0.1}, "contamination"),
    ({"beta": 0.5}, "beta"),
    ({"beta": float("nan")}, "beta"),
    ({"windows": {"join": 1}}, "windows"),
    ({"windows": {"join": 0, "shares": 1, "masked": 1, "survivors": 1, "unmask": 1}}, "join"),
    ({"windows": {"join": 1, "shares": 1, "masked": 1, "survivors": 1, "unmask": float("nan")}}, "unmask"),
    ({"windows": {"join": 1, "shares": 1, "masked": 1, "survivors": 1, "unmask": 1, "ummask": 1}}, "ummask"),
    ({"probes": True}, "probes: need held-out samples"),
    ({"probes": True, "held_out": "held.npz", "attestation": {"sketch": "off"}}, "probes: look at sketches"),
    ({"probes": "yes please"}, "probes"),
    ({"epoch_rounds": 0}, "epoch_rounds"),
    ({"attempts": 0}, "attempts"),
    ({"atempts": 3}, "atempts"),
]


@pytest.mark.parametrize(("changes", "field"), REFUSED)
def test_what_is_refused_names_file_and_field(file: Path, changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(write(file, **changes))
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert field in message.removeprefix(f"{file}: ")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "[]", "a: [", "name: !!python/object:os.system x", "\x00", "just words"])
def test_a_file_that_is_no_mapping_is_named(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"task\.yaml: "):
        load_task(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: "):
        load_task(tmp_path / "gone.yaml")
