"""``covey device``: invite devices and look at them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from covey_aggregator import exposure
from covey_aggregator.desk_view import DeskView
from covey_aggregator.home import DATABASE_FILE, ServerHome, open_server
from covey_aggregator.revocations import read_stored
from covey_aggregator.store import DeviceRow, Store
from covey_protocol.digest import short
from covey_protocol.errors import ConfigError
from covey_protocol.revocation import Revocation

_FOLDER = click.Path(path_type=Path, file_okay=False)
home_option = click.option("--home", type=_FOLDER, envvar="COVEY_HOME", required=True, help="The server's home.")


@click.group()
def device() -> None:
    """Invite devices into the fleet and see how they are."""


@device.command("list")
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(home: Path, as_json: bool) -> None:
    """List devices that have enrolled, bundles that were not used yet, and who of them was revoked.

    \b
    Example:
      covey device list --home home
    """
    server = open_server(home)
    store = Store(home / DATABASE_FILE)
    rows, revoked, view = store.devices(), _revoked(server, store), DeskView(store)
    enrolled = {row.name for row in rows}
    invited = [entry for entry in store.invited() if entry[0] not in enrolled]
    gone = revoked.withdrawn(store.tokens())
    if as_json:
        devices = [
            {
                "name": row.name,
                "status": revoked.status(row),
                **dict(zip(("state", "score"), view.brief(row.name), strict=True)),
                "profile": row.profile,
                "key": row.key.hex(),
                "seen": row.seen,
            }
            for row in rows
        ]
        names = [entry[0] for entry in invited]
        withdrawn = [name for name in names if name in gone]
        open_ = [name for name in names if name not in gone]
        click.echo(json.dumps({"devices": devices, "invited": open_, "withdrawn": withdrawn}, indent=2))
        return
    for row in rows:
        status, (state, score) = revoked.status(row), view.brief(row.name)
        shown = f"{state:<11} {'' if score is None else f'{score:.2f}':<4}"
        click.echo(f"{row.name:<24} {status:<9} {shown} {row.profile:<16} key {short(row.key)}  seen {_ago(row.seen)}")
    for name, profile, _ in invited:
        click.echo(f"{name:<24} {'withdrawn' if name in gone else 'invited':<9} {profile:<16}")
    if not rows and not invited:
        click.echo("no devices yet; make a bundle with: covey device add NAME")


@device.command("show")
@click.argument("name")
@home_option
@click.option("--history", is_flag=True, help="Also what every round said of it, and what was decided about it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, home: Path, history: bool, as_json: bool) -> None:
    """Show one device: who it is, how it stands and why.

    \b
    Examples:
      covey device show pi-kitchen --home home
      covey device show pi-kitchen --home home --history
    """
    server = open_server(home)
    store = Store(home / DATABASE_FILE)
    row = next((row for row in store.devices() if row.name == name), None)
    if row is None:
        raise ConfigError(f"there is no device {name!r}; see `covey device list`")
    records = (record for task in store.tasks() for record in store.rounds(task.task.name))
    exposed = exposure.count(records).get(name, exposure.Exposure())
    revoked, view = _revoked(server, store), DeskView(store)
    details: dict[str, Any] = {
        "name": row.name,
        "status": revoked.status(row),
        "profile": row.profile,
        "software": row.software,
        "holds": row.holds,
        "key": row.key.hex(),
        "token": short(row.token),
        "joined_rounds": row.sequence,
        "sets": exposed.sets,
        "groupings": exposed.groupings,
        "seen": row.seen,
        **view.details(name),
        **revoked.details(row),
    }
    if as_json:
        click.echo(json.dumps(details | ({"history": view.history(name)} if history else {}), indent=2))
        return
    for key, value in details.items():
        shown = _ago(row.seen) if key == "seen" else value
        if isinstance(value, dict):
            shown = ", ".join(f"{part} {number:+.2f}" for part, number in value.items())
        click.echo(f"{key:<14} {'; '.join(value) if isinstance(value, list) else shown}")
    for line in view.history_lines(name) if history else []:
        click.echo(line)


@dataclass(frozen=True)
class _Revoked:
    """The published list and the operator's words, for people."""

    version: int
    by_token: dict[bytes, Revocation]
    words: dict[bytes, str]

    def status(self, row: DeviceRow) -> str:
        return "revoked" if row.token in self.by_token else row.status

    def details(self, row: DeviceRow) -> dict[str, str | int]:
        entry = self.by_token.get(row.token)
        if entry is None:
            return {}
        return {"category": entry.reason, "reason": self.words.get(row.token, ""), "list": self.version}

    def withdrawn(self, tokens: dict[bytes, str]) -> set[str]:
        """Return the names all of whose tokens are revoked."""
        good = {name for token, name in tokens.items() if token not in self.by_token}
        return set(tokens.values()) - good


def _revoked(server: ServerHome, store: Store) -> _Revoked:
    found = read_stored(store, operator_key=server.operator_key, fleet=server.fleet, succession=server.succession)
    entries = {entry.token: entry for entry in found.entries} if found else {}
    return _Revoked(found.version if found else 0, entries, store.revoked())


def _ago(at: float) -> str:
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"
