"""What a scenario says of its attackers: the kinds of attack, and which setting belongs to which kind.

A setting that a kind has no use for is refused, so that nobody believes it was obeyed; one that is left out gets the
kind's own default, spelled out in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import msgspec

AttackKind = Literal["none", "sign-flip", "scaling", "gaussian", "label-flip"]


@dataclass(frozen=True)
class Kind:
    """What holds for every attack of one kind.

    Args:
        words: What reports call it.
        uses: Its settings beside those of all kinds, with their defaults.
        stock: It poisons data only: the client that trains, clips and signs is everybody's.
    """

    words: str
    uses: Mapping[str, Any] = field(default_factory=dict)
    stock: bool = False


KINDS: dict[AttackKind, Kind] = {
    "none": Kind("nothing", {"scale": 1.0}),
    "sign-flip": Kind("sign-flip", {"scale": 1.0}),
    "scaling": Kind("scaling", {"scale": 1.0}),
    "gaussian": Kind("Gaussian noise", {"scale": 1.0}),
    "label-flip": Kind("label-flip", stock=True),
}
assert set(KINDS) == set(get_args(AttackKind))


class Attack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the malicious devices do.

    Attributes:
        kind: See ``attacks``.
        fraction: Share of the devices that are malicious, rounded to whole devices.
        start_round: The first round in which they misbehave.
        joins_at: The round in which they join the fleet; 1 has them there from the beginning.
        scale: How hard: a factor on the update, or what the kind makes of it.
    """

    kind: AttackKind = "none"
    fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    start_round: Annotated[int, msgspec.Meta(ge=1)] = 1
    joins_at: Annotated[int, msgspec.Meta(ge=1)] = 1
    scale: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None

    def __post_init__(self) -> None:
        for name in SETTINGS:
            given = getattr(self, name)
            if given is not None and name not in self.uses:
                raise ValueError(f"{name} has no meaning for {self.kind}, leave it out")
            if given is None and name in self.uses:
                msgspec.structs.force_setattr(self, name, self.uses[name])

    @property
    def uses(self) -> Mapping[str, Any]:
        """The settings that this attack takes, with their defaults."""
        return KINDS[self.kind].uses

    @property
    def stock(self) -> bool:
        """Whether the attackers run everybody's client, which clips, on poisoned data."""
        return KINDS[self.kind].stock

    @property
    def words(self) -> str:
        """What reports call it."""
        words = KINDS[self.kind].words
        return words if self.scale is None else f"{words} x{self.scale:g}"


_COMMON = ("kind", "fraction", "start_round", "joins_at")
SETTINGS = tuple(name for name in Attack.__struct_fields__ if name not in _COMMON)
