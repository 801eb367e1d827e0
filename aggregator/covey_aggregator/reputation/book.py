"""The fleet's book of reputations: a record a device, and what the rule remembers of their updates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey_aggregator.reputation import words
from covey_aggregator.reputation.hearing import hold
from covey_aggregator.reputation.history import Cosines
from covey_aggregator.reputation.judge import is_established
from covey_aggregator.reputation.record import Fleet, Record
from covey_aggregator.reputation.ruling import Hearing, Ruling, Standing
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.states import BANNED, DETAINED, OUT, RELEASED, State, moved
from covey_protocol.errors import StateError

_VERSION = 1


class _Version(msgspec.Struct, kw_only=True):
    version: int


class _Kept(msgspec.Struct, kw_only=True):
    version: int = _VERSION
    fleet: Fleet = Fleet()
    records: dict[str, Record] = {}
    names: list[str] = []
    averages: bytes = b""
    rounds: bytes = b""


class Reputation:
    """Judges attested rounds and keeps what follows from them. One book a shard.

    ``ruling`` says what a round's sketches mean and changes nothing; ``settle`` takes it into the book when the round
    is over. The same book gives the same ruling for the same sketches, in any order, also after a restart in between.

    Args:
        settings: The rule's parameters.
        state: What ``encode`` returned.

    Raises:
        StateError: The state is damaged, or of a version that this code does not know.
    """

    def __init__(self, settings: Settings | None = None, state: bytes | None = None) -> None:
        self.settings = settings or Settings()
        kept = _decode(state) if state is not None else _Kept()
        self._fleet = kept.fleet
        self._records = kept.records
        self._cosines = Cosines(self.settings.memory, (kept.names, kept.averages, kept.rounds))
        self._changes = self._settled = 0

    def encode(self) -> bytes:
        """Return the book as it is to be kept."""
        names, averages, rounds = self._cosines.encode()
        records = dict(sorted(self._records.items()))
        return msgspec.msgpack.encode(
            _Kept(fleet=self._fleet, records=records, names=names, averages=averages, rounds=rounds)
        )

    # Rounds

    def ruling(
        self,
        sketches: Mapping[str, NDArray[Any]],
        *,
        enforce: bool = True,
        disputed: Collection[str] = (),
        refused: Collection[str] = (),
        probed: Mapping[str, float] | None = None,
        excused: Mapping[str, float] | None = None,
    ) -> Ruling:
        """Judge one attested round; the book does not change.

        Args:
            sketches: What was recovered of each device's update, in the units of updates. Quarantined devices may be
                among them: they are scored, never accepted.
            enforce: Whether to act on reputations. If not, everybody is accepted but those proven to have lied.
            disputed: Devices that have to go because they contradict peers, without proof of who lied.
            refused: Devices that sent a masked vector but no sketch, or would not sign or unmask.
            probed: Evidence of ``covey_aggregator.probes`` against devices, from the rounds before.
            excused: How far their updates were those of their own labels, from 0 to 1, likewise: so far their angle,
                their norms and their likeness to others do not count against them.

        Raises:
            StateError: A device was never admitted.
            ValueError: Sketches differ in length or are not finite.
        """
        hearing = Hearing(
            sketches=dict(sketches),
            enforce=enforce,
            disputed=frozenset(disputed),
            refused=frozenset(refused),
            probed=dict(probed or {}),
            excused=dict(excused or {}),
        )
        for name in sorted(hearing.names):
            self._record(name)
        return self._hold(hearing)

    def settle(self, ruling: Ruling, *, without: Collection[str] = (), refused: Collection[str] = ()) -> Ruling:
        """Take a ruling into the book once its round is over.

        Args:
            ruling: Where an operator's word or a proof has changed the book since it was made, the round is judged
                again.
            without: Devices whose group turned out to have been lied about: their sketches are worth nothing, and the
                rest is judged as if they had not been there.
            refused: Devices that refused only after the ruling, by not signing or not unmasking.

        Returns:
            The ruling as it was settled.

        Raises:
            StateError: It was settled before, or another one since.
        """
        if ruling.draft.settled != self._settled:
            raise StateError(f"the ruling on attested round {ruling.round} is out of date or was settled before")
        hearing = ruling.hearing
        if without or refused or ruling.draft.changes != self._changes:
            ruling = self._hold(
                replace(
                    hearing,
                    sketches={name: sketch for name, sketch in hearing.sketches.items() if name not in without},
                    refused=hearing.refused.union(refused),
                )
            )
        self._records.update(ruling.draft.records)
        self._fleet = ruling.draft.fleet
        if ruling.draft.page is not None:
            self._cosines.keep(ruling.draft.page)
        self._settled += 1
        return ruling

    def heard(self, answered: Iterable[str], silent: Iterable[str]) -> None:
        """Note who answered in the stages of a round in which silence serves nobody: joining, dealing, masking.

        It is weighed against refusals and is no evidence of its own. Unknown devices are passed over.
        """
        for lost, names in ((0, answered), (1, silent)):
            for name in names:
                if name in self._records:
                    record = self._records[name]
                    self._put(name, liveness=record.liveness.after(1, lost))

    # Devices

    def admit(self, name: str, *, key: bytes = b"", token: str = "") -> None:
        """Let a device into the book, on probation, or recognise it.

        A record belongs to the token that the operator enrolled the device with, and to its name. So a device that
        enrols again, with another key or under another name, finds its record where it left it; where a token and a
        name lead to two records, the worse one counts.

        Args:
            name: The device.
            key: Its public key.
            token: Its enrolment token's public identity; nothing where identities are not enrolled, as in a lab.
        """
        mine = [other for other, record in self._records.items() if token and record.token == token and other != name]
        records = [self._records[other] for other in (*mine, name) if other in self._records]
        if not records:
            # Newcomers to an established fleet do not count for what part of it may be in quarantine.
            founder = not self.established
            records = [Record(founder=founder)]
        for other in mine:
            self._cosines.rename(other, name)
            del self._records[other]
        self._records[name] = msgspec.structs.replace(max(records, key=_badness), token=token, key=key)
        self._changes += 1

    def ban(self, name: str, reason: str) -> None:
        """Put a device out for ever, on a cryptographic proof that it lied.

        Args:
            name: The device.
            reason: What is proven, in words, and where the proof stands.
        """
        if self._record(name).state is not State.BANNED:
            self._move(name, BANNED, reason)

    def quarantine(self, name: str, reason: str) -> None:
        """Put a device into quarantine by the operator's word, until the operator releases it.

        Raises:
            StateError: It is banned.
        """
        self._move(name, DETAINED, reason, held=True)

    def release(self, name: str, reason: str) -> None:
        """Clear a suspect or quarantined device by the operator's word: it starts again on probation.

        Raises:
            StateError: It is neither.
        """
        self._move(name, RELEASED, reason, held=False, evidence=0.0, paroles=0)

    def forget(self, name: str, *, revoked: bool = False) -> None:
        """Erase what is held about a device.

        Args:
            name: Who.
            revoked: Whether the operator has shut it out for good, so that it cannot come back with nothing against it.

        Raises:
            StateError: It is quarantined or banned: forgetting must not wash a record. Release it first.
        """
        if self._record(name).state in OUT and not revoked:
            raise StateError(f"device {name} is {self._record(name).state} and cannot be forgotten")
        del self._records[name]
        self._cosines.forget([name])
        self._changes += 1

    def dismiss(self, tokens: Collection[str], *, but: Collection[str] = ()) -> None:
        """Erase devices that can never come back, unless they are out.

        Their trust must not count any more: a fleet whose trusted devices are gone is not there to measure newcomers.

        Args:
            tokens: What the operator has revoked.
            but: Devices to keep all the same.
        """
        for name, record in list(self._records.items()):
            if record.token in tokens and record.state not in OUT and name not in but:
                self.forget(name)

    def __contains__(self, name: str) -> bool:
        """Say whether a device was admitted."""
        return name in self._records

    def names(self, *states: State) -> list[str]:
        """Return who is in one of these states; everybody without any."""
        return sorted(name for name, record in self._records.items() if not states or record.state in states)

    def standing(self, name: str) -> Standing:
        """Say how a device stands, and why.

        Raises:
            StateError: It was never admitted.
        """
        record = self._record(name)
        return Standing(
            name=name,
            state=record.state,
            score=record.score(self.settings),
            evidence=record.evidence,
            parts=record.parts,
            liveness=record.liveness.score,
            words=words.explain(name, record),
        )

    @property
    def rounds(self) -> int:
        """How many attested rounds were settled."""
        return self._fleet.rounds

    @property
    def established(self) -> bool:
        """Whether enough devices are trusted for newcomers to be measured by them."""
        return is_established((r for r in self._records.values() if r.state not in OUT), self.settings)

    def influence(self, groups: Mapping[str, Collection[str]]) -> dict[str, float]:
        """Return what each group's mean may count for beside the others', above 0 and at most 1.

        A group counts for what most of its members count for. Newcomers to an established fleet count little, and all
        their groups together no more than a share of the whole, however many there are: a wave of Sybils cannot outvote
        those who have earned trust. Where only newcomers were summed, nobody is there to be outvoted.

        Args:
            groups: The members that were summed of each group; at least one each.
        """
        s, known = self.settings, self.established
        counts = {
            group: max(float(np.median([self._record(name).weight(known, s) for name in names])), s.suspect_weight)
            for group, names in groups.items()
        }
        new = [group for group, count in counts.items() if count < 1]
        together, others = sum(counts[group] for group in new), float(len(counts) - len(new))
        room = others * s.probation_share / (1 - s.probation_share)
        if others and together > room:
            counts |= {group: counts[group] * room / together for group in new}
        return counts

    def _hold(self, hearing: Hearing) -> Ruling:
        ruling = hold(hearing, self._records, self._fleet, self._cosines, self.settings)
        return replace(ruling, draft=replace(ruling.draft, changes=self._changes, settled=self._settled))

    def _record(self, name: str) -> Record:
        if name not in self._records:
            raise StateError(f"device {name} was never admitted")
        return self._records[name]

    def _move(self, name: str, event: str, reason: str, **fields: Any) -> None:
        state = moved(name, self._record(name).state, event)
        self._put(name, state=state, reason=reason, since=self._fleet.rounds, stay=0, **fields)

    def _put(self, name: str, **fields: Any) -> None:
        self._records[name] = msgspec.structs.replace(self._records[name], **fields)
        self._changes += 1


def _badness(record: Record) -> tuple[bool, bool, float, int]:
    return (record.state is State.BANNED, record.state in OUT, record.evidence, record.paroles)


def _decode(data: bytes) -> _Kept:
    try:
        version = msgspec.msgpack.decode(data, type=_Version).version
        if version != _VERSION:
            raise StateError(f"reputation: version {version} of the book is unknown; this code knows {_VERSION}")
        kept = msgspec.msgpack.decode(data, type=_Kept)
    except msgspec.MsgspecError as error:
        raise StateError(f"reputation: the book cannot be read: {error}") from error
    pairs = len(kept.names) * (len(kept.names) - 1) // 2
    if len(kept.averages) != 4 * pairs or len(kept.rounds) != pairs:
        raise StateError("reputation: the book's cosines are incomplete")
    return kept
