"""``report.html``: a report for people, in one file that asks the network for nothing.

Whatever a chart shows stands in a table too, and colour is never the only sign.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covey_simulator.charts import Series, accuracy_chart, bytes_chart, reputation_chart, share_chart, stages_chart
from covey_simulator.report import Report, RoundRecord, write_atomically
from covey_simulator.style import STYLE
from covey_simulator.units import NOTHING, bytes_text, number_text, seconds_text

OPEN_TABLE_ROWS = 60

_LINES = {"fleet": "this fleet", "undefended": "undefended (clear)", "no_attack": "no attack (clear)"}
_LINE_COLOURS = {"fleet": "fleet", "undefended": "bare", "no_attack": "calm"}


def write_page(report: Report, path: Path) -> None:
    """Write ``report.html`` so that it is either there in full or not at all."""
    write_atomically(path, render_page(report).encode())


def render_page(report: Report) -> str:
    """Return the page of a report."""
    title = f"{html.escape(report.name)} · Covey simulation"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">Covey simulation</p>
<h1>{html.escape(report.name)}</h1>
<p class="lead">{html.escape(_lead(report))}</p>
</header>
<main>
{_verdict(report)}
{_tiles(report)}
{_charts(report)}
{_rounds_table(report)}
{_devices_table(report)}
{_settings(report)}
</main>
</body>
</html>
"""


def _lead(report: Report) -> str:
    config = report.config
    groups = {True: "masked groups", False: "groups WITHOUT masks"}.get(config["masking"], "groups, masks simulated,")
    return (
        f"{config['devices']} devices learn {config['data']['source']} in {config['rounds']} rounds, "
        f"{groups} of about {config['group_size']}, {_rule_words(config['rule'])} across groups, "
        f"transport {config['transport']}, seed {config['seed']}."
    )


def _rule_words(rule: str | dict[str, Any]) -> str:
    return (rule if isinstance(rule, str) else str(rule["name"])).replace("-", " ")


def _verdict(report: Report) -> str:
    verdict = report.verdict
    if not verdict.ok:
        kind, sign, word = "failed", "✗", "Failed"
    elif verdict.promised_accuracy is None:
        kind, sign, word = "open", "!", "Ran to its end; no accuracy is promised here"
    else:
        kind, sign, word = "passed", "✓", "Passed"
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in verdict.reasons)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in verdict.notes)
    return f"""<section class="verdict {kind}" aria-labelledby="verdict">
<h2 id="verdict"><span class="sign" aria-hidden="true">{sign}</span> {word}</h2>
<ul>{reasons}</ul>
{f'<h3>To read the numbers rightly</h3><ul class="notes">{notes}</ul>' if notes else ""}
</section>"""


def _tiles(report: Report) -> str:
    devices = report.config["devices"]
    rounds = report.rounds
    malicious = sum(device.malicious for device in report.devices)
    tiles = [
        ("final accuracy", number_text(report.final_accuracy, ".3f"), _beside(report)),
        ("rounds run", f"{len(rounds)}", f"of {report.config['rounds']}"),
        ("devices", f"{devices}", f"{malicious} malicious" if malicious else "all honest"),
    ]
    if any(device.reputation is not None for device in report.devices):
        found = report.detection
        by = "" if found.rounds_to_90 is None else f", nine tenths by round {found.rounds_to_90}"
        tiles.append(("expelled", f"{found.malicious_quarantined}", f"of {malicious} malicious{by}"))
        tiles.append(("honest expelled", f"{found.honest_quarantined}", f"of {devices - malicious} honest"))
    if report.attack_success is not None:
        tiles.append(("attack success", f"{report.attack_success:.2f}", "of the answers it wants"))
    if rounds:
        dropped = sum(record.dropped for record in rounds)
        aborted = sum(record.groups_aborted for record in rounds)
        seconds = statistics.median(record.seconds for record in rounds)
        tiles += [
            ("a round takes", seconds_text(seconds), "in the median"),
            ("drop-outs", f"{dropped}", f"{aborted} groups aborted"),
        ]
        if _has_bytes(rounds):
            up, down = (statistics.median(value for _, value in _per_device(report, key)) for key in ("up", "down"))
            tiles.append(("a device sends", bytes_text(up), f"and receives {bytes_text(down)} a round"))
    body = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(more)}</small></dd></div>"
        for name, value, more in tiles
    )
    return f'<dl class="tiles">{body}</dl>'


def _beside(report: Report) -> str:
    known = [
        f"{words} {number_text(report.baselines[key].final_accuracy, '.3f')}"
        for key, words in (("undefended", "undefended"), ("no_attack", "no attack"))
        if key in report.baselines
    ]
    return " · ".join(known) or "on held-out samples"


def _charts(report: Report) -> str:
    figures = []
    runs = _runs(report)
    lines = {_LINES[key]: (_LINE_COLOURS[key], _accuracies(run)) for key, run in runs.items()}
    if any(points for _, points in lines.values()):
        alt = "Line chart of accuracy by round. " + " ".join(
            f"{name}: {points[0][1]:.3f} in round {points[0][0]} to {points[-1][1]:.3f} in round {points[-1][0]}."
            for name, (_, points) in lines.items()
            if points
        )
        caption = "Baselines run in the clear: one process, no masks, no network, the plain mean of all devices."
        drawn = accuracy_chart(lines, alt=alt)
        figures.append(_figure("Accuracy", drawn, caption if report.baselines else "", "wide"))
    figures += _judged(report)
    if _has_bytes(report.rounds):
        up, down = _per_device(report, "up"), _per_device(report, "down")
        alt = (
            f"Bar chart of bytes by round. A device sends {bytes_text(min(v for _, v in up))} to "
            f"{bytes_text(max(v for _, v in up))} and receives {bytes_text(min(v for _, v in down))} to "
            f"{bytes_text(max(v for _, v in down))} a round."
        )
        caption = "Payload bytes, the mean over all devices."
        figures.append(_figure("Bytes per device", bytes_chart(up, down, alt=alt), caption))
    stages = _stages(report.rounds)
    if stages:
        means = {stage: statistics.fmean(value for _, value in points) for stage, points in stages.items()}
        told = ", ".join(f"{stage} {seconds_text(value)}" for stage, value in means.items())
        alt = f"Stacked bar chart of seconds by round and stage. Means: {told}."
        figures.append(_figure("Time per stage", stages_chart(stages, alt=alt), f"Means: {told}."))
    return f'<section class="charts" aria-label="Charts">{"".join(figures)}</section>'


def _judged(report: Report) -> list[str]:
    """Return what shows who was expelled, and why: nothing where devices are not scored."""
    scored = [device for device in report.devices if any(score is not None for score in device.reputations)]
    if not scored:
        return []
    numbers = [record.round for record in report.rounds]
    lines = {
        device.name: (
            "bare" if device.malicious else "calm",
            [(at, score) for at, score in zip(numbers, device.reputations, strict=False) if score is not None],
        )
        for device in scored
    }
    ends = {
        kind: statistics.median(points[-1][1] for colour, points in lines.values() if colour == wanted)
        for kind, wanted in (("honest", "calm"), ("malicious", "bare"))
        if any(colour == wanted for colour, _ in lines.values())
    }
    told = ", ".join(f"{kind} devices {value:.2f}" for kind, value in ends.items())
    alt = f"Line chart of every device's reputation by round. In the end, in the median: {told}."
    drawn = reputation_chart(lines, alt=alt)
    figures = [_figure("Reputation", drawn, f"One line a device, 0 to 1. In the end, in the median: {told}.", "wide")]
    shares: dict[str, tuple[str, Series]] = {}
    for words, colour, malicious in (("malicious expelled", "bare", True), ("honest expelled", "calm", False)):
        ours = [device for device in report.devices if device.malicious == malicious]
        if ours:
            shares[words] = (
                colour,
                [
                    (at, sum(d.quarantined_at is not None and d.quarantined_at <= at for d in ours) / len(ours))
                    for at in numbers
                ],
            )
    refused = [(record.round, record.honest_rejected / record.attested) for record in report.rounds if record.attested]
    if refused:
        shares["honest refused in the round"] = ("down", refused)
    ends_at = ", ".join(f"{words} {points[-1][1]:.1%}" for words, (_, points) in shares.items() if points)
    alt = f"Line chart of shares of devices by round. In the last round: {ends_at}."
    figures.append(_figure("Detection", share_chart(shares, alt=alt), f"Last round: {ends_at}.", "wide"))
    return figures


def _figure(title: str, svg: str, caption: str, kind: str = "") -> str:
    caption = f"<p>{html.escape(caption)}</p>" if caption else ""
    return (
        f'<figure class="{kind}"><figcaption><h2>{title}</h2>{caption}</figcaption>'
        f'<div class="scroll">{svg}</div></figure>'
    )


def _rounds_table(report: Report) -> str:
    baselines = {key: dict(_accuracies(run)) for key, run in _runs(report).items() if key != "fleet"}
    heads = ["round", "attempt", "accuracy", *(_LINES[key] for key in baselines), "loss", "on own data"]
    heads += ["joined", "accepted", "rejected", "dropped", "groups", "aborted", "seconds"]
    with_bytes = _has_bytes(report.rounds)
    heads += ["sent / device", "received / device"] if with_bytes else []
    with_epsilon = report.epsilon is not None
    heads += [f"epsilon at delta {report.config['privacy']['delta']:g}"] if with_epsilon else []
    devices = report.config["devices"]
    rows = []
    for record in report.rounds:
        row = [f"{record.round}", f"{record.attempt}", number_text(record.accuracy, ".3f")]
        row += [number_text(known.get(record.round), ".3f") for known in baselines.values()]
        row += [number_text(record.loss, ".3f"), number_text(record.federated_accuracy, ".3f")]
        counts = (record.participants, record.accepted, record.rejected, record.dropped)
        row += [f"{count}" for count in (*counts, record.groups, record.groups_aborted)]
        row.append(f"{record.seconds:.2f}")
        row += [bytes_text(record.bytes_up / devices), bytes_text(record.bytes_down / devices)] if with_bytes else []
        row += [number_text(record.epsilon, ".3g")] if with_epsilon else []
        rows.append(row)
    summary = f"{len(rows)} rounds; “own data”: the incoming model on the devices' own samples, as they report it"
    return _section("Rounds", summary, heads, rows, numeric=True)


def _devices_table(report: Report) -> str:
    heads = ["device", "played", "state", "reputation", "quarantined in round", "reason"]
    rows = [
        [
            device.name,
            "malicious" if device.malicious else "honest",
            device.state,
            number_text(device.reputation, ".2f"),
            number_text(device.quarantined_at, "d"),
            device.reason or NOTHING,
        ]
        for device in report.devices
    ]
    malicious = sum(device.malicious for device in report.devices)
    return _section("Devices", f"{len(rows)} devices, {malicious} of them malicious", heads, rows, mark="malicious")


def _settings(report: Report) -> str:
    config = _section("Scenario", "What was asked for", ["setting", "value"], list(_flat(report.config)))
    versions = _section("Versions", "What it ran on", ["part", "version"], [list(p) for p in report.versions.items()])
    return f'<div class="pair">{config}{versions}</div>'


def _section(
    title: str,
    summary: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: bool = False,
    mark: str = "",
) -> str:
    """Return a table that can be folded away; rows that hold ``mark`` stand out."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        marked = ' class="marked"' if mark and mark in rest else ""
        body.append(f'<tr{marked}><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return (
        f"<section><h2>{title}</h2><details{' open' if len(rows) <= OPEN_TABLE_ROWS else ''}>"
        f"<summary>{html.escape(summary)}</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<table class="{"numeric" if numeric else "words"}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></details></section>"
    )


def _runs(report: Report) -> dict[str, Sequence[RoundRecord]]:
    return {"fleet": report.rounds, **{key: report.baselines[key].rounds for key in _LINES if key in report.baselines}}


def _accuracies(rounds: Iterable[RoundRecord]) -> Series:
    return [(record.round, record.accuracy) for record in rounds if record.accuracy is not None]


def _stages(rounds: Iterable[RoundRecord]) -> dict[str, Series]:
    stages: dict[str, list[tuple[int, float]]] = {}
    for record in rounds:
        for stage, seconds in record.stage_seconds.items():
            stages.setdefault(stage, []).append((record.round, seconds))
    return dict(stages)


def _has_bytes(rounds: Iterable[RoundRecord]) -> bool:
    return any(record.bytes_up or record.bytes_down for record in rounds)


def _per_device(report: Report, direction: str) -> Series:
    devices = report.config["devices"]
    return [(record.round, getattr(record, f"bytes_{direction}") / devices) for record in report.rounds]


def _flat(value: Mapping[str, Any], path: str = "") -> Iterable[list[str]]:
    """Yield dotted settings and their values; what is not set is left out."""
    for key, part in value.items():
        if isinstance(part, Mapping):
            yield from _flat(part, f"{path}{key}.")
        elif part is not None:
            yield [f"{path}{key}", str(part).lower() if isinstance(part, bool) else f"{part}"]
