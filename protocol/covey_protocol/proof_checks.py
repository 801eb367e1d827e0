"""What each form of proof has to show; see ``proofs``.

Every check ends in the same way: where what the accused said is true after all, the proof is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from covey_protocol import masking, shamir, sharing, topics
from covey_protocol.attest_stage import REPORT, matrix
from covey_protocol.certificates import LEAVES
from covey_protocol.complaints import KEYS
from covey_protocol.digest import content_digest
from covey_protocol.errors import PeerError, RefusedError
from covey_protocol.messages import (
    Assent,
    Complaint,
    Consent,
    EntryArray,
    EphemeralKeys,
    Leaves,
    Masked,
    Report,
    ReportHead,
)
from covey_protocol.payload import read
from covey_protocol.proof_forms import (
    BadShare,
    FalseComplaint,
    FalsePairMask,
    FalseSelfMask,
    SecondSignature,
    WrongSecret,
)
from covey_protocol.proof_round import CheckedRound
from covey_protocol.roster import Member, dealt_lines_digest
from covey_protocol.sharing import Entry, Shares
from covey_protocol.sketch import K_MAX, K_MIN


def _refuse(text: str) -> RefusedError:
    return RefusedError(text, cause="proof")


def self_mask(name: str, lie: FalseSelfMask, place: CheckedRound) -> str:
    """Check that a device reported a false sketch of the self-mask that its JOIN commits to."""
    accused = place.member(name)
    seed, report = _reported(accused, lie.head, lie.report, place)
    if masking.seed_commitment(lie.seed) != accused.join.self_mask:
        raise _refuse(f"the seed is not the one that the JOIN of {name!r} commits to")
    _differs(_sketch(seed, lie.seed, place), report.own, f"the sketch of its self-mask that {name!r} reported is true")
    return "reported a false sketch of its self-mask"


def pair_mask(name: str, lie: FalsePairMask, place: CheckedRound) -> str:
    """Check that a device reported a false sketch of its mask with a peer, one of whose masking secrets is shown."""
    accused, peer = place.member(name), place.member(lie.peer)
    seed, report = _reported(accused, lie.head, lie.report, place)
    claims = [claim for other, claim in report.pairs if other == peer.name]
    if len(claims) != 1 or peer.name == name:
        raise _refuse(f"the report of {name!r} has not one sketch of a mask with {lie.peer!r}")
    secret = masking.masking_key(lie.secret)
    public = masking.public_key(secret)
    ends = [(one, other) for one, other in ((accused, peer), (peer, accused)) if one.join.mask_key == public]
    if not ends:
        raise _refuse(f"the masking secret belongs to the JOIN of neither {name!r} nor {lie.peer!r}")
    mine, theirs = ends[0]
    context = place.opened.pair_context(place.fleet, place.roster.digest)
    pair = masking.pair_seed(secret, place.party(mine.name), place.party(theirs.name), context)
    _differs(_sketch(seed, pair, place), claims[0], f"what {name!r} reported of its mask with {lie.peer!r} is true")
    return f"reported a false sketch of its mask with {lie.peer!r}"


def bad_share(name: str, lie: BadShare, place: CheckedRound) -> str:
    """Check that an entry that a dealer signed for is of no use to its receiver."""
    entry = _entry(place.member(name), lie.leaves, lie.receiver, lie.entry, place)
    signed = read(EphemeralKeys, place.signed(lie.answer, KEYS, place.member(name))).keys
    keys = [key for receiver, key in signed if receiver == lie.receiver]
    if len(keys) != 1:
        raise _refuse(f"{name!r} has not signed one key of its entry for {lie.receiver!r}")
    try:
        _open(entry, name, lie.receiver, keys[0], place)
    except PeerError:
        return f"dealt {lie.receiver!r} a share that is of no use"
    raise _refuse(f"the share of {name!r} for {lie.receiver!r} is good")


def wrong_secret(name: str, lie: WrongSecret, place: CheckedRound) -> str:
    """Check that t shares that a dealer committed to restore another secret than it published."""
    dealer, t = place.member(name), place.roster.t
    receivers = {share.receiver for share in lie.shares}
    if len(lie.shares) != t or len(receivers) != t:
        raise _refuse(f"not the shares of {t} different receivers, which it takes to restore a secret of {name!r}")
    shares: dict[int, bytes] = {}
    for held in lie.shares:
        entry = _entry(dealer, lie.leaves, held.receiver, held.entry, place, own=True)
        commit, expected = (
            (sharing.masking_commitment, entry.masking_commitment)
            if lie.which == "masking"
            else (sharing.self_mask_commitment, entry.self_mask_commitment)
        )
        if not shamir.is_scalar(held.share):
            raise _refuse(f"what {held.receiver!r} holds of {name!r} is no scalar")
        if commit(held.share, place.roster.digest, name, held.receiver) != expected:
            raise _refuse(f"the share of {held.receiver!r} is not the one that {name!r} committed to")
        shares[place.place(held.receiver)] = held.share
    found = shamir.combine(shares)
    if lie.which == "masking":
        true = masking.public_key(masking.masking_key(found)) == dealer.join.mask_key
    else:
        true = masking.self_mask_commitment(found) == dealer.join.self_mask
    if true:
        raise _refuse(f"{name!r} dealt shares of the {lie.which} secret that it published")
    return f"dealt shares of another {lie.which} secret than it published"


def false_complaint(name: str, lie: FalseComplaint, place: CheckedRound) -> str:
    """Check that a member complained of an entry that is good."""
    accused, dealer = place.member(name), place.member(lie.dealer)
    complaint = read(Complaint, place.signed(lie.complaint, topics.COMPLAINT, accused))
    if lie.dealer not in complaint.dealers or lie.dealer == name:
        raise _refuse(f"{name!r} does not complain of {lie.dealer!r}")
    if dealt_lines_digest(lie.dealt) != complaint.dealt:
        raise _refuse(f"the list D of the proof is not the one that {name!r} complains of")
    if dict(lie.dealt).get(lie.dealer) != content_digest(lie.leaves):
        raise _refuse(f"the leaves of {lie.dealer!r} are not those in the list D that {name!r} complains of")
    entry = _entry(dealer, lie.leaves, name, lie.entry, place)
    if clamped(lie.ephemeral) != lie.ephemeral:
        raise _refuse("the ephemeral key is not in its clamped form")
    _open(entry, lie.dealer, name, lie.ephemeral, place)
    return f"complained of a good share from {lie.dealer!r}"


_SIGNED_ONCE: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "survivors": (topics.SURVIVORS, lambda body: read(Consent, body).survivors),
    "accept": (topics.ACCEPT, lambda body: read(Assent, body).accepted),
    "report": (REPORT, lambda body: read(ReportHead, body)),
    "masked": (topics.MASKED, lambda body: read(Masked, body).vector.digest),
}
_PLURAL = {"survivors": "sets U", "accept": "sets A", "report": "reports", "masked": "masked vectors"}


def second_signature(name: str, lie: SecondSignature, place: CheckedRound) -> str:
    """Check that a device signed two different things where it may sign one."""
    kind, meaning = _SIGNED_ONCE[lie.kind]
    accused = place.member(name)
    first, second = (place.signed(data, kind, accused) for data in (lie.first, lie.second))
    # By what they mean: one text may be signed twice.
    if first >= second or meaning(first) == meaning(second):
        raise _refuse(f"{name!r} has not signed two different {_PLURAL[lie.kind]}, the lesser first")
    return f"signed two different {_PLURAL[lie.kind]}"


def _reported(accused: Member, head: bytes, report: bytes, place: CheckedRound) -> tuple[bytes, Report]:
    """Return ρ and the report that a device signed."""
    signed = read(ReportHead, place.signed(head, REPORT, accused))
    if content_digest(report) != signed.report:
        raise _refuse(f"the report is not the one that {accused.name!r} signed")
    return signed.seed, read(Report, report)


def _sketch(seed: bytes, mask: bytes, place: CheckedRound) -> bytes:
    """Return the true sketch of a mask under ρ."""
    manifest = place.opened.manifest
    if not K_MIN <= manifest.sketch <= K_MAX:
        raise _refuse(f"the round's sketches would have {manifest.sketch} numbers")
    (sketch,) = matrix(seed, place.opened).of_masks([mask])
    return np.asarray(sketch, "<u2").tobytes()


def _differs(true: bytes, reported: bytes, otherwise: str) -> None:
    if len(true) != len(reported):
        raise _refuse(f"a sketch of {len(reported)} bytes where the round has {len(true)}")
    if true == reported:
        raise _refuse(otherwise)


def _entry(
    dealer: Member, leaves: bytes, receiver: str, array: EntryArray, place: CheckedRound, *, own: bool = False
) -> Entry:
    """Return an entry that a dealer has signed a leaf for; its ``own`` holds commitments and nothing to be opened."""
    signed = read(Leaves, place.signed(leaves, LEAVES, dealer)).leaves
    if len(signed) != len(place.names):
        raise _refuse(f"{dealer.name!r} signed {len(signed)} leaves for a roster of {len(place.names)}")
    entry = Entry(*array)
    if (receiver == dealer.name and not own) or signed[place.place(receiver)] != entry.leaf():
        raise _refuse(f"the entry for {receiver!r} is not the one that {dealer.name!r} signed")
    return entry


def _open(entry: Entry, dealer: str, receiver: str, ephemeral: bytes, place: CheckedRound) -> Shares:
    """Open an entry as its receiver would have to.

    Raises:
        RefusedError: It does not open to shares that match their commitments.
    """
    public = place.member(receiver).join.share_key
    return sharing.reopen(
        entry, roster=place.roster.digest, dealer=dealer, receiver=receiver, public=public, ephemeral=ephemeral
    )


def clamped(key: bytes) -> bytes:
    """Return the form of an X25519 secret key in which the bits that do not count are fixed (RFC 7748, section 5)."""
    return bytes([key[0] & 248, *key[1:31], (key[31] & 127) | 64])
