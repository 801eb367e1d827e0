"""What a scenario says of its attackers.

A setting that a kind has no use for is refused, so that nobody believes it was obeyed; one that is left out gets the
kind's own default, spelled out in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from covey_simulator.attack_kinds import KINDS, AttackKind, Deviation, Manner


class Attack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the malicious devices do; which setting belongs to which kind is in ``KINDS``.

    Attributes:
        kind: See ``attacks``.
        fraction: Share of the devices that are malicious, rounded to whole devices.
        start_round: The first round in which they misbehave.
        joins_at: The round in which they join the fleet: by default the first, or start_round for a Sybil wave.
        scale: How hard: a factor on the update, or what the kind makes of it.
        inner: The attack that another kind is wrapped around.
        on_rounds: Rounds of attack at a stretch.
        off_rounds: Honest rounds between them.
        source: The label that is relabelled.
        target: The label that samples are to be taken for.
        share: Share of an attacker's samples that carry the trigger.
        epsilon: Bound on the change of each input value, in the inputs' own unit.
        steps: Gradient steps towards a perturbation; 1 is FGSM.
        deviation: Along which the update is pushed away from the mean of the honest ones.
        decay: The noise falls as (rounds of attack)^−decay.
        rate: Growth of a drift each round.
        jitter: Length of what is added to a copy, as a share of its length.
        blend: Share of what sets an update apart that is the backdoor's.
        reach: How much of what the rule tolerates is used.
        manner: How it is done, where a kind knows several ways.
    """

    kind: AttackKind = "none"
    fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    start_round: Annotated[int, msgspec.Meta(ge=1)] = 1
    joins_at: Annotated[int, msgspec.Meta(ge=1)] = 1
    scale: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    inner: AttackKind | None = None
    on_rounds: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    off_rounds: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    source: Annotated[int, msgspec.Meta(ge=0)] | None = None
    target: Annotated[int, msgspec.Meta(ge=0)] | None = None
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    steps: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    deviation: Deviation | None = None
    decay: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None
    rate: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    jitter: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None
    blend: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    reach: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    manner: Manner | None = None

    def __post_init__(self) -> None:
        kind = KINDS[self.kind]
        if kind.late and self.joins_at == 1:
            msgspec.structs.force_setattr(self, "joins_at", self.start_round)
        if kind.around and self.inner is None:
            msgspec.structs.force_setattr(self, "inner", kind.uses["inner"])
        if self.inner is not None and kind.around and KINDS[self.inner].around:
            raise ValueError(f"inner is {self.inner}, which is itself wrapped around an attack; name a plain one")
        for name in SETTINGS:
            given = getattr(self, name)
            if given is not None and name not in self.uses:
                inner = f" with inner {self.inner}" if kind.around else ""
                raise ValueError(f"{name} has no meaning for {self.kind}{inner}, leave it out")
            if given is None and name in self.uses:
                msgspec.structs.force_setattr(self, name, self.uses[name])
        if self.manner is not None and self.manner not in kind.manners:
            raise ValueError(f"manner is {self.manner}, must be {' or '.join(kind.manners)} for {self.kind}")
        if self.source is not None and self.source == self.target:
            raise ValueError(f"source and target are both {self.source}, must differ")

    @property
    def uses(self) -> Mapping[str, Any]:
        """The settings that this attack takes, with their defaults."""
        kind = KINDS[self.kind]
        return {**KINDS[self.inner].uses, **kind.uses} if kind.around and self.inner else kind.uses

    @property
    def stock(self) -> bool:
        """Whether the attackers run everybody's client, which clips, on poisoned data."""
        kind, inner = KINDS[self.kind], KINDS[self.inner] if self.inner else None
        passes = kind.protocol or self.kind == "on-off"  # the inner attack's updates go out as they are
        return kind.stock or (passes and inner is not None and (inner.stock or self.inner == "none"))

    @property
    def words(self) -> str:
        """What reports call it."""
        words = KINDS[self.kind].words
        if self.inner is not None and self.inner != "none":
            words = f"{words} around {KINDS[self.inner].words}"
        return words if self.scale is None else f"{words} x{self.scale:g}"

    def for_inner(self) -> Attack:
        """Return the inner attack by itself, with its settings and start."""
        assert self.inner is not None
        values = {name: getattr(self, name) for name in KINDS[self.inner].uses}
        return Attack(kind=self.inner, fraction=self.fraction, start_round=self.start_round, **values)


_COMMON = ("kind", "fraction", "start_round", "joins_at")
SETTINGS = tuple(name for name in Attack.__struct_fields__ if name not in _COMMON)
