"""Which class carries out which kind of attack, and who is malicious."""

from __future__ import annotations

from covey_simulator.attack_settings import KINDS, AttackKind
from covey_simulator.attacks.labels import LabelFlip
from covey_simulator.attacks.simple import Gaussian, Scaling, SignFlip
from covey_simulator.attacks.view import Attacker
from covey_simulator.scenario import Scenario

ZOO: dict[AttackKind, type[Attacker]] = {
    "sign-flip": SignFlip,
    "scaling": Scaling,
    "gaussian": Gaussian,
    "label-flip": LabelFlip,
}
assert {"none", *ZOO} == set(KINDS)


def make_attacker(scenario: Scenario, malicious: frozenset[int]) -> Attacker:
    """Return the mind behind a scenario's malicious devices.

    Raises:
        ValueError: The scenario has no attack.
    """
    if scenario.attack.kind == "none":
        raise ValueError("a scenario without attack has no attacker")
    return ZOO[scenario.attack.kind](scenario.attack, malicious)


def malicious_devices(scenario: Scenario) -> frozenset[int]:
    """Return which devices are malicious, by index; the scenario's seed decides."""
    chosen = scenario.generator("malicious").choice(scenario.devices, scenario.malicious_count, replace=False)
    return frozenset(chosen.tolist())
