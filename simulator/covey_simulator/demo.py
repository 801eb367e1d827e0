"""``./run demo``: a fleet that learns together, with poisoners in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from covey_simulator.cli import broker_option, guarded, headless_option, out_option, show
from covey_simulator.scenario import demo_scenario


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--devices", default=30, show_default=True, help="How many devices.")
@click.option("--rounds", default=10, show_default=True, help="How many rounds.")
@click.option("--malicious", default=0.2, show_default=True, help="Share of the devices that poison.")
@click.option("--attack", default="sign-flip", show_default=True, help="What they do: see docs/attacks.md.")
@click.option("--scale", type=float, help="How hard they poison (default: 5 for sign-flip).")
@click.option("--seed", default=0, show_default=True, help="Of slices and attackers.")
@click.option(
    "--masking", type=click.Choice(["on", "off"]), default="on", show_default=True, help="off: for laboratories only."
)
@click.option(
    "--attestation",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="off: nobody is judged by sketches; groups of masked updates alone.",
)
@headless_option
@out_option
@broker_option
def demo(
    devices: int,
    rounds: int,
    malicious: float,
    attack: str,
    scale: float | None,
    seed: int,
    masking: str,
    attestation: str,
    headless: bool,
    out: Path,
    broker: Literal["mosquitto", "amqtt"] | None,
) -> None:
    """Start a broker, an aggregator and a fleet of real agents on this machine and let them learn digits.

    \b
    Examples:
      ./run demo
      ./run demo --headless --out out
      ./run demo --malicious 0
      ./run demo --attack label-flip --rounds 20
      ./run demo --attestation off
    """
    scenario = demo_scenario(
        devices=devices,
        rounds=rounds,
        malicious=malicious,
        attack=attack if malicious else "none",
        scale=scale if malicious else None,
        seed=seed,
        masking=masking == "on",
        attestation=attestation == "on",
    )
    sys.exit(show(scenario, out, headless=headless, broker=broker))


if __name__ == "__main__":
    guarded(demo)
