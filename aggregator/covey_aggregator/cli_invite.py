"""``covey device add``: provisioning bundles, or requests for them where the operator is elsewhere."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import click
import msgspec

from covey_aggregator import accepting
from covey_aggregator.cli_device import home_option
from covey_aggregator.cli_home import carry, operator_at_hand, operator_option
from covey_aggregator.cli_passphrase import passphrase_option
from covey_aggregator.cli_qr import qr_option, show
from covey_aggregator.files import PRIVATE, replace
from covey_aggregator.home import BUNDLES, DATABASE_FILE, ServerHome, open_server
from covey_aggregator.requests import Wanted
from covey_aggregator.revocations import read_kept
from covey_aggregator.store import Store
from covey_aggregator.tls_home import TlsHome, has_tls
from covey_protocol import identity, provisioning, topics
from covey_protocol.errors import ConfigError
from covey_protocol.provisioning import Broker

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_LOGIN_MAX = 255


@click.command("add")
@click.argument("name")
@home_option
@operator_option
@click.option("--profile", default="pi-4", show_default=True, help="Firmware profile.")
@click.option("--count", default=1, show_default=True, help="Make NAME-01, NAME-02, … instead of one NAME.")
@click.option(
    "--expires", default="7d", show_default=True, help="How long the bundle is good for: 30m, 12h, 7d or never."
)
@click.option("--mqtt-user", default="", help="A name that these devices share at a broker that asks for one.")
@click.option("--mqtt-password-file", type=_FILE, help="File with its password, in one line.")
@click.option("--mqtt-logins", type=_FILE, help="CSV file instead, with lines of device, name, password.")
@click.option("--out", type=_FOLDER, help="Folder for the bundles (default HOME/bundles).")
@qr_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@passphrase_option
def add_command(
    name: str,
    home: Path,
    ophome: Path | None,
    profile: str,
    count: int,
    expires: str,
    mqtt_user: str,
    mqtt_password_file: Path | None,
    mqtt_logins: Path | None,
    out: Path | None,
    show_qr: bool,
    as_json: bool,
    passphrase_file: Path | None,
) -> None:
    """Make a one-time provisioning bundle for a device; copy it there and run `covey-agent enrol`.

    With the operator's home elsewhere a request for `covey operator sign` is written instead, which makes the bundles
    there.

    \b
    Examples:
      covey device add pi-kitchen --home home
      covey device add pi --count 20 --home home --expires 12h
      covey device add pi-attic --home home --qr
    """
    server = open_server(home, waiting=True)
    operator = operator_at_hand(server, ophome, passphrase_file)
    if count < 1:
        raise ConfigError(f"--count {count}: at least 1")
    seconds = _seconds(expires)
    width = max(2, len(str(count)))
    names = [name] if count == 1 else [f"{name}-{number:0{width}d}" for number in range(1, count + 1)]
    for one in names:
        topics.check_device(one)
    topics.check_name(profile, "profile")
    logins = _logins(names, mqtt_user, mqtt_password_file, mqtt_logins)
    store = Store(home / DATABASE_FILE)
    taken = sorted({row.name for row in store.devices()}.intersection(names))
    if taken:
        raise ConfigError(f"already in the fleet: {', '.join(taken)}")
    if operator is None:
        wanted = [Wanted(device=one, broker=broker) for one, broker in _brokers(server, store, names, logins).items()]
        path = accepting.ask_tokens(server, wanted, profile, seconds)
        if as_json:
            click.echo(json.dumps({"request": str(path)}))
        else:
            carry(path, home)
            click.echo(
                "The bundles are made there; bring each from there to its device (--qr of that command shows them)."
            )
        return
    server = open_server(home)
    folder = out or home / BUNDLES
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    newest = read_kept(operator)
    files = []
    for one, broker in _brokers(server, store, names, logins).items():
        bundle = operator.provision(
            one,
            profile=profile,
            seconds=seconds,
            delegation=server.delegation,
            broker=broker,
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
        if show_qr:
            show(Path(file))
    click.echo(f"Whoever has a bundle can become that device once (expires: {expires}). On the device, run:")
    click.echo(f"  covey-agent enrol {Path(files[0]).name}")


def _brokers(
    server: ServerHome, store: Store, names: list[str], logins: dict[str, tuple[str, str]]
) -> dict[str, Broker]:
    """Return for each device how it reaches the broker: with a certificate and key of its own where there is a CA."""
    base, now = server.broker_for_devices(), int(time.time())
    tls = TlsHome(server.path, store) if has_tls(server.path) and base.ca else None
    found = {}
    for name in names:
        broker = base
        if name in logins:
            username, password = logins[name]
            broker = msgspec.structs.replace(broker, username=username, password=password)
        if tls is not None:
            made, key = tls.issue_with_key(name, now)
            broker = msgspec.structs.replace(
                broker, certificate=made.pem, key=key, certificate_not_after=made.not_after
            )
        found[name] = broker
    return found


def _logins(names: list[str], user: str, password_file: Path | None, table: Path | None) -> dict[str, tuple[str, str]]:
    """Return name and password at the broker for each device, as they were given."""
    if bool(user) != bool(password_file) or (user and table):
        raise ConfigError("give --mqtt-user with --mqtt-password-file, or --mqtt-logins alone")
    if password_file is not None:
        found = dict.fromkeys(names, (user, _text(password_file).split("\n", 1)[0].rstrip("\r")))
    elif table is not None:
        found = {}
        for number, row in enumerate(csv.reader(_text(table).splitlines()), 1):
            if row and len(row) != 3:
                raise ConfigError(f"{table}: line {number} does not have a device, a name and a password")
            if row:
                found[row[0].strip()] = (row[1], row[2])
        missing = [name for name in names if name not in found]
        if missing:
            raise ConfigError(f"{table}: has no line for {missing[0]}")
    else:
        return {}
    for name in names:
        if not all(0 < len(part) <= _LOGIN_MAX for part in found[name]):
            raise ConfigError(f"{table or password_file}: name or password of {name} is empty or too long")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read") from error


def _seconds(text: str) -> int:
    """Read a span such as 7d; "never" is 0."""
    if text == "never":
        return 0
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"--expires {text!r}: write a number and m, h or d, such as 7d, or never")
    return int(match[1]) * _UNITS[match[2]]
