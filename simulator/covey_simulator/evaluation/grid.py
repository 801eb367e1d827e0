"""What is evaluated: the settings, the attacks, and the cells that they make."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from covey_protocol.errors import ConfigError
from covey_simulator.attack_kinds import KINDS
from covey_simulator.scenario import Scenario, parse_scenario

Level = Literal["fast", "signed", "broker"]

SEEDS = (30, 31, 32, 33, 34)
"""Parameters were chosen on other seeds."""

ROUNDS = 40
NONE = "none"

# Five whole passes of gradient descent over a device's forty samples.
_BASE: dict[str, Any] = {
    "devices": 100,
    "samples_per_device": 40,
    "partition": {"dirichlet": 0.5, "repeat": True},
    "rounds": ROUNDS,
    "group_size": 10,
    "local": {"steps": 5, "batch_size": 40, "learning_rate": 0.3, "momentum": 0.0},
    "clip": 2.5,
    "attestation": {"sketch": 16},
    "masking": "simulated",
    "signatures": False,
    "transport": "direct",
}


@dataclass(frozen=True)
class Setting:
    """A fleet and its data.

    Attributes:
        words: What it is, for people.
        fields: Where its scenarios differ from the default.
        attacks: Names of the attacks that are tried on it; none for all.
        fractions: Shares of malicious devices.
    """

    words: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    attacks: Sequence[str] = ()
    fractions: Sequence[float] = (0.2,)


_FEW = ("sign-flip", "label-flip", "alie", "ipm", "backdoor x5")

SETTINGS: dict[str, Setting] = {
    "digits": Setting("digits, 100 devices with 40 samples, Dirichlet 0.5", fractions=(0.2, 0.4)),
    "breast-cancer": Setting("breast cancer, the same otherwise", {"data": {"source": "breast-cancer"}}, _FEW),
    "30 devices": Setting("30 devices in three groups", {"devices": 30}, _FEW),
    "iid": Setting("samples dealt evenly", {"partition": {"iid": True, "repeat": True}}, _FEW),
    "dirichlet 0.1": Setting("samples dealt very unevenly", {"partition": {"dirichlet": 0.1, "repeat": True}}, _FEW),
    "one class": Setting("one class to each device", {"partition": {"labels": 1, "repeat": True}}, _FEW),
    "real": Setting(
        "300 devices of which three in ten take part, a fifth drops out, trusted groups attest in one round of five",
        {
            "devices": 300,
            "group_size": 31,
            "participation": 0.3,
            "dropout": 0.2,
            "attestation": {"sketch": 16, "lot": 5},
            "rounds": 120,
        },
        _FEW,
    ),
}

ATTACKS: dict[str, dict[str, Any]] = {
    NONE: {},
    "sign-flip": {"kind": "sign-flip"},
    "sign-flip x5": {"kind": "sign-flip", "scale": 5.0},
    "gaussian": {"kind": "gaussian", "scale": 5.0},
    "label-flip": {"kind": "label-flip"},
    "targeted label-flip": {"kind": "targeted-label-flip"},
    "perturbed inputs": {"kind": "perturbed-inputs"},
    "alie": {"kind": "alie"},
    "ipm": {"kind": "ipm"},
    "ipm x5": {"kind": "ipm", "scale": 5.0},
    "min-max": {"kind": "min-max"},
    "min-sum": {"kind": "min-sum"},
    "backdoor x5": {"kind": "model-replacement", "scale": 5.0},
    "backdoor x2": {"kind": "model-replacement", "scale": 2.0},
    "backdoor x1": {"kind": "model-replacement", "scale": 1.0},
    "distributed backdoor": {"kind": "distributed-backdoor"},
    "free-riders": {"kind": "free-rider"},
    "noise riders": {"kind": "noise-rider"},
    "stale riders": {"kind": "stale-rider"},
    "on-off": {"kind": "on-off"},
    "slow poison": {"kind": "slow-poison"},
    "clones": {"kind": "clones"},
    "Sybil wave": {"kind": "sybil-wave", "start_round": 11},
    "framing": {"kind": "framing"},
    "norm skew": {"kind": "norm-skew"},
    "gate closing": {"kind": "gate-closing"},
    "riding the decay": {"kind": "decay-rider"},
    "hidden backdoor": {"kind": "hidden-backdoor"},
    "search under the rule": {"kind": "rule-search"},
}
RULE_AWARE = frozenset({"norm skew", "gate closing", "riding the decay", "hidden backdoor", "search under the rule"})
"""Attacks by somebody who has read the rule: what they achieve is reported, and held to no goal."""


class Cell(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One run.

    Attributes:
        setting, attack: Names of a setting and an attack.
        fraction: Share of malicious devices; 0 for the attack ``none``.
        seed: Of all that is random.
        level: At which level the fleet is run.
        rounds: How many, where that is not the setting's number.
    """

    setting: str
    attack: str
    fraction: float
    seed: int
    level: Level = "fast"
    rounds: int | None = None

    @property
    def words(self) -> str:
        """What it is called on the way."""
        share = f" {self.fraction:.0%}" if self.fraction else ""
        return f"{self.setting}, {self.attack}{share}, seed {self.seed}"

    def scenario(self) -> Scenario:
        """Return the scenario that this cell runs.

        Raises:
            ConfigError: The fields contradict each other.
        """
        fields = {**_BASE, **SETTINGS[self.setting].fields, "name": self.words, "seed": self.seed}
        if self.rounds is not None:
            fields["rounds"] = self.rounds
        attack = ATTACKS[self.attack]
        if attack:
            fields["attack"] = {**attack, "fraction": self.fraction}
            if KINDS[attack["kind"]].late:  # they come on top of the fleet
                fields["devices"] = round(fields["devices"] / (1 - self.fraction))
        if self.level == "signed":
            fields["signatures"] = True
        if self.level == "broker":
            fields |= {"signatures": True, "masking": True, "transport": "broker"}
        return parse_scenario(fields, origin=self.words, folder=Path())


QUICK_ROUNDS = 16
_QUICK = ("sign-flip", "label-flip", "alie", "backdoor x5", "clones")
_BROKER = (("sign-flip", 0.2), ("label-flip", 0.2), ("ipm", 0.4))


def full_grid(
    *,
    seeds: Sequence[int] = SEEDS,
    settings: Collection[str] = (),
    attacks: Collection[str] = (),
    fractions: Collection[float] = (),
    signed: bool = True,
    broker: bool = True,
) -> list[Cell]:
    """Return all cells, those over a broker last: they need both processors for themselves.

    Args:
        seeds: The first one goes through the level with signatures, the others through the fast one.
        settings, attacks, fractions: Only these; empty for all. The run without attack is always there, because others
            are compared with it.
        signed: Whether the first seed goes through the level with signatures.
        broker: Whether some cells go over a real broker.

    Raises:
        ConfigError: There is no setting or attack of a name.
    """
    _check(settings, SETTINGS, "setting")
    _check(attacks, ATTACKS, "attack")
    cells = []
    for setting, attack, fraction in _places(settings, attacks, fractions):
        for seed in seeds:
            level: Level = "signed" if signed and seed == seeds[0] else "fast"
            cells.append(Cell(setting=setting, attack=attack, fraction=fraction, seed=seed, level=level))
    if broker:
        cells += [
            Cell(setting="digits", attack=attack, fraction=fraction, seed=seeds[0], level="broker")
            for attack, fraction in _BROKER
            if (not attacks or attack in attacks) and (not settings or "digits" in settings)
        ]
    return cells


def quick_grid(
    *,
    seeds: Sequence[int] = SEEDS[:1],
    attacks: Collection[str] = (),
    fractions: Collection[float] = (),
    signed: bool = True,
) -> list[Cell]:
    """Return a grid of about two minutes: fewer attacks and rounds, and one of the cells with signatures if wanted."""
    _check(attacks, ATTACKS, "attack")
    cells = [
        Cell(setting="digits", attack=attack, fraction=fraction, seed=seed, rounds=QUICK_ROUNDS)
        for attack, fraction in [(NONE, 0.0), *((attack, fraction) for attack in _QUICK for fraction in (0.2, 0.4))]
        if (not attacks or attack in {NONE, *attacks}) and (not fractions or fraction in {0.0, *fractions})
        for seed in seeds
    ]
    if not signed:
        return cells
    first = next(iter(cell for cell in cells if cell.attack != NONE), cells[0])
    return [msgspec.structs.replace(cell, level="signed") if cell == first else cell for cell in cells]


def _places(
    settings: Collection[str], attacks: Collection[str], fractions: Collection[float]
) -> Iterator[tuple[str, str, float]]:
    for name, setting in SETTINGS.items():
        if settings and name not in settings:
            continue
        yield name, NONE, 0.0
        for attack in setting.attacks or tuple(ATTACKS):
            if attack == NONE or (attacks and attack not in attacks):
                continue
            for fraction in setting.fractions:
                if not fractions or fraction in fractions:
                    yield name, attack, fraction


def _check(names: Collection[str], known: Mapping[str, Any], what: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} {name!r}: unknown; there are {', '.join(known)}")
