"""Dealing shares and taking in one's own: what a member does between ROSTER and DEALT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from covey_protocol import sharing
from covey_protocol.certificates import check_leaves
from covey_protocol.errors import PeerError, RefusedError
from covey_protocol.masking import RoundSecrets
from covey_protocol.messages import Dealt
from covey_protocol.roster import CheckedRoster, Member, OpenRound
from covey_protocol.shamir import ENTROPY_BYTES, split
from covey_protocol.sharing import Entry, Shares


@dataclass(frozen=True)
class Dealing:
    """A dealer's entries for its peers.

    Attributes:
        entries: By receiver; the dealer's own holds commitments alone.
        leaves: In roster order.
        ephemeral: The secret key of each entry, by receiver.
        own: The dealer's shares of its own secrets.
    """

    entries: dict[str, Entry]
    leaves: list[bytes]
    ephemeral: dict[str, bytes] = field(repr=False)
    own: Shares


def deal(secrets: RoundSecrets, dealer: Member, roster: CheckedRoster, entropy: Callable[[int], bytes]) -> Dealing:
    """Split both secrets of a round among all members of a roster and seal each peer's part."""
    n, t = len(roster), roster.t
    polynomial = ENTROPY_BYTES * (t - 1)
    masking = split(secrets.masking, n, t, entropy(polynomial))
    self_mask = split(secrets.self_mask, n, t, entropy(polynomial))
    peers = [member for member in roster.members if member.name != dealer.name]
    ephemeral = {peer.name: entropy(sharing.EPHEMERAL_BYTES) for peer in peers}
    entries = {
        peer.name: sharing.seal(
            Shares(masking[peer.place], self_mask[peer.place]),
            roster=roster.digest,
            dealer=dealer.name,
            receiver=peer.name,
            public=peer.join.share_key,
            ephemeral=ephemeral[peer.name],
        )
        for peer in peers
    }
    own = Shares(masking[dealer.place], self_mask[dealer.place])
    entries[dealer.name] = sharing.own_entry(own, roster=roster.digest, dealer=dealer.name)
    leaves = [entries[member.name].leaf() for member in roster.members]
    return Dealing(entries, leaves, ephemeral, own)


@dataclass(frozen=True)
class Column:
    """What one member was dealt.

    Attributes:
        dealers: The list D, in roster order.
        shares: By dealer.
        bad: By dealer, what is wrong with the entry that it signed.
    """

    dealers: tuple[Member, ...]
    shares: dict[str, Shares]
    bad: dict[str, str]


def take_in(
    message: Dealt, *, me: Member, secret: bytes, leaves: bytes, roster: CheckedRoster, opened: OpenRound, fleet: str
) -> Column:
    """Check a DEALT payload as one of its receivers.

    Args:
        message: The payload, its envelope already verified.
        me: This device.
        secret: Its secret sharing key.
        leaves: The leaves that it signed itself.
        roster, opened, fleet: The round.

    Raises:
        RefusedError: Too few dealt, or the aggregator has changed, withheld or moved something.
        PeerError: The signature on somebody's leaves does not hold.
    """
    dealers = roster.in_order([name for name, _ in message.dealt], "the list D")
    if len(dealers) < max(roster.t, roster.a_min):
        raise RefusedError(f"only {len(dealers)} of {len(roster)} members dealt", cause="dealt")
    signed, entries = dict(message.dealt), {name: Entry(*array) for name, array in message.entries}
    if signed.get(me.name) != leaves:
        raise RefusedError("the list D holds other leaves of this device than it signed", cause="dealt")
    shares: dict[str, Shares] = {}
    bad: dict[str, str] = {}
    for dealer in dealers:
        if dealer.name == me.name:
            continue
        theirs = check_leaves(signed[dealer.name], dealer, roster, opened, fleet)
        entry = entries.get(dealer.name)
        if entry is None or theirs[me.place] != entry.leaf():
            raise RefusedError(f"the entry from {dealer.name!r} is missing or was changed", cause="dealt")
        try:
            shares[dealer.name] = sharing.unseal(
                entry,
                roster=roster.digest,
                dealer=dealer.name,
                receiver=me.name,
                public=me.join.share_key,
                secret=secret,
            )
        except PeerError as error:
            bad[dealer.name] = str(error)
    return Column(tuple(dealers), shares, bad)
