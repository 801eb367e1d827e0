"""``covey device revoke`` and ``forget``: shut a device out, and erase what is known of it."""

from __future__ import annotations

from pathlib import Path

import click

from covey_aggregator import accepting
from covey_aggregator.cli_device import home_option
from covey_aggregator.cli_home import carry, operator_at_hand, operator_option
from covey_aggregator.cli_passphrase import passphrase_option
from covey_aggregator.erasure import forget
from covey_aggregator.files import FolderLock
from covey_aggregator.home import DATABASE_FILE, LOCK_FILE, ServerHome, open_server
from covey_aggregator.revocations import read_stored, revoke
from covey_aggregator.store import Store
from covey_protocol.envelope import KEY_BYTES
from covey_protocol.errors import ConfigError
from covey_protocol.revocation import Revocation

CATEGORIES = ("lost", "stolen", "compromised", "misbehaving", "retired", "other")
reason_option = click.option("--reason", required=True, help="Why, in words; they stay on this server.")
category_option = click.option(
    "--category",
    type=click.Choice(CATEGORIES),
    default=CATEGORIES[-1],
    show_default=True,
    help="Why, in one word that every device can read.",
)


@click.command("revoke")
@click.argument("name")
@home_option
@operator_option
@reason_option
@category_option
@passphrase_option
def revoke_command(
    name: str, home: Path, ophome: Path | None, reason: str, category: str, passphrase_file: Path | None
) -> None:
    """Shut a device out for good, or take back a bundle that was not used; its tokens never count again.

    A running `covey serve` publishes the new list within a second, and the next round goes on without the device. With
    TLS its certificates go on the broker's list too, which the broker reads when it is told to reload. With the
    operator's home elsewhere a request for `covey operator sign` is written, and the broker's list at once.

    \b
    Example:
      covey device revoke pi-kitchen --home home --reason "left on a train" --category lost
    """
    server = open_server(home)
    _revoke(server, Store(home / DATABASE_FILE), name, ophome, reason, category, passphrase_file)


@click.command("forget")
@click.argument("name")
@home_option
@operator_option
@click.option("--revoke", is_flag=True, help="Revoke it first, if it is not.")
@passphrase_option
def forget_command(name: str, home: Path, ophome: Path | None, revoke: bool, passphrase_file: Path | None) -> None:
    """Erase what this server holds of a device: who it was, what it said, what was thought of it.

    The device has to be revoked before, or its bundle withdrawn, so that it cannot come back; `covey serve` must not be
    running. In records of several devices, and in the audit log, whose chain goes on holding, a pseudonym takes its
    place that leads nobody back to it. What cannot go is said.

    \b
    Examples:
      covey device forget pi-kitchen --home home
      covey device forget pi-kitchen --home home --revoke
    """
    server, store = open_server(home), Store(home / DATABASE_FILE)
    tokens = _tokens(store, name)
    if not tokens:
        raise ConfigError(f"there is no device {name!r}, and no bundle for it; see `covey device list`")
    if not _is_out(server, store, tokens):
        if not revoke:
            raise ConfigError(
                f"{name} is neither revoked nor withdrawn; `covey device revoke` it first, or give --revoke"
            )
        _revoke(server, store, name, ophome, "to be forgotten", "retired", passphrase_file)
        if not _is_out(server, store, tokens):
            click.echo(f"{name} can be forgotten when the reply is in place.")
            return
    with FolderLock(home / LOCK_FILE, "`covey serve`"):
        erased = forget(store, home, name, tokens)
    click.echo(
        f"{name} is forgotten; {erased.audit} entries of the audit log are erased, and call it {erased.pseudonym}"
    )
    if erased.regrouped:
        click.echo("groups are drawn anew at the next start, because it was in them")
    for what in erased.stays:
        click.echo(f"what still names it: {what}")


def _revoke(
    server: ServerHome,
    store: Store,
    name: str,
    ophome: Path | None,
    reason: str,
    category: str,
    passphrase_file: Path | None,
) -> None:
    operator = operator_at_hand(server, ophome, passphrase_file)
    server = open_server(server.path, waiting=True)
    tokens = _tokens(store, name)
    if not tokens:
        raise ConfigError(f"there is no device {name!r}, and no bundle for it; see `covey device list`")
    pins = {token: keys[-KEY_BYTES:] for token, keys in store.pins().items()}  # the newest of each
    keys = {row.token: row.key for row in store.devices()} | pins
    entries = [Revocation(token=token, key=keys.get(token, b""), device=name, reason=category) for token in tokens]
    known = read_stored(store, operator_key=server.operator_key, fleet=server.fleet, succession=server.succession)
    found = revoke(operator, entries, known) if operator is not None else None
    for token in tokens:
        store.note_revoked(token, name, reason)
    if accepting.shut_out(server, store, [name]):
        click.echo(f"the broker refuses {name} once it has loaded tls/crl.pem again: restart it, sessions survive")
    if found is None:
        if known is not None and set(tokens) <= {entry.token for entry in known.entries}:
            click.echo(f"{name} was revoked before: list {known.version}")
            return
        carry(accepting.ask_revocation(server, entries, known), server.path)
        click.echo(f"{name} is revoked for devices and aggregator when the reply is in place, and not before.")
    elif known is None or known.version < found.version:
        accepting.take_list(server, store, found, known)
        store.event("revocation", f"{name} is revoked ({category}): {reason}; list {found.version}")
        click.echo(f"{name} is revoked: list {found.version} with {len(found.entries)} entries")
    else:
        click.echo(f"{name} was revoked before: list {found.version}")


def _tokens(store: Store, name: str) -> list[bytes]:
    return [token for token, owner in store.tokens().items() if owner == name]


def _is_out(server: ServerHome, store: Store, tokens: list[bytes]) -> bool:
    """Whether none of some tokens counts any more."""
    known = read_stored(store, operator_key=server.operator_key, fleet=server.fleet, succession=server.succession)
    return known is not None and set(tokens) <= {entry.token for entry in known.entries}
