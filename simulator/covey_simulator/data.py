"""Where a simulated fleet's samples come from, and how they are dealt to its devices.

No sample is on two devices, and none of the held-out ones is on any.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covey_agent.data import Dataset
from covey_protocol.bundle import Bundle, Int64
from covey_protocol.errors import ConfigError
from covey_simulator.oddities import rearranged
from covey_simulator.scenario import Scenario

HELD_OUT_SHARE = 0.2
MAX_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class Corpus:
    """All samples of a scenario.

    Args:
        train: To be dealt to the devices.
        held_out: For measuring only.
        classes: Number of labels.
    """

    train: Dataset
    held_out: Dataset
    classes: int

    @property
    def input_shape(self) -> list[int]:
        """Shape of one sample."""
        return list(self.train.x.shape[1:])


def load_corpus(scenario: Scenario) -> Corpus:
    """Load a scenario's data and hold a fifth of it out, by the scenario's seed.

    Raises:
        ConfigError: The file cannot be used; the message names it and the array.
    """
    match scenario.data.source:
        case "digits":
            from sklearn.datasets import load_digits  # noqa: PLC0415 - a second to import

            x, y = load_digits(return_X_y=True)
            train, held_out = _split(x / 16.0, y, scenario)
        case "breast-cancer":
            from sklearn.datasets import load_breast_cancer  # noqa: PLC0415

            x, y = load_breast_cancer(return_X_y=True)
            train, held_out = _standardised(*_split(x, y, scenario))
        case "file":
            assert scenario.data.path is not None
            return _load_file(Path(scenario.data.path), scenario)
    return Corpus(train, held_out, int(y.max()) + 1)


def partition(train: Dataset, scenario: Scenario) -> list[Dataset]:
    """Deal samples to devices; sizes differ by at most one, but for devices that are odd (``oddities``).

    IID is a permutation cut evenly. With Dirichlet's concentration A each device draws the shares of its labels from
    Dir(A · how often the labels occur) and then samples by them for as long as the labels last (Hsu et al. 2019). Where
    samples repeat, each device draws its own as if it were alone: by even shares, by Dir(A) over the labels, or from a
    few labels that it is given.

    Raises:
        ConfigError: There are too few samples.
    """
    return rearranged(_dealt(train, scenario), scenario)


def _dealt(train: Dataset, scenario: Scenario) -> list[Dataset]:
    wanted, devices = scenario.samples_per_device, scenario.devices
    if scenario.partition.repeat:
        return _repeating(train, scenario)
    if wanted * devices > len(train) or devices > len(train):
        raise ConfigError(
            f"scenario {scenario.name!r}: {devices} devices with {max(wanted, 1)} samples each need "
            f"{max(wanted, 1) * devices} samples, the data has {len(train)} to deal"
        )
    rng = scenario.generator("partition")
    concentration = scenario.partition.dirichlet
    if concentration is None:
        order = rng.permutation(len(train))
        parts = np.array_split(order[: wanted * devices] if wanted else order, devices)
    else:
        base, more = divmod(len(train), devices)
        sizes = [wanted or base + (index < more) for index in range(devices)]
        parts = _by_label(train.y, sizes, concentration, rng)
    return [Dataset(train.x[part], train.y[part]) for part in parts]


def _repeating(train: Dataset, scenario: Scenario) -> list[Dataset]:
    """Deal with putting back."""
    rng, wanted = scenario.generator("partition"), scenario.samples_per_device or len(train) // scenario.devices
    if not wanted:
        raise ConfigError(f"scenario {scenario.name!r}: say samples_per_device, there are fewer samples than devices")
    pools = [rows for label in range(int(train.y.max()) + 1) if len(rows := np.flatnonzero(train.y == label))]
    if scenario.partition.labels is not None and scenario.partition.labels > len(pools):
        raise ConfigError(f"scenario {scenario.name!r}: partition.labels: the data has only {len(pools)}")
    parts = []
    for index in range(scenario.devices):
        if scenario.partition.labels is not None:  # each label goes to about as many devices
            first = index * scenario.partition.labels
            own = [pools[(first + more) % len(pools)] for more in range(scenario.partition.labels)]
            rows = rng.choice(np.concatenate(own), wanted)
        elif scenario.partition.dirichlet is not None:
            shares = rng.dirichlet([max(scenario.partition.dirichlet, 1e-3)] * len(pools))
            counts = rng.multinomial(wanted, shares)
            rows = np.concatenate([rng.choice(pool, count) for pool, count in zip(pools, counts, strict=True)])
        else:
            rows = rng.choice(len(train), wanted)
        parts.append(Dataset(train.x[rows], train.y[rows]))
    return parts


def device_names(count: int) -> list[str]:
    """Return the names of a simulated fleet's devices; slice i belongs to name i."""
    width = max(2, len(str(count)))
    return [f"pi-{number:0{width}d}" for number in range(1, count + 1)]


def write_slices(slices: Sequence[Dataset], folder: Path) -> dict[str, Path]:
    """Write each device's samples to an ``.npz`` of its own, as an agent's data source reads them.

    Args:
        slices: One a device, as ``partition`` gives them.
        folder: Is made if it is missing.

    Returns:
        Device name to file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.npz" for name in device_names(len(slices))}
    for path, part in zip(files.values(), slices, strict=True):
        np.savez(path, x=part.x, y=part.y)
    return files


def make_bundle(scenario: Scenario, corpus: Corpus) -> Bundle:
    """Build the scenario's model and check that the data suits it.

    Raises:
        ConfigError: The ONNX file cannot be used, or takes other samples or fewer labels than the data has.
    """
    import onnx  # noqa: PLC0415 - heavy, and only needed where a model is built

    from covey_modelkit import build_bundle, mlp, softmax  # noqa: PLC0415

    if scenario.model.onnx is None:
        make = softmax if scenario.model.preset == "softmax" else mlp
        return build_bundle(make(corpus.input_shape, corpus.classes), name=f"{scenario.data.source}-{make.__name__}")
    path = Path(scenario.model.onnx)
    try:
        graph = onnx.load(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except Exception as error:  # protobuf's errors depend on its implementation
        raise ConfigError(f"{path}: is not an ONNX model: {error}") from error
    try:
        bundle = build_bundle(graph, name="onnx-model")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    takes = bundle.manifest.input.shape
    if takes != corpus.input_shape or bundle.manifest.classes < corpus.classes:
        raise ConfigError(
            f"{path}: takes samples of shape {takes} in {bundle.manifest.classes} classes, "
            f"the data has shape {corpus.input_shape} and {corpus.classes} classes"
        )
    return bundle


def _split(x: npt.NDArray[Any], y: npt.NDArray[Any], scenario: Scenario) -> tuple[Dataset, Dataset]:
    order = scenario.generator("held-out").permutation(len(x))
    count = round(HELD_OUT_SHARE * len(x))
    if not 0 < count < len(x):
        raise ConfigError(f"scenario {scenario.name!r}: {len(x)} samples are too few to hold some out")
    held_out, train = order[:count], order[count:]
    return _dataset(x[train], y[train]), _dataset(x[held_out], y[held_out])


def _dataset(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Dataset:
    return Dataset(np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.int64))


def _standardised(train: Dataset, held_out: Dataset) -> tuple[Dataset, Dataset]:
    """Centre features and bring them to a common spread, by the training samples, so nothing is learnt from others.

    Half of the unit spread, and at most two of it: few values then lie outside of -1 to 1, and none far. Features that
    are all positive would have devices with different labels pull every weight in opposite directions.
    """
    mean, spread = train.x.mean(axis=0), np.maximum(train.x.std(axis=0), np.float32(1e-12))

    def scaled(data: Dataset) -> Dataset:
        return _dataset(np.clip((data.x - mean) / spread / 2, -2, 2), data.y)

    return scaled(train), scaled(held_out)


def _load_file(path: Path, scenario: Scenario) -> Corpus:
    """Read arrays x and y, and x_test and y_test if there are any."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive) if isinstance(archive, np.lib.npyio.NpzFile) else {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read as .npz: {error}") from error
    if not {"x", "y"} <= set(arrays) or ("x_test" in arrays) != ("y_test" in arrays):
        raise ConfigError(f"{path}: needs arrays x and y, and x_test and y_test or neither; it has {sorted(arrays)}")
    given = _checked(path, arrays, "x", "y")
    parts = (given, _checked(path, arrays, "x_test", "y_test")) if "x_test" in arrays else None
    train, held_out = parts or _split(given.x, given.y, scenario)
    if train.x.shape[1:] != held_out.x.shape[1:]:
        raise ConfigError(f"{path}: x has samples of shape {train.x.shape[1:]}, x_test of {held_out.x.shape[1:]}")
    return Corpus(train, held_out, max(2, 1 + int(max(train.y.max(), held_out.y.max()))))


def _checked(path: Path, arrays: dict[str, npt.NDArray[Any]], x_name: str, y_name: str) -> Dataset:
    x, y = arrays[x_name], arrays[y_name]
    if not np.issubdtype(x.dtype, np.floating) or x.ndim < 2 or len(x) == 0:
        raise ConfigError(f"{path}: {x_name} is {x.dtype} {x.shape}, must be floating point, samples by features")
    if not np.issubdtype(y.dtype, np.integer) or y.shape != (len(x),):
        raise ConfigError(
            f"{path}: {y_name} is {y.dtype} {y.shape}, must be one whole number for each of {len(x)} samples"
        )
    if y.min() < 0 or y.max() >= MAX_CLASSES:
        raise ConfigError(f"{path}: {y_name} holds labels {y.min()} to {y.max()}, must lie in 0 to {MAX_CLASSES - 1}")
    with np.errstate(over="ignore"):
        dataset = _dataset(x, y)
    if not np.isfinite(dataset.x).all():
        raise ConfigError(f"{path}: {x_name} holds NaN or infinite values")
    return dataset


def _by_label(labels: Int64, sizes: Sequence[int], concentration: float, rng: np.random.Generator) -> list[Int64]:
    """Return the rows of each device, each label's rows taken in random order until they run out."""
    counts = np.bincount(labels)
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in range(len(counts))]
    left = counts.copy()
    parts = []
    for size in sizes:
        # Labels that do not occur have no share; the floor keeps tiny concentrations from underflowing.
        shares = np.zeros(len(counts))
        shares[counts > 0] = rng.dirichlet(np.maximum(concentration * counts[counts > 0] / len(labels), 1e-3))
        taken = np.zeros(len(counts), np.int64)
        while taken.sum() < size:
            weights = np.where(left > taken, shares, 0.0)
            if not weights.sum() > 0:
                weights = (left - taken).astype(np.float64)
            drawn = rng.multinomial(size - taken.sum(), weights / weights.sum())
            taken = np.minimum(taken + drawn, left)
        parts.append(np.concatenate([pool[n - more : n] for pool, n, more in zip(pools, left, taken, strict=True)]))
        left = left - taken
    return parts
