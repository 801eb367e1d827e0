"""How commands ask for the passphrase of the operator's key."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from covey_aggregator.passphrase import Ask, normal, read_passphrase
from covey_protocol.errors import ConfigError

ENVIRONMENT = "COVEY_PASSPHRASE_FILE"
NONE = (
    "WARNING: no passphrase. Whoever copies the file operator.key can name devices and a new aggregator; "
    "`covey operator passphrase` sets one later."
)
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=ENVIRONMENT,
    help=f"File with the passphrase of the operator's key, if nobody can be asked (or {ENVIRONMENT}).",
)


def asking(file: Path | None) -> Ask:
    """Return what finds out the passphrase of a key that is there: from a file, or from the person at the terminal."""

    def ask() -> bytes:
        if file is not None:
            return read_passphrase(file)
        if not sys.stdin.isatty():
            raise ConfigError(
                "the operator's key has a passphrase: run this on a terminal, or give --passphrase-file or "
                + ENVIRONMENT
            )
        return normal(click.prompt("Passphrase of the operator's key", hide_input=True, err=True), "the passphrase")

    return ask


def asking_new(file: Path | None) -> Ask:
    """Return what finds out the passphrase of a new key; on a terminal it is asked twice, and may be none."""

    def ask() -> bytes:
        if file is not None:
            return read_passphrase(file)
        if not sys.stdin.isatty():
            click.echo("the operator's key has no passphrase; `covey operator passphrase` sets one", err=True)
            return b""
        text = click.prompt(
            "Passphrase for the operator's key (empty for none)",
            hide_input=True,
            confirmation_prompt="The same again",
            default="",
            show_default=False,
            err=True,
        )
        if not text:
            click.secho(NONE, err=True, bold=True)
        return normal(text, "the passphrase")

    return ask
