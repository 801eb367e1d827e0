"""``covey device quarantine`` and ``release``: the operator's own word about a device."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from covey_aggregator.cli_device import home_option
from covey_aggregator.desk import QUARANTINE, RELEASE, Orders, What, objection
from covey_aggregator.desk_view import DeskView
from covey_aggregator.home import DATABASE_FILE, open_server
from covey_aggregator.store import Store
from covey_protocol.errors import ConfigError

_STEP = 0.05
reason_option = click.option("--reason", required=True, help="Why, in words; they stand in the audit log.")
wait_option = click.option(
    "--wait", default=5.0, show_default=True, help="Seconds to wait for the running service's answer."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("quarantine")
@click.argument("name")
@home_option
@reason_option
@wait_option
@json_option
def quarantine_command(name: str, home: Path, reason: str, wait: float, as_json: bool) -> None:
    """Leave a device's updates out of the model until it is released; it goes on to be scored.

    A running `covey serve` takes it up within a second, from the next round on; otherwise the next start does.

    \b
    Example:
      covey device quarantine pi-kitchen --home home --reason "camera was moved"
    """
    _order(name, home, QUARANTINE, reason, wait, as_json)


@click.command("release")
@click.argument("name")
@home_option
@reason_option
@wait_option
@json_option
def release_command(name: str, home: Path, reason: str, wait: float, as_json: bool) -> None:
    """Let a suspect or quarantined device start again on probation, with nothing held against it.

    A ban is never lifted: a proof does not become less true.

    \b
    Example:
      covey device release pi-kitchen --home home --reason "camera was put back"
    """
    _order(name, home, RELEASE, reason, wait, as_json)


def _order(name: str, home: Path, what: What, reason: str, wait: float, as_json: bool) -> None:
    open_server(home)
    store = Store(home / DATABASE_FILE)
    if name not in {row.name for row in store.devices()}:
        raise ConfigError(f"there is no device {name!r}; see `covey device list`")
    standing = DeskView(store).standing(name)
    refusal = objection(standing.state if standing is not None else None, name, what)
    if refusal:
        raise ConfigError(refusal)
    orders = Orders(store)
    number = orders.add(name, what, reason)
    until = time.monotonic() + max(0.0, wait)
    while not (order := orders.order(number)).done and time.monotonic() < until:
        time.sleep(_STEP)
    if order.done and order.refused:
        raise ConfigError(order.answer)
    if as_json:
        click.echo(json.dumps({"order": number, "device": name, "what": what, "done": order.done}))
    elif order.done:
        click.echo(order.answer)
    else:
        click.echo(f"{what} of {name} stands in the database; `covey serve` carries it out when it starts")
