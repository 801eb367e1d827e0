"""The committed vectors are what their script makes; the modules' own tests hold Covey to them."""

from __future__ import annotations

import pytest
from tests.protocol.vectors import make

FILES = make.build()


@pytest.mark.parametrize("file", sorted(FILES))
def test_vectors_are_what_their_script_makes(file: str) -> None:
    assert (make.FOLDER / file).read_text() == FILES[file]


def test_no_vectors_without_a_script() -> None:
    elsewhere = {"privacy.json"}  # by privacy.py, which needs an accountant that is not installed here
    assert {path.name for path in make.FOLDER.glob("*.json")} == set(FILES) | elsewhere
    assert all((make.FOLDER / name).with_suffix(".py").exists() for name in elsewhere)
