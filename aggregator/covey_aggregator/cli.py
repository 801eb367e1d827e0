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
from covey_aggregator.cli_reputation import quarantine_command, release_command
from covey_aggregator.cli_task import task
from covey_aggregator.home import DATABASE_FILE, BrokerSettings, init_server, open_server
from covey_aggregator.operator import init_operator, open_operator
from covey_aggregator.service import Service
from covey_aggregator.store import Store
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
      covey operator init op --fleet meadow
      covey init home --operator op --broker 192.168.1.10:1883
      covey device add pi-kitchen --home home
      covey serve home
    """


@cli.group()
def operator() -> None:
    """The operator's key and policy; this home may live on another machine."""


@operator.command("init")
@click.argument("ophome", type=_FOLDER)
@click.option("--fleet", required=True, help="Name of the fleet: a-z, 0-9 and '-'.")
def operator_init(ophome: Path, fleet: str) -> None:
    """Make the operator key and a policy in OPHOME; running it again changes nothing.

    \b
    Example:
      covey operator init op --fleet meadow
    """
    home = init_operator(ophome, fleet)
    click.echo(f"operator home {ophome} of fleet {home.fleet}; public key {home.public_key.hex()}")
    click.echo("Keep it safe and apart from the server: it can name new devices and a new aggregator.")


@cli.command("init")
@click.argument("home", type=_FOLDER)
@click.option("--operator", "ophome", type=_FOLDER, required=True, help="The operator's home.")
@click.option("--broker", default="127.0.0.1:1883", show_default=True, help="HOST:PORT of the MQTT broker.")
@click.option("--advertise", default="", help="Host name that devices use, if it is another one.")
@click.option("--mqtt", type=click.Choice(["5", "3.1.1"]), default="5", show_default=True, help="MQTT version.")
def init_command(home: Path, ophome: Path, broker: str, advertise: str, mqtt: str) -> None:
    """Make the aggregator's key, delegation and settings in HOME; running it again overwrites nothing.

    \b
    Example:
      covey init home --operator op --broker 192.168.1.10:1883
    """
    host, colon, port = broker.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--broker {broker!r}: write HOST:PORT")
    settings = BrokerSettings(host=host, port=int(port), advertise=advertise, protocol=mqtt)  # type: ignore[arg-type]
    server = init_server(home, open_operator(ophome), settings)
    click.echo(f"server home {home} of fleet {server.fleet}; start it with: covey serve {home}")


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
        while True:
            service = Service(open_server(home))
            await service.run()
            if not service.home_changed:
                return
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


cli.add_command(alerts_command)
cli.add_command(audit)
cli.add_command(device)
device.add_command(quarantine_command)
device.add_command(release_command)
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
    except CoveyError as error:
        click.echo(f"covey: {error}", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
