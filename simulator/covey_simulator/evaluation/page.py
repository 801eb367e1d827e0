"""``evaluate.html``: goals and heat maps in one file that asks the network for nothing. Every colour has its number."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import numpy as np

from covey_simulator.evaluation.goals import OPEN_PROBLEMS, Verdict
from covey_simulator.evaluation.grid import NONE, SETTINGS
from covey_simulator.evaluation.measure import Part, Result
from covey_simulator.evaluation.table import Place, Table
from covey_simulator.style import STYLE
from covey_simulator.units import NOTHING, seconds_text

PARTS: dict[Part, str] = {
    "covey": "Covey",
    "groups": "masked groups, no sketches",
    "fedavg": "FedAvg, clear",
    "trimmed-mean": "trimmed mean, clear, true f",
    "multi-krum": "Multi-Krum, clear, true f",
}

_STYLE = """
.heat td { text-align: center; color: #10151d; border: 2px solid var(--card); white-space: nowrap; }
.heat td.none { color: var(--soft); background: none; }
.heat td small { display: block; font-size: 0.75em; opacity: 0.8; }
.heat thead th { text-align: center; }
.met { color: var(--good); } .missed { color: var(--bad); }
"""


def render(table: Table, verdicts: Sequence[Verdict], *, title: str, seconds: float, notes: Sequence[str]) -> str:
    """Return the page.

    Args:
        table: All results.
        verdicts: On every goal.
        title: What was evaluated.
        seconds: Computing time of all results together.
        notes: What has to be known to read it rightly.
    """
    settings = list(dict.fromkeys(place.setting for place in table.places()))
    sections = "".join(_setting(table, setting) for setting in settings)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{html.escape(title)} · Covey evaluation</title>
<style>{STYLE}{_STYLE}</style>
</head>
<body>
<header>
<p class="kicker">Covey evaluation</p>
<h1>{html.escape(title)}</h1>
<p class="lead">{html.escape(_lead(table, seconds))}</p>
</header>
<main>
{_goals(verdicts)}
{_notes(notes)}
{sections}
{_broker(table)}
</main>
</body>
</html>
"""


def _lead(table: Table, seconds: float) -> str:
    seeds = table.seeds()
    levels = ", ".join(f"{count} at level {level}" for level, count in sorted(table.levels.items()))
    return (
        f"{sum(table.levels.values())} runs of Covey ({levels}), seeds {', '.join(map(str, seeds))}. "
        f"Large figures are means over seeds, small ones the worst seed. {seconds_text(seconds)} of computing."
    )


def _goals(verdicts: Sequence[Verdict]) -> str:
    met = sum(verdict.met for verdict in verdicts)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(verdict.where)}</th><td>{html.escape(verdict.goal)}</td>'
        f'<td class="{"met" if verdict.met else "missed"}">{"✓ met" if verdict.met else "✗ missed"}</td>'
        f"<td>{html.escape(verdict.found)}</td></tr>"
        for verdict in sorted(verdicts, key=lambda verdict: verdict.met)
    )
    kind = "passed" if met == len(verdicts) else "failed"
    return (
        f'<section class="verdict {kind}"><h2>{met} of {len(verdicts)} goals are met</h2></section>'
        '<section><h2>Goals</h2><details open><summary>Those that are missed first</summary><div class="scroll">'
        '<table class="words"><thead><tr><th>where</th><th>goal</th><th>met</th><th>found</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details></section>"
    )


def _notes(notes: Sequence[str]) -> str:
    body = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<section><h2>To read it rightly</h2><ul>{body}</ul></section>" if notes else ""


def _setting(table: Table, setting: str) -> str:
    places = [place for place in table.places() if place.setting == setting]
    words = SETTINGS[setting].words if setting in SETTINGS else setting
    parts = [part for part in PARTS if any(table.results(place, part) for place in places)]
    accuracy = [(PARTS[part], _of(table, lambda result: result.accuracy, part, worst="least"), _good) for part in parts]
    success = [
        (PARTS[part], _of(table, lambda result: result.attack_success, part, worst="most"), _bad) for part in parts
    ]
    detection = [
        ("by round 12", _of(table, lambda result: _share(result, 12), worst="least"), _good),
        ("by the end", _of(table, lambda result: _share(result, result.rounds), worst="least"), _good),
        ("rounds to 90%", _rounds(table), _soon),
        ("rounds taken part in", _of(table, _exposure, worst="most", form=".1f"), _soon),
    ]
    honest = [
        ("expelled", _of(table, lambda result: result.false_alarms, worst="most", form=".1%"), _alarm),
        ("refused", _of(table, lambda result: result.honest_excluded, worst="most", form=".1%"), _alarm),
        ("groups aborted", _of(table, lambda result: result.groups_aborted, worst="most", form=".0%"), _alarm),
    ]
    figures = [
        _heat("Accuracy", "on held-out samples, the mean of the last three rounds", places, accuracy),
        _heat("Attack success", "how often the model gives the answer that attackers want", places, success),
        _heat("Detection", "share of malicious devices expelled since the attack began", places, detection),
        _heat("Honest devices", "expelled at any time, and refused a round without being expelled", places, honest),
    ]
    return (
        f'<section><h2>{html.escape(setting)}</h2><p class="kicker">{html.escape(words)}</p>'
        f"{''.join(figures)}</section>"
    )


Shown = tuple[str, str, float] | None
"""A cell's large text, small text, and the number that gives its colour."""

Column = tuple[str, Callable[[Place], Shown], Callable[[float], float]]
"""Its head, its cells, and how good a number is, from 0 to 1."""


def _heat(
    title: str,
    caption: str,
    places: Sequence[Place],
    columns: Sequence[Column],
) -> str:
    rows = []
    for place in places:
        shown = [(of(place), warmth) for _, of, warmth in columns]
        if any(value is not None for value, _ in shown):
            cells = "".join(_cell(value, warmth) for value, warmth in shown)
            rows.append(f'<tr><th scope="row">{html.escape(_name(place))}</th>{cells}</tr>')
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head, _, _ in columns)
    return (
        f'<h3>{title}</h3><p class="kicker">{html.escape(caption)}</p><div class="scroll"><table class="heat">'
        f'<thead><tr><th scope="col"></th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cell(shown: Shown, warmth: Callable[[float], float]) -> str:
    if shown is None:
        return f'<td class="none">{NOTHING}</td>'
    large, small, value = shown
    return f'<td style="background: {_colour(warmth(value))}">{large}<small>{small}</small></td>'


def _name(place: Place) -> str:
    if place.attack == NONE:
        return "no attack"
    open_ = " (open problem)" if place.attack in OPEN_PROBLEMS else ""
    return f"{place.attack} {place.fraction:.0%}{open_}"


def _of(
    table: Table,
    value: Callable[[Result], float | None],
    part: Part = "covey",
    *,
    worst: str,
    form: str = ".3f",
) -> Callable[[Place], Shown]:
    def shown(place: Place) -> Shown:
        spread = table.spread(place, value, part)
        if spread is None:
            return None
        return format(spread.mean, form), format(getattr(spread, worst), form), spread.mean

    return shown


def _exposure(result: Result) -> float | None:
    return result.exposure if result.malicious else None


def _rounds(table: Table) -> Callable[[Place], Shown]:
    def shown(place: Place) -> Shown:
        results = [result for result in table.results(place).values() if result.malicious]
        if not results:
            return None
        found = [result.rounds_to(0.9) for result in results]
        numbers = sorted(number if number is not None else 10_000 for number in found)
        middle, last = numbers[len(numbers) // 2], numbers[-1]
        return _never(middle), _never(last), float(middle)

    return shown


def _never(rounds: int) -> str:
    return "never" if rounds == 10_000 else f"{rounds}"


def _share(result: Result, rounds: int) -> float | None:
    return result.expelled_by(rounds) if result.malicious else None


def _good(value: float) -> float:
    """From 0.5 on it gets better."""
    return (value - 0.5) / 0.45


def _bad(value: float) -> float:
    return 1 - value


def _alarm(value: float) -> float:
    """A twentieth is as bad as it gets."""
    return 1 - value / 0.05


def _soon(value: float) -> float:
    return 1 - (value - 5) / 20


def _colour(goodness: float) -> str:
    """Return red for 0 to green for 1, pale enough to read on."""
    at = float(np.clip(goodness, 0, 1))
    return f"hsl({8 + 130 * at:.0f} 65% {74 + 8 * abs(at - 0.5):.0f}%)"


def _broker(table: Table) -> str:
    if not table.broker:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(cell.words)}</th><td>{result.accuracy:.3f}</td>'
        f"<td>{_expelled(result)}</td><td>{result.honest_expelled[-1] if result.honest_expelled else 0}</td>"
        f"<td>{seconds_text(result.seconds)}</td></tr>"
        for cell, result in table.broker.items()
    )
    heads = "".join(f"<th>{head}</th>" for head in ("run", "accuracy", "malicious expelled", "honest expelled", "took"))
    return (
        '<section><h2>Over a real broker</h2><p class="kicker">Real agents, Mosquitto, real masks</p>'
        f'<table class="words"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></section>'
    )


def _expelled(result: Result) -> str:
    last = result.malicious_expelled[-1] if result.malicious_expelled else 0
    return f"{last} of {result.malicious}"
