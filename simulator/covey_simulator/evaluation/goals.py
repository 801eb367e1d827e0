"""What the evaluation is held against: goals that were set before it was run, and whether they are met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec

from covey_simulator.evaluation.grid import NONE, RULE_AWARE
from covey_simulator.evaluation.measure import Result
from covey_simulator.evaluation.table import Place, Spread, Table

FAMILIES = (
    "sign-flip",
    "sign-flip x5",
    "gaussian",
    "alie",
    "ipm",
    "ipm x5",
    "min-max",
    "free-riders",
    "clones",
    "backdoor x5",
    "Sybil wave",
)
"""Attacks that have to be over quickly."""

OPEN_PROBLEMS = frozenset({"backdoor x1", "backdoor x2", "targeted label-flip"}) | RULE_AWARE
"""Nobody's defence is held to these yet: what is reached is reported."""

POINT = 0.01


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One goal in one place.

    Attributes:
        goal: In words.
        where: The place.
        met: Whether it is.
        found: The numbers.
    """

    goal: str
    where: str
    met: bool
    found: str


@dataclass(frozen=True)
class Goal:
    """Something to be reached.

    Attributes:
        words: What.
        applies: To which places.
        judge: Says whether it is met there, and with what numbers; None where nothing is known.
    """

    words: str
    applies: Callable[[Place], bool]
    judge: Callable[[Table, Place], tuple[bool, str] | None]


def judge(table: Table) -> list[Verdict]:
    """Return the verdict on every goal in every place where it applies and something is known."""
    return list(_verdicts(table))


def _verdicts(table: Table) -> Iterator[Verdict]:
    for goal in GOALS:
        for place in table.places():
            if goal.applies(place):
                judged = goal.judge(table, place)
                if judged is not None:
                    yield Verdict(goal=goal.words, where=where(place), met=judged[0], found=judged[1])


def where(place: Place) -> str:
    """Return a place in words."""
    share = f" {place.fraction:.0%}" if place.fraction else ""
    return f"{place.setting}: {'no attack' if place.attack == NONE else place.attack}{share}"


def _calm(place: Place, setting: str = "digits") -> bool:
    return place.setting == setting and place.attack == NONE


def _attacked(place: Place, fraction: float, *attacks: str, setting: str = "digits") -> bool:
    named = place.attack in attacks if attacks else place.attack != NONE
    return place.setting == setting and place.fraction == fraction and named


def _points(spread: Spread | None, limit: float) -> tuple[bool, str] | None:
    """The mean is what counts; the worst seed is told."""
    if spread is None:
        return None
    return spread.mean <= limit + 1e-9, f"mean {100 * spread.mean:+.1f} points, worst {100 * spread.most:+.1f}"


def _behind(limit: float, table: Table, place: Place) -> tuple[bool, str] | None:
    return _points(table.behind_fedavg(place), limit)


def _lost(limit: float, table: Table, place: Place) -> tuple[bool, str] | None:
    return _points(table.lost(place), limit)


def _alarms(limit: float, table: Table, place: Place, *, each: bool = True) -> tuple[bool, str] | None:
    spread = table.spread(place, lambda result: result.false_alarms)
    if spread is None:
        return None
    honest = max(result.honest for result in table.results(place).values())
    found = f"mean {spread.mean * honest:.1f}, worst {spread.most * honest:.0f} of {honest}"
    return (spread.most if each else spread.mean) <= limit + 1e-9, found


def _excluded(limit: float, table: Table, place: Place) -> tuple[bool, str] | None:
    spread = table.spread(place, lambda result: result.honest_excluded)
    if spread is None:
        return None
    return spread.mean <= limit, f"mean {spread.mean:.2%} a round, worst {spread.most:.2%}"


def _out(share: float, rounds: int | None, table: Table, place: Place) -> tuple[bool, str] | None:
    """The mean over seeds is what counts, but for "all": then every seed does."""

    def expelled(result: Result) -> float:
        return result.expelled_by(rounds if rounds is not None else result.rounds)

    spread = table.spread(place, expelled)
    if spread is None:
        return None
    reached = spread.least if share == 1 else spread.mean
    return reached >= share - 1e-9, f"mean {spread.mean:.0%}, worst {spread.least:.0%}"


def _success(limit: float, table: Table, place: Place) -> tuple[bool, str] | None:
    spread = table.spread(place, lambda result: result.attack_success)
    if spread is None:
        return None
    return spread.most <= limit, f"mean {spread.mean:.2f}, worst {spread.most:.2f}"


def _twice(table: Table, place: Place) -> tuple[bool, str] | None:
    """Compare rounds that attackers took part in until they were expelled with those under easy conditions."""
    slow = table.spread(place, lambda result: result.exposure)
    fast = table.spread(Place("digits", place.attack, place.fraction), lambda result: result.exposure)
    if slow is None or fast is None:
        return None
    return slow.mean <= 2 * fast.mean, f"{slow.mean:.1f} rounds took part in, {fast.mean:.1f} under easy conditions"


def _harmful(place: Place, fraction: float) -> bool:
    return _attacked(place, fraction) and place.attack not in OPEN_PROBLEMS


_OTHERS = ("breast-cancer", "30 devices", "iid")

GOALS = (
    Goal("within 1 point of FedAvg on clear updates", _calm, partial(_behind, POINT)),
    Goal("at most 1% of honest devices expelled", _calm, partial(_alarms, 0.01)),
    Goal("at most 1% of honest devices refused a round", _calm, partial(_excluded, 0.01)),
    Goal("within 1 point of no attack", lambda place: _harmful(place, 0.2), partial(_lost, POINT)),
    Goal(
        "at most 2% of honest devices expelled, in every seed",
        lambda place: _attacked(place, 0.2) and place.attack not in OPEN_PROBLEMS - {"targeted label-flip"},
        partial(_alarms, 0.02),
    ),
    Goal("all expelled by round 12", lambda place: _attacked(place, 0.2, *FAMILIES), partial(_out, 1.0, 12)),
    Goal("95% expelled by round 16", lambda place: _attacked(place, 0.2, "label-flip"), partial(_out, 0.95, 16)),
    Goal(
        "90% expelled by the end",
        lambda place: _attacked(place, 0.2, "noise riders", "on-off"),
        partial(_out, 0.9, None),
    ),
    Goal("95% expelled by round 12", lambda place: _attacked(place, 0.4, *FAMILIES), partial(_out, 0.95, 12)),
    Goal(
        "within 2 points of no attack",
        lambda place: _attacked(place, 0.4, *FAMILIES, "label-flip"),
        partial(_lost, 2 * POINT),
    ),
    Goal("attack success at most 0.05", lambda place: _attacked(place, 0.2, "backdoor x5"), partial(_success, 0.05)),
    Goal(
        "within 1 point of FedAvg on clear updates",
        lambda place: any(_calm(place, setting) for setting in _OTHERS),
        partial(_behind, POINT),
    ),
    Goal(
        "at most 2% of honest devices expelled",
        lambda place: any(_calm(place, setting) for setting in _OTHERS),
        partial(_alarms, 0.02),
    ),
    Goal(
        "within 2 points of FedAvg on clear updates",
        lambda place: _calm(place, "dirichlet 0.1"),
        partial(_behind, 2 * POINT),
    ),
    Goal(
        "at most 2% of honest devices expelled in the mean",
        lambda place: _calm(place, "dirichlet 0.1"),
        partial(_alarms, 0.02, each=False),
    ),
    Goal(
        "expelled within twice the rounds under easy conditions",
        lambda place: place.setting == "real" and place.attack != NONE,
        _twice,
    ),
    Goal("at most 2% of honest devices expelled", lambda place: place.setting == "real", partial(_alarms, 0.02)),
)
