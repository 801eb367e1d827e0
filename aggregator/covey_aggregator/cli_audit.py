"""``covey audit``, ``covey alerts``: what was decided, what shows that it was right, and what to hear of."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from covey_aggregator.alerts import AlertBook, summary
from covey_aggregator.audit import AuditLog, check, check_export
from covey_aggregator.cli_device import home_option
from covey_aggregator.files import replace
from covey_aggregator.home import DATABASE_FILE, open_server
from covey_aggregator.store import Store
from covey_protocol.errors import ConfigError
from covey_protocol.identity import Former
from covey_protocol.proofs import Verdict, verify

_FILE = click.Path(path_type=Path, dir_okay=False)
_EXISTING = click.Path(path_type=Path, dir_okay=False, exists=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
maybe_home = click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), envvar="COVEY_HOME", help="The server's home."
)


@click.group()
def audit() -> None:
    """The audit log, and proofs that devices lied."""


@audit.command("export")
@home_option
@click.option("-o", "--out", type=_FILE, help="File to write; without it the log is printed.")
def export_command(home: Path, out: Path | None) -> None:
    """Write the audit log as JSON lines; the last one is a head that the aggregator signs.

    \b
    Example:
      covey audit export --home home -o audit.jsonl
    """
    server = open_server(home)
    text = "".join(f"{line}\n" for line in AuditLog(Store(home / DATABASE_FILE)).export(server.fleet, server.key))
    if out is None:
        click.echo(text, nl=False)
        return
    replace(out, text.encode())
    click.echo(f"{out}: {text.count(chr(10)) - 1} entries")


@audit.command("verify")
@click.argument("file", type=_EXISTING, required=False)
@home_option
@click.option("--expect", default="", help="First digits of a digest that was noted earlier and has to be in the log.")
@json_option
def verify_command(file: Path | None, home: Path, expect: str, as_json: bool) -> None:
    """Check that nobody has changed the audit log: the one in the home, or an exported FILE.

    \b
    Examples:
      covey audit verify --home home
      covey audit verify audit.jsonl --home home --expect 3fa2b1c0
    """
    server = open_server(home)
    if file is None:
        checked = check(AuditLog(Store(home / DATABASE_FILE)).entries(), expect)
    else:
        checked = check_export(
            file.read_text("utf-8").splitlines(),
            fleet=server.fleet,
            operator_key=server.operator_key,
            delegation=server.delegation,
            expected=expect,
        )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "entries": checked.entries,
                    "digest": checked.digest.hex(),
                    "signed": checked.signed,
                    "erased": checked.erased,
                }
            )
        )
        return
    signed = ", signed by the aggregator" if checked.signed else ""
    erased = f" ({checked.erased} of them erased, as later ones say)" if checked.erased else ""
    click.echo(f"the audit log holds: {checked.entries} entries{erased}{signed}; newest digest {checked.digest.hex()}")


@audit.command("proofs")
@home_option
@json_option
def proofs_command(home: Path, as_json: bool) -> None:
    """List the proofs that devices lied.

    \b
    Example:
      covey audit proofs --home home
    """
    open_server(home)
    rows = Store(home / DATABASE_FILE).kept_proofs()
    if as_json:
        listed = [{"id": row.id, "device": row.device, "lie": row.reason, "at": row.at} for row in rows]
        click.echo(json.dumps(listed, indent=2))
        return
    for row in rows:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.at))
        click.echo(f"{row.id:<14} {at}  {row.device:<24} {row.reason}")
    if not rows:
        click.echo("no device is proven to have lied")


@audit.command("proof")
@click.argument("id")
@home_option
@click.option("-o", "--out", type=_FILE, required=True, help="File to write.")
def proof_command(id: str, home: Path, out: Path) -> None:
    """Write one proof to a file, for whoever has to be convinced; ID is from `covey audit proofs`, or a device.

    \b
    Example:
      covey audit proof 3fa2b1c0d9e8 --home home -o pi-3.proof
    """
    open_server(home)
    rows = [
        row for row in Store(home / DATABASE_FILE).kept_proofs() if row.device == id or row.id.startswith(id.lower())
    ]
    if len(rows) != 1:
        raise ConfigError(f"{'no' if not rows else len(rows)} proofs are called {id!r}; see `covey audit proofs`")
    replace(out, rows[0].proof)
    click.echo(f"{out}: {len(rows[0].proof)} bytes; check it anywhere with: covey audit verify-proof {out.name}")


@audit.command("verify-proof")
@click.argument("file", type=_EXISTING)
@maybe_home
@click.option(
    "--operator-key",
    "operator_keys",
    multiple=True,
    help="The operator's public key in hex, or the file operator.pub; once more for each key that it had before.",
)
@click.option("--fleet", default="", help="The fleet's name, together with --operator-key.")
@json_option
def verify_proof_command(
    file: Path, home: Path | None, operator_keys: tuple[str, ...], fleet: str, as_json: bool
) -> None:
    """Check a proof without any network; exits with 0 only if it holds.

    Trust the operator's key, from the operator, and nothing that came with the proof. Where the operator has changed
    its key, the one counts under which the devices in the proof were invited; --home knows all of them.

    \b
    Examples:
      covey audit verify-proof pi-3.proof --home home
      covey audit verify-proof pi-3.proof --operator-key 5d1c… --fleet meadow
    """
    if home is not None and not operator_keys:
        server = open_server(home)
        key, former, fleet = server.operator_key, server.former, fleet or server.fleet
    else:
        key, former = _anchor(operator_keys, fleet)
    verdict = verify(file.read_bytes(), operator_key=key, fleet=fleet, former=former)
    click.echo(json.dumps(_as_json(verdict), indent=2) if as_json else in_words(verdict))


def _anchor(operator_keys: tuple[str, ...], fleet: str) -> tuple[bytes, Former]:
    """Return one key, and the others as keys of before, all of whose tokens count."""
    if not operator_keys or not fleet:
        raise ConfigError("verify-proof needs --home, or --operator-key and --fleet")
    keys = [_key(given) for given in operator_keys]
    return keys[0], Former(tuple(keys[1:]), None)


def _key(given: str) -> bytes:
    path = Path(given)
    text = path.read_text("utf-8", "replace").strip() if path.is_file() else given
    try:
        key = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"--operator-key: not a key in hex: {error}") from error
    if len(key) != 32:
        raise ConfigError(f"--operator-key: holds {len(key)} bytes where a key has 32")
    return key


def in_words(verdict: Verdict) -> str:
    """Say what a proof shows."""
    return (
        f"The proof holds. In round {verdict.round}.{verdict.attempt} of task {verdict.task!r}, fleet "
        f"{verdict.fleet!r}, the device {verdict.device!r} {verdict.words}.\n"
        f"Its key: {verdict.key.hex()}\nIts token: {verdict.token.hex()}"
    )


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {**asdict(verdict), "key": verdict.key.hex(), "token": verdict.token.hex(), "holds": True}


@click.command("alerts")
@home_option
@click.option("--last", default=50, show_default=True, help="How many.")
@json_option
def alerts_command(home: Path, last: int, as_json: bool) -> None:
    """Print the newest alerts.

    \b
    Example:
      covey alerts --home home
    """
    open_server(home)
    found = AlertBook(Store(home / DATABASE_FILE)).newest(last)
    if as_json:
        click.echo(json.dumps([summary(alert) for alert in found], indent=2))
        return
    for alert in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(alert.at))
        where = f" ({alert.task}, round {alert.round})" if alert.task else ""
        click.echo(f"{alert.id:>6}  {at}  {alert.kind:<14} {alert.text}{where}")
    if not found:
        click.echo("no alerts")
