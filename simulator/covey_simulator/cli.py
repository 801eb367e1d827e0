"""``covey simulate``, and what it shares with the demo."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

import click
import msgspec

from covey_protocol.errors import ConfigError, CoveyError
from covey_simulator.live import make_display
from covey_simulator.run import LOG, PAGE, REPORT, run_scenario
from covey_simulator.scenario import Scenario, load_scenario

FAILED, BAD_CONFIG = 1, 2

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out"),
    show_default=True,
    help="Folder for report.json and report.html.",
)
headless_option = click.option("--headless", is_flag=True, help="Plain lines instead of a live table.")
broker_option = click.option(
    "--broker",
    type=click.Choice(["mosquitto", "amqtt"]),
    help="Insist on a broker (default: Mosquitto if there is one, else the embedded amqtt).",
)


@click.command("simulate")
@click.argument("scenario", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@out_option
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than the scenario's.")
@headless_option
@broker_option
def simulate(
    scenario: Path, out: Path, seed: int | None, headless: bool, broker: Literal["mosquitto", "amqtt"] | None
) -> None:
    """Run the fleet that SCENARIO describes; exits 0 only if all that was promised for it holds.

    \b
    Example:
      covey simulate examples/scenarios/sign-flip.yaml --out out --seed 3
    """
    loaded = load_scenario(scenario)
    if seed is not None:
        loaded = msgspec.structs.replace(loaded, seed=seed)
    sys.exit(show(loaded, out, headless=headless, broker=broker))


def show(scenario: Scenario, out: Path, *, headless: bool, broker: Literal["mosquitto", "amqtt"] | None = None) -> int:
    """Run a scenario before somebody's eyes and return the exit code."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    display = make_display(scenario, headless=headless)
    with display:
        report = run_scenario(scenario, out, display, prefer=broker)
    files = {name: out / name for name in (PAGE, REPORT, LOG) if (out / name).exists()}
    display.summary(report, files)
    return 0 if report.verdict.ok else FAILED


def guarded(command: click.Command) -> None:
    """Run a command; errors become one line and an exit code (2 for configuration, 1 for the rest)."""
    try:
        command()
    except ConfigError as error:
        click.echo(f"covey: {error}", err=True)
        sys.exit(BAD_CONFIG)
    except CoveyError as error:
        click.echo(f"covey: {error}", err=True)
        sys.exit(FAILED)
