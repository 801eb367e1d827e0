"""docs/models.md: every operator and loss is named, and nothing that is not there."""

from __future__ import annotations

import re

from docs.tools import generate

from covey_modelkit.composites import COMPOSITES
from covey_modelkit.gradients import LOSSES, RULES

PAGE = (generate.DOCS / "models.md").read_text(encoding="utf-8")


def test_operators_are_named() -> None:
    table = PAGE.split("## Operators")[1].split("**BatchNormalization**")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    named = {word for cell in cells for word in re.findall(r"\b[A-Z][A-Za-z]+\b", cell.replace("-D", ""))}
    assert named - {"D"} == set(RULES) | {operator for _, operator in COMPOSITES} - {"CastLike"}


def test_losses_are_named() -> None:
    table = PAGE.split("## Losses")[1].split("With `--autoencoder`")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \| (?!`y`)", table, re.MULTILINE)) - {"--loss"} == set(LOSSES)
