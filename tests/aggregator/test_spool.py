"""The files of an open round: vectors in one file, a secret beside it, both gone when the round is over."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from covey_aggregator import spool
from covey_aggregator.spool import Spool
from covey_protocol.errors import ConfigError, LocalError

SECRET = bytes(range(32))
RNG = np.random.default_rng(1)
VECTORS = {f"pi-{n}": RNG.integers(0, 1 << 16, 50, np.uint16) for n in range(5)}


def filled(folder: Path) -> tuple[Spool, dict[str, bytes]]:
    kept = Spool.create(folder, "digits-1-1", SECRET)
    places = {name: kept.put(name, vector.tobytes()) for name, vector in VECTORS.items()}
    kept.sync()
    return kept, places


def test_a_sum_over_whichever_members_can_be_folded(tmp_path: Path) -> None:
    kept, _ = filled(tmp_path)
    for names in (list(VECTORS), ["pi-3"], ["pi-0", "pi-4"], []):
        expected = np.zeros(50, np.uint16)
        for name in names:
            expected += VECTORS[name]
        assert np.array_equal(kept.fold(names, 50), expected)


def test_what_is_put_twice_is_there_once(tmp_path: Path) -> None:
    kept, places = filled(tmp_path)
    assert kept.put("pi-2", bytes(100)) == places["pi-2"]
    assert kept.count == 5
    assert (tmp_path / "digits-1-1.vectors").stat().st_size == 500


def test_places_lead_to_the_vectors_after_a_restart_and_what_no_place_names_is_overwritten(tmp_path: Path) -> None:
    kept, places = filled(tmp_path)
    kept.close()
    again = Spool.reopen(tmp_path, "digits-1-1")
    assert again.secret == SECRET
    for name in ("pi-0", "pi-1"):
        assert again.restore(name, places[name]) == VECTORS[name].tobytes()
    assert again.put("pi-9", bytes(100)) == places["pi-2"]  # pi-2's was not in the journal yet
    assert again.vector("pi-9") == bytes(100)
    again.close()
    again.close()


@pytest.mark.parametrize("place", [b"", b"\x00" * 15, (10**6).to_bytes(8, "little") + (100).to_bytes(8, "little")])
def test_places_that_are_not_there(tmp_path: Path, place: bytes) -> None:
    kept, _ = filled(tmp_path)
    with pytest.raises(LocalError, match="pi-0"):
        kept.restore("pi-0", place)


def test_files_are_private_and_no_repr_holds_the_secret(tmp_path: Path) -> None:
    kept, _ = filled(tmp_path / "spool")
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "spool").iterdir()} == {0o600}
    assert SECRET.hex() not in repr(kept)
    assert repr(SECRET) not in repr(kept)


def test_the_secret_is_overwritten_before_it_is_removed(tmp_path: Path) -> None:
    kept, _ = filled(tmp_path)
    with (tmp_path / "digits-1-1.key").open("rb") as held:
        kept.remove()
        assert held.read() == bytes(32)
    assert list(tmp_path.iterdir()) == []
    kept.remove()


def test_a_round_that_was_not_opened_leaves_nothing_to_the_next_try(tmp_path: Path) -> None:
    filled(tmp_path)
    kept = Spool.create(tmp_path, "digits-1-1", bytes(32))
    assert (kept.count, kept.secret) == (0, bytes(32))
    assert (tmp_path / "digits-1-1.vectors").stat().st_size == 0


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"digits-1-1\.key"):
        Spool.reopen(tmp_path, "digits-1-1")


def test_only_files_of_rounds_are_cleared_away(tmp_path: Path) -> None:
    filled(tmp_path)
    for name in ("digits-1-2.key", "digits-1-2.vectors", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    spool.clean(tmp_path, "digits-1-1")
    assert {path.name for path in tmp_path.iterdir()} == {"digits-1-1.key", "digits-1-1.vectors", "notes.txt"}
    spool.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}
    spool.clean(tmp_path / "nowhere")
