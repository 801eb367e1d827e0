"""The device's own samples, read from ``.npz`` files and checked before anything trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covey_protocol.bundle import BundleManifest, Float32
from covey_protocol.bundle_manifest import INPUT
from covey_protocol.errors import ConfigError
from covey_protocol.score import checked_targets


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples of one device, and what a model is to say of them.

    Args:
        x: Float32, samples by the model's input shape.
        y: Int64, one label a sample; or float32, samples by the model's output shape, which for a model that reproduces
            its input is x itself.

    Raises:
        ValueError: Types or lengths are not as said.
    """

    x: Float32
    y: npt.NDArray[Any]

    def __post_init__(self) -> None:
        if self.x.dtype != np.float32 or self.y.dtype not in (np.int64, np.float32):
            raise ValueError(f"a dataset is float32 and int64 or float32, not {self.x.dtype} and {self.y.dtype}")
        if self.x.ndim < 2 or (self.y.ndim == 1) != (self.y.dtype == np.int64) or len(self.x) != len(self.y):
            raise ValueError(f"a dataset's x {self.x.shape} and y {self.y.shape} do not belong together")

    def __len__(self) -> int:
        return len(self.y)


def load_npz(path: Path, manifest: BundleManifest) -> Dataset:
    """Read a dataset from one ``.npz`` file or from all of a folder, in the order of their names.

    Each file holds an array ``x`` (floating point, samples by the input shape) and an array ``y`` (integer labels from
    0, or numbers, samples by the output shape), which a model that reproduces its input does without. In a folder,
    names that start with a dot are left alone, so that a file can be written there and then renamed.

    Args:
        path: The file or folder.
        manifest: Of the model that the data is for.

    Raises:
        ConfigError: There is nothing to read, or a file does not suit the model; the message names file and array.
    """
    if path.is_dir():
        files = sorted(file for file in path.glob("*.npz") if not file.name.startswith("."))
        if not files:
            raise ConfigError(f"{path}: the folder holds no .npz file")
    else:
        files = [path]
    parts = [_load_file(file, manifest) for file in files]
    if len(parts) == 1:
        return parts[0]
    x = np.concatenate([part.x for part in parts])
    return Dataset(x, x if manifest.target == INPUT else np.concatenate([part.y for part in parts]))


def _load_file(path: Path, manifest: BundleManifest) -> Dataset:
    names = ("x",) if manifest.target == INPUT else ("x", "y")
    try:
        # Without pickle an array of objects is refused instead of run.
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ConfigError(f"{path}: is a bare array; save it by np.savez(path, x=..., y=...)")
        with archive:
            for name in names:
                if name not in archive:
                    raise ConfigError(f"{path}: has no array {name!r}, it has {sorted(archive)}")
            arrays = [archive[name] for name in names]
            # numpy hands out the raw bytes of a member that is no array.
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise ConfigError(f"{path}: x and y must be arrays; save them by np.savez(path, x=..., y=...)")
    except ConfigError:
        raise
    except Exception as error:  # a damaged archive raises whatever zipfile, zlib and numpy stumble over
        raise ConfigError(f"{path}: cannot be read as .npz: {error}") from error
    x = _checked_x(path, arrays[0], tuple(manifest.input.shape))
    return Dataset(x, checked_targets(manifest, x, arrays[-1], str(path)))


def _checked_x(path: Path, x: npt.NDArray[Any], shape: tuple[int, ...]) -> Float32:
    # Integers are refused rather than converted: whether pixels are 0..255 or 0..1 is the owner's to say.
    if not np.issubdtype(x.dtype, np.floating):
        raise ConfigError(f"{path}: x has type {x.dtype}, must be floating point; scale it and use x.astype('float32')")
    if x.shape[1:] != shape or x.ndim != len(shape) + 1:
        wanted = ", ".join(map(str, ("samples", *shape)))
        raise ConfigError(f"{path}: x has shape {x.shape}, the model wants ({wanted})")
    if len(x) == 0:
        raise ConfigError(f"{path}: x holds no samples")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(converted).all():
        row = int(np.flatnonzero(~np.isfinite(converted).reshape(len(x), -1).all(axis=1))[0])
        raise ConfigError(f"{path}: x holds NaN or infinite values, first in sample {row}")
    return converted
