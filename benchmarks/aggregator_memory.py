"""The aggregator's peak memory in a round of many devices and a large model; sums and the new model are checked.

``./run bench aggregator-memory`` carries 500 devices with 1,000,000 parameters through one round: real devices mask,
the aggregator's own round adds up, takes the masks off, caps the groups' means and trims. There is no broker: one
vector comes in at a time, so transfers under way are not in the figure; the devices' keys, which are, weigh little. All
groups hold a masked sum before the first is unmasked, which is the worst order. Journal and masked vectors are on disk,
as in the service: 1 GB for the time of the round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._compare import Row, arguments, report
from benchmarks._sum_fleet import SumFleet
from benchmarks._worker import memory
from covey_aggregator.combine import Combined, combine
from covey_aggregator.rules import cap_norms
from covey_aggregator.rules.trimmed_mean import TrimmedMean, trimmed_count
from covey_protocol import __version__, model

GOAL, GOAL_DEVICES, GOAL_PARAMETERS = 1.2e9, 500, 1_000_000
BETA = 0.1


def measure(options: argparse.Namespace) -> list[Row]:
    """Run the round and return what it took.

    Raises:
        AssertionError: A sum, a mean or the new model is wrong.
    """
    weights = np.random.default_rng(1).standard_normal(options.parameters, dtype=np.float32)
    with (
        tempfile.TemporaryDirectory(prefix="covey-bench-", dir=options.folder) as folder,
        closing(SumFleet(options.devices, options.parameters, options.group_size, Path(folder))) as fleet,
    ):
        return carried(fleet, weights)


def carried(fleet: SumFleet, weights: model.Weights) -> list[Row]:
    """Carry a fleet's round to its new model."""
    stages: dict[str, float] = {}
    seconds: dict[str, list[float]] = {"unmask a group": [], "combine": []}
    print(f"  {len(fleet.names)} devices join {len(fleet.members)} groups", file=sys.stderr)
    fleet.join_and_deal()
    stages["before the first vector"] = float(memory("VmRSS"))
    print("  masked vectors", file=sys.stderr)
    for _ in fleet.mask():
        pass
    stages["all vectors added up"] = float(memory("VmRSS"))
    fleet.sign_and_reveal()
    print("  unmasking", file=sys.stderr)
    began = time.perf_counter()
    for _ in fleet.unmask():
        seconds["unmask a group"].append(time.perf_counter() - began)
        began = time.perf_counter()
    stages["all groups unmasked"] = float(memory("VmRSS"))
    print("  combining", file=sys.stderr)
    began = time.perf_counter()
    combined = combine(weights, fleet.run.means, rule=TrimmedMean(beta=BETA), contamination=0, evaluator=None)
    seconds["combine"].append(time.perf_counter() - began)
    peak = float(memory("VmHWM"))
    check(fleet, weights, combined)
    judged = (len(fleet.names), len(weights)) == (GOAL_DEVICES, GOAL_PARAMETERS)
    return [
        Row(
            "peak memory of the process",
            "MB",
            [peak],
            most=GOAL if judged else None,
            absolute=True,
            facts={"groups": len(fleet.members), "devices": len(fleet.names), "sampled": len(fleet.sampled)},
        ),
        *(Row(f"  {stage}", "MB", [value]) for stage, value in stages.items()),
        Row(
            "above the start, a group and parameter",
            "x",
            [(peak - stages["before the first vector"]) / len(fleet.members) / len(weights)],
            note="bytes; a masked sum has 2, its mean 4, and means above the norm cap another 4",
        ),
        Row("unmask a group", "s", seconds["unmask a group"], note="with the check of its sum"),
        Row("combine", "s", seconds["combine"]),
    ]


def check(fleet: SumFleet, weights: model.Weights, combined: Combined) -> None:
    """Hold some coordinates of the new model against a trimmed mean of the checked means, made the slow way."""
    at = fleet.sampled
    capped = cap_norms([fleet.run.means[name].update for name in sorted(fleet.run.means)])
    rows = np.stack([row[at] for row in capped]).astype(np.float64)
    cut = trimmed_count(len(rows), BETA)
    expected = np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)
    assert len(combined.delta) == 4 + 2 * len(weights)
    finest = float(np.frombuffer(combined.delta, "<f4", count=1)[0])
    off = np.abs((combined.weights[at].astype(np.float64) - weights[at]) - expected).max()
    assert off <= finest + 1e-6, f"the new model is off by {off}"
    assert np.array_equal(model.apply_delta(weights, combined.delta), combined.weights)


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=GOAL_DEVICES)
    parser.add_argument("--parameters", type=int, default=GOAL_PARAMETERS)
    parser.add_argument("--group-size", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where masked vectors are kept; the default is a temporary folder")
    options = parser.parse_args(argv)
    name = f"the aggregator's memory, {options.devices} devices, {options.parameters} parameters"
    return report(name, measure(options), {"covey": __version__, "numpy": np.__version__}, options)


if __name__ == "__main__":
    sys.exit(main())
