"""The fleet's books of reputations as the aggregator keeps and uses them, one for each shard.

Sketches can only be compared within a shard, so every shard has a book of its own. A round asks a book who may be
summed; when the round is over its finding is settled, in the same transaction as the round's end. So a restart in
between finds the book as it was, and the finding in the journal, and settles the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from covey_aggregator.attesting import Finding, shard_label
from covey_aggregator.chronicle import Chronicle
from covey_aggregator.probing import Probing
from covey_aggregator.reputation import NEWCOMERS, OUT, Reputation, Ruling, State, Verdict
from covey_aggregator.round_run import RoundRun
from covey_aggregator.store import Store
from covey_aggregator.task import Task
from covey_protocol import epochs
from covey_protocol.effects import Note
from covey_protocol.epochs import Grouping
from covey_protocol.ring import RingScale
from covey_protocol.thresholds import accepted_min

_SHARDS, _BOOK, _SCALE = "reputation", "reputation/{}", "reputation-scale"
_CLIP_MEDIANS = 2.0  # honest devices clip at so many times the last accepted median norm
_CLIP_SHRINKS = 0.5  # at most from round to round: a device that overslept one checks the model's step by the new clip
_SPARE = 0.2  # of a group's members may be missing in a round
_HEARD = ("join", "shares", "masked")  # stages in which silence serves nobody


class _Scale(msgspec.Struct, kw_only=True):
    """What later rounds of a task go by: the last clip and norm, and how many of the accepted are hostile."""

    task: str = ""
    clip: float = 0.0
    norm: float = 0.0
    contamination: float = 0.0


class Reputations:
    """All books.

    Args:
        store: The aggregator's database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        kept = store.memory(_SHARDS)
        labels: list[str] = json.loads(kept) if kept else []
        self._books = {label: Reputation(state=store.memory(_BOOK.format(label))) for label in labels}
        scale = store.memory(_SCALE)
        self._scale = msgspec.json.decode(scale, type=_Scale) if scale else _Scale()
        self._rulings: dict[str, tuple[Finding, Ruling]] = {}
        self.probing = Probing(store)

    def keep(self) -> None:
        """Store the books."""
        self._store.keep(_SHARDS, json.dumps(sorted(self._books)).encode())
        for label, book in self._books.items():
            self._store.keep(_BOOK.format(label), book.encode())
        self._store.keep(_SCALE, msgspec.json.encode(self._scale))

    def book(self, name: str) -> Reputation | None:
        """Return the book that a device is in."""
        book = self._own(name)
        return book if book is not None and name in book else None

    def _own(self, name: str) -> Reputation | None:
        """Return the book of a device's shard, or some book if its shard has had no groups yet.

        Where shards were cut, the books of both halves hold what was known before of the devices of either.
        """
        bits = max((len(label) - 1 for label in self._books), default=0)
        own = self._books.get(epochs.shard_label(epochs.shard_of(name, bits), bits))
        return own or next((book for book in self._books.values() if name in book), None)

    def _in(self, *states: State) -> set[str]:
        found = {name for book in self._books.values() for name in book.names(*states)}
        return {name for name in found if (book := self.book(name)) is not None and book.standing(name).state in states}

    def known(self) -> set[str]:
        """Return the devices that are in the books and not banned."""
        return {name for book in self._books.values() for name in book.names()} - self.banned()

    def forget(self, name: str) -> None:
        """Erase what is held about a device that the operator has revoked."""
        for book in self._books.values():
            if name in book:
                book.forget(name, revoked=True)
        self.probing.forget(name)

    # Groups

    def admit(self, groupings: Sequence[Grouping], identities: Mapping[str, tuple[bytes, bytes]]) -> None:
        """Let the members of groups that were just drawn into the books of their shards.

        Args:
            groupings: All groups.
            identities: Keys, and the tokens that devices were enrolled with.
        """
        self._divide({shard_label(grouping.group) for grouping in groupings})
        proven = self._store.proofs()
        revoked = {token.hex() for token in self._store.revoked()}
        grouped = {name for grouping in groupings for name, _ in grouping.members}
        for book in self._books.values():
            book.dismiss(revoked, but=grouped)
        for grouping in groupings:
            book = self._books[shard_label(grouping.group)]
            for name, _ in grouping.members:
                if name in identities:
                    key, token = identities[name]
                    book.admit(name, key=key, token=token.hex())
                    if name in proven:
                        book.ban(name, proven[name])

    def ready(self, groupings: Sequence[Grouping]) -> bool:
        """Say whether all members of some groups are in the books of their shards."""
        books = {grouping.group: self._books.get(shard_label(grouping.group)) for grouping in groupings}
        return all(
            book is not None and name in book
            for grouping in groupings
            for book in [books[grouping.group]]
            for name, _ in grouping.members
        )

    def _divide(self, labels: Collection[str]) -> None:
        """Have one book for each shard: where shards were cut or merged, what was known goes on."""
        books: dict[str, Reputation] = {}
        for label in labels:
            related = [old for old in self._books if old == label or label.startswith(old) or old.startswith(label)]
            best = max(related, key=lambda old: (old == label, len(self._books[old].names())), default=None)
            books[label] = self._books[best] if best == label else _copy(self._books.get(best or ""))
            for other in related:
                _hold_against(books[label], self._books[other])
        if books:
            self._books = books

    def out(self) -> set[str]:
        """Return the devices that are quarantined or banned."""
        return self._in(*OUT)

    def banned(self) -> set[str]:
        """Return the devices that are proven to have lied."""
        return self._in(State.BANNED)

    def newcomers(self, names: Iterable[str]) -> set[str]:
        """Return who of some devices has to earn trust in groups of their own: nobody in a fleet that is new itself."""
        return {
            name
            for name in names
            if (book := self._own(name)) is not None
            and book.established
            and (name not in book or book.standing(name).state in NEWCOMERS)
        }

    def watched(self, groupings: Iterable[Grouping]) -> list[str]:
        """Return the groups that attest however the lot falls: those with a member who is not trusted."""
        trusted = self._in(State.TRUSTED)
        return [group.group for group in groupings if any(name not in trusted for name, _ in group.members)]

    def excluded(self, groupings: Iterable[Grouping], task: Task) -> list[str]:
        """Return the members of groups who have no place on a roster; see ``without_place``."""
        return sorted(without_place(groupings, self.out() if task.enforces else self.banned(), self.banned()))

    # Rounds

    def clip(self, task: Task) -> float:
        """Return the bound on norms that the next round announces; what noise makes of norms is no measure."""
        scale = self._scale
        if task.privacy.on or not task.attestation.on or not task.enforces or scale.task != task.name or not scale.norm:
            return task.clip
        return next_clip(task.clip, norm=scale.norm, last=scale.clip)

    def contamination(self, task: Task, run: RoundRun) -> float:
        """Return the share of hostile devices to be expected among those that a round sums."""
        estimates = [self._ruling(finding, run, task).contamination for finding in run.attesting.findings.values()]
        if not estimates and run.opened.manifest.sketch and self._scale.task == task.name:
            estimates = [self._scale.contamination]  # the lot has spared everybody
        return max([task.contamination, *estimates])

    def influence(self, task: Task, run: RoundRun) -> dict[str, float] | None:
        """Return what each group that a round has a mean of counts for; None where reputation decides nothing."""
        if not task.attestation.on or not task.enforces:
            return None
        shards: dict[str, dict[str, tuple[str, ...]]] = {}
        for group in run.means:
            shards.setdefault(shard_label(group), {})[group] = run.groups[group].summed
        parts = [self._books[shard].influence(groups) for shard, groups in shards.items()]
        return {group: count for part in parts for group, count in part.items()}

    def decide(self, finding: Finding, run: RoundRun, task: Task) -> list[str]:
        """Return whom the rule accepts on what a shard's attestation has shown."""
        return sorted(self._ruling(finding, run, task).accepted)

    def _ruling(self, finding: Finding, run: RoundRun, task: Task) -> Ruling:
        """Return the ruling on a finding; the same for as long as the book stays as it is."""
        sketches, ruled = finding.sketches, self._rulings.get(finding.shard)
        if ruled is None or ruled[0].sketches != sketches:
            manifest = run.opened.manifest
            ruling = self._books[finding.shard].ruling(
                finding.in_reals(RingScale.of(manifest)),
                enforce=task.enforces,
                disputed=finding.disputed,
                refused=[name for name in finding.refused if name not in sketches],
                probed=self.probing.evidence(task),
                excused=self.probing.excused(task),
            )
            self._rulings[finding.shard] = ruled = (finding, ruling)
        return ruled[1]

    def round_ended(self, run: RoundRun, task: Task, chronicle: Chronicle) -> list[Note]:
        """Settle a round that is over, ban whoever is proven to have lied, and say what has changed."""
        answers, notes = run.answers, list[Note]()
        self._scale = _Scale(task=task.name) if self._scale.task != task.name else self._scale
        norms, contaminations = [], []
        for finding in run.attesting.findings.values():
            book, ruling = self._books[finding.shard], self._ruling(finding, run, task)
            settled = book.settle(ruling, without=_worthless(run), refused=_refused_later(run, finding))
            norms += [settled.reference_norm] if settled.reference_norm else []
            contaminations.append(settled.contamination)
            chronicle.settled(task.name, run.opened.round, run.opened.attempt, settled, book)
            notes += [_note(book, name, verdict) for name, verdict in settled.verdicts.items() if verdict.event]
        self._rulings.clear()
        if contaminations:
            self._scale.contamination = max(contaminations)
        if norms:
            self._scale.norm, self._scale.clip = max(norms), run.opened.manifest.clip
        for stage in _HEARD:
            for book in self._books.values():
                book.heard(answers.seconds[stage], answers.missed[stage] - answers.seconds[stage].keys())
        return notes + self._ban()

    def _ban(self) -> list[Note]:
        notes = []
        for name, reason in self._store.proofs().items():
            book = self.book(name)
            if book is not None and book.standing(name).state is not State.BANNED:
                book.ban(name, reason)
                notes.append(Note("banned", f"{name} is banned: {reason}"))
        return notes


def without_place(groupings: Iterable[Grouping], out: Collection[str], banned: Collection[str]) -> set[str]:
    """Return the members of groups who have no place on a roster.

    The banned never have. The quarantined are scored on, so that they can come back, as long as their group can
    afford members that are not summed; where it cannot they are left out, so that the others have a sum.

    Args:
        groupings: The groups.
        out: The quarantined and the banned.
        banned: The banned alone.
    """
    found = set[str]()
    for grouping in groupings:
        names = {name for name, _ in grouping.members}
        fit = len(names.difference(out)) - round(_SPARE * len(names))
        found |= names.intersection(out if fit < accepted_min(len(names)) else banned)
    return found


def next_clip(ceiling: float, *, norm: float, last: float) -> float:
    """Return the bound on norms for a round.

    Args:
        ceiling: What the task allows.
        norm: What was usual among those accepted last.
        last: The bound then.
    """
    return min(ceiling, max(_CLIP_MEDIANS * norm, _CLIP_SHRINKS * last))


def _worthless(run: RoundRun) -> set[str]:
    """Return the devices whose sketches are worth nothing: liars, and everybody in a group that was lied about."""
    spoilt = [group for group in run.groups.values() if group.aborted is not None and group.aborted.cause == "bad-sum"]
    return set(run.liars) | {name for group in spoilt for name in group.survivors}


def _refused_later(run: RoundRun, finding: Finding) -> set[str]:
    """Return the members of A who let the windows for signing it, or for revealing shares, run out."""
    missed = run.answers.missed["accept"] | run.answers.missed["unmask"]
    return missed.intersection(finding.accepted) - set(finding.refused)


def _note(book: Reputation, name: str, verdict: Verdict) -> Note:
    return Note("reputation", f"{verdict.event}: {book.standing(name).words}")


def _copy(book: Reputation | None) -> Reputation:
    return Reputation(state=book.encode()) if book is not None else Reputation()


def _hold_against(book: Reputation, other: Reputation) -> None:
    """Carry over who is out: a fleet that is cut anew must wash nobody."""
    for name in other.names(*OUT):
        if name not in book:
            book.admit(name)
            reason = other.standing(name).words
            book.ban(name, reason) if State.BANNED is other.standing(name).state else book.quarantine(name, reason)
