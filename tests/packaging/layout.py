"""The distribution's packages, and what its metadata promises about their dependencies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "covey_protocol": ROOT / "protocol/covey_protocol",
    "covey_agent": ROOT / "agent/covey_agent",
    "covey_aggregator": ROOT / "aggregator/covey_aggregator",
    "covey_modelkit": ROOT / "modelkit/covey_modelkit",
    "covey_simulator": ROOT / "simulator/covey_simulator",
}


def modules(package: str) -> dict[str, Path]:
    """Return every module of a package, by its dotted name."""
    found = {}
    for path in sorted(PACKAGES[package].rglob("*.py")):
        parts = path.relative_to(PACKAGES[package].parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def required(distribution: str, extra: str = "") -> set[str]:
    """Return the distributions that one asks for by name, here and now, with that extra."""
    wanted = [Requirement(line) for line in metadata.requires(distribution) or []]
    here = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {canonicalize_name(one.name) for one in here}


def closure(distribution: str) -> set[str]:
    """Return all that installing a distribution without extras brings along, itself included."""
    found: set[str] = set()
    todo: set[str] = {canonicalize_name(distribution)}
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= required(name) - found
    return found


@cache
def _owners() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()  # reads every installed file list, which takes a while


def import_names(distributions: set[str]) -> set[str]:
    """Return the top-level import names that distributions provide."""
    owners = {top: {canonicalize_name(name) for name in names} for top, names in _owners().items()}
    return {top for top, names in owners.items() if names & distributions}
