"""What the aggregator does with revealed shares: check them, restore secrets, take the masks off a sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from covey_protocol import masking, shamir, sharing
from covey_protocol.errors import RefusedError
from covey_protocol.masking import PairParty
from covey_protocol.messages import RevealedShares
from covey_protocol.prg import Ring
from covey_protocol.roster import CheckedRoster, Member, OpenRound
from covey_protocol.sharing import Entry


@dataclass(frozen=True)
class Revealed:
    """One member's shares by dealer."""

    self_mask: dict[str, bytes] = field(repr=False)
    masking: dict[str, bytes] = field(repr=False)


def check_reveal(
    shares: RevealedShares,
    revealer: str,
    *,
    roster: CheckedRoster,
    dealt: Sequence[str],
    survivors: Sequence[str],
    entries: Mapping[str, Mapping[str, Entry]],
    excused: Collection[str] = (),
) -> Revealed:
    """Hold a member's shares against what their dealers committed to.

    Args:
        shares: What the revealer sent.
        revealer: Its name.
        roster, dealt, survivors: R ⊇ D ⊇ U.
        entries: What each dealer committed to, by dealer and receiver.
        excused: Dealers that the revealer has complained of, whose shares it need not have.

    Raises:
        RefusedError: A share is of the wrong kind, missing, or not the one that was dealt: the revealer's fault.
    """
    revealed = Revealed(dict(shares.self_mask), dict(shares.masking))
    if not set(revealed.self_mask) <= set(survivors) or not set(revealed.masking) <= set(dealt) - set(survivors):
        raise RefusedError(f"{revealer!r} revealed shares of the wrong kind", cause="reveal")
    missing = set(dealt) - set(revealed.self_mask) - set(revealed.masking) - set(excused)
    if missing:
        raise RefusedError(f"{revealer!r} keeps the shares of {sorted(missing)} to itself", cause="withheld")
    kinds = (
        (revealed.self_mask, sharing.self_mask_commitment, "self_mask_commitment"),
        (revealed.masking, sharing.masking_commitment, "masking_commitment"),
    )
    for by_dealer, commit, field_name in kinds:
        for dealer, share in by_dealer.items():
            if not shamir.is_scalar(share):
                raise RefusedError(f"{revealer!r} revealed for {dealer!r} what is no scalar", cause="reveal")
            expected = getattr(entries[dealer][revealer], field_name)
            if commit(share, roster.digest, dealer, revealer) != expected:
                raise RefusedError(f"{revealer!r} revealed another share of {dealer!r} than was dealt", cause="reveal")
    return revealed


@dataclass(frozen=True)
class Restored:
    """Secrets that t members' shares gave back.

    Attributes:
        self_masks: b_i of each member in the sum.
        pairs: For each other member of D, the seeds of its masks with everybody else in D.
        masking: The masking secrets z that these follow from.
    """

    self_masks: dict[str, bytes] = field(repr=False)
    pairs: dict[str, dict[str, bytes]] = field(repr=False)
    masking: dict[str, bytes] = field(default_factory=dict, repr=False)


def restore(
    *,
    roster: CheckedRoster,
    dealt: Sequence[str],
    summed: Sequence[str],
    revealed: Mapping[str, Revealed],
    opened: OpenRound,
    fleet: str,
) -> Restored:
    """Restore what takes the masks off a sum.

    Args:
        roster, dealt, summed: R ⊇ D ⊇ the members in the sum.
        revealed: At least t members' checked shares.
        opened, fleet: The round, for the context of the pairwise seeds.

    Raises:
        RefusedError: Restored secrets are not those that their owners published, who have therefore dealt shares of
            wrong ones. All of them are named.
    """
    wrong: dict[str, str] = {}
    self_masks: dict[str, bytes] = {}
    for name in summed:
        member = _member(roster, name)
        secret = _restore(roster, name, "self_mask", revealed)
        if masking.self_mask_commitment(secret) != member.join.self_mask:
            wrong[name] = f"{name!r} dealt shares of another self-mask than it published"
        self_masks[name] = masking.self_mask_seed(secret)
    pairs: dict[str, dict[str, bytes]] = {}
    secrets: dict[str, bytes] = {}
    context = opened.pair_context(fleet, roster.digest)
    for name in dealt:
        if name in self_masks:
            continue
        dropped = _member(roster, name)
        secrets[name] = _restore(roster, name, "masking", revealed)
        key = masking.masking_key(secrets[name])
        if masking.public_key(key) != dropped.join.mask_key:
            wrong[name] = f"{name!r} dealt shares of another masking secret than it published"
            continue
        others = [_member(roster, other) for other in dealt if other != name]
        pairs[name] = {other.name: masking.pair_seed(key, _party(dropped), _party(other), context) for other in others}
    if wrong:
        raise RefusedError("; ".join(wrong.values()), cause="dealer", culprits=wrong)
    return Restored(self_masks, pairs, secrets)


def unmask_sum(total: Ring, restored: Restored, roster: CheckedRoster) -> Ring:
    """Take all masks off the sum of masked vectors.

    Args:
        total: Shape (d + 4,); changed in place.
        restored: The secrets of its members and of the others in D.
        roster: R.

    Returns:
        The sum of its members' vectors in the ring.
    """
    pairs = [
        (_member(roster, name).place, _member(roster, dropped).place, seeds[name])
        for dropped, seeds in restored.pairs.items()
        for name in restored.self_masks
    ]
    masking.unmask(total, list(restored.self_masks.values()), pairs)
    return total


def _restore(roster: CheckedRoster, dealer: str, kind: str, revealed: Mapping[str, Revealed]) -> bytes:
    shares = {
        _member(roster, revealer).place: getattr(held, kind)[dealer]
        for revealer, held in revealed.items()
        if dealer in getattr(held, kind)
    }
    return shamir.combine(dict(list(shares.items())[: roster.t]))


def _party(member: Member) -> PairParty:
    return PairParty(member.place, member.name, member.join.mask_key)


def _member(roster: CheckedRoster, name: str) -> Member:
    member = roster.member(name)
    assert member is not None
    return member
