"""Make ``privacy.json``: what Google's accountant says of budgets that ours says something of too.

Run it where ``dp-accounting`` 0.6.0 is installed, which need not be here: ``python tests/protocol/vectors/privacy.py``

- ``conversions``: ε for a δ from Rényi divergences of Gaussian noise at our orders (``dp_accounting.rdp``). Ours are
  the same numbers.
- ``skellam``: ε of Skellam noise on one coordinate, many times over, from its whole distribution of privacy losses
  (``dp_accounting.pld``, which is exact but for its grid and reckons pessimistically). Ours are never less, and little
  more where rounds are many.
- ``gaussian``: the same for Gaussian noise of a multiplier, the best that any noise of so much variance does.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import rdp_privacy_accountant as rdp
from scipy import stats

ORDERS = [*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024, 4096]


def conversion(multiplier: float, rounds: int, delta: float) -> dict[str, float]:
    spent = [rounds * order / (2 * multiplier**2) for order in ORDERS]
    found, _ = rdp.compute_epsilon(ORDERS, spent, delta)
    return {"multiplier": multiplier, "rounds": rounds, "delta": delta, "epsilon": float(found)}


def skellam(shift: int, variance: int, rounds: int, delta: float) -> dict[str, float]:
    reach = math.ceil(12 * math.sqrt(variance)) + abs(shift) + 20
    numbers = np.arange(-reach, reach + 1)
    here = dict(zip(numbers.tolist(), stats.skellam.logpmf(numbers, variance / 2, variance / 2), strict=True))
    there = {number + shift: chance for number, chance in here.items()}
    losses = pld.from_two_probability_mass_functions(there, here, value_discretization_interval=1e-4)
    found = losses.self_compose(rounds).get_epsilon_for_delta(delta)
    return {"shift": shift, "variance": variance, "rounds": rounds, "delta": delta, "epsilon": found}


def gaussian(multiplier: float, rounds: int, delta: float) -> dict[str, float]:
    losses = pld.from_gaussian_mechanism(multiplier, value_discretization_interval=1e-4)
    found = losses.self_compose(rounds).get_epsilon_for_delta(delta)
    return {"multiplier": multiplier, "rounds": rounds, "delta": delta, "epsilon": found}


if __name__ == "__main__":
    values = {
        "orders": ORDERS,
        "conversions": [
            conversion(multiplier, rounds, delta)
            for multiplier in (0.5, 1.0, 4.036, 20.0)
            for rounds in (1, 40, 1000)
            for delta in (1e-3, 1e-5, 1e-9)
        ],
        "skellam": [
            skellam(shift, variance, rounds, delta)
            for shift, variance in ((1, 2), (1, 20), (3, 20), (10, 200), (10, 1000), (40, 30000))
            for rounds in (1, 10, 40)
            for delta in (1e-3, 1e-5)
        ],
        "gaussian": [
            gaussian(multiplier, rounds, 1e-5) for multiplier in (1.0, 4.036, 10.0) for rounds in (1, 40, 400)
        ],
    }
    Path(__file__).with_name("privacy.json").write_text(json.dumps(values, indent=1) + "\n")
