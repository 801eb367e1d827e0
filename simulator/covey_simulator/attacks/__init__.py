"""The attack zoo: what malicious devices send, each attack named after the paper that it is from.

``make_attacker`` gives the mind behind all malicious devices of a scenario: round after round it is shown a ``View``
and says what each of them sends. An engine may ask it directly; devices that run the real agent ask it through a
``Coalition`` and their ``PoisoningTrainer``, and mask, sign and upload the answer like anybody else.
"""

from __future__ import annotations

from covey_simulator.attacks.coalition import Coalition
from covey_simulator.attacks.rounds import round_class, unclipped
from covey_simulator.attacks.success import attack_success
from covey_simulator.attacks.trainer import PoisoningTrainer
from covey_simulator.attacks.view import Attacker, View
from covey_simulator.attacks.zoo import attacker, make_attacker
from covey_simulator.roles import malicious_devices

__all__ = [
    "Attacker",
    "Coalition",
    "PoisoningTrainer",
    "View",
    "attack_success",
    "attacker",
    "make_attacker",
    "malicious_devices",
    "round_class",
    "unclipped",
]
