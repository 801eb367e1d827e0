"""Rules that combine the groups' mean updates into one step, behind one interface.

A rule is a frozen struct that holds its parameters, as a task's or scenario's file writes them: ``rule: median``, or
``rule: {name: multi-krum, f: 2}``. It sees one row a group and nothing else, changes none of them, and takes O(G² + d)
memory beyond them.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from covey_aggregator.rules.caps import cap_norms
from covey_aggregator.rules.centred_clipping import CentredClipping
from covey_aggregator.rules.contamination import CONTAMINATION, spoilt_groups
from covey_aggregator.rules.geometric_median import GeometricMedian
from covey_aggregator.rules.influence import Influence, whole_groups
from covey_aggregator.rules.mean import Mean
from covey_aggregator.rules.median import Median
from covey_aggregator.rules.multi_krum import MultiKrum
from covey_aggregator.rules.rows import Row, Rows
from covey_aggregator.rules.trimmed_mean import TrimmedMean
from covey_protocol.errors import ConfigError

__all__ = [
    "CONTAMINATION",
    "RULES",
    "AnyRule",
    "Influence",
    "Row",
    "Rows",
    "Rule",
    "RuleField",
    "cap_norms",
    "rule",
    "rule_name",
    "spoilt_groups",
    "whole_groups",
]


class Rule(Protocol):
    """What every rule can do."""

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Combine the rows.

        Args:
            rows: One a group, float32 and finite: shape (G, d), or G vectors; G is at least 1.
            spoilt: How many groups are expected to be spoilt, for the rules that can use it.
            influence: What each group counts for, shape (G,), above 0 and 1 for the one that counts most; None is 1 for
                all. However many groups count little, they cannot outvote those that count.

        Returns:
            Shape (d,). Of one row it is that row, of two their mean.
        """

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return how many spoilt groups of so many leave the result bounded, however far they lie."""


AnyRule: TypeAlias = TrimmedMean | Median | GeometricMedian | MultiKrum | CentredClipping | Mean
RuleField: TypeAlias = str | AnyRule  # a name alone stands for the rule with its defaults

RULES: dict[str, type[AnyRule]] = {
    "trimmed-mean": TrimmedMean,
    "median": Median,
    "geometric-median": GeometricMedian,
    "multi-krum": MultiKrum,
    "centred-clipping": CentredClipping,
    "mean": Mean,
}


def rule(field: RuleField) -> AnyRule:
    """Return the rule that a field of a file asks for.

    Raises:
        ConfigError: There is none of that name.
    """
    if not isinstance(field, str):
        return field
    if field not in RULES:
        raise ConfigError(f"rule {field!r}: unknown; there are {', '.join(RULES)}")
    return RULES[field]()


def rule_name(chosen: AnyRule) -> str:
    """Return the name by which files ask for a rule."""
    return next(name for name, kind in RULES.items() if isinstance(chosen, kind))
