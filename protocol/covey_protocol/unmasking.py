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

    A dealer keeps the share of itself, to which there is no commitment; a wrong one shows when the secret is restored.

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
            if dealer == revealer:
                continue
            expected = getattr(entries[dealer][revealer], field_name)
            if commit(share, roster.digest, dealer, revealer) != expected:
                raise RefusedError(f"{revealer!r} revealed another share of {dealer!r} than was dealt", cause="reveal")
    return revealed


def unmask_sum(
    total: Ring,
    *,
    roster: CheckedRoster,
    dealt: Sequence[str],
    survivors: Sequence[str],
    revealed: Mapping[str, Revealed],
    opened: OpenRound,
    fleet: str,
) -> Ring:
    """Take all masks off the sum of the survivors' masked vectors.

    Args:
        total: Shape (d + 4,); changed in place.
        roster, dealt, survivors: R ⊇ D ⊇ U.
        revealed: At least t members' checked shares.
        opened, fleet: The round, for the context of the pairwise seeds.

    Returns:
        Σ_{i ∈ U} x_i in the ring.

    Raises:
        RefusedError: Restored secrets are not those that their owners published, who have therefore dealt shares of
            wrong ones. All of them are named.
    """
    self_seeds: list[bytes] = []
    wrong: dict[str, str] = {}
    for name in survivors:
        member = _member(roster, name)
        secret = _restore(roster, name, "self_mask", revealed)
        if masking.self_mask_commitment(secret) != member.join.self_mask:
            wrong[name] = f"{name!r} dealt shares of another self-mask than it published"
        self_seeds.append(masking.self_mask_seed(secret))
    pairs: list[tuple[int, int, bytes]] = []
    context = opened.pair_context(fleet, roster.digest)
    for name in dealt:
        if name in survivors:
            continue
        dropped = _member(roster, name)
        key = masking.masking_key(_restore(roster, name, "masking", revealed))
        if masking.public_key(key) != dropped.join.mask_key:
            wrong[name] = f"{name!r} dealt shares of another masking secret than it published"
            continue
        for other in survivors:
            survivor = _member(roster, other)
            seed = masking.pair_seed(key, _party(dropped), _party(survivor), context)
            pairs.append((survivor.place, dropped.place, seed))
    if wrong:
        raise RefusedError("; ".join(wrong.values()), cause="dealer", culprits=wrong)
    masking.unmask(total, self_seeds, pairs)
    return total


def _restore(roster: CheckedRoster, dealer: str, kind: str, revealed: Mapping[str, Revealed]) -> bytes:
    shares = {
        _member(roster, revealer).place: getattr(held, kind)[dealer]
        for revealer, held in revealed.items()
        if dealer in getattr(held, kind) and revealer != dealer
    }
    own = revealed.get(dealer)
    if len(shares) < roster.t and own is not None and dealer in getattr(own, kind):
        shares[_member(roster, dealer).place] = getattr(own, kind)[dealer]
    return shamir.combine(dict(list(shares.items())[: roster.t]))


def _party(member: Member) -> PairParty:
    return PairParty(member.place, member.name, member.join.mask_key)


def _member(roster: CheckedRoster, name: str) -> Member:
    member = roster.member(name)
    assert member is not None
    return member
