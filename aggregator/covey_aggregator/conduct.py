"""Who makes groups abort, and who therefore sits out the next groupings.

An abort costs everybody in the group a round, and every new grouping costs privacy, so neither may be had for the
asking, and honest devices on flaky links must not be taken for refusers. So the record of a device counts *strikes*:
aborts of its group in which its answer was missing, since it last did its part to the end. A finished round clears
them, and time does too. Honest devices that miss a fifth of their rounds hardly ever get to three; refusers, who never
finish, do after a few aborts of their groups, in whatever stage they refuse.

- A group *falls* when it has aborted twice in a row and holds a member with three strikes, or when nobody knows who
  spoils it. Drawing groups anew without leaving anybody out would help nobody.
- Whenever groups are drawn anew, everybody with two strikes is *sentenced*: the list does not name them for ten rounds,
  then twenty, then forty and so on. They come back on their last warning. A flaky link is no crime, but coming back to
  abort again gets dearer every time.
- Who is proven to have lied about shares has three strikes at once, which no finished round clears; a group that aborts
  with such a member falls at once, and the first sentence is eighty rounds. No flaky link deals bad shares.
- At most a third is left out at once, the worst first. When more than that fail alike, it is the weather.
- Where a sum is spoilt and nobody is proven to have done it, all its members are suspects. Those who are suspects again
  in group after group are sentenced too: honest companions are cleared by the first round that they finish elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

ABORTS_IN_A_ROW = 2
WARNING = 2
STRIKES = 3
SUSPICIONS = 5
SIT_OUT_ROUNDS = 10
DOUBLINGS = 6
PROVEN_DOUBLINGS = 3
FORGET_ROUNDS = 10
REFORMED = 20


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is held against one device.

    Attributes:
        strikes: Aborts that it helped to cause since it last finished a round.
        proven: Whether it is proven to have cheated since it was last sentenced.
        at: The round of the last one, or in which one was last forgotten.
        suspicions: Spoilt sums that it was in since it last finished a round.
        sentences: How often it was made to sit out, less one for every ``REFORMED`` rounds it finished since.
        back: The round from which lists may name it again.
        finished: Rounds finished since it was last sentenced or forgiven.
    """

    strikes: int = 0
    proven: bool = False
    at: int = 0
    suspicions: int = 0
    sentences: int = 0
    back: int = 0
    finished: int = 0


class _State(msgspec.Struct, kw_only=True):
    rounds: int = 0
    aborts: dict[str, int] = {}
    spoilt: list[str] = []
    devices: dict[str, Record] = {}


class Conduct:
    """Counts aborts by group and by device.

    Args:
        kept: What ``encode`` returned, or nothing.
    """

    def __init__(self, kept: bytes = b"") -> None:
        self._state = msgspec.json.decode(kept, type=_State) if kept else _State()

    def encode(self) -> bytes:
        """Return the record as it is to be kept."""
        return msgspec.json.encode(self._state)

    def forget(self, name: str) -> None:
        """Erase what is held about a device."""
        self._state.devices.pop(name, None)

    @property
    def rounds(self) -> int:
        """How many rounds have ended."""
        return self._state.rounds

    def round_ended(
        self,
        causers: Mapping[str, Iterable[str]],
        finishers: Iterable[str],
        suspects: Mapping[str, Iterable[str]] | None = None,
        proven: Iterable[str] = (),
    ) -> None:
        """Take a round's outcome.

        Args:
            causers: For every group that aborted, whose answers were missing or wrong.
            finishers: Devices that did their part to the end in a group that closed.
            suspects: For every group that aborted and of which nobody knows why, who may have spoilt it.
            proven: Devices that are proven to have lied about shares, whether their group aborted or not.
        """
        state, suspected = self._state, suspects or {}
        state.rounds += 1
        state.aborts = {group: state.aborts.get(group, 0) + 1 for group in causers}
        state.spoilt = sorted(suspected)
        for name in finishers:
            self._finished(name)
        for name in {name for names in causers.values() for name in names}:
            record = state.devices.setdefault(name, Record())
            record.strikes, record.at = record.strikes + 1, state.rounds
        for name in {name for names in suspected.values() for name in names}:
            state.devices.setdefault(name, Record()).suspicions += 1
        for name in set(proven):
            record = state.devices.setdefault(name, Record())
            record.strikes, record.at, record.proven = max(record.strikes, STRIKES), state.rounds, True
        for record in state.devices.values():
            if record.strikes and state.rounds - max(record.at, record.back) >= FORGET_ROUNDS:
                record.strikes, record.at = record.strikes - 1, state.rounds
        state.devices = {name: record for name, record in state.devices.items() if _worth_keeping(record, state.rounds)}

    def fallen(self, groups: Mapping[str, Collection[str]]) -> list[str]:
        """Return those of the groups, given with their members, that have aborted often enough to be drawn anew."""
        return [
            group
            for group, members in sorted(groups.items())
            if self._is_fallen(group, [self._state.devices.get(name, Record()) for name in members])
        ]

    def _is_fallen(self, group: str, records: Collection[Record]) -> bool:
        aborts = self._state.aborts.get(group, 0)
        if aborts and any(record.proven for record in records):
            return True
        known = any(record.strikes >= STRIKES for record in records)
        return aborts >= ABORTS_IN_A_ROW and (known or group in self._state.spoilt)

    def strikes(self, name: str) -> int:
        """Return a device's strikes."""
        return self._state.devices.get(name, Record()).strikes

    def sentence(self, names: Collection[str]) -> set[str]:
        """Make those who are on their last warning sit out; to be called when the groups are drawn anew.

        Args:
            names: Everybody who could be listed.
        """
        state, out = self._state, self.sitting_out()
        room = max(0, len(names) // 3 - len(out.intersection(names)))
        guilty = [(name, state.devices[name]) for name in sorted(names) if name in state.devices and name not in out]
        guilty = [entry for entry in guilty if _is_due(entry[1])]
        guilty.sort(key=lambda entry: -_weight(entry[1]))
        if len(guilty) > room:  # those who are as bad as the first who has no place are spared with it
            guilty = [entry for entry in guilty[:room] if _weight(entry[1]) > _weight(guilty[room][1])]
        for _, record in guilty:
            if record.proven:
                record.sentences = max(record.sentences, PROVEN_DOUBLINGS)
            record.back = state.rounds + SIT_OUT_ROUNDS * 2 ** min(record.sentences, DOUBLINGS)
            record.sentences += 1
            record.strikes, record.suspicions, record.finished, record.proven = WARNING, 0, 0, False
        return {name for name, _ in guilty}

    def sitting_out(self) -> set[str]:
        """Return the devices that no list names for now."""
        return {name for name, record in self._state.devices.items() if record.back > self._state.rounds}

    def regrouped(self) -> None:
        """Forget the groups: new ones were drawn."""
        self._state.aborts, self._state.spoilt = {}, []

    def _finished(self, name: str) -> None:
        record = self._state.devices.get(name)
        if record is None or record.proven:
            return
        record.strikes, record.suspicions, record.finished = 0, 0, record.finished + 1
        if record.finished >= REFORMED and record.sentences:
            record.sentences, record.finished = record.sentences - 1, 0


def _is_due(record: Record) -> bool:
    """Whether a device is to sit out; who is back on its last warning is not before it fails again."""
    return (record.strikes >= WARNING and record.at >= record.back) or record.suspicions >= SUSPICIONS


def _weight(record: Record) -> int:
    return max(record.strikes, record.suspicions - SUSPICIONS + WARNING)


def _worth_keeping(record: Record, rounds: int) -> bool:
    return bool(record.strikes or record.suspicions or record.sentences or record.back > rounds)
