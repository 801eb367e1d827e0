"""docs/robustness.md against the rules."""

from __future__ import annotations

import re

from docs.tools import generate

from covey_aggregator.rules import RULES, spoilt_groups
from covey_aggregator.rules.median import Median

PAGE = (generate.DOCS / "robustness.md").read_text(encoding="utf-8")


def test_the_table_of_what_to_expect_is_the_codes() -> None:
    shares = (0.005, 0.01, 0.02, 0.05, 0.2)
    assert "| G | ε = 0.5% | 1% | 2% | 5% | 20% |" in PAGE
    for groups in (5, 10, 50, 100):
        expected = [spoilt_groups([10] * groups, share) for share in shares]
        row = " | ".join(str(number) for number in [groups, *expected, Median().withstands(groups, 0)])
        assert f"| {row} |" in PAGE


def test_every_rule_has_its_row() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \| .+ \| .+ \| .+ \|$", PAGE, re.MULTILINE) == list(RULES)
