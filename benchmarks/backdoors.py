"""Mild backdoors: what the reputation rule lets through, and what else was tried against them.

``./run bench backdoors`` rehearses a fleet of a hundred devices with forty digits each (Dirichlet 0.5, groups of ten,
sketches of sixteen numbers) for forty rounds, under backdoors whose updates are not boosted, or twofold only, and under
the targeted label-flip. The first table is what each defence makes of them; the second how well each way of looking at
the sketches of an undefended fleet tells attackers from honest devices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _looks
from covey_agent.trainer import Trainer
from covey_aggregator.probes import Gradients
from covey_aggregator.rules import Influence, Row, Rows
from covey_aggregator.rules.trimmed_mean import TrimmedMean
from covey_simulator.attacks import malicious_devices
from covey_simulator.attacks.success import attack_success
from covey_simulator.data import device_names, load_corpus, make_bundle, partition
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.scenario import Scenario, parse_scenario

BACKDOOR, PARTS, FLIP = "model-replacement", "distributed-backdoor", "targeted-label-flip"
ATTACKS: dict[str, dict[str, Any]] = {
    "no attack": {},
    "backdoor x1 20%": {"kind": BACKDOOR, "scale": 1.0, "fraction": 0.2},
    "backdoor x1 40%": {"kind": BACKDOOR, "scale": 1.0, "fraction": 0.4},
    "backdoor x2 20%": {"kind": BACKDOOR, "scale": 2.0, "fraction": 0.2},
    "backdoor x2 40%": {"kind": BACKDOOR, "scale": 2.0, "fraction": 0.4},
    "distributed x1 20%": {"kind": PARTS, "scale": 1.0, "fraction": 0.2},
    "targeted flip 40%": {"kind": FLIP, "fraction": 0.4},
    "backdoor x1 10%": {"kind": BACKDOOR, "scale": 1.0, "fraction": 0.1},
    "x1 20%, from round 20": {"kind": BACKDOOR, "scale": 1.0, "fraction": 0.2, "start_round": 20},
    "x1 40%, 5% of data": {"kind": BACKDOOR, "scale": 1.0, "fraction": 0.4, "share": 0.05},
}
EVERYWHERE, COMPARED = ("rule alone", "probes"), ("no attack", "backdoor x1 20%")
PRESENT = 0.05  # a backdoor that works less often than this has failed
HARMLESS_QUARANTINED = 0.02


class SignAgreement:
    """Turn coordinates round on whose sign fewer groups agree than a threshold.

    Ozdayi et al. 2021, "Defending against backdoors in federated learning with robust learning rate", on group means.
    """

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Combine the rows."""
        stacked = np.stack(list(rows))
        agreed = np.abs(np.sign(stacked).sum(axis=0)) >= 0.4 * len(stacked)
        step: Row = (stacked.mean(axis=0) * np.where(agreed, 1, -1)).astype(np.float32)
        return step

    def withstands(self, groups: int, spoilt: int) -> int:
        """Nothing is promised."""
        return 0


class Noise(SignAgreement):
    """The trimmed mean and normal noise of half its length.

    Sun et al. 2019, "Can you really backdoor federated learning?"; honest devices clip already.
    """

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Combine the rows."""
        step = TrimmedMean()(rows, spoilt, influence)
        rng = np.random.default_rng(zlib.crc32(step.tobytes()))
        scale = 0.5 * float(np.linalg.norm(step)) / np.sqrt(len(step))
        return step + rng.normal(0, scale, len(step)).astype(np.float32)


class _OwnRule(Scenario, frozen=True, kw_only=True):
    """A scenario whose groups are combined by a rule that no file can name."""

    @property
    def across_groups(self) -> Any:
        return SignAgreement() if self.name == "sign agreement" else Noise()


DEFENCES: dict[str, dict[str, Any]] = {
    "rule alone": {},
    "probes": {"probes": True},
    "median of groups": {"rule": "median"},
    "sign agreement": {"name": "sign agreement"},
    "clip and noise": {"name": "clip and noise"},
}


@dataclass
class Figures:
    """One run."""

    success: float | None
    highest: float | None
    accuracy: float
    caught: float | None
    honest_quarantined: float
    honest_left_out: float


def scenario(defence: str, attack: str, seed: int, options: argparse.Namespace) -> Scenario:
    """Return the rehearsal of a defence against an attack."""
    value: dict[str, Any] = {
        "name": "backdoors",
        "seed": seed,
        "devices": options.devices,
        "samples_per_device": 40,
        "partition": {"dirichlet": 0.5, "repeat": True},
        "rounds": options.rounds,
        "group_size": 10,
        "local": {"epochs": 5, "batch_size": 40, "learning_rate": 0.3, "momentum": 0.0},
        "adaptive_clip": True,
        "attestation": {"sketch": 16},
        "transport": "direct",
        "masking": "simulated",
        "signatures": False,
        **({"attack": ATTACKS[attack]} if ATTACKS[attack] else {}),
        **DEFENCES[defence],
    }
    told = parse_scenario(value, origin="backdoors", folder=Path())
    if "name" in DEFENCES[defence]:
        return _OwnRule(**{field: getattr(told, field) for field in told.__struct_fields__})
    return told


def measure(defence: str, attack: str, seed: int, options: argparse.Namespace) -> Figures:
    """Rehearse one defence against one attack."""
    told = scenario(defence, attack, seed, options)
    corpus = load_corpus(told)
    trainer, slices = Trainer(make_bundle(told, corpus)), partition(corpus.train, told)
    span = float(corpus.train.x.min()), float(corpus.train.x.max())
    success: list[float] = []

    def watch(step: Any) -> None:
        reached = attack_success(told.attack, trainer, step.weights, corpus.held_out, span)
        if told.attack.kind != "none" and reached is not None:
            success.append(reached)

    play = rehearse(told, trainer, slices, corpus.held_out, on_step=watch)
    names = device_names(told.devices)
    hostile = {names[index] for index in malicious_devices(told)} if told.malicious_count else set()
    out, honest = play.expelled[-1], len(names) - len(hostile)
    last = [record.accuracy for record in play.records[-3:] if record.accuracy is not None]
    return Figures(
        success=success[-1] if success else None,
        highest=max(success) if success else None,
        accuracy=statistics.mean(last),
        caught=len(out & hostile) / len(hostile) if hostile else None,
        honest_quarantined=len(out - hostile) / honest,
        honest_left_out=statistics.mean(record.honest_rejected for record in play.records) / honest,
    )


def looks(attack: str, seed: int, options: argparse.Namespace, at: int) -> dict[str, float]:
    """Return how well each way of looking tells attackers from honest devices after so many undefended rounds."""
    told = msgspec.structs.replace(scenario("rule alone", attack, seed, options), rounds=at, reputation="observe")
    corpus = load_corpus(told)
    trainer, slices = Trainer(make_bundle(told, corpus)), partition(corpus.train, told)
    record = _looks.Record(trainer.bundle.weights)
    play = rehearse(told, trainer, slices, corpus.held_out, on_step=record.watch)
    names = device_names(told.devices)
    hostile = np.isin(np.arange(len(names)), sorted(malicious_devices(told)))
    gradients = Gradients(trainer.bundle, corpus.held_out.x, corpus.held_out.y)
    inverted, index, target = _looks.inverted(record, names, at, trainer.bundle, corpus.held_out, gradients)
    scores = np.array([1 - (play.scores[name][-1] or 0.0) for name in names])
    pulls, pulled = _looks.pulls(record, names, at, gradients)
    return {
        "the rule's evidence": _looks.area(scores, hostile),
        "spectral residual": _looks.area(_looks.spectral(record, names, at), hostile),
        "inverted trigger": _looks.area(inverted, hostile),
        "probes": _looks.area(pulls, hostile),
        "anomaly index": index,
        "right class inverted": float(target == told.attack.target),
        "right class pulled": float(pulled == told.attack.target),
    }


def options_parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[10, 11, 12])
    parser.add_argument("--only", default="", help="attacks whose names contain one of these, with commas between")
    parser.add_argument("--defence", default="", help="defences whose names contain this")
    parser.add_argument("--no-looks", action="store_true", help="leave the second table out")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--no-goals", action="store_true", help="end with status 0 whatever comes out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    options = options_parser().parse_args(argv)
    print(f"{options.devices} devices, {options.rounds} rounds, seeds {options.seeds}: mean / worst seed")
    print(
        "| attack | defence | success at the end | highest | accuracy | attackers out | honest out | honest left out |"
    )
    print("|---|---|---|---|---|---|---|---|")
    runs: dict[tuple[str, str], list[Figures]] = {}
    for attack in (name for name in ATTACKS if _wanted(options.only, name)):
        for defence in (name for name in DEFENCES if options.defence in name):
            if defence in EVERYWHERE or attack in COMPARED:
                runs[attack, defence] = [measure(defence, attack, seed, options) for seed in options.seeds]
                print(_line(attack, defence, runs[attack, defence]), flush=True)
    seen = {}
    if not options.no_looks:
        print("\n| attack | rounds | " + " | ".join(LOOKS) + " |\n|---|---|" + "---|" * len(LOOKS))
        for attack in ("backdoor x1 20%", "backdoor x1 40%", "distributed x1 20%"):
            for at in (10, 20, 40):
                if _wanted(options.only, attack) and at <= options.rounds:
                    found = [looks(attack, seed, options, at) for seed in options.seeds]
                    seen[f"{attack} {at}"] = found
                    means = [statistics.mean(each[look] for each in found) for look in LOOKS]
                    print(f"| {attack} | {at} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |", flush=True)
    missed = _missed(runs)
    for text in missed:
        print(f"missed: {text}")
    if options.json:
        rows = {" | ".join(key): [asdict(figures) for figures in found] for key, found in runs.items()}
        options.json.write_text(json.dumps({"rows": rows, "looks": seen}, indent=2), encoding="utf-8")
    return 1 if missed and not options.no_goals else 0


def _wanted(only: str, attack: str) -> bool:
    return any(part in attack for part in only.split(","))


LOOKS = (
    "the rule's evidence",
    "spectral residual",
    "inverted trigger",
    "probes",
    "anomaly index",
    "right class inverted",
    "right class pulled",
)


def _line(attack: str, defence: str, runs: list[Figures]) -> str:
    def pair(field: str, worst: Callable[[list[float]], float], form: str = ".2f") -> str:
        values = [getattr(run, field) for run in runs]
        return "-" if None in values else f"{statistics.mean(values):{form}} / {worst(values):{form}}"

    parts = [pair("success", max), pair("highest", max), pair("accuracy", min, ".3f"), pair("caught", min)]
    parts += [pair("honest_quarantined", max), pair("honest_left_out", max)]
    return "| " + " | ".join([attack, defence, *parts]) + " |"


def _missed(runs: dict[tuple[str, str], list[Figures]]) -> list[str]:
    """Return what probes are to achieve and did not: the plain case, and to harm nobody without attack."""
    missed = [
        f"backdoor x1 20%: works in {figures.success:.2f} of cases, the goal is {PRESENT}"
        for figures in runs.get(("backdoor x1 20%", "probes"), [])
        if figures.success is not None and figures.success > PRESENT
    ]
    missed += [
        f"no attack: {figures.honest_quarantined:.0%} of honest devices in quarantine"
        for figures in runs.get(("no attack", "probes"), [])
        if figures.honest_quarantined > HARMLESS_QUARANTINED
    ]
    return missed


if __name__ == "__main__":
    sys.exit(main())
