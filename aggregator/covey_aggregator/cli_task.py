"""``covey task``: start learning tasks and watch them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import msgspec

from covey_aggregator import exposure
from covey_aggregator.cli_device import home_option
from covey_aggregator.home import DATABASE_FILE, open_server
from covey_aggregator.journal import Journal, JournalError, RoundHead
from covey_aggregator.store import Store, TaskRow
from covey_aggregator.task import load_task
from covey_protocol.bundle import Bundle
from covey_protocol.digest import short
from covey_protocol.errors import ConfigError, CoveyError

_ENDED = ("done", "failed", "stopped")


@click.group()
def task() -> None:
    """Start learning tasks, watch and stop them."""


@task.command("start")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@home_option
def start(file: Path, home: Path) -> None:
    """Queue the task that FILE describes; a running `covey serve` takes it up within a second.

    \b
    Example:
      covey task start digits.yaml --home home
    """
    policy = open_server(home).policy
    config = load_task(file)
    if config.group_size < policy.roster_min:
        raise ConfigError(f"{file}: group_size {config.group_size}: the policy asks for groups of {policy.roster_min}")
    try:
        bundle = Bundle.decode(Path(config.bundle).read_bytes())
    except CoveyError as error:
        raise ConfigError(f"{config.bundle}: {error}") from error
    try:
        noise = config.noise(bundle.dimension, policy)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    if noise is not None and config.attestation.size(bundle.dimension, policy):
        click.echo("sketches under noise find no poisoners and cost each device more; see docs/privacy.md", err=True)
    Store(home / DATABASE_FILE).add_task(config)
    click.echo(f"task {config.name} is queued; watch it with: covey task status {config.name} --home {home} --watch")


@task.command("status")
@click.argument("name", required=False)
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the record of every round.")
@click.option("--watch", is_flag=True, help="Print rounds as they close, until the task ends.")
def status(name: str | None, home: Path, as_json: bool, watch: bool) -> None:
    """Show tasks and their rounds.

    \b
    Examples:
      covey task status --home home
      covey task status digits --home home --watch
    """
    open_server(home)
    store = Store(home / DATABASE_FILE)
    rows = [row for row in store.tasks() if name in (None, row.task.name)]
    if name is not None and not rows:
        raise ConfigError(f"there is no task {name!r}; see `covey task status`")
    if watch and name is not None:
        _watch(store, name)
        return
    if as_json:
        click.echo(json.dumps([_as_json(store, row) for row in rows], indent=2))
        return
    for row in rows:
        reason = f" ({row.reason})" if row.reason else ""
        model = short(row.model) if row.model else "none"
        click.echo(f"{row.task.name:<20} {row.status}{reason}, round {row.round} of {row.task.rounds}, model {model}")
        records = store.rounds(row.task.name)
        for record in records:
            click.echo(_line(msgspec.to_builtins(record)))
        opened = _open_round(store, row)
        if opened is not None:
            again = f", resumed {opened['resumed']} times" if opened["resumed"] else ""
            click.echo(f"  round {opened['round']:>4}.{opened['attempt']}  is open{again}")
        if name is not None:
            click.echo(f"  {exposure.in_words(exposure.count(records))}")
    if not rows:
        click.echo("no tasks yet; start one with: covey task start TASK.yaml")


@task.command("stop")
@click.argument("name")
@home_option
def stop(name: str, home: Path) -> None:
    """End a task before its time; its last model stays.

    \b
    Example:
      covey task stop digits --home home
    """
    open_server(home)
    store = Store(home / DATABASE_FILE)
    row = store.task(name)
    if row is None:
        raise ConfigError(f"there is no task {name!r}; see `covey task status`")
    if row.status in _ENDED:
        click.echo(f"task {name} has ended already: {row.status}")
        return
    store.set_status(name, "stopping" if row.status == "running" else "stopped", "stopped by the operator")
    click.echo(f"task {name} is being stopped")


def _watch(store: Store, name: str) -> None:
    seen: set[tuple[int, int]] = set()
    while True:
        row = store.task(name)
        assert row is not None
        for record in store.rounds(name):
            if (record.round, record.attempt) not in seen:
                seen.add((record.round, record.attempt))
                click.echo(_line(msgspec.to_builtins(record)))
        if row.status in _ENDED:
            click.echo(f"{name}: {row.status}{': ' + row.reason if row.reason else ''}")
            return
        time.sleep(0.5)


def _as_json(store: Store, row: TaskRow) -> dict[str, object]:
    records = store.rounds(row.task.name)
    return {
        "name": row.task.name,
        "status": row.status,
        "reason": row.reason,
        "round": row.round,
        "attempt": row.attempt,
        "model": row.model.hex(),
        "open": _open_round(store, row),
        "task": msgspec.to_builtins(row.task),
        "exposure": msgspec.to_builtins(exposure.count(records)),
        "rounds": [msgspec.to_builtins(record) for record in records],
    }


def _open_round(store: Store, row: TaskRow) -> dict[str, int] | None:
    """Return which round of a task is open and how often it was taken up again after a restart."""
    journal = Journal(store)
    try:
        head = journal.head()
    except JournalError:
        return None
    if not isinstance(head, RoundHead) or head.task != row.task.name:
        return None
    return {"round": head.round, "attempt": head.attempt, "resumed": journal.resumed}


def _line(record: dict[str, object]) -> str:
    accuracy = record["accuracy"] if record["accuracy"] is not None else record["federated_accuracy"]
    shown = "   -  " if accuracy is None else f"{accuracy:6.3f}"
    closed = int(str(record["groups"])) - int(str(record["groups_aborted"]))
    resumed = f", resumed {record['resumed']} times" if record["resumed"] else ""
    return (
        f"  round {record['round']:>4}.{record['attempt']}  accuracy {shown}  groups {closed}/{record['groups']}  "
        f"devices {record['accepted']}/{record['participants']}  {record['seconds']:.1f} s{resumed}"
    )
