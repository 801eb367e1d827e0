"""The two case studies on several seeds: clinics that turn labels round, and cameras that train on perturbed images.

``./run bench case-studies --out DIR`` runs ``examples/scenarios/medical-records.yaml`` and ``adversarial-images.yaml``,
leaves each one's page in DIR, and prints the final accuracies of this fleet, of a secure average that believes
everybody, and of the same fleet without attack, with what became of the attackers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from covey_simulator.live import make_display
from covey_simulator.records import Report
from covey_simulator.run import run_scenario
from covey_simulator.scenario import load_scenario

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "scenarios"
STUDIES = ("medical-records", "adversarial-images")
HOLDS = 0.02  # the fleet's accuracy may lie so far below that without attack, on average


def study(name: str, seed: int, out: Path, rounds: int | None) -> Report:
    """Run one study on one seed; its page is left in the folder."""
    scenario = msgspec.structs.replace(load_scenario(EXAMPLES / f"{name}.yaml"), seed=seed)
    if rounds is not None:
        scenario = msgspec.structs.replace(scenario, rounds=rounds)
    with (out / "progress.log").open("a", encoding="utf-8") as log:
        return run_scenario(scenario, out, make_display(scenario, headless=True, out=log))


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[10, 11, 12, 13, 14]
    )
    parser.add_argument("--rounds", type=int, help="fewer than the scenarios say")
    parser.add_argument("--out", type=Path, help="leave the pages there, a folder for each study and seed")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--no-goals", action="store_true", help="end with status 0 whatever comes out")
    options = parser.parse_args(argv)
    figures, missed = {}, []
    print(f"seeds {options.seeds}: means (worst)")
    print(f"{'':<20}{'this fleet':>17}{'secure average':>17}{'no attack':>17}{'attackers out':>15}{'honest out':>12}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in STUDIES:
            reports = []
            for seed in options.seeds:
                out = (options.out or Path(temporary)) / name / str(seed)
                out.mkdir(parents=True, exist_ok=True)
                reports.append(study(name, seed, out, options.rounds))
            rows = [_figures(report) for report in reports]
            figures[name] = rows
            print(_line(name, rows), flush=True)
            lost = statistics.mean(row["no_attack"] - row["ours"] for row in rows)
            if lost > HOLDS:
                missed.append(f"{name}: {lost:.3f} below no attack on average, the goal is {HOLDS}")
    for text in missed:
        print(f"missed: {text}")
    if options.json:
        options.json.write_text(json.dumps({"rows": figures}, indent=2), encoding="utf-8")
    return 1 if missed and not options.no_goals else 0


def _figures(report: Report) -> dict[str, float]:
    detection = report.detection
    hostile = sum(device.malicious for device in report.devices)
    return {
        "ours": report.final_accuracy or 0.0,
        "average": report.baselines["undefended"].final_accuracy or 0.0,
        "no_attack": report.baselines["no_attack"].final_accuracy or 0.0,
        "attackers_out": detection.malicious_quarantined / hostile,
        "honest_out": detection.honest_quarantined,
    }


def _line(name: str, rows: list[dict[str, float]]) -> str:
    parts = [f"{name:<20}"]
    for key in ("ours", "average", "no_attack"):
        values = [row[key] for row in rows]
        parts.append(f"{statistics.mean(values):9.3f} ({min(values):.3f})".rjust(17))
    parts.append(f"{statistics.mean(row['attackers_out'] for row in rows):15.1%}")
    parts.append(f"{sum(row['honest_out'] for row in rows):12.0f}")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(main())
