"""Signed messages: COSE_Sign1 (RFC 9052, section 4.2) with EdDSA over deterministic CBOR.

What is signed besides the payload is the *context*, as external AAD: protocol version, fleet, task, round, attempt,
roster digest, kind, sender and recipient. It is not sent; each side writes down the context it expects. So a message
means one thing in one place and nothing can be replayed elsewhere, not even under another kind.

Task, round and attempt are repeated in the unprotected header under ``"at"``. That copy decides nothing: it only lets a
receiver tell a late message from a forged one before it says so in a log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from covey_protocol import cbor
from covey_protocol.errors import MalformedError, SignatureError

PROTOCOL = "covey/1"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
FIRST_BYTE = 0xD2  # CBOR tag 18, COSE_Sign1
_TAG_18 = bytes([FIRST_BYTE])
_PROTECTED = cbor.encode({1: -8})  # alg: EdDSA
_AT = "at"
MAX_ENVELOPE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a signature is about; the array of ``docs/protocol.md``, rule 1.

    Outside a round, task is empty and round counts epochs or stays 0. ``roster`` is the digest of what the sender
    builds on: the roster in a round, the member list in an epoch's opening.
    """

    fleet: str
    kind: str
    sender: str
    recipient: str = ""
    task: str = ""
    round: int = 0
    attempt: int = 0
    roster: bytes = b""

    def array(self) -> list[object]:
        """Return the signed array in its fixed order."""
        return [
            PROTOCOL,
            self.fleet,
            self.task,
            self.round,
            self.attempt,
            self.roster,
            self.kind,
            self.sender,
            self.recipient,
        ]

    def encoded(self) -> bytes:
        """Return the array as deterministic CBOR: the external AAD."""
        return cbor.encode(self.array())

    def with_(self, **changes: object) -> Context:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Envelope:
    """A parsed COSE_Sign1 whose signature has *not* been checked."""

    payload: bytes
    signature: bytes
    task: str
    round: int
    attempt: int


def sign(payload: bytes, context: Context, key: SigningKey) -> bytes:
    """Return the COSE_Sign1 encoding of ``payload`` signed in ``context``."""
    signature = key.sign(_to_be_signed(payload, context)).signature
    at = {_AT: [context.task, context.round, context.attempt]}
    return _TAG_18 + cbor.encode([_PROTECTED, at, payload, signature])


def parse(data: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> Envelope:
    """Take an envelope apart without believing it.

    Raises:
        MalformedError: The bytes are not a COSE_Sign1 as this protocol writes it.
    """
    if data[:1] != _TAG_18:
        raise MalformedError("not a signed message: COSE_Sign1 (tag 18) is missing", cause="unsigned")
    match cbor.decode(data[1:], max_bytes=max_bytes):
        case [
            bytes(protected),
            {"at": [str(task), int(round_), int(attempt)]},
            bytes(payload),
            bytes(signature),
        ]:
            if protected != _PROTECTED:
                raise MalformedError("the signature algorithm is not EdDSA alone")
            if len(signature) != SIGNATURE_BYTES:
                raise MalformedError(f"a signature of {len(signature)} bytes instead of {SIGNATURE_BYTES}")
            return Envelope(payload, signature, task, round_, attempt)
        case _:
            raise MalformedError("not the four parts of a COSE_Sign1 of this protocol")


def verify(envelope: Envelope, context: Context, key: bytes) -> bytes:
    """Return the payload once its signature holds in ``context``.

    Args:
        envelope: What ``parse`` returned.
        context: What the receiver expects the message to be about.
        key: The sender's Ed25519 public key, 32 bytes.

    Raises:
        SignatureError: It does not hold; the message says in which context.
    """
    try:
        VerifyKey(key).verify(_to_be_signed(envelope.payload, context, envelope), envelope.signature)
    except (BadSignatureError, ValueError, RuntimeError) as error:
        raise SignatureError(
            f"{context.kind} signed as {context.sender!r} does not verify for task {context.task!r}, "
            f"round {context.round}, attempt {context.attempt}"
        ) from error
    return envelope.payload


def open_signed(data: bytes, context: Context, key: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> bytes:
    """Parse and verify in one call; see ``parse`` and ``verify``."""
    return verify(parse(data, max_bytes=max_bytes), context, key)


def _to_be_signed(payload: bytes, context: Context, envelope: Envelope | None = None) -> bytes:
    """Return RFC 9052's Sig_structure; the hint in the header has to agree with the context."""
    if envelope is not None and (envelope.task, envelope.round, envelope.attempt) != (
        context.task,
        context.round,
        context.attempt,
    ):
        raise BadSignatureError("the header names another task, round or attempt")
    return cbor.encode(["Signature1", _PROTECTED, context.encoded(), payload])
