"""covey_agent.data: what is read is fit to train on, and what is not is refused by name."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.data import Dataset, load_npz
from covey_modelkit import build_bundle, mlp, softmax
from covey_protocol.bundle import BundleManifest
from covey_protocol.errors import ConfigError

LABELLED = build_bundle(softmax((3,), 2), name="labelled").manifest
X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0])


def save(path: Path, **arrays: npt.ArrayLike) -> Path:
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(path, **named)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    data = load_npz(save(tmp_path / "d.npz", x=X, y=Y), LABELLED)
    assert (str(data.x.dtype), str(data.y.dtype), len(data)) == ("float32", "int64", 4)
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)


@pytest.mark.parametrize("x_type", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("y_type", ["uint8", "int32", "int64", ">i8"])
def test_other_widths_are_converted(tmp_path: Path, x_type: str, y_type: str) -> None:
    data = load_npz(save(tmp_path / "d.npz", x=X.astype(x_type), y=Y.astype(y_type)), LABELLED)
    assert (str(data.x.dtype), str(data.y.dtype)) == ("float32", "int64")
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)


def test_fortran_order_is_brought_into_rows(tmp_path: Path) -> None:
    data = load_npz(save(tmp_path / "d.npz", x=np.asfortranarray(X), y=Y), LABELLED)
    assert data.x.flags.c_contiguous
    np.testing.assert_array_equal(data.x, X)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    save(tmp_path / "b.npz", x=X[2:], y=Y[2:])
    save(tmp_path / "a.npz", x=X[:2], y=Y[:2])
    save(tmp_path / ".half-written.npz", x=X, y=Y)
    (tmp_path / "notes.txt").write_text("not data")
    data = load_npz(tmp_path, LABELLED)
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.npz file"):
        load_npz(tmp_path, LABELLED)


def test_the_faulty_file_of_a_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "good.npz", x=X, y=Y)
    save(tmp_path / "poor.npz", x=X, y=Y + 1)
    with pytest.raises(ConfigError, match=r"poor\.npz"):
        load_npz(tmp_path, LABELLED)


class Exploding:
    """What a pickle may do when it is opened: anything; this one leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["x", "y"])
def test_no_pickle_is_opened(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "was here"
    arrays = {"x": X, "y": Y} | {name: np.array([Exploding(trace)] * 4)}
    with pytest.raises(ConfigError, match="cannot be read"):
        load_npz(save(tmp_path / "d.npz", **arrays), LABELLED)
    assert not trace.exists()


def with_value(value: float) -> npt.NDArray[np.float32]:
    x = X.copy()
    x[2, 1] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "no array 'x'"),
        ({"x": X}, "no array 'y'"),
        ({"x": X.astype(np.uint8), "y": Y}, "x has type uint8"),
        ({"x": X.astype(complex), "y": Y}, "x has type complex"),
        ({"x": X.astype(str), "y": Y}, "x has type"),
        ({"x": X.reshape(3, 4), "y": Y}, r"x has shape \(3, 4\), the model wants \(samples, 3\)"),
        ({"x": X.reshape(4, 3, 1), "y": Y}, r"x has shape \(4, 3, 1\)"),
        ({"x": X.reshape(-1), "y": Y}, r"x has shape \(12,\)"),
        ({"x": np.float32(1), "y": Y}, r"x has shape \(\)"),
        ({"x": X[:0], "y": Y[:0]}, "no samples"),
        ({"x": with_value(np.nan), "y": Y}, "NaN or infinite values, first in sample 2"),
        ({"x": with_value(np.inf), "y": Y}, "NaN or infinite"),
        ({"x": with_value(0).astype(np.float64) + 1e300, "y": Y}, "NaN or infinite"),
        ({"x": X, "y": Y.astype(np.float64)}, "y has type float64"),
        ({"x": X, "y": Y.astype(bool)}, "y has type bool"),
        ({"x": X, "y": Y[:3]}, "one label for each of 4 samples"),
        ({"x": X, "y": Y.reshape(4, 1)}, "one label for each of 4 samples"),
        ({"x": X, "y": np.array([0, 1, 2, 0])}, "label 2 in sample 2, labels are 0 to 1"),
        ({"x": X, "y": np.array([0, -1, 1, 0])}, "label -1 in sample 1"),
        ({"x": X, "y": np.array([0, 2**63 + 1, 1, 0], np.uint64)}, "in sample 1"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path: Path, arrays: dict[str, npt.ArrayLike], message: str) -> None:
    path = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(ConfigError, match=message) as caught:
        load_npz(path, LABELLED)
    assert str(path) in str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path / "good.npz", x=X, y=Y).read_bytes()
    bare = tmp_path / "bare.npz"
    with bare.open("wb") as file:
        np.save(file, X)
    cut, text, empty, other = (tmp_path / name for name in ("cut.npz", "text.npz", "empty.npz", "other.npz"))
    cut.write_bytes(good[: len(good) // 2])
    text.write_text("x,y\n1,2\n")
    empty.write_bytes(b"")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("x.npy", b"not an array")
        archive.writestr("y.npy", b"not an array")
    for path in (bare, cut, text, empty, other, tmp_path / "absent.npz"):
        with pytest.raises(ConfigError, match=path.name):
            load_npz(path, LABELLED)


def test_a_file_with_changed_bytes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_npz(path, LABELLED)


@given(cut=st.integers(0, 2_000), position=st.integers(0, 2_000), bits=st.integers(1, 255), packed=st.booleans())
def test_damage_is_a_configuration_error_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, cut: int, position: int, bits: int, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("damage") / "d.npz"
    (np.savez_compressed if packed else np.savez)(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= bits
    path.write_bytes(content[: len(content) - cut] if cut < len(content) // 2 else content)
    try:
        data = load_npz(path, LABELLED)
    except ConfigError:
        return
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)


@pytest.mark.parametrize(
    ("x", "y"),
    [(X.astype(np.float64), Y), (X, Y.astype(np.int32)), (X, Y[:3]), (X, Y.reshape(4, 1)), (X.reshape(-1), Y)],
)
def test_a_dataset_checks_what_it_is_made_of(x: Any, y: Any) -> None:
    with pytest.raises(ValueError, match="dataset"):
        Dataset(x, y)


NUMBERS = build_bundle(mlp((3,), 2), name="numbers", loss="mse").manifest
SHARES = build_bundle(mlp((3,), 2), name="shares", loss="binary-cross-entropy").manifest
ALONE = build_bundle(mlp((3,), 3), name="alone", loss="huber", autoencoder=True).manifest


def test_numbers_are_read_in_the_shape_of_the_output(tmp_path: Path) -> None:
    y = np.arange(8).reshape(4, 2)
    data = load_npz(save(tmp_path / "d.npz", x=X, y=y), NUMBERS)
    assert data.y.dtype == np.float32
    np.testing.assert_array_equal(data.y, y)


def test_a_row_of_numbers_is_a_column_for_a_model_of_one(tmp_path: Path) -> None:
    one = build_bundle(mlp((3,), 2), name="one", loss="mse").manifest
    single = msgspec.structs.replace(one, output=[1])
    assert load_npz(save(tmp_path / "d.npz", x=X, y=Y), single).y.shape == (4, 1)


def test_a_model_that_reproduces_its_input_needs_no_targets(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=X)
    save(tmp_path / "b.npz", x=X, y=Y)
    data = load_npz(tmp_path, ALONE)
    assert data.y is data.x
    np.testing.assert_array_equal(data.x, np.concatenate([X, X]))


@pytest.mark.parametrize(
    ("manifest", "y", "message"),
    [
        (NUMBERS, np.zeros(4), r"y has shape \(4,\), the model wants \(4, 2\)"),
        (NUMBERS, np.zeros((4, 3)), "the model wants"),
        (NUMBERS, np.zeros((3, 2)), "the model wants"),
        (NUMBERS, np.full((4, 2), "a"), "must be numbers"),
        (NUMBERS, np.array([[0, 0], [0, np.nan], [0, 0], [0, 0]]), "first in sample 1"),
        (NUMBERS, np.full((4, 2), 1e300), "infinite"),
        (SHARES, np.full((4, 2), 1.5), "outside 0 to 1"),
        (SHARES, np.full((4, 2), -0.5), "outside 0 to 1"),
    ],
)
def test_targets_that_do_not_suit_the_model_are_refused(
    tmp_path: Path, manifest: BundleManifest, y: npt.ArrayLike, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_npz(save(tmp_path / "d.npz", x=X, y=y), manifest)
