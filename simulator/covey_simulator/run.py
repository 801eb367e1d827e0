"""Runs a scenario from start to report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_aggregator.privacy import spent, together
from covey_aggregator.records import RoundRecord as ServerRecord
from covey_protocol import accounting
from covey_protocol.accounting import Spending
from covey_protocol.bundle import Bundle
from covey_protocol.errors import CoveyError
from covey_simulator.attacks import malicious_devices
from covey_simulator.baseline import run_clear
from covey_simulator.broker import Kind
from covey_simulator.chronicle import Chronicle
from covey_simulator.data import device_names, load_corpus, make_bundle, partition, write_slices
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.fleet import Fleet, Traffic
from covey_simulator.live import Display
from covey_simulator.page import write_page
from covey_simulator.records import DeviceRecord, Report, RoundRecord
from covey_simulator.report import build_report, write_report
from covey_simulator.scenario import Scenario

REPORT, PAGE, LOG = "report.json", "report.html", "aggregator.log"


@dataclass(frozen=True)
class Material:
    """What a fleet learns from and with.

    Attributes:
        bundle: The model.
        slices: Each device's samples.
        held_out: What models are measured on.
    """

    bundle: Bundle
    slices: Sequence[Dataset]
    held_out: Dataset


def run_scenario(scenario: Scenario, out: Path, display: Display, *, prefer: Kind | None = None) -> Report:
    """Run a scenario and write ``report.json`` and ``report.html``.

    Args:
        scenario: What to run.
        out: Folder for the reports and the aggregator's log; made if it is missing.
        display: Is told how it goes.
        prefer: Which broker; None takes Mosquitto if there is one.

    Returns:
        The report; its verdict says whether all that was promised holds.

    Raises:
        ConfigError: The scenario's data or model cannot be used.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    display.say("preparing data and model")
    corpus = load_corpus(scenario)
    material = Material(make_bundle(scenario, corpus), partition(corpus.train, scenario), corpus.held_out)
    display.say("the same fleet in the clear, for comparison")
    undefended = _clear(scenario, material, attacked=True) if scenario.malicious_count else []
    no_attack = _clear(scenario, material, attacked=False)
    rounds: list[RoundRecord] = []
    failures: list[str] = []
    chronicle, success = Chronicle(), None
    if scenario.masking and scenario.transport == "direct":
        display.say(_level(scenario))
        chronicle = play = rehearse(
            scenario, Trainer(material.bundle), material.slices, material.held_out, on_round=display.round
        )
        rounds += play.records
        success = play.attack_success
    elif scenario.masking:
        try:
            over_a_broker(scenario, material, out, display, rounds, chronicle, prefer)
        except CoveyError as error:
            failures.append(str(error))
    else:
        display.say("MASKING IS OFF: every single update is seen")
        rounds += run_clear(
            scenario,
            attacked=bool(scenario.malicious_count),
            rule=scenario.rule,
            slices=material.slices,
            held_out=material.held_out,
            bundle=material.bundle,
            on_round=display.round,
        )
    report = build_report(
        scenario,
        rounds=rounds,
        devices=_devices(scenario, chronicle),
        undefended=undefended,
        no_attack=no_attack,
        seconds=time.perf_counter() - started,
        failures=failures,
        attack_success=success,
    )
    write_report(report, out / REPORT)
    write_page(report, out / PAGE)
    return report


def _clear(scenario: Scenario, material: Material, *, attacked: bool) -> list[RoundRecord]:
    return run_clear(
        scenario,
        attacked=attacked,
        rule="mean",
        slices=material.slices,
        held_out=material.held_out,
        bundle=material.bundle,
    )


def over_a_broker(
    scenario: Scenario,
    material: Material,
    out: Path,
    display: Display,
    rounds: list[RoundRecord],
    chronicle: Chronicle,
    prefer: Kind | None = None,
) -> None:
    """Run the real fleet.

    Args:
        scenario: What it is to do.
        material: Its model and data.
        out: Where the aggregator's log goes.
        display: Is told how it goes.
        rounds, chronicle: Grow as rounds close, also when it ends badly.
        prefer: Which broker; None takes Mosquitto if there is one.

    Raises:
        CoveyError: A part of it failed.
    """
    names = device_names(scenario.devices)
    hostile = frozenset(names[index] for index in malicious_devices(scenario))
    with tempfile.TemporaryDirectory(prefix="covey-") as temporary:
        folder = Path(temporary)
        data = write_slices(material.slices, folder / "data")
        (folder / "model.bundle").write_bytes(material.bundle.encode())
        np.savez(folder / "held-out.npz", x=material.held_out.x, y=material.held_out.y)
        display.say(f"starting broker, aggregator and {scenario.devices} devices")
        try:
            with Fleet(folder, scenario, slices=material.slices, data=data, prefer=prefer) as fleet:
                fleet.start_task(folder / "model.bundle", folder / "held-out.npz")
                assert fleet.broker is not None
                display.say(f"learning over {fleet.broker.kind}: masked, signed, round by round")
                display.stage(1, "join, share, train, mask, unmask")
                before, costs = Traffic(0, 0), list[Mapping[str, Spending]]()
                for record in fleet.rounds():
                    now = fleet.traffic()
                    out_before = chronicle.expelled[-1] if chronicle.expelled else frozenset[str]()
                    costs.append(spent([record]))
                    epsilon = _dearest(costs, scenario) if scenario.privacy.on else None
                    converted = _converted(record, before, now, out_before, hostile)
                    rounds.append(msgspec.structs.replace(converted, epsilon=epsilon))
                    chronicle.note(record.round, fleet.opinions(), names)
                    before = now
                    display.round(rounds[-1])
                    if record.round < scenario.rounds:
                        display.stage(record.round + 1, "join, share, train, mask, unmask")
                display.say("stopping the fleet")
        finally:
            if (folder / LOG).exists():
                shutil.copyfile(folder / LOG, out / LOG)


def _converted(
    record: ServerRecord, before: Traffic, now: Traffic, out: frozenset[str], hostile: frozenset[str]
) -> RoundRecord:
    """Return the aggregator's record with the traffic that the devices' own links have counted.

    Args:
        record: The aggregator's.
        before, now: What the links had counted before the round, and have counted now.
        out: Who was expelled before the round: to refuse them again is no news.
        hostile: Who is malicious.
    """
    rejected = {name for detail in record.details for name in detail.rejected} - out
    scored_on = {name for detail in record.details for name in detail.members} & out
    return RoundRecord(
        round=record.round,
        attempt=record.attempt,
        accuracy=record.accuracy,
        loss=record.loss,
        federated_accuracy=record.federated_accuracy,
        participants=record.participants,
        accepted=record.accepted,
        rejected=len(rejected),
        honest_rejected=len(rejected - hostile),
        attested=max(0, record.attested - len(scored_on)),
        groups=record.groups - record.groups_aborted,
        groups_aborted=record.groups_aborted,
        dropped=record.dropped,
        seconds=record.seconds,
        stage_seconds=record.stage_seconds,
        bytes_up=now.up - before.up,
        bytes_down=now.down - before.down,
    )


def _dearest(costs: list[Mapping[str, Spending]], scenario: Scenario) -> float:
    """Return what rounds have cost the device that they cost most."""
    delta = scenario.privacy.delta
    return max((accounting.epsilon(cost, delta) for cost in together(costs).values()), default=0.0)


def _level(scenario: Scenario) -> str:
    if not scenario.signatures:
        return "rehearsing without a broker, masks or signatures"
    masks = "masks" if scenario.masking is True else "masks left out where they cancel"
    return f"rehearsing without a broker: all state machines and signatures, {masks}"


def _devices(scenario: Scenario, chronicle: Chronicle) -> list[DeviceRecord]:
    hostile = malicious_devices(scenario)
    records = []
    for index, name in enumerate(device_names(scenario.devices)):
        record = DeviceRecord(name=name, malicious=index in hostile, state="member")
        opinion = chronicle.opinions.get(name)
        if opinion is not None:
            record = msgspec.structs.replace(
                record,
                state=opinion.state,
                reputation=opinion.score,
                quarantined_at=chronicle.quarantined_at.get(name),
                reason=opinion.reason,
                reputations=chronicle.scores[name],
            )
        records.append(record)
    return records
