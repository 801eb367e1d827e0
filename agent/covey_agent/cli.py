"""The command ``covey-agent``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from covey_agent import doctor
from covey_agent.connect import RunningAgent
from covey_agent.first_boot import BOOT_FOLDERS, PATTERN, enrol_from_boot, open_or_enrol
from covey_agent.home import STATUS_FILE, enrol, open_home
from covey_agent.rotation import rotate
from covey_agent.snapshot import in_words
from covey_agent.status import read_status
from covey_agent.wallclock import synchronised_time
from covey_protocol import __version__
from covey_protocol.errors import ConfigError, CoveyError

FAILED, BAD_CONFIG = 1, 2


def default_home() -> Path:
    """Return where the agent lives unless told otherwise."""
    return Path("/var/lib/covey-agent") if os.geteuid() == 0 else Path.home() / ".covey-agent"


home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="COVEY_AGENT_HOME",
    default=default_home,
    help="Folder of this device's identity and data (or COVEY_AGENT_HOME).",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="covey-agent")
def cli() -> None:
    """Take part in a Covey fleet: train on this device's data, and send nothing but masked updates."""


boot_option = click.option(
    "--boot",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="COVEY_AGENT_BOOT",
    help=f"Folder to look for {PATTERN} in (default {' and '.join(map(str, BOOT_FOLDERS))}).",
)


def _boot_folders(boot: Path | None) -> Sequence[Path]:
    return BOOT_FOLDERS if boot is None else (boot,)


@cli.command("enrol")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@home_option
@boot_option
@click.option(
    "--data", type=click.Path(path_type=Path), help="The .npz file or folder to train on (default HOME/data)."
)
def enrol_command(bundle: Path | None, home: Path, boot: Path | None, data: Path | None) -> None:
    """Make this device's key and take its identity from BUNDLE, which is destroyed.

    Without BUNDLE the one on the boot partition is taken, as `covey-agent run` does by itself at its first start.

    \b
    Example:
      covey-agent enrol pi-kitchen.bundle --data /srv/readings.npz
    """
    now, samples = int(time.time()), str(data.absolute()) if data else ""
    if bundle is None:
        enrolled = enrol_from_boot(home, _boot_folders(boot), now=now, data=samples)
    else:
        enrolled = enrol(bundle, home, now=now, data=samples)
    click.echo(f"{enrolled.device} is enrolled in fleet {enrolled.fleet}; home {home}")
    click.echo(f"data: {enrolled.data_path}; start it with: covey-agent run --home {home}")


@cli.command("run")
@home_option
@boot_option
def run_command(home: Path, boot: Path | None) -> None:
    """Take part until stopped (Ctrl-C or SIGTERM); the first time, enrol with the bundle on the boot partition.

    \b
    Example:
      covey-agent run --home /var/lib/covey-agent
    """
    # At a first boot the wall clock may be anything: only one that a time service keeps can find a token expired.
    enrolled = open_or_enrol(home, _boot_folders(boot), now=synchronised_time())
    logging.basicConfig(
        level=enrolled.config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    running = RunningAgent(enrolled)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: running.leave())
    options = running.link.options
    logging.getLogger("covey.agent").info(
        "%s of fleet %s, broker %s:%s", enrolled.device, enrolled.fleet, options.host, options.port
    )
    running.run()


@cli.command("rotate")
@home_option
def rotate_command(home: Path) -> None:
    """Change this device's key: the old one signs for the new, and is destroyed once the fleet has shown that it knows.

    Name, reputation and what the device has spent stay. An agent that runs uses the new key from its next start on.

    \b
    Example:
      covey-agent rotate && systemctl restart covey-agent
    """
    enrolled = rotate(home)
    key = bytes(enrolled.key.verify_key).hex()
    click.echo(f"{enrolled.device} has key {key} from now on; start the agent again if it runs")


@cli.command("status")
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(home: Path, as_json: bool) -> None:
    """Show what the agent is doing; exits 1 if it is not running.

    \b
    Example:
      covey-agent status --json
    """
    enrolled = open_home(home)
    status = read_status(home / STATUS_FILE) or {}
    running = _is_running(status)
    report: dict[str, Any] = {
        "device": enrolled.device,
        "fleet": enrolled.fleet,
        "running": running,
        **status,
    }
    click.echo(json.dumps(report, indent=2) if as_json else in_words(report))
    sys.exit(0 if running else FAILED)


@cli.command("doctor")
@home_option
@click.option("--bundle", type=click.Path(path_type=Path, dir_okay=False), help="Check a provisioning bundle as well.")
@click.option("--take-over", is_flag=True, help="Log in although the agent runs, which pushes it out for a moment.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(home: Path, bundle: Path | None, take_over: bool, as_json: bool) -> None:
    """Say in words what keeps this device from taking part; exits 1 if something does.

    It checks files, identity, clock, data and disk, then the way to the broker step by step, what the broker lets the
    device say and hear, and whether an aggregator is there.

    \b
    Examples:
      covey-agent doctor
      covey-agent doctor --bundle pi-kitchen.bundle
      covey-agent doctor --json | jq '.checks[] | select(.level == "fail")'
    """
    findings = doctor.examine(home, bundle=bundle, take_over=take_over)
    click.echo(json.dumps(doctor.as_json(findings), indent=2) if as_json else doctor.in_words(findings))
    sys.exit(FAILED if any(finding.level == "fail" for finding in findings) else 0)


def _is_running(status: dict[str, Any]) -> bool:
    pid = status.get("pid")
    return isinstance(pid, int) and Path(f"/proc/{pid}").exists()


def main() -> None:
    """Entry point: errors become one line and an exit code (2 for configuration, 1 for the rest)."""
    try:
        cli()
    except (CoveyError, OSError) as error:
        click.echo(f"covey-agent: {' '.join(str(error).split())}", err=True)
        sys.exit(BAD_CONFIG if isinstance(error, ConfigError) else FAILED)


if __name__ == "__main__":
    main()
