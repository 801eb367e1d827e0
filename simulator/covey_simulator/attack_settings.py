"""What a scenario says of its attackers: the kinds of attack, and which setting belongs to which kind.

A setting that a kind has no use for is refused, so that nobody believes it was obeyed; one that is left out gets the
kind's own default, spelled out in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import msgspec

AttackKind = Literal[
    "none",
    "sign-flip",
    "scaling",
    "gaussian",
    "label-flip",
    "targeted-label-flip",
    "perturbed-inputs",
    "alie",
    "ipm",
    "min-max",
    "min-sum",
    "model-replacement",
    "distributed-backdoor",
    "free-rider",
    "noise-rider",
    "stale-rider",
    "on-off",
    "slow-poison",
    "clones",
    "sybil-wave",
    "framing",
    "attestation-liar",
    "share-poisoner",
    "sketch-withholder",
    "unmask-refuser",
]
Deviation = Literal["unit", "std", "sign"]
Manner = Literal["copy", "push", "own", "pair", "together", "garbled", "wrong-secret"]


@dataclass(frozen=True)
class Kind:
    """What holds for every attack of one kind.

    Args:
        words: What reports call it.
        uses: Its settings beside those of all kinds, with their defaults.
        stock: It poisons data only: the client that trains, clips and signs is everybody's.
        around: It is wrapped around an inner attack, whose settings it takes as well.
        late: Its devices are not there before start_round, unless joins_at says so.
        protocol: It breaks the protocol itself; what is sent as an update is the inner attack's.
        manners: The values of manner that it knows.
    """

    words: str
    uses: Mapping[str, Any] = field(default_factory=dict)
    stock: bool = False
    around: bool = False
    late: bool = False
    protocol: bool = False
    manners: tuple[Manner, ...] = ()


_SCALE: Mapping[str, Any] = {"scale": 1.0}
_BACKDOOR: Mapping[str, Any] = {"scale": 5.0, "target": 0, "share": 0.5}


def _protocol(words: str, *manners: Manner) -> Kind:
    uses = {"inner": "none", **({"manner": manners[0]} if manners else {})}
    return Kind(words, uses, around=True, protocol=True, manners=manners)


KINDS: dict[AttackKind, Kind] = {
    "none": Kind("honest"),
    "sign-flip": Kind("sign-flip", _SCALE),
    "scaling": Kind("scaling", _SCALE),
    "gaussian": Kind("Gaussian noise", _SCALE),
    "label-flip": Kind("label-flip", stock=True),
    "targeted-label-flip": Kind("targeted label-flip", {"source": 1, "target": 0}, stock=True),
    "perturbed-inputs": Kind("perturbed inputs", {"epsilon": 0.2, "steps": 10}, stock=True),
    "alie": Kind("ALIE", _SCALE),
    "ipm": Kind("IPM", _SCALE),
    "min-max": Kind("min-max", {"deviation": "std"}),
    "min-sum": Kind("min-sum", {"deviation": "std"}),
    "model-replacement": Kind("model replacement", _BACKDOOR),
    "distributed-backdoor": Kind("distributed backdoor", _BACKDOOR),
    "free-rider": Kind("free-riders"),
    "noise-rider": Kind("free-riders in noise", {"scale": 1.0, "decay": 0.0}),
    "stale-rider": Kind("free-riders with stale changes", _SCALE),
    "on-off": Kind("on-off", {"inner": "sign-flip", "on_rounds": 5, "off_rounds": 5}, around=True),
    "slow-poison": Kind("slow poison", {"scale": 0.5, "rate": 0.05}),
    "clones": Kind("clones", {"inner": "ipm", "jitter": 0.5}, around=True),
    "sybil-wave": Kind("Sybil wave", {"inner": "ipm", "jitter": 0.3}, around=True, late=True),
    "framing": Kind("framing", {"manner": "copy", "jitter": 0.2}, manners=("copy", "push")),
    "attestation-liar": _protocol("lies about sketches", "own", "pair", "together"),
    "share-poisoner": _protocol("bad shares", "garbled", "wrong-secret"),
    "sketch-withholder": _protocol("withheld sketches"),
    "unmask-refuser": _protocol("refusal to unmask"),
}
assert set(KINDS) == set(get_args(AttackKind))


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
