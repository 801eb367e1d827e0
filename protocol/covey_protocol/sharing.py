"""Encrypted shares and their commitments.

A dealer sends each peer two shares (of its masking secret and of its self-mask) in one sealed box for the peer's fresh
sharing key. The plaintext names roster, dealer and receiver, so a relocated ciphertext is refused. For every receiver
the dealer signs one *leaf*, a digest over ciphertext and the two share commitments; a leaf list goes to everyone, an
entry only to its receiver, so traffic stays at 32 bytes a pair plus one entry a peer. When a share is revealed later,
its commitment tells whether dealer or revealer lied. When a receiver says that its entry does not open, the dealer
shows the ephemeral key that it made this one box with, and everybody sees who lied (``complaints``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from covey_protocol import cbor, shamir
from covey_protocol.digest import digest
from covey_protocol.errors import MalformedError, RefusedError
from covey_protocol.sealing import open_sealed, reopen_sealed, seal_anonymously

EPHEMERAL_BYTES = 32
_MASKING, _SELF_MASK = "masking", "self-mask"
_PLAINTEXT_MAX = 512


@dataclass(frozen=True)
class Shares:
    """The two shares of one dealer for one receiver."""

    masking: bytes = field(repr=False)
    self_mask: bytes = field(repr=False)


@dataclass(frozen=True)
class Entry:
    """What a dealer sends to one receiver: nonce and ciphertext, and the commitments to the shares inside."""

    ciphertext: bytes
    masking_commitment: bytes
    self_mask_commitment: bytes

    def leaf(self) -> bytes:
        """Return the digest that the dealer signs."""
        parts = [self.ciphertext, self.masking_commitment, self.self_mask_commitment]
        return digest(cbor.encode(parts), person=b"covey-share-leaf")

    def array(self) -> list[bytes]:
        """Return the entry as it travels."""
        return [self.ciphertext, self.masking_commitment, self.self_mask_commitment]


def commit(share: bytes, what: str, roster: bytes, dealer: str, receiver: str) -> bytes:
    """Return the commitment to one share; ``what`` is "masking" or "self-mask"."""
    return digest(cbor.encode([what, roster, dealer, receiver, share]), person=b"covey-share")


def masking_commitment(share: bytes, roster: bytes, dealer: str, receiver: str) -> bytes:
    """Return the commitment to a share of a masking secret."""
    return commit(share, _MASKING, roster, dealer, receiver)


def self_mask_commitment(share: bytes, roster: bytes, dealer: str, receiver: str) -> bytes:
    """Return the commitment to a share of a self-mask."""
    return commit(share, _SELF_MASK, roster, dealer, receiver)


def seal(shares: Shares, *, roster: bytes, dealer: str, receiver: str, public: bytes, ephemeral: bytes) -> Entry:
    """Encrypt two shares for one receiver.

    Args:
        shares: The scalars.
        roster: Digest of the roster they belong to.
        dealer: Name of the sender.
        receiver: Name of the receiver.
        public: The receiver's public sharing key.
        ephemeral: 32 fresh uniform bytes, the secret key of this box alone; whoever has it can open the entry.

    Raises:
        RefusedError: The receiver's key is of low order.
    """
    plaintext = cbor.encode([roster, dealer, receiver, shares.masking, shares.self_mask])
    try:
        ciphertext = seal_anonymously(plaintext, public, ephemeral)
    except RefusedError as error:
        raise RefusedError(f"sharing key of {receiver!r} is of low order", cause="low-order-key") from error
    return Entry(
        ciphertext,
        masking_commitment(shares.masking, roster, dealer, receiver),
        self_mask_commitment(shares.self_mask, roster, dealer, receiver),
    )


def own_entry(shares: Shares, *, roster: bytes, dealer: str) -> Entry:
    """Return a dealer's entry for itself: nothing is sealed, and the commitments bind it like its peers."""
    return Entry(
        b"",
        masking_commitment(shares.masking, roster, dealer, dealer),
        self_mask_commitment(shares.self_mask, roster, dealer, dealer),
    )


def unseal(entry: Entry, *, roster: bytes, dealer: str, receiver: str, public: bytes, secret: bytes) -> Shares:
    """Decrypt an entry and hold it against its commitments.

    Args:
        entry: As received.
        roster: Digest of the roster it must belong to.
        dealer: The name it must come from.
        receiver: My own name.
        public, secret: My X25519 sharing key pair.

    Raises:
        RefusedError: It does not decrypt, was meant for another place, or does not match its commitments; the message
            names the dealer.
    """
    try:
        plaintext = open_sealed(entry.ciphertext, public, secret)
    except RefusedError as error:
        raise RefusedError(f"share from {dealer!r} does not decrypt", cause="share") from error
    return _read(plaintext, entry, roster, dealer, receiver)


def reopen(entry: Entry, *, roster: bytes, dealer: str, receiver: str, public: bytes, ephemeral: bytes) -> Shares:
    """Decrypt an entry as its dealer can, with the key it was made with, for whoever has to judge it.

    Args:
        entry: As its dealer signed it.
        roster: Digest of the roster it must belong to.
        dealer: Who made it.
        receiver: For whom.
        public: The receiver's public sharing key.
        ephemeral: The secret key that the dealer claims to have made it with.

    Raises:
        RefusedError: No receiver could have used this entry: the dealer's fault, who is named.
    """
    try:
        plaintext = reopen_sealed(entry.ciphertext, public, ephemeral)
    except RefusedError as error:
        raise RefusedError(f"share from {dealer!r}: {error}", cause="share") from error
    return _read(plaintext, entry, roster, dealer, receiver)


def _read(plaintext: bytes, entry: Entry, roster: bytes, dealer: str, receiver: str) -> Shares:
    try:
        decoded = cbor.decode(plaintext, max_bytes=_PLAINTEXT_MAX)
    except MalformedError as error:
        raise RefusedError(f"share from {dealer!r} has a wrong form", cause="share") from error
    match decoded:
        case [bytes(at), str(sender), str(to), bytes(masking), bytes(self_mask)]:
            pass
        case _:
            raise RefusedError(f"share from {dealer!r} has a wrong form", cause="share")
    if (at, sender, to) != (roster, dealer, receiver):
        raise RefusedError(f"share from {dealer!r} was made for another roster, dealer or receiver", cause="share")
    if not (shamir.is_scalar(masking) and shamir.is_scalar(self_mask)):
        raise RefusedError(f"share from {dealer!r} is not a scalar", cause="share")
    if (
        masking_commitment(masking, roster, dealer, receiver) != entry.masking_commitment
        or self_mask_commitment(self_mask, roster, dealer, receiver) != entry.self_mask_commitment
    ):
        raise RefusedError(f"share from {dealer!r} does not match its commitment", cause="share")
    return Shares(masking, self_mask)
