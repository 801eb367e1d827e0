"""Complaints about shares: who broke the rule, so that nobody can stall a group and leave the blame to others.

A member whose entry from some dealer does not open, or is not what the dealer committed to, complains with its
signature (COMPLAINT). The aggregator passes the complaint on to the dealer, who answers with the ephemeral key of that
one entry, sealed to the aggregator (ANSWER). The entry is fixed by the leaf that the dealer signed, so whoever has the
key opens it exactly as the receiver would have to:

- it opens to shares that match their commitments: the complaint was false, and its sender is named. The shares are used
  in its place, so the lie gains nothing;
- it does not: the dealer is named;
- no answer comes: nothing is proven, but a dealer whose secrets therefore cannot be restored has made the group abort.

An answer shows one receiver's pair of shares to the aggregator, which knows it anyhow where the receiver colludes; an
honest receiver never complains of an honest dealer. A dealer therefore answers signed complaints only, and of at most c
different members. More than c complaints of one dealer cannot all be false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from covey_protocol import envelope, sharing, topics
from covey_protocol.errors import PeerError, RefusedError, StaleError
from covey_protocol.messages import Complaint, EphemeralKeys
from covey_protocol.payload import read
from covey_protocol.roster import CheckedRoster, Member, OpenRound
from covey_protocol.sharing import Entry
from covey_protocol.thresholds import colluders
from covey_protocol.unmasking import Revealed

KEYS = "ephemeral-keys"
"""What a dealer signs inside its ANSWER message goes by a kind of its own, which is no topic."""


def read_keys(
    data: bytes, dealer: Member, *, roster: CheckedRoster, opened: OpenRound, fleet: str
) -> list[tuple[str, bytes]]:
    """Return the ephemeral keys that a dealer has signed for, with their receivers.

    Raises:
        PeerError: The signature does not hold.
    """
    context = opened.context(fleet, KEYS, dealer.name, roster.digest)
    return list(read(EphemeralKeys, envelope.verify(opened.matches(data), context, dealer.key)).keys)


def check_complaint(
    data: bytes, sender: Member, *, dealt: bytes, roster: CheckedRoster, opened: OpenRound, fleet: str
) -> list[str]:
    """Return the dealers that a member complains of.

    Args:
        data: The complaint as it was signed.
        sender: Who signed it.
        dealt: Digest of the list D, which holds the entries.
        roster, opened, fleet: The round.

    Raises:
        PeerError: The signature does not hold.
        RefusedError: The complaint is about another list D, names its sender, a stranger, or somebody twice.
    """
    context = opened.context(fleet, topics.COMPLAINT, sender.name, roster.digest)
    complaint = read(Complaint, envelope.verify(opened.matches(data), context, sender.key))
    if complaint.dealt != dealt:
        raise RefusedError(f"{sender.name!r} complains of entries in another list D", cause="dealt")
    dealers = complaint.dealers
    if sender.name in dealers or any(roster.member(name) is None for name in dealers):
        raise RefusedError(f"{sender.name!r} complains of itself or of strangers: {dealers}", cause="complaint")
    if len(set(dealers)) < len(dealers):
        raise RefusedError(f"{sender.name!r} complains of a dealer twice", cause="complaint")
    return list(dealers)


class Answers:
    """A dealer's side: the ephemeral keys of its entries, and whom it has shown one.

    Args:
        name: The dealer.
        keys: The secret key of the entry for each receiver.
    """

    def __init__(self, name: str, keys: Mapping[str, bytes]) -> None:
        self._name, self._keys = name, dict(keys)
        self._answered: set[str] = set()

    def answer(
        self,
        complaints: Sequence[tuple[str, bytes]],
        *,
        dealt: bytes,
        roster: CheckedRoster,
        opened: OpenRound,
        fleet: str,
    ) -> list[tuple[str, bytes]]:
        """Return the keys that signed complaints have a claim to; ``dealt`` is the digest of the list D.

        Raises:
            PeerError: A complaint is not its sender's, or does not name this dealer.
            StaleError: All of them were answered before.
            RefusedError: More than c members complain: somebody gathers shares.
        """
        senders = roster.in_order([name for name, _ in complaints], "the complaints")
        for sender, (_, data) in zip(senders, complaints, strict=True):
            named = check_complaint(data, sender, dealt=dealt, roster=roster, opened=opened, fleet=fleet)
            if self._name not in named:
                raise RefusedError(f"a complaint of {sender.name!r} is about somebody else", cause="complaint")
        new = [sender.name for sender in senders if sender.name not in self._answered]
        if not new:
            raise StaleError("these complaints were answered before", cause="repeated")
        tolerated = colluders(len(roster))
        if len(self._answered) + len(new) > tolerated:
            raise RefusedError(
                f"{len(self._answered) + len(new)} members complain where at most {tolerated} can lie",
                cause="complaint",
            )
        self._answered.update(new)
        return [(name, self._keys[name]) for name in new]


@dataclass
class ComplaintBook:
    """The aggregator's side: what was complained of in one group, and what the answers show.

    Attributes:
        open: (dealer, receiver) pairs without an answer.
        bad: Pairs whose entry is proven to be of no use.
        blamed: Members that are proven to have lied, and in what.
        answers: By receiver and dealer, the shares that answers have shown to be good.
    """

    open: set[tuple[str, str]] = field(default_factory=set)
    bad: set[tuple[str, str]] = field(default_factory=set)
    blamed: dict[str, str] = field(default_factory=dict)
    answers: dict[str, dict[str, sharing.Shares]] = field(default_factory=dict, repr=False)

    def file(self, receiver: str, dealers: Sequence[str]) -> list[str]:
        """Note a member's complaint; return the dealers to ask, those it has not complained of before."""
        new = [dealer for dealer in dealers if not self._known(dealer, receiver)]
        self.open.update((dealer, receiver) for dealer in new)
        return new

    def _known(self, dealer: str, receiver: str) -> bool:
        pair = (dealer, receiver)
        return pair in self.open or pair in self.bad or dealer in self.answers.get(receiver, {})

    def judge(
        self, dealer: str, keys: Sequence[tuple[str, bytes]], *, roster: CheckedRoster, entries: Mapping[str, Entry]
    ) -> list[tuple[str, str]]:
        """Take a dealer's answer.

        Args:
            dealer: Whose answer it is.
            keys: Receiver and ephemeral key.
            roster: The group's members.
            entries: The dealer's entries by receiver.

        Returns:
            For each answered complaint who lied and in what.

        Raises:
            RefusedError: Nobody asked for one of these keys; nothing has changed.
        """
        strangers = [receiver for receiver, _ in keys if (dealer, receiver) not in self.open]
        if strangers or len({receiver for receiver, _ in keys}) < len(keys):
            raise RefusedError(f"{dealer!r} answers complaints that nobody made: {strangers}", cause="complaint")
        verdicts = []
        for receiver, key in keys:
            self.open.remove((dealer, receiver))
            member = roster.member(receiver)
            assert member is not None
            try:
                shares = sharing.reopen(
                    entries[receiver],
                    roster=roster.digest,
                    dealer=dealer,
                    receiver=receiver,
                    public=member.join.share_key,
                    ephemeral=key,
                )
            except PeerError as error:
                self.bad.add((dealer, receiver))
                verdicts.append((dealer, str(error)))
            else:
                self.answers.setdefault(receiver, {})[dealer] = shares
                verdicts.append((receiver, f"complained of a good share from {dealer!r}"))
        for name, reason in verdicts:
            self.blamed.setdefault(name, reason)
        return verdicts

    def excused(self, receiver: str) -> set[str]:
        """Return the dealers whose shares a member need not reveal."""
        answered = set(self.answers.get(receiver, {}))
        return answered | {dealer for dealer, other in self.open | self.bad if other == receiver}

    def unrestorable(self, dealt: Sequence[str], t: int, *, proven: bool) -> dict[str, str]:
        """Return the dealers whose secrets fewer than t members can hold shares of, and why.

        Args:
            dealt: The list D.
            t: Shares that restore a secret.
            proven: Count only what is complained of dealers who are proven to have dealt a bad entry; otherwise every
                complaint that has no answer too.
        """
        liars = {dealer for dealer, _ in self.bad}
        lacking = self.bad | {pair for pair in self.open if not proven or pair[0] in liars}
        result = {}
        for dealer in dealt:
            without = sorted(receiver for other, receiver in lacking if other == dealer and receiver in dealt)
            if len(dealt) - len(without) < t:
                result[dealer] = f"shares of {dealer!r} that do not open for {', '.join(without)}"
        return result

    def complete(self, revealed: Mapping[str, Revealed], survivors: Sequence[str]) -> dict[str, Revealed]:
        """Return the revealed shares together with those that answers have shown."""
        result = {name: Revealed(dict(held.self_mask), dict(held.masking)) for name, held in revealed.items()}
        for receiver, by_dealer in self.answers.items():
            held = result.setdefault(receiver, Revealed({}, {}))
            for dealer, shares in by_dealer.items():
                if dealer in survivors:
                    held.self_mask[dealer] = shares.self_mask
                else:
                    held.masking[dealer] = shares.masking
        return result
