"""Reputation at the operator's desk: orders, the evidence log, and what `covey device` shows of them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, Device, make_homes, signed_state
from tests.aggregator.test_registry import endorsed_again

from covey_agent.cli import cli as agent
from covey_agent.home import open_home
from covey_aggregator import alerts
from covey_aggregator.audit import AuditLog, check
from covey_aggregator.chronicle import Chronicle
from covey_aggregator.cli import cli
from covey_aggregator.desk import REASON_MAX, Desk, Orders
from covey_aggregator.evidence_log import EvidenceLine, EvidenceLog
from covey_aggregator.home import DATABASE_FILE, ServerHome
from covey_aggregator.operator import OperatorHome
from covey_aggregator.registry import Registry
from covey_aggregator.reputation import Parts, Reputation, State
from covey_aggregator.reputations import Reputations
from covey_aggregator.store import DeviceRow, Store
from covey_protocol.epochs import Grouping
from covey_protocol.errors import ConfigError, RefusedError

NAMES = [f"pi-{number}" for number in range(12)]


class Office:
    """A server's home with twelve devices in one group, and what the aggregator does with orders."""

    def __init__(self, folder: Path) -> None:
        self.operator, self.home = make_homes(folder)
        self.path = str(self.home.path)
        self.store = Store(self.home.path / DATABASE_FILE)
        for name in NAMES:
            self.store.put_device(DeviceRow(name, name.encode(), name.encode(), "pi-4", "online", 1, 0, "", "", 0.0))
        self.books = Reputations(self.store)
        members = tuple((name, name.encode().ljust(32)) for name in NAMES)
        self.books.admit([Grouping(1, "1-s-0", members)], {n: (k, n.encode()) for n, k in members})
        self.books.keep()
        self.chronicle = Chronicle(self.store)
        self.desk = Desk(self.store, self.books, self.chronicle)

    @property
    def book(self) -> Reputation:
        book = self.books.book(NAMES[0])
        assert book is not None
        return book

    def rounds(self, count: int, poisoner: str = "") -> None:
        """Judge some rounds in which somebody sends the opposite of what the others do."""
        rng = np.random.default_rng(7)
        for number in range(1, count + 1):
            common = rng.normal(size=16)
            sketches = {name: common + 0.3 * rng.normal(size=16) for name in NAMES}
            if poisoner:
                sketches[poisoner] = -3 * common + 0.3 * rng.normal(size=16)
            ruling = self.book.settle(self.book.ruling(sketches))
            self.chronicle.settled("digits", number, 1, ruling, self.book)
        self.books.keep()

    def state(self, name: str) -> State:
        return self.book.standing(name).state

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, [*arguments, "--home", self.path])

    def shown(self, name: str, *options: str) -> dict[str, object]:
        answer = self.run("device", "show", name, "--json", *options)
        assert answer.exit_code == 0, answer.output
        return dict(json.loads(answer.output))


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_an_order_waits_for_the_service_and_acts_once(office: Office) -> None:
    answer = office.run("device", "quarantine", "pi-3", "--reason", "its camera was moved", "--wait", "0")
    assert answer.exit_code == 0, answer.output
    assert "carries it out when it starts" in answer.output
    assert office.state("pi-3") is State.PROBATION
    assert office.shown("pi-3")["waiting"] == ["quarantine: its camera was moved"]
    (note,) = office.desk.poll()
    assert note.cause == "quarantined"
    assert office.state("pi-3") is State.QUARANTINED
    assert office.desk.poll() == []
    # It is durable, has its line in the audit log with the reason, and rang.
    again = Reputations(Store(office.home.path / DATABASE_FILE)).book("pi-3")
    assert again is not None
    assert again.standing("pi-3").state is State.QUARANTINED
    (entry,) = AuditLog(office.store).entries("pi-3")
    assert (entry.kind, entry.data) == ("quarantined", {"before": "probation", "after": "quarantined"})
    assert "its camera was moved" in entry.text
    (alert,) = office.chronicle.alerts.after(0)
    assert (alert.kind, alert.device) == (alerts.QUARANTINED, "pi-3")
    shown = office.shown("pi-3")
    assert (shown["state"], shown["score"]) == ("quarantined", 0.0)
    assert "its camera was moved" in str(shown["words"])
    assert "waiting" not in shown


def test_a_running_service_answers_the_command(office: Office) -> None:
    done = threading.Event()

    def serve() -> None:
        own = Store(office.home.path / DATABASE_FILE)
        desk = Desk(own, Reputations(own), Chronicle(own))
        while not done.is_set():
            desk.poll()
            time.sleep(0.02)
        own.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        answer = office.run("device", "quarantine", "pi-3", "--reason", "moved", "--wait", "30")
        assert "pi-3 is quarantined: it was probation and is quarantined" in answer.output
        answer = office.run("device", "release", "pi-3", "--reason", "put back", "--wait", "30")
        assert "pi-3 is released: it was quarantined and is probation" in answer.output
    finally:
        done.set()
        thread.join()
    assert [entry.kind for entry in AuditLog(office.store).entries("pi-3")] == ["quarantined", "released"]


def test_orders_that_the_state_does_not_permit_are_refused_with_the_reason(office: Office) -> None:
    def refusal(*arguments: str) -> str:
        answer = office.run("device", *arguments, "--wait", "0")
        assert isinstance(answer.exception, ConfigError), answer.output
        return str(answer.exception)

    assert "pi-3 is probation: there is nothing to release it from" in refusal("release", "pi-3", "--reason", "x")
    assert "there is no device 'nobody'" in refusal("quarantine", "nobody", "--reason", "x")
    assert "say why" in refusal("quarantine", "pi-3", "--reason", " ")
    assert "say why" in refusal("quarantine", "pi-3", "--reason", "x" * (REASON_MAX + 1))
    office.store.put_device(DeviceRow("new", b"k", b"t", "pi-4", "online", 1, 0, "", "", 0.0))
    assert "was in no group yet" in refusal("quarantine", "new", "--reason", "x")
    office.book.ban("pi-5", "reported a false sketch")
    office.books.keep()
    for what in ("release", "quarantine"):
        assert "a proof does not become less true" in refusal(what, "pi-5", "--reason", "please")
    assert Orders(office.store).waiting() == []


def test_an_order_that_comes_too_late_is_answered_and_changes_nothing(office: Office) -> None:
    number = Orders(office.store).add("pi-3", "release", "an order that was possible when it was given")
    ghost = Orders(office.store).add("ghost", "quarantine", "gone meanwhile")
    office.book.ban("pi-3", "reported a false sketch")
    notes = office.desk.poll()
    assert [note.cause for note in notes] == ["order-refused"] * 2
    assert office.state("pi-3") is State.BANNED
    order = Orders(office.store).order(number)
    assert order.done and order.refused
    assert "does not become less true" in order.answer
    assert "in no group" in Orders(office.store).order(ghost).answer
    assert AuditLog(office.store).entries() == []


def test_what_rounds_said_is_kept_shown_and_explained(office: Office) -> None:
    office.rounds(12, poisoner="pi-7")
    assert office.state("pi-7") is State.QUARANTINED
    shown = office.shown("pi-7", "--history")
    history = shown["history"]
    assert isinstance(history, dict)
    assert [line["round"] for line in history["evidence"]] == list(range(1, 13))
    moves = [(line["before"], line["after"]) for line in history["evidence"] if line["event"]]
    assert moves[-1][1] == "quarantined"
    assert [entry["data"]["after"] for entry in history["decisions"]] == [after for _, after in moves]
    assert history["decisions"][-1]["data"]["parts"]["alignment"] > 0
    rung = [alert for alert in office.chronicle.alerts.after(0) if alert.device == "pi-7"]
    assert [(alert.kind, alert.task) for alert in rung] == [(alerts.QUARANTINED, "digits")]
    quarantined_in = next(line["round"] for line in history["evidence"] if line["after"] == "quarantined")
    assert rung[0].round == quarantined_in  # in the round of the cause
    text = office.run("device", "show", "pi-7", "--history").output
    assert "point away" in text
    assert "-> quarantined" in text
    listed = office.run("device", "list").output
    assert any("pi-7" in line and "quarantined" in line and "0.00" in line for line in listed.splitlines())
    good = next(
        row for row in json.loads(office.run("device", "list", "--json").output)["devices"] if row["name"] == "pi-1"
    )
    assert (good["state"], good["score"]) == ("trusted", 1.0)
    assert check(AuditLog(office.store).entries()).entries >= len(moves)


def test_newcomers_who_copy_each_other_ring_once(office: Office) -> None:
    rng = np.random.default_rng(11)
    for number in range(1, 9):
        common, mine = rng.normal(size=16), rng.normal(size=16)
        sketches = {name: common + 0.8 * rng.normal(size=16) for name in NAMES}
        sketches |= {name: mine + 0.001 * rng.normal(size=16) for name in NAMES[:5]}
        ruling = office.book.settle(office.book.ruling(sketches))
        office.chronicle.settled("digits", number, 1, ruling, office.book)
    waves = [alert for alert in office.chronicle.alerts.after(0) if alert.kind == alerts.SYBILS]
    assert len(waves) == 1
    assert all(name in waves[0].text for name in NAMES[:5])


def test_a_device_that_was_in_no_group_is_shown_without_a_reputation(office: Office) -> None:
    office.store.put_device(DeviceRow("new", b"k", b"t", "pi-4", "online", 1, 0, "", "", 0.0))
    assert office.shown("new")["state"] == "-"
    assert "new" in office.run("device", "list").output


def test_the_evidence_log_is_bounded(tmp_path: Path) -> None:
    log = EvidenceLog(Store(tmp_path / "db"), kept=3)
    for number in range(1, 8):
        line = EvidenceLine(
            at=float(number),
            device="pi",
            task="t",
            round=number,
            attempt=1,
            accepted=True,
            before="trusted",
            after="trusted",
            event="",
            evidence=0.5,
            change=-0.1,
            score=0.9,
            parts=Parts(norm=0.25),
        )
        log.note([line])
    kept = log.of("pi")
    assert [line.round for line in kept] == [5, 6, 7]
    assert kept[-1] == line
    log.rename("pi", "again")
    assert len(log.of("again")) == 3
    log.forget("again")
    assert log.of("again") == []


# --- nobody washes a record --------------------------------------------------------------------------------------


def enrolled(tmp_path: Path) -> tuple[OperatorHome, ServerHome, Store, Device]:
    operator, home = make_homes(tmp_path)
    store = Store(home.path / DATABASE_FILE)
    device = Device("pi", operator, home)
    Registry(home.trust(store.pins()), store).state("pi", device.state(), 1.0)
    quarantined(store)
    return operator, home, store, device


def quarantined(store: Store) -> None:
    """Let the only device into the books, and quarantine it."""
    books, (row,) = Reputations(store), store.devices()
    books.admit([Grouping(1, "1-s-0", ((row.name, row.key),))], {row.name: (row.key, row.token)})
    book = books.book(row.name)
    assert book is not None
    book.quarantine(row.name, "it poisoned the model")
    books.keep()


def test_enrolling_again_under_the_same_token_washes_nothing(tmp_path: Path) -> None:
    _, home, store, device = enrolled(tmp_path)
    registry, other = Registry(home.trust(store.pins()), store), SigningKey.generate()
    with pytest.raises(RefusedError) as caught:
        registry.state("pi", signed_state("pi", other, endorsed_again(device, other), 1), 2.0)
    assert caught.value.cause == "second-key"
    run = CliRunner().invoke(cli, ["device", "show", "pi", "--json", "--home", str(home.path)])
    shown = json.loads(run.output)
    assert (shown["state"], shown["score"]) == ("quarantined", 0.0)
    assert shown["key"] == bytes(device.key.verify_key).hex()


def test_a_kept_copy_of_a_bundle_enrols_another_key_which_nobody_takes(tmp_path: Path) -> None:
    """The whole way by commands: invited, enrolled, quarantined, and enrolled again from a copy of the bundle."""
    operator, home = make_homes(tmp_path)
    store, bundle = Store(home.path / DATABASE_FILE), home.path / "bundles" / "pi.bundle"
    commands = CliRunner()
    made = commands.invoke(cli, ["device", "add", "pi", "--home", str(home.path)], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    copy = tmp_path / "copy.bundle"
    copy.write_bytes(bundle.read_bytes())
    homes = []
    for number, file in enumerate((bundle, copy)):
        place = tmp_path / f"agent-{number}"
        arguments = ["enrol", str(file), "--home", str(place), "--data", str(tmp_path / "none.npz")]
        assert commands.invoke(agent, arguments, catch_exceptions=False).exit_code == 0
        homes.append(open_home(place))
    first, second = (signed_state("pi", each.key, each.stored.chain, 1) for each in homes)
    Registry(home.trust(store.pins()), store).state("pi", first, time.time())
    quarantined(store)
    with pytest.raises(RefusedError) as caught:  # also after the aggregator was started again
        Registry(home.trust(store.pins()), store).state("pi", second, time.time())
    assert caught.value.cause == "second-key"
    shown = json.loads(commands.invoke(cli, ["device", "show", "pi", "--json", "--home", str(home.path)]).output)
    assert (shown["state"], shown["key"]) == ("quarantined", bytes(homes[0].key.verify_key).hex())
    assert operator.public_key == home.operator_key


def test_a_second_bundle_for_the_name_is_not_made_and_a_second_token_not_taken(tmp_path: Path) -> None:
    operator, home, store, _ = enrolled(tmp_path)
    add = ["device", "add", "pi", "--home", str(home.path)]
    answer = CliRunner().invoke(cli, add)
    assert "already in the fleet" in str(answer.exception)
    with pytest.raises(RefusedError):
        Registry(home.trust(store.pins()), store).state("pi", Device("pi", operator, home).state(), 2.0)


@pytest.mark.parametrize("name", ["pi", "renamed"])
def test_a_record_follows_its_token_to_another_key_or_name(tmp_path: Path, name: str) -> None:
    _, home, store, _ = enrolled(tmp_path)
    books, (row,) = Reputations(store), store.devices()
    grouping = Grouping(2, "2-s-0", ((name, b"another key".ljust(32)),))
    books.admit([grouping], {name: (b"another key".ljust(32), row.token)})
    book = books.book(name)
    assert book is not None
    assert book.standing(name).state is State.QUARANTINED
    assert home.fleet == FLEET
