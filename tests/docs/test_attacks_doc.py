"""docs/attacks.md holds every kind of attack with its settings and their defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec

from covey_simulator.attack_kinds import KINDS
from covey_simulator.scenario import Oddities, OddityKind

PAGE = Path("docs/attacks.md")


def rows() -> dict[str, list[str]]:
    cells = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    return {row[0].strip("`"): row for row in cells if row[0].startswith("`")}


def test_every_kind_has_a_row_and_no_row_is_stale() -> None:
    assert set(rows()) == (set(KINDS) | set(get_args(OddityKind))) - {"none"}


def test_settings_and_defaults_are_those_of_the_code() -> None:
    table = rows()
    for kind, facts in KINDS.items():
        if kind != "none":
            found = dict(re.findall(r"`(\w+)` \(([^)]+)\)", table[kind][3]))
            assert found == {name: written(value) for name, value in facts.uses.items()}, kind


def test_oddities_settings_are_those_of_the_code() -> None:
    table = rows()
    for kind in get_args(OddityKind):
        if kind != "none":
            values = msgspec.structs.asdict(Oddities(kind=kind))
            expected = {name: value for name, value in values.items() if name not in ("kind", "fraction")}
            found = dict(re.findall(r"`(\w+)` \(([^)]+)\)", table[kind][3] if len(table[kind]) > 3 else ""))
            assert found == {name: written(value) for name, value in expected.items() if value is not None}, kind


def test_stock_clients_are_named() -> None:
    table = rows()
    for kind, facts in KINDS.items():
        if kind != "none":
            assert ("*stock*" in table[kind][2]) == facts.stock, kind


def written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
