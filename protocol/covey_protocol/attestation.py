"""What attested sketches say: each member's sketch without its masks, and who must have lied about a mask.

Member i of D reports c_ii = P·PRG(b_i), and c_ij = P·PRG(s_ij) for every other j of D. P is linear, so the sketch of
its update follows from that of its masked vector y_i, modulo 2^16:

    P·x_i = P·y_i − c_ii − Σ_{j after i} c_ij + Σ_{j before i} c_ij

Both ends of a pair report the same c_ij. Where they differ, one of them lies, and nobody can say yet which: the
smallest set of members that covers all disputes is rejected, so that whoever disputes everybody is the one to go. The
masking secret of a rejected member is restored like that of a drop-out, which settles its pairs
(``liars_about_pair``); the self-masks of accepted members are restored anyhow, which settles their c_ii
(``lie_about_self``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from covey_protocol.prg import Ring
from covey_protocol.sketch import SketchMatrix

Pair = tuple[str, str]


@dataclass(frozen=True)
class Report:
    """One member's sketches of its masks, each of shape (k,).

    Attributes:
        own: c_ii.
        pairs: c_ij by the other end's name.
    """

    own: Ring = field(repr=False)
    pairs: Mapping[str, Ring] = field(repr=False)


def recover(masked: Ring, report: Report, place: int, places: Mapping[str, int]) -> Ring:
    """Return the sketch of a member's update.

    Args:
        masked: P·y_i, shape (k,).
        report: What the member reported.
        place: Its place in the roster.
        places: Place of each member of D in the roster.

    Returns:
        P·x_i in the ring, shape (k,), right as far as the report is.
    """
    sketch: Ring = masked - report.own
    for other, mask in report.pairs.items():
        sketch = sketch - mask if places[other] > place else sketch + mask
    return sketch


def disputes(reports: Mapping[str, Report]) -> set[Pair]:
    """Return the pairs whose two ends report different sketches of their common mask, each in order of names."""
    found = set()
    for name, report in reports.items():
        for other, sketch in report.pairs.items():
            theirs = reports[other].pairs.get(name) if other in reports else None
            if name < other and theirs is not None and not np.array_equal(sketch, theirs):
                found.add((name, other))
    return found


def smallest_cover(pairs: Iterable[Pair]) -> set[str]:
    """Return a smallest set of names with one of every pair in it; among equals always the same one.

    A branch at the name with the most open disputes: either it is in the set, or all of its opponents are. With at most
    32 members this takes no time to speak of, whatever the disputes.
    """
    edges = {frozenset(pair) for pair in pairs}
    opponents: dict[str, set[str]] = {}
    for edge in edges:
        one, other = sorted(edge)
        opponents.setdefault(one, set()).add(other)
        opponents.setdefault(other, set()).add(one)
    cover = _cover(opponents, len(opponents))
    assert cover is not None  # all names together are one
    return cover


def _cover(opponents: Mapping[str, set[str]], limit: int) -> set[str] | None:
    """Return a smallest cover of at most ``limit`` names, or None where there is none."""
    open_ = {name: others for name, others in opponents.items() if others}
    if not open_:
        return set()
    busiest = min(open_, key=lambda name: (-len(open_[name]), name))
    pairs = sum(map(len, open_.values())) // 2
    if pairs > limit * len(open_[busiest]):  # even names as busy as this one could not cover them all
        return None
    best: set[str] | None = None
    for chosen in ({busiest}, set(open_[busiest])):
        left = {name: others - chosen for name, others in open_.items() if name not in chosen}
        rest = _cover(left, limit - len(chosen)) if len(chosen) <= limit else None
        if rest is not None:
            best = chosen | rest
            limit = len(best) - 1
    return best


def lie_about_self(matrix: SketchMatrix, report: Report, self_mask_seed: bytes) -> bool:
    """Say whether a member's c_ii is not the sketch of its restored self-mask."""
    (true,) = matrix.of_masks([self_mask_seed])
    return not np.array_equal(true, report.own)


def liars_about_pair(matrix: SketchMatrix, reports: Mapping[str, Report], pair: Pair, pair_seed: bytes) -> set[str]:
    """Return the ends of a pair whose report is not the sketch of their mask, once the pair's seed is restored.

    An end that has not reported is not among them.
    """
    (true,) = matrix.of_masks([pair_seed])
    one, other = pair
    claims = {name: reports[name].pairs.get(peer) for name, peer in ((one, other), (other, one)) if name in reports}
    return {name for name, claim in claims.items() if claim is not None and not np.array_equal(true, claim)}
