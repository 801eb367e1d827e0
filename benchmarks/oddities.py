"""Honest devices that train differently: how many the rule expels, with and without probes, and what excusing costs.

``./run bench oddities`` rehearses the evaluation's fleet of digits (100 devices with forty samples each, Dirichlet 0.5,
groups of ten, sketches of sixteen numbers) for forty rounds. In the first rows a fifth of the devices are odd and
nobody attacks; the others are attacks that probes must not shelter. In those of a *crowd* the hostile devices hold
nothing but zeros, rightly labelled: whoever is excused for that could do the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_simulator.attacks import malicious_devices
from covey_simulator.data import device_names, load_corpus, make_bundle, partition
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.evaluation.grid import Cell
from covey_simulator.roles import odd_devices
from covey_simulator.scenario import Scenario, parse_scenario

ODD, CROWD = ("one-class", "few-samples", "adversarial-training"), "crowd"
ATTACKS = ("none", "sign-flip", "label-flip", "alie", "ipm", "min-max", "backdoor x5", "backdoor x2")
ROWS = (
    *((kind, 0.2) for kind in ODD),
    *((attack, fraction) for attack in ATTACKS[1:] for fraction in (0.2, 0.4)),
    ("none", 0.0),
    (CROWD, 0.2),
    (CROWD, 0.4),
)
DEFENCES = {"rule alone": False, "probes": True}
EARLY, LATE = 12, 16
MOST_ODD = {"one-class": 2}  # expelled of the twenty: the goal, where it is reached


@dataclass
class Figures:
    """One run: devices in quarantine.

    Attributes:
        accuracy: At the end.
        others: Honest devices that are not odd, at the end.
        odd: Odd devices, or the crowd, at the end; None without any.
        early, late: Share of the attackers after so many rounds; None without any.
    """

    accuracy: float
    others: int
    odd: int | None
    early: float | None
    late: float | None


def scenario(row: str, fraction: float, seed: int, probes: bool, rounds: int) -> Scenario:
    """Return the rehearsal of a row."""
    attack = row if row in ATTACKS else "none"
    fields = msgspec.to_builtins(Cell(setting="digits", attack=attack, fraction=fraction, seed=seed).scenario())
    fields |= {"probes": probes, "rounds": rounds}
    if row not in ATTACKS:
        kind = "few-samples" if row == CROWD else row
        fields["oddities"] = {"kind": kind, "fraction": fraction}
    return parse_scenario(_said(fields), origin=row, folder=Path())


def measure(row: str, fraction: float, seed: int, probes: bool, rounds: int) -> Figures:
    """Rehearse a row once."""
    told = scenario(row, fraction, seed, probes, rounds)
    corpus = load_corpus(told)
    slices, odd = partition(corpus.train, told), odd_devices(told)
    if row == CROWD:
        zeros, rng = np.flatnonzero(corpus.train.y == 0), np.random.default_rng(seed)
        for index in odd:
            rows = rng.choice(zeros, 40)
            slices[index] = Dataset(corpus.train.x[rows], corpus.train.y[rows])
    play = rehearse(told, Trainer(make_bundle(told, corpus)), slices, corpus.held_out)
    names = device_names(told.devices)
    hostile = {names[index] for index in malicious_devices(told)} if told.malicious_count else set()
    strange = {names[index] for index in odd}

    def caught(after: int) -> float | None:
        out = play.expelled[min(after, len(play.expelled)) - 1]
        return len(out & hostile) / len(hostile) if hostile else None

    out = play.expelled[-1]
    return Figures(
        accuracy=statistics.mean([r.accuracy for r in play.records if r.accuracy is not None][-3:]),
        others=len(out - hostile - strange),
        odd=len(out & strange) if strange else None,
        early=caught(EARLY),
        late=caught(LATE),
    )


def options_parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[10, 11])
    parser.add_argument("--only", default="", help="rows whose names contain one of these, with commas between")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--no-goals", action="store_true", help="end with status 0 whatever comes out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    options = options_parser().parse_args(argv)
    print(f"100 devices, {options.rounds} rounds, seeds {options.seeds}: mean / worst seed")
    print(f"| fleet | defence | odd out | attackers out by {EARLY} | by {LATE} | other honest out | accuracy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found: dict[str, list[Figures]] = {}
    for row, fraction in ROWS:
        if not any(part in row for part in options.only.split(",")):
            continue
        for defence, probes in DEFENCES.items():
            runs = [measure(row, fraction, seed, probes, options.rounds) for seed in options.seeds]
            found[f"{row} {fraction:.0%} | {defence}"] = runs
            print(f"| {row} {fraction:.0%} | {defence} | {_line(runs)} |", flush=True)
    missed = _missed(found)
    for text in missed:
        print(f"missed: {text}")
    if options.json:
        rows = {name: [asdict(figures) for figures in runs] for name, runs in found.items()}
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 1 if missed and not options.no_goals else 0


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop what a scenario file would not say, as nothing there means nothing."""
    kept = {name: value for name, value in fields.items() if value is not None}
    for part in ("attack", "oddities"):
        kept[part] = {name: value for name, value in kept.get(part, {}).items() if value is not None}
    return kept


def _line(runs: Sequence[Figures]) -> str:
    def pair(field: str, worst: Callable[[list[float]], float], form: str) -> str:
        values = [getattr(run, field) for run in runs]
        return "-" if None in values else f"{statistics.mean(values):{form}} / {worst(values):{form}}"

    parts = [pair("odd", max, "g"), pair("early", min, ".2f"), pair("late", min, ".2f")]
    return " | ".join([*parts, pair("others", max, "g"), pair("accuracy", min, ".3f")])


def _missed(found: dict[str, list[Figures]]) -> list[str]:
    """Return what excuses are to achieve and did not."""
    return [
        f"{kind}: {figures.odd} of the odd devices in quarantine, the goal is {most}"
        for kind, most in MOST_ODD.items()
        for figures in found.get(f"{kind} 20% | probes", [])
        if figures.odd is not None and figures.odd > most
    ]


if __name__ == "__main__":
    sys.exit(main())
