"""The command ``covey``."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import signal
import sys
import time
from pathlib import Path

import click

from covey_aggregator.cli_audit import alerts_command, audit
from covey_aggregator.cli_device import device
from covey_aggregator.cli_home import accept_command, init_command, renew_command
from covey_aggregator.cli_invite import add_command
from covey_aggregator.cli_operator import operator
from covey_aggregator.cli_privacy import privacy_command
from covey_aggregator.cli_reputation import quarantine_command, release_command
from covey_aggregator.cli_revoke import forget_command, revoke_command
from covey_aggregator.cli_task import task
from covey_aggregator.home import DATABASE_FILE, open_server
from covey_aggregator.service import Service
from covey_aggregator.store import Store
from covey_aggregator.upkeep import keep_up
from covey_protocol import __version__
from covey_protocol.errors import ConfigError, CoveyError

FAILED, BAD_CONFIG = 1, 2
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="covey")
def cli() -> None:
    """Run a Covey fleet: devices that learn together and keep their data.

    \b
    Example, from nothing to a running aggregator:
      covey init home --operator op --fleet meadow --broker 192.168.1.10:1883
      covey device add pi-kitchen --home home
      covey serve home
    """


@cli.command("serve")
@click.argument("home", type=_FOLDER)
def serve_command(home: Path) -> None:
    """Run the aggregator until stopped (Ctrl-C or SIGTERM).

    \b
    Example:
      covey serve home
    """
    server = open_server(home)
    logging.basicConfig(
        level=server.settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(_serve(home))


async def _serve(home: Path) -> None:
    """Run the service until a signal, and another one whenever the operator's word for its home has changed."""
    serving = asyncio.current_task()
    assert serving is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    try:
        upkeep = asyncio.create_task(keep_up(home), name="covey-upkeep")
        try:
            while True:
                service = Service(open_server(home))
                await service.run()
                if not service.home_changed:
                    return
        finally:
            upkeep.cancel()
    except asyncio.CancelledError:
        logging.getLogger("covey.aggregator").info("stopped")


@cli.command("events")
@click.argument("home", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@click.option("--after", default=0, help="Only events behind this number.")
def events_command(home: Path, as_json: bool, after: int) -> None:
    """Print what happened: enrolments, epochs, rounds, aborts and their reasons.

    \b
    Example:
      covey events home --after 120
    """

    open_server(home)
    store = Store(home / DATABASE_FILE)
    for number, at, cause, text in store.events(after):
        if as_json:
            click.echo(json.dumps({"id": number, "at": at, "cause": cause, "text": text}))
        else:
            click.echo(f"{number:>6}  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}  {cause:<16} {text}")


cli.add_command(operator)
cli.add_command(init_command)
cli.add_command(accept_command)
cli.add_command(renew_command)
cli.add_command(alerts_command)
cli.add_command(audit)
cli.add_command(device)
device.add_command(add_command)
device.add_command(revoke_command)
device.add_command(forget_command)
device.add_command(quarantine_command)
device.add_command(release_command)
cli.add_command(privacy_command)
cli.add_command(task)
# Commands of extras that may not be installed: the package, what it needs, and the command in it.
for module, needs, name in (("covey_modelkit", "onnx", "model"), ("covey_simulator", "sklearn", "simulate")):
    if all(importlib.util.find_spec(part) is not None for part in (module, needs)):
        cli.add_command(getattr(importlib.import_module(f"{module}.cli"), name))


def main() -> None:
    """Entry point: errors become one line and an exit code (2 for configuration, 1 for the rest)."""
    try:
        cli()
    except ConfigError as error:
        click.echo(f"covey: {error}", err=True)
        sys.exit(BAD_CONFIG)
    except (CoveyError, OSError) as error:
        click.echo(f"covey: {error}", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
