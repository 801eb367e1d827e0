"""What is written down of decisions about devices: the evidence log, the audit log, and alerts.

All of it goes into the transaction of what it speaks of, so a restart finds neither a decision without its line nor a
line without its decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from covey_aggregator import alerts
from covey_aggregator.alerts import AlertBook
from covey_aggregator.audit import AuditLog
from covey_aggregator.evidence_log import EvidenceLine, EvidenceLog
from covey_aggregator.home import AlertSettings
from covey_aggregator.records import RoundRecord
from covey_aggregator.reputation import NEWCOMERS, Reputation, Ruling, State
from covey_aggregator.store import Store
from covey_protocol.digest import content_digest

_DEVICES = "alerts-devices"
_CLONE = 0.5
_CLONES_AT_LEAST, _CLONES_SHARE = 3, 0.05


class Chronicle:
    """Writes the three books.

    Args:
        store: Where they stand.
        settings: What is worth an alert.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        settings: AlertSettings | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._settings, self._wall = store, settings or AlertSettings(), wall_clock
        self.audit, self.evidence = AuditLog(store, wall_clock), EvidenceLog(store, wall_clock)
        self.alerts = AlertBook(store, wall_clock)

    def settled(self, task: str, round_: int, attempt: int, ruling: Ruling, book: Reputation) -> None:
        """Write down what a settled ruling meant for each device.

        Args:
            task, round_, attempt: Where it was made.
            ruling: As it was settled.
            book: The book that it was settled in.
        """
        at, lines = self._wall(), []
        for name, verdict in sorted(ruling.verdicts.items()):
            standing = book.standing(name)
            line = EvidenceLine(
                at=at,
                device=name,
                task=task,
                round=round_,
                attempt=attempt,
                accepted=verdict.accepted,
                before=verdict.before,
                after=verdict.after,
                event=verdict.event or "",
                evidence=verdict.evidence,
                change=verdict.change,
                score=standing.score,
                parts=verdict.parts,
            )
            lines.append(line)
            if verdict.event:
                self.audit.note(
                    verdict.event,
                    name,
                    standing.words,
                    task=task,
                    round=round_,
                    attempt=attempt,
                    before=str(verdict.before),
                    after=str(verdict.after),
                    evidence=round(verdict.evidence, 3),
                    parts=msgspec.to_builtins(verdict.parts),
                )
            if verdict.after is State.QUARANTINED and verdict.before is not State.QUARANTINED:
                self.alerts.ring(alerts.QUARANTINED, standing.words, device=name, task=task, round_=round_)
        self._clones(lines, task, round_)
        self.evidence.note(lines)

    def _clones(self, lines: Sequence[EvidenceLine], task: str, round_: int) -> None:
        """Ring when newcomers send copies of each other's updates, once for those who went on to do so."""
        copies = [line.device for line in lines if line.before in NEWCOMERS and line.parts.clones >= _CLONE]
        copies = [name for name in copies if not any(line.parts.clones >= _CLONE for line in self.evidence.of(name, 1))]
        if len(copies) < max(_CLONES_AT_LEAST, _CLONES_SHARE * len(lines)):
            return
        names = ", ".join(copies[:10]) + (" and others" if len(copies) > 10 else "")
        text = f"{len(copies)} newcomers send copies of each other's updates: {names}"
        self.alerts.ring(alerts.SYBILS, text, task=task, round_=round_)

    def banned(self, device: str, reason: str, proof: bytes, *, task: str = "", round_: int = 0) -> None:
        """Write down that a device is banned.

        Args:
            device: Who.
            reason: What is proven, in words.
            proof: The proof.
            task, round_: Where it lied.
        """
        digest = content_digest(proof).hex() if proof else ""
        self.audit.note("banned", device, reason, proof=digest, task=task, round=round_)
        text = f"{device} is proven to have lied: it {reason}"
        self.alerts.ring(alerts.BANNED, text, device=device, task=task, round_=round_)

    def ordered(self, what: str, device: str, reason: str, before: str, after: str) -> None:
        """Write down what the operator has done with a device, and why."""
        self.audit.note(what, device, f"by the operator: {reason}", before=before, after=after)
        if after == State.QUARANTINED:
            self.alerts.ring(alerts.QUARANTINED, f"{device} is quarantined by the operator: {reason}", device=device)

    def second_key(self, device: str, text: str) -> None:
        """Write down that a token or a name was shown with a second key."""
        if self.alerts.second_key(device, text):
            self.audit.note("second-key", device, text)

    def round_over(self, task: str, records: Sequence[RoundRecord]) -> None:
        """Write down a round and ring where it asks for it.

        Args:
            task: Its task.
            records: The task's rounds, oldest first; the last one is this.
        """
        record = records[-1]
        self.audit.note(
            "round",
            "",
            f"{task}: round {record.round}.{record.attempt} is over",
            model=record.model,
            accepted=record.accepted,
            rejected=record.rejected,
            groups=record.groups,
            groups_aborted=record.groups_aborted,
        )
        if record.flag:
            self.alerts.ring(alerts.FLAGGED, record.flag, task=task, round_=record.round)
        drop = self._settings.accuracy_drop
        fallen = alerts.fallen_accuracy(records, drop)
        if fallen and not alerts.fallen_accuracy(records[:-1], drop):  # once for one fall
            self.alerts.ring(alerts.ACCURACY, fallen, task=task, round_=record.round)
        there, before = len(self._store.devices()), self._store.number(_DEVICES)
        if there != before:
            self._store.set_number(_DEVICES, there)
        if wave := alerts.many_joined(there - before, before, self._settings.joined_share):
            self.alerts.ring(alerts.SYBILS, wave, task=task, round_=record.round)
