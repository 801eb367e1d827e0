"""``covey device``: invite devices and look at them."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from covey_aggregator import exposure
from covey_aggregator.desk_view import DeskView
from covey_aggregator.files import PRIVATE, replace
from covey_aggregator.home import BUNDLES, DATABASE_FILE, ServerHome, open_server
from covey_aggregator.operator import OperatorHome, open_operator
from covey_aggregator.revocations import read_kept, read_stored, revoke
from covey_aggregator.store import DeviceRow, Store
from covey_protocol import identity, provisioning, topics
from covey_protocol.digest import short
from covey_protocol.errors import ConfigError
from covey_protocol.revocation import Revocation

_FOLDER = click.Path(path_type=Path, file_okay=False)
CATEGORIES = ("lost", "stolen", "compromised", "misbehaving", "retired", "other")
_UNITS = {"m": 60, "h": 3600, "d": 86400}
home_option = click.option("--home", type=_FOLDER, envvar="COVEY_HOME", required=True, help="The server's home.")


@click.group()
def device() -> None:
    """Invite devices into the fleet and see how they are."""


@device.command("add")
@click.argument("name")
@home_option
@click.option("--operator", "ophome", type=_FOLDER, help="The operator's home, if it has moved since `covey init`.")
@click.option("--profile", default="pi-4", show_default=True, help="Firmware profile.")
@click.option("--count", default=1, show_default=True, help="Make NAME-01, NAME-02, … instead of one NAME.")
@click.option(
    "--expires", default="7d", show_default=True, help="How long the bundle is good for: 30m, 12h, 7d or never."
)
@click.option("--out", type=_FOLDER, help="Folder for the bundles (default HOME/bundles).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(
    name: str, home: Path, ophome: Path | None, profile: str, count: int, expires: str, out: Path | None, as_json: bool
) -> None:
    """Make a one-time provisioning bundle for a device; copy it there and run `covey-agent enrol`.

    \b
    Examples:
      covey device add pi-kitchen --home home
      covey device add pi --count 20 --home home --expires 12h
    """
    server = open_server(home)
    operator = _operator_of(server, ophome)
    if count < 1:
        raise ConfigError(f"--count {count}: at least 1")
    seconds = _seconds(expires)
    width = max(2, len(str(count)))
    names = [name] if count == 1 else [f"{name}-{number:0{width}d}" for number in range(1, count + 1)]
    topics.check_name(profile, "profile")
    folder = out or home / BUNDLES
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(home / DATABASE_FILE)
    known = {row.name for row in store.devices()}
    taken = sorted(known.intersection(names))
    if taken:
        raise ConfigError(f"already in the fleet: {', '.join(taken)}")
    newest = read_kept(operator)
    files = []
    for one in names:
        bundle = operator.provision(
            one,
            profile=profile,
            seconds=seconds,
            delegation=server.delegation,
            broker=server.broker_for_devices(),
            revocations=newest.signed if newest else b"",
        )
        path = folder / f"{one}.bundle"
        replace(path, provisioning.encode(bundle).encode() + b"\n", PRIVATE)
        not_after = int(time.time()) + seconds if seconds else 0
        store.invite(one, profile, not_after, identity.token_id(bundle.token))
        files.append(str(path))
    if as_json:
        click.echo(json.dumps({"bundles": dict(zip(names, files, strict=True))}))
        return
    for file in files:
        click.echo(file)
    click.echo(f"Whoever has a bundle can become that device once (expires: {expires}). On the device, run:")
    click.echo(f"  covey-agent enrol {Path(files[0]).name}")


@device.command("revoke")
@click.argument("name")
@home_option
@click.option("--operator", "ophome", type=_FOLDER, help="The operator's home, if it has moved since `covey init`.")
@click.option("--reason", required=True, help="Why, in words; they stay on this server.")
@click.option(
    "--category",
    type=click.Choice(CATEGORIES),
    default=CATEGORIES[-1],
    show_default=True,
    help="Why, in one word that every device can read.",
)
def revoke_command(name: str, home: Path, ophome: Path | None, reason: str, category: str) -> None:
    """Shut a device out for good, or take back a bundle that was not used; its tokens never count again.

    A running `covey serve` publishes the new list within a second, and the next round goes on without the device.

    \b
    Example:
      covey device revoke pi-kitchen --home home --reason "left on a train" --category lost
    """
    server = open_server(home)
    operator = _operator_of(server, ophome)
    store = Store(home / DATABASE_FILE)
    tokens = [token for token, owner in store.tokens().items() if owner == name]
    if not tokens:
        raise ConfigError(f"there is no device {name!r}, and no bundle for it; see `covey device list`")
    keys = {row.token: row.key for row in store.devices()} | store.pins()
    additions = [Revocation(token=token, key=keys.get(token, b""), device=name, reason=category) for token in tokens]
    known = read_stored(store, operator_key=server.operator_key, fleet=server.fleet)
    found = revoke(operator, additions, known)
    for token in tokens:
        store.note_revoked(token, name, reason)
    if known is None or known.version < found.version:
        store.put_revocations(found.version, found.signed, found.body)
        store.event("revocation", f"{name} is revoked ({category}): {reason}; list {found.version}")
        click.echo(f"{name} is revoked: list {found.version} with {len(found.entries)} entries")
    else:
        click.echo(f"{name} was revoked before: list {found.version}")


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


def _operator_of(server: ServerHome, ophome: Path | None) -> OperatorHome:
    """Open the operator's home that belongs to a server's."""
    operator = open_operator(ophome or Path(server.settings.operator_home))
    if operator.public_key != server.operator_key:
        raise ConfigError(f"{operator.path}: not the operator of {server.path}")
    return operator


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
    found = read_stored(store, operator_key=server.operator_key, fleet=server.fleet)
    entries = {entry.token: entry for entry in found.entries} if found else {}
    return _Revoked(found.version if found else 0, entries, store.revoked())


def _seconds(text: str) -> int:
    """Read a span such as 7d; "never" is 0."""
    if text == "never":
        return 0
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"--expires {text!r}: write a number and m, h or d, such as 7d, or never")
    return int(match[1]) * _UNITS[match[2]]


def _ago(at: float) -> str:
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"
