"""Every number of the probes, with what it is for."""

from __future__ import annotations

from typing import Annotated

import msgspec

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The probes' parameters.

    Attributes:
        memory: Share of the past in what is known of a device's pulls; 0.95 remembers about twenty attested rounds.
        smallest: Fewer devices than this say nothing about one another.
        age: Attested rounds of a device before its pulls are looked at.
        usual: Quantile of the devices, in the other classes, that is the usual strength of a pull.
        least: A pull weaker than this share of all that a device teaches is never notable.
        notable: So many times the usual strength is notable.
        alarm: Share of the devices that pull notably to one class for it to be an attack and no oddity.
        looks: It is raised when that held in so many looks in a row.
        calm: With fewer than this share of them an alarm ends.
        slope_from: So many times the usual strength is nearly notable.
        slope: Those who pull nearly notably may be so many for each who does. Attackers stand apart; a class that many
            samples resemble has devices of every strength.
        weight: Evidence a round for a notable pull to a class under alarm, for each time the usual strength above
            ``from_``.
        from_: See ``weight``.
        most: Most evidence that a round adds.
        open_from: Share of the largest usual norm of updates from which on pulls begin to count.
        open_width: From there on they count more and more, over this much.
        excuse_age: Attested rounds of a device before it can be excused.
        excuse_from: Share of a device's updates that its own labels have to explain for it to be excused at all.
        excuse_width: From there on it is excused more and more, over this much.
        excuse_crowd: Largest share of the devices that may be excused with one main label; where it is more, none of
            them are.
    """

    memory: _Share = 0.95
    smallest: _Count = 20
    age: _Count = 5
    usual: _Share = 0.9
    least: _Share = 0.004
    notable: _Positive = 2.0
    alarm: _Share = 0.12
    looks: _Count = 3
    calm: _Share = 0.06
    slope_from: _Positive = 1.2
    slope: _Share = 0.7
    weight: _Positive = 1.5
    from_: _Positive = 1.5
    most: _Positive = 2.0
    open_from: _Share = 0.3
    open_width: _Positive = 0.1
    excuse_age: _Count = 2
    excuse_from: _Share = 0.75
    excuse_width: _Positive = 0.1
    excuse_crowd: _Share = 0.1
