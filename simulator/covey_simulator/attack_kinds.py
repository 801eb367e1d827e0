"""The kinds of attack, and which settings belong to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

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
    "norm-skew",
    "gate-closing",
    "decay-rider",
    "hidden-backdoor",
    "rule-search",
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
    "norm-skew": Kind("norm skew", {"scale": 0.15}),
    "gate-closing": Kind("gate closing", {"inner": "sign-flip", "on_rounds": 3}, around=True),
    "decay-rider": Kind("riding the decay", {"reach": 0.8}),
    "hidden-backdoor": Kind("hidden backdoor", {"target": 0, "share": 0.5, "blend": 0.9}),
    "rule-search": Kind("search under the rule", {"scale": 1.0, "reach": 0.75}),
}
assert set(KINDS) == set(get_args(AttackKind))
