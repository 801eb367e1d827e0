"""Secure aggregation, Covey's against Flower's SecAgg+: time, bytes and memory of a device's and a group's part.

``./run bench masking`` runs both on the same vectors with the same number of peers and thresholds, taking turns. Each
side's results are checked in the same run: masks cancel, sums are right, secrets come back.

``--profile`` adds where the time of quantising and masking goes, each part beside Flower's whole. Most of it is bare
ChaCha20, a keystream for every peer, for the device itself and for the dither. Both sides work on one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._compare import Row, Side, arguments, peaks, report, take_turns
from benchmarks._flower_env import flower_python
from benchmarks._mask_profile import ADDS, CIPHER, PARTS, WHOLE
from benchmarks._traffic import Traffic, measure
from covey_protocol import topics

HERE = Path(__file__).parent
OURS = Side(sys.executable, HERE / "_ours.py")
PROFILED = Side(sys.executable, HERE / "_mask_profile.py")
MEGABYTE = 1e6
WARM = 1000  # parameters of the run that comes before a peak is measured


def timed(options: argparse.Namespace, flower: Side | None) -> list[Row]:
    """Measure everything that takes time."""
    d, peers = options.parameters, options.peers
    group = {"dimension": d, "members": peers + 1}

    def row(name: str, work: str, size: dict[str, Any], most: float | None, **more: Any) -> Row:
        print(f"  {name}", file=sys.stderr)
        note = more.pop("note", "")
        ours, anchor, facts = take_turns(OURS, flower, work, size, repeat=options.repeat, **more)
        return Row(name, "ms", ours, anchor, most=most, note=note, facts=facts)

    return [
        row(f"quantise + mask, {peers} peers", "mask", {"dimension": d, "peers": peers}, 1 / 5),
        row(
            "a device's whole step",
            "mask-step",
            {"dimension": d, "peers": peers},
            None,
            anchor_work="mask",
            anchor_size={"dimension": d, "peers": peers, "whole": True},
            note="ours also digests and signs the vector; Flower also opens the shares it received",
        ),
        attest(options),
        row(f"make + encrypt shares, {peers} peers", "share", {"peers": peers}, 1 / 10),
        row(f"make + encrypt shares, {2 * peers} peers", "share", {"peers": 2 * peers}, 1 / 10),
        row(f"unmask a group of {peers + 1}", "unmask", {**group, "dropped": 0}, 1 / 25),
        row(f"unmask a group of {peers + 1}, 2 dropped", "unmask", {**group, "dropped": 2}, 1 / 15),
    ]


def attest(options: argparse.Namespace) -> Row:
    """Measure a device's answer to ATTEST beside its own masking."""
    d, peers, k = options.parameters, options.peers, options.sketch
    name = f"attest, {peers} peers, {k} numbers"
    print(f"  {name}", file=sys.stderr)
    size, masked = {"dimension": d, "peers": peers, "sketch": k}, {"dimension": d, "peers": peers}
    ours, own, facts = take_turns(
        OURS, OURS, "attest", size, repeat=options.repeat, anchor_work="mask-step", anchor_size=masked
    )
    return Row(name, "ms", ours, own, most=2.0, note="the anchor is our own masking; nobody else attests", facts=facts)


def profile(options: argparse.Namespace, flower: Side | None) -> list[Row]:
    """Take quantising and masking apart; the anchor of every part is the whole of Flower's step."""
    print("  profile", file=sys.stderr)
    size = {"dimension": options.parameters, "peers": options.peers}
    seconds: dict[str, list[float]] = {part: [] for part in (WHOLE, *PARTS, CIPHER, ADDS)}
    _, anchor, _ = take_turns(
        PROFILED, flower, "mask-profile", size, repeat=options.repeat, anchor_work="mask", each=seconds_of(seconds)
    )
    keystreams = 2 * options.parameters * (options.peers + 2) / 1e6
    return [
        Row(f"profile: {WHOLE}", "ms", seconds[WHOLE], anchor),
        *(Row(f"  {part}", "ms", seconds[part], anchor) for part in PARTS),
        Row(
            f"  {CIPHER}", "ms", seconds[CIPHER], anchor, note=f"{keystreams:.1f} MB, in blocks that stay in the cache"
        ),
        Row(f"  {ADDS}", "ms", seconds[ADDS], anchor),
    ]


def seconds_of(seconds: dict[str, list[float]]) -> Callable[[dict[str, Any]], None]:
    """Return what notes the parts of every run."""

    def note(facts: dict[str, Any]) -> None:
        for part, values in seconds.items():
            values.append(facts["parts"][part])

    return note


def memory(options: argparse.Namespace, flower: Side | None) -> list[Row]:
    """Measure how much a device needs on top while it masks."""
    print("  peak memory", file=sys.stderr)
    size, warm = ({"dimension": d, "peers": options.peers} for d in (options.parameters, WARM))
    ours = peaks(OURS, "mask-step", size, repeat=options.repeat, warm=warm)
    whole = {"whole": True}
    anchor = [] if flower is None else peaks(flower, "mask", size | whole, repeat=options.repeat, warm=warm | whole)
    return [
        Row(
            "a device's peak while masking",
            "MB",
            ours,
            anchor,
            most=64 * MEGABYTE * options.parameters / 1e6,
            absolute=True,
            note="resident memory above that before the step, model and update not counted",
        )
    ]


def traffic(options: argparse.Namespace, masked: Row) -> list[Row]:
    """Add up what a device sends and receives; bytes are counted, so one run is enough."""
    print("  traffic", file=sys.stderr)
    d, n = options.parameters, options.members
    large, small = measure(n, d), measure(options.small_members, options.small_parameters)
    model = 2 * options.small_parameters
    sketched = measure(n, WARM, options.sketch)
    flower_vector = masked.facts.get("anchor", {}).get("size")
    anchor = [] if flower_vector is None else [float(flower_vector)]
    return [
        Row(
            f"upload a round, n = {n}",
            "MB",
            [float(large.up.total())],
            anchor,
            most=2.05 * d,
            absolute=True,
            note=f"{described(large, 'up')}; Flower: its masked int64 vector alone",
            facts=dict(large.up),
        ),
        Row(
            f"download a round, n = {n}",
            "MB",
            [float(large.down.total())],
            most=2.05 * d,
            absolute=True,
            note=described(large, "down"),
            facts=dict(large.down),
        ),
        Row(
            f"attestation a device, n = {n}, {options.sketch} numbers",
            "kB",
            [float(sketched.up[topics.ATTEST] + sketched.up[topics.ACCEPT])],
            most=4096.0,
            absolute=True,
            note=f"ATTEST {sketched.up[topics.ATTEST]}, ACCEPT {sketched.up[topics.ACCEPT]}; down "
            f"ATTEST {sketched.down[topics.ATTEST]}, ACCEPT {sketched.down[topics.ACCEPT]}",
        ),
        Row(
            f"control traffic, d = {options.small_parameters}, n = {options.small_members}",
            "kB",
            [float(small.control)],
            most=3.0 * model,
            absolute=True,
            note=f"up and down together; the goal is three times the model's {model} bytes, 2 a parameter; "
            f"up {described(small, 'up')}; down {described(small, 'down')}",
            facts={"up": dict(small.up), "down": dict(small.down)},
        ),
    ]


def described(bytes_: Traffic, way: str) -> str:
    """Return the bytes of one way by kind, largest first."""
    count = bytes_.up if way == "up" else bytes_.down
    return ", ".join(f"{kind} {size}" for kind, size in count.most_common())


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--peers", type=int, default=16, help="others in the group, for everything that is timed")
    parser.add_argument("--members", type=int, default=16, help="roster size for upload and download")
    parser.add_argument("--sketch", type=int, default=64, help="numbers in a sketch")
    parser.add_argument("--small-parameters", type=int, default=10_000, help="model size for control traffic")
    parser.add_argument("--small-members", type=int, default=10, help="roster size for control traffic")
    parser.add_argument("--repeat", type=int, default=9, help="pairs that are measured")
    parser.add_argument("--profile", action="store_true", help="say where the time of quantising and masking goes")
    parser.add_argument("--without-flower", action="store_true", help="leave the anchor's column empty")
    options = parser.parse_args(argv)
    python = None if options.without_flower else flower_python()
    flower = None if python is None else Side(python, HERE / "_flower.py")
    versions = OURS.versions() | (flower.versions() if flower else {})
    rows = timed(options, flower)
    if options.profile:
        rows += profile(options, flower)
    rows += memory(options, flower)
    rows += traffic(options, rows[0])
    return report(f"masking, {options.parameters} parameters", rows, versions, options)


if __name__ == "__main__":
    sys.exit(main())
