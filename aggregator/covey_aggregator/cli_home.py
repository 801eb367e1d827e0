"""``covey init``, ``accept`` and ``renew``: a server's home, and the operator's word for it."""

from __future__ import annotations

import time
from pathlib import Path

import click

from covey_aggregator import accepting
from covey_aggregator.cli_passphrase import asking, asking_new, passphrase_option
from covey_aggregator.home import (
    DATABASE_FILE,
    SETTINGS_FILE,
    BrokerSettings,
    ServerHome,
    begin_server,
    follow,
    init_server,
    next_key,
    open_server,
    refresh,
)
from covey_aggregator.operator import SETTINGS_FILE as OPERATOR_SETTINGS
from covey_aggregator.operator import OperatorHome, init_operator, open_operator
from covey_aggregator.store import Store
from covey_aggregator.tls_home import PORT, lay_out_broker, make_tls, tls_settings
from covey_protocol.errors import ConfigError

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
operator_option = click.option(
    "--operator", "ophome", type=_FOLDER, help="The operator's home, if it has moved since `covey init`."
)


@click.command("init")
@click.argument("home", type=_FOLDER)
@click.option("--operator", "ophome", type=_FOLDER, help="The operator's home; with --fleet it is made if need be.")
@click.option("--fleet", default="", help="Name of the fleet, for a new operator's home or one that is elsewhere.")
@click.option("--operator-key", default="", help="The public key, in hex, of an operator whose home is elsewhere.")
@click.option("--broker", default="", help="HOST:PORT of the MQTT broker.  [default: 127.0.0.1:1883; 8883 with --tls]")
@click.option("--advertise", default="", help="Host name that devices use, if it is another one.")
@click.option("--tls", is_flag=True, help="Make a CA and certificates, and the configuration of a broker.")
@click.option("--mqtt", type=click.Choice(["5", "3.1.1"]), default="5", show_default=True, help="MQTT version.")
@click.option("--mqtt-user", default="", help="The aggregator's name at a broker that asks for names and passwords.")
@click.option("--mqtt-password-file", type=_FILE, help="File with its password, in one line.")
@passphrase_option
def init_command(
    home: Path,
    ophome: Path | None,
    fleet: str,
    operator_key: str,
    broker: str,
    advertise: str,
    tls: bool,
    mqtt: str,
    mqtt_user: str,
    mqtt_password_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Make the aggregator's key, delegation and settings in HOME; running it again overwrites nothing.

    Only a delegation that has less than a third of its year left is made anew then, and a policy that has changed.

    \b
    Examples:
      covey init home --operator op --fleet meadow --tls --broker broker.local:8883
      covey init home --operator op --broker 192.168.1.10:1883
      covey init home --fleet meadow --operator-key 5f0c…
    """
    password = str(mqtt_password_file.absolute()) if mqtt_password_file else ""
    if bool(mqtt_user) != bool(password):
        raise ConfigError("--mqtt-user and --mqtt-password-file go together")
    login = {"username": mqtt_user, "password_file": password}
    settings = BrokerSettings(**{**_broker(broker, tls), **login, "advertise": advertise, "protocol": mqtt})  # type: ignore[arg-type]
    existing = open_server(home, waiting=True) if (home / SETTINGS_FILE).exists() else None
    if operator_key:
        if ophome is not None or not fleet:
            raise ConfigError("--operator-key takes the place of --operator, and needs --fleet")
        server = begin_server(home, fleet, _key(operator_key), settings)
        operator = None
    else:
        ophome = ophome or _noted(existing)
        if ophome is None:
            raise ConfigError("give --operator OPHOME; or --fleet and --operator-key, if that home is elsewhere")
        if fleet and not (ophome / OPERATOR_SETTINGS).exists():
            made = init_operator(ophome, fleet, new=asking_new(passphrase_file), ask=asking(passphrase_file))
            click.echo(f"operator home {ophome} of fleet {fleet}; public key {made.public_key.hex()}")
            click.echo("Keep it safe and apart from the server: it can name new devices and a new aggregator.")
        operator = open_operator(ophome, asking(passphrase_file))
        if fleet and operator.fleet != fleet:
            raise ConfigError(f"{ophome}: is the operator home of fleet {operator.fleet!r}, not {fleet!r}")
        server = init_server(home, operator, settings)
    if tls:
        _make_tls(server)
    if operator is None and server.word is None:
        click.echo(f"server home {home} of fleet {server.fleet} waits for the operator's word.")
        _carry(accepting.ask_delegation(server), home)
        return
    click.echo(f"server home {home} of fleet {server.fleet}; start it with: covey serve {home}")


@click.command("accept")
@click.argument("home", type=_FOLDER)
@click.argument("replies", type=click.Path(path_type=Path, dir_okay=False, exists=True), nargs=-1, required=True)
def accept_command(home: Path, replies: tuple[Path, ...]) -> None:
    """Take in each REPLY that `covey operator sign` has written; taking one in again changes nothing.

    A running `covey serve` goes by what is new within a second.

    \b
    Example:
      covey accept home /media/usb/delegation.reply
    """
    store = None
    for reply in replies:
        server = open_server(home, waiting=True)
        store = store or Store(home / DATABASE_FILE)
        for line in accepting.accept(server, store, reply) or ["nothing new"]:
            click.echo(f"{reply}: {line}")


@click.command("renew")
@click.argument("home", type=_FOLDER)
@operator_option
@click.option("--new-key", is_flag=True, help="Also change the aggregator's own key; the old one counts no longer.")
@passphrase_option
def renew_command(home: Path, ophome: Path | None, new_key: bool, passphrase_file: Path | None) -> None:
    """Have the operator sign a new delegation, for a year, and the policy if it has changed.

    With the operator's home at hand this is done at once, otherwise a request for `covey operator sign` is written.
    A running `covey serve` goes by them within a second; what was open then is tried again.

    \b
    Example:
      covey renew home
    """
    server = open_server(home, waiting=True)
    operator = operator_at_hand(server, ophome, passphrase_file)
    server = open_server(home, waiting=True)
    key = next_key(home) if new_key else None
    if operator is None:
        _carry(accepting.ask_delegation(server, key), home)
        return
    for line in refresh(server, operator, renew=True, key=bytes(key.verify_key) if key else b""):
        click.echo(line)


def operator_at_hand(server: ServerHome, ophome: Path | None, passphrase_file: Path | None) -> OperatorHome | None:
    """Open the operator's home that belongs to a server's, if it is on this machine.

    Raises:
        ConfigError: It is another operator's, or was named and is none.
    """
    if ophome is None:
        noted = server.settings.operator_home
        if not noted or not (Path(noted) / OPERATOR_SETTINGS).exists():
            return None
        ophome = Path(noted)
    operator = open_operator(ophome, asking(passphrase_file))
    for line in follow(server, operator):
        click.echo(line, err=True)
        server = open_server(server.path, waiting=True)
    if (operator.public_key, operator.fleet) != (server.operator_key, server.fleet):
        raise ConfigError(f"{operator.path}: not the operator of {server.path}")
    return operator


def carry(path: Path, home: Path) -> None:
    """Say what is to be done with a request."""
    click.echo("The operator's home is not at hand. Take this request to it, and the reply back:")
    click.echo(f"  covey operator sign OPHOME {path}")
    click.echo(f"  covey accept {home} {path.with_suffix('.reply').name}")


_carry = carry


def _make_tls(server: ServerHome) -> None:
    broker = server.settings.broker
    hosts = [host for host in (broker.advertise, broker.host) if host]
    make_tls(server.path, server.fleet, hosts, int(time.time()))
    conf = lay_out_broker(server.path, broker)
    if broker.ca_file != tls_settings()["ca_file"]:
        click.echo(f"{server.path / SETTINGS_FILE} was there before; for TLS, set in it below `broker`:")
        for key, value in {"port": PORT, **tls_settings()}.items():
            click.echo(f"  {key}: {value}")
    click.echo(f"broker: mosquitto -c {conf}")


def _noted(existing: ServerHome | None) -> Path | None:
    return Path(existing.settings.operator_home) if existing and existing.settings.operator_home else None


def _broker(text: str, tls: bool) -> dict[str, str | int]:
    host, colon, port = (text or f"127.0.0.1:{PORT if tls else 1883}").rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--broker {text!r}: write HOST:PORT")
    return {"host": host, "port": int(port), **(tls_settings() if tls else {})}


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError("--operator-key: not 64 hexadecimal digits, as `covey operator init` prints them")
    return key
