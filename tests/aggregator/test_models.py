"""Models on disk: durable, checked, and not for ever."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from covey_aggregator.models import ModelFolder
from covey_protocol import model
from covey_protocol.digest import content_digest
from covey_protocol.errors import ConfigError, MalformedError


def blob(number: int) -> bytes:
    return model.to_bytes(np.full(10, number, np.float32))


def test_a_model_is_kept_by_its_digest_and_read_back(tmp_path: Path) -> None:
    digest = ModelFolder(tmp_path / "models").keep(blob(1))
    assert digest == content_digest(blob(1))
    np.testing.assert_array_equal(ModelFolder(tmp_path / "models").load(digest), np.full(10, 1, np.float32))


def test_the_newest_models_and_all_bundles_are_served(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    folder.put_bundle("digits", b"bundle")
    digests = [folder.keep(blob(number)) for number in range(10)]
    assert folder.serve(digests[-1]) == blob(9)
    assert folder.serve(digests[0]) is None
    assert folder.serve(content_digest(b"bundle")) == b"bundle"
    assert folder.serve(bytes(32)) is None
    folder.keep(blob(0))  # comes into use again
    assert folder.serve(digests[0]) == blob(0)


def test_old_models_are_removed_and_needed_ones_and_bundles_stay(tmp_path: Path) -> None:
    needed = {content_digest(blob(1))}
    folder = ModelFolder(tmp_path, lambda: needed)
    folder.put_bundle("digits", b"bundle")
    digests = []
    for number in range(40):
        digests.append(folder.keep(blob(number)))
        os.utime(tmp_path / digests[-1].hex(), ns=(number, number))
    assert (tmp_path / digests[-1].hex()).exists()
    assert not (tmp_path / digests[0].hex()).exists()
    assert folder.bundle("digits") == b"bundle"
    np.testing.assert_array_equal(folder.load(digests[1]), np.full(10, 1, np.float32))
    assert 20 <= len(list(tmp_path.iterdir())) <= 25


def test_a_missing_or_damaged_model_is_named(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    digest = folder.keep(blob(1))
    path = tmp_path / digest.hex()
    path.write_bytes(blob(2))
    with pytest.raises(ConfigError, match=f"{digest.hex()}: the model is damaged"):
        folder.load(digest)
    path.unlink()
    with pytest.raises(ConfigError, match=f"{digest.hex()}: the model cannot be read"):
        folder.load(digest)
    with pytest.raises(ConfigError, match=r"gone\.bundle: the bundle cannot be read"):
        folder.bundle("gone")
    with pytest.raises(MalformedError):
        folder.load(folder.keep(model.to_bytes(np.full(3, np.nan, np.float32))))


def test_a_bundle_that_was_changed_before_its_task_began_replaces_the_first(tmp_path: Path) -> None:
    ModelFolder(tmp_path).put_bundle("digits", b"first")
    folder = ModelFolder(tmp_path)
    folder.put_bundle("digits", b"second")
    assert folder.bundle("digits") == folder.serve(content_digest(b"second")) == b"second"
