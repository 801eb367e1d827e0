"""``covey operator``: the key at the root of all trust, and what it signs for servers elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from covey_aggregator import signing
from covey_aggregator.cli_passphrase import NONE, asking, asking_new, passphrase_option
from covey_aggregator.cli_qr import qr_option, show
from covey_aggregator.home import follow, open_server
from covey_aggregator.operator import KEY_FILE, SUCCESSION_REPLY, init_operator, open_operator
from covey_aggregator.passphrase import read_passphrase
from covey_aggregator.rotating import rotate

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def operator() -> None:
    """The operator's key and policy; this home may live on another machine."""


@operator.command("init")
@click.argument("ophome", type=_FOLDER)
@click.option("--fleet", required=True, help="Name of the fleet: a-z, 0-9 and '-'.")
@passphrase_option
def operator_init(ophome: Path, fleet: str, passphrase_file: Path | None) -> None:
    """Make the operator key and a policy in OPHOME; running it again changes nothing.

    On a terminal it asks for a passphrase. Without a terminal, and without a file that holds one, the key has none.

    \b
    Examples:
      covey operator init op --fleet meadow
      covey operator init /media/usb/op --fleet meadow --passphrase-file /run/user/1000/passphrase
    """
    home = init_operator(ophome, fleet, new=asking_new(passphrase_file), ask=asking(passphrase_file))
    click.echo(f"operator home {ophome} of fleet {home.fleet}; public key {home.public_key.hex()}")
    click.echo("Keep it safe and apart from the server: it can name new devices and a new aggregator.")


@operator.command("passphrase")
@click.argument("ophome", type=_FOLDER)
@passphrase_option
@click.option("--new-passphrase-file", type=_FILE, help="File with the new passphrase, if nobody can be asked.")
@click.option("--none", "remove", is_flag=True, help="Take the passphrase away.")
def operator_passphrase(
    ophome: Path, passphrase_file: Path | None, new_passphrase_file: Path | None, remove: bool
) -> None:
    """Set, change or take away the passphrase of the operator's key; the key stays the same.

    Whoever has an old copy of the file can still open it with the old passphrase.

    \b
    Example:
      covey operator passphrase op
    """
    home = open_operator(ophome, asking(passphrase_file))
    _ = home.key  # the old passphrase is asked for first
    if remove or (new_passphrase_file is None and not sys.stdin.isatty()):
        if not remove:
            raise click.UsageError("give --new-passphrase-file, or --none, where there is no terminal")
        home.protect(b"")
        click.echo(NONE, err=True)
        return
    new = read_passphrase(new_passphrase_file) if new_passphrase_file else asking_new(None)()
    home.protect(new)
    click.echo(f"{ophome / KEY_FILE}: {'under the new passphrase' if new else 'without a passphrase'}")


@operator.command("rotate")
@click.argument("ophome", type=_FOLDER)
@click.argument("homes", type=_FOLDER, nargs=-1)
@passphrase_option
@click.option("--new-passphrase-file", type=_FILE, help="File with the next key's passphrase, if nobody can be asked.")
def operator_rotate(
    ophome: Path, homes: tuple[Path, ...], passphrase_file: Path | None, new_passphrase_file: Path | None
) -> None:
    """Change the operator's key: the old one signs for the next, and is destroyed.

    Devices that are enrolled follow by themselves, also those that are away for now. Tokens that were issued so far go
    on counting; nothing else does that the old key has signed or will sign. Server homes that are at hand, HOMES, take
    it at once; for others OPHOME/succession.reply goes to `covey accept`.

    Without a terminal the next key gets the passphrase in --new-passphrase-file, or else that in --passphrase-file.

    \b
    Examples:
      covey operator rotate op home
      covey operator rotate /media/usb/op --passphrase-file /run/user/1000/passphrase
    """
    new = asking_new(new_passphrase_file or passphrase_file)
    home, finished = rotate(ophome, ask=asking(passphrase_file), new=new)
    if finished:
        click.echo("A change that was cut off is finished; no other one was begun.")
    click.echo(f"operator home {ophome} of fleet {home.fleet}; public key {home.public_key.hex()}")
    for server in homes:
        for line in follow(open_server(server, waiting=True), home) or ["nothing new"]:
            click.echo(f"{server}: {line}")
    click.echo(f"{ophome / SUCCESSION_REPLY}: for `covey accept` of every server that is elsewhere")
    click.echo("Destroy the copies of the old key that you keep, and make a new one of OPHOME.")


@operator.command("sign")
@click.argument("ophome", type=_FOLDER)
@click.argument("requests", type=click.Path(path_type=Path, dir_okay=False, exists=True), nargs=-1)
@click.option("--out", type=_FOLDER, help="Folder for the replies (default: beside each request).")
@click.option("--yes", is_flag=True, help="Do not ask whether it is meant.")
@qr_option
@passphrase_option
def operator_sign(
    ophome: Path, requests: tuple[Path, ...], out: Path | None, yes: bool, show_qr: bool, passphrase_file: Path | None
) -> None:
    """Say what each REQUEST of a server asks, and sign it; without a request, sign policy.yaml for all servers.

    Replies go back to the server, to `covey accept`. Bundles for devices stay in OPHOME/bundles: bring each to its
    device, and not by way of the server.

    \b
    Examples:
      covey operator sign op /media/usb/delegation.request
      covey operator sign op /media/usb/*.request --out /media/usb
      covey operator sign op --out /media/usb
    """
    home = open_operator(ophome, asking(passphrase_file))
    if not requests:
        path = signing.sign_policy(home, out or ophome)
        click.echo(f"{path}: the policy, for all servers of fleet {home.fleet}")
        return
    for request in requests:
        asked = signing.look(home, request)
        click.echo(f"{request}, " + "\n".join(asked.words))
        if not yes and not asked.answered and sys.stdin.isatty():
            click.confirm("Sign it?", abort=True, err=True)
        reply, *bundles = signing.sign(home, asked, out or request.parent)
        click.echo(f"{reply}: for the server")
        for bundle in bundles:
            click.echo(f"{bundle}: for the device")
            if show_qr:
                show(bundle)
