"""Bundles as QR codes in the terminal, for a device with a camera or a telephone beside it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from covey_aggregator.qr import LARGEST, size, text_qr
from covey_protocol import provisioning

qr_option = click.option(
    "--qr", "show_qr", is_flag=True, help="Also show each bundle as a QR code, which holds it all."
)


def show(bundle: Path) -> None:
    """Print a bundle as a QR code, or say why that cannot be."""
    line = provisioning.encode(provisioning.decode(bundle.read_text(encoding="ascii")), compact=True)
    code = text_qr(line)
    if code is None:
        click.echo(f"{bundle}: {len(line)} bytes, and a QR code holds {LARGEST}: copy the file instead")
        return
    columns, lines = size(code)
    have = shutil.get_terminal_size()
    if sys.stdout.isatty() and have.columns < columns:  # broken into pieces nobody can read it
        click.echo(
            f"{bundle}: the QR code is {columns} columns wide, and this terminal has {have.columns}: use a smaller"
        )
        click.echo("  letter, or copy the file instead")
        return
    click.echo(code)
    click.echo(
        f"{bundle}: a QR code of {columns} columns and {lines} lines. What it says is the bundle: put that line into"
    )
    click.echo("  a file on the device. Whoever takes a picture of it can become the device.")
