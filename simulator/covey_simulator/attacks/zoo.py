"""Which class carries out which kind of attack."""

from __future__ import annotations

from collections.abc import Callable

from covey_simulator.attack_kinds import KINDS, AttackKind
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks.aware import DecayRider, GateClosing, NormSkew
from covey_simulator.attacks.backdoor import DistributedBackdoor, ModelReplacement
from covey_simulator.attacks.copies import Clones, Framing, SybilWave
from covey_simulator.attacks.crowd import ALittleIsEnough, InnerProduct, MinMax, MinSum
from covey_simulator.attacks.disguised import HiddenBackdoor, RuleSearch
from covey_simulator.attacks.labels import LabelFlip, TargetedLabelFlip
from covey_simulator.attacks.perturbed import PerturbedInputs
from covey_simulator.attacks.riders import FreeRider, NoiseRider, StaleRider
from covey_simulator.attacks.rounds import ROUNDS
from covey_simulator.attacks.simple import Gaussian, Honest, Scaling, SignFlip
from covey_simulator.attacks.timing import OnOff, SlowPoison
from covey_simulator.attacks.view import Attacker
from covey_simulator.scenario import Scenario

PLAIN: dict[AttackKind, type[Attacker]] = {
    "none": Honest,
    "sign-flip": SignFlip,
    "scaling": Scaling,
    "gaussian": Gaussian,
    "label-flip": LabelFlip,
    "targeted-label-flip": TargetedLabelFlip,
    "perturbed-inputs": PerturbedInputs,
    "alie": ALittleIsEnough,
    "ipm": InnerProduct,
    "min-max": MinMax,
    "min-sum": MinSum,
    "model-replacement": ModelReplacement,
    "distributed-backdoor": DistributedBackdoor,
    "free-rider": FreeRider,
    "noise-rider": NoiseRider,
    "stale-rider": StaleRider,
    "slow-poison": SlowPoison,
    "framing": Framing,
    "norm-skew": NormSkew,
    "decay-rider": DecayRider,
    "hidden-backdoor": HiddenBackdoor,
    "rule-search": RuleSearch,
}
AROUND: dict[AttackKind, Callable[[Attack, frozenset[int], Attacker], Attacker]] = {
    "on-off": OnOff,
    "clones": Clones,
    "sybil-wave": SybilWave,
    "gate-closing": GateClosing,
}
assert PLAIN.keys() | AROUND.keys() | ROUNDS.keys() == KINDS.keys()
assert {kind for kind in KINDS if KINDS[kind].around} == AROUND.keys() | ROUNDS.keys()
assert {kind for kind in KINDS if KINDS[kind].protocol} == ROUNDS.keys()


def attacker(attack: Attack, malicious: frozenset[int]) -> Attacker:
    """Return the mind behind some malicious devices."""
    if attack.kind in ROUNDS:  # what it sends is the inner attack's; its own lies are in its rounds
        return attacker(attack.for_inner(), malicious)
    if attack.kind in AROUND:
        return AROUND[attack.kind](attack, malicious, attacker(attack.for_inner(), malicious))
    return PLAIN[attack.kind](attack, malicious)


def make_attacker(scenario: Scenario, malicious: frozenset[int]) -> Attacker:
    """Return the mind behind a scenario's malicious devices.

    Raises:
        ValueError: The scenario has no attack.
    """
    if scenario.attack.kind == "none":
        raise ValueError("a scenario without attack has no attacker")
    return attacker(scenario.attack, malicious)
