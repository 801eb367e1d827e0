"""The payloads of all messages, in the order in which a device meets them.

Field types bound every size and range; what depends on context (does this digest match, is this name on the roster) is
checked by the state machines. The signed context of ``envelope`` says which fleet, task, round, attempt and roster a
payload belongs to, so payloads do not repeat it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_protocol.identity import Chain
from covey_protocol.payload import Count, Digest, Key, Name, Payload, prepare
from covey_protocol.plan import Plan
from covey_protocol.thresholds import ROSTER_MAX, ROSTER_MIN

SHARD_MAX = 1000
SHARD_BITS_MAX = 16
SKETCH_MAX = 4096
REASON_MAX = 400
MAX_MODEL_BYTES = 1 << 30
_MAX_CIPHERTEXT = 512
_MAX_ENVELOPE = 64 * 1024

Bytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_MODEL_BYTES)]
WINDOW_MAX = 7 * 86400
# A broker keeps the session of whoever is away for longer than the longest window, so that a sleeper misses nothing.
SESSION_SECONDS = WINDOW_MAX + 86400
Seconds = Annotated[float, msgspec.Meta(gt=0, le=WINDOW_MAX)]
Members = Annotated[list[Name], msgspec.Meta(max_length=SHARD_MAX)]
RosterNames = Annotated[list[Name], msgspec.Meta(max_length=ROSTER_MAX)]
Signed = Annotated[bytes, msgspec.Meta(max_length=_MAX_ENVELOPE)]
SignedList = Annotated[list[tuple[Name, Signed]], msgspec.Meta(max_length=ROSTER_MAX)]
RosterSize = Annotated[int, msgspec.Meta(ge=ROSTER_MIN, le=ROSTER_MAX)]
GroupName = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
SketchBytes = Annotated[bytes, msgspec.Meta(max_length=128)]
Threshold = Annotated[int, msgspec.Meta(ge=1, le=ROSTER_MAX)]
SketchSize = Annotated[int, msgspec.Meta(ge=0, le=SKETCH_MAX)]
NoiseMultiplier = Annotated[float, msgspec.Meta(ge=0, le=1000)]
PieceSize = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class State(Payload, frozen=True, kw_only=True):
    """STATE, retained: a device says that it is there; the same topic carries its Last Will.

    ``counter`` grows with every start of the agent, so an old state that is played back is recognised.
    """

    status: Literal["online", "lost", "left"]
    counter: Count
    chain: Chain
    software: Annotated[str, msgspec.Meta(max_length=64)] = ""
    holds: Annotated[str, msgspec.Meta(max_length=200)] = ""


class ListedMember(Payload, frozen=True, kw_only=True):
    """One line of an epoch's list."""

    device: Name
    key: Key
    probation: bool = False


class EpochList(Payload, frozen=True, kw_only=True):
    """EPOCH: who is in this shard's next grouping, in the order of their names."""

    shard: Annotated[int, msgspec.Meta(ge=0, lt=1 << SHARD_BITS_MAX)]
    shard_bits: Annotated[int, msgspec.Meta(ge=0, le=SHARD_BITS_MAX)]
    group_size: RosterSize
    members: Annotated[list[ListedMember], msgspec.Meta(max_length=SHARD_MAX)]


class Commitment(Payload, frozen=True, kw_only=True):
    """COMMITMENT: a device commits to its random e_i."""

    commitment: Digest


class Commitments(Payload, frozen=True, kw_only=True):
    """COMMITMENTS: all commitments, before any is opened."""

    commitments: Annotated[list[tuple[Name, Digest]], msgspec.Meta(max_length=SHARD_MAX)]


class Opening(Payload, frozen=True, kw_only=True):
    """OPENING: a device opens its e_i."""

    value: Digest


class Groups(Payload, frozen=True, kw_only=True):
    """GROUPS: all openings and the groups that follow from them."""

    openings: Annotated[list[tuple[Name, Digest]], msgspec.Meta(max_length=SHARD_MAX)]
    groups: Annotated[list[RosterNames], msgspec.Meta(max_length=SHARD_MAX)]


class Blob(Payload, frozen=True, kw_only=True):
    """A large object by name: BLAKE2b-256 digest and length in bytes."""

    digest: Digest
    bytes: Bytes


class Delta(Payload, frozen=True, kw_only=True):
    """How to get from model ``base`` to the round's model: see ``model.apply_delta``."""

    base: Digest
    blob: Blob


class Windows(Payload, frozen=True, kw_only=True):
    """How long each stage stays open, in seconds."""

    join: Seconds
    shares: Seconds
    masked: Seconds
    survivors: Seconds
    unmask: Seconds
    attest: Seconds = 60.0
    accept: Seconds = 60.0


class Manifest(Payload, frozen=True, kw_only=True):
    """OPEN, retained: what the aggregator proposes for one round of a task.

    Attributes:
        epoch: The grouping that is used.
        bundle: The task's trainable bundle.
        model: The round's parameters, float32 little-endian.
        delta: How to reach them from the last ones, where there are any.
        plan: Local training.
        clip: Bound on the L2 norm of an update.
        n_min, n_max: Limits on a roster; ``n_max`` also sets the ring's scale.
        masking: False only in fleets whose policy allows clear updates.
        sketch: Numbers in the sketch that every member is asked for; 0 asks for none.
        lot: Groups that are not watched attest in one round of so many, as the lot falls.
        noise: What the noise of a sum's honest members is to the largest update; 0 for none. See ``noise``.
        a_min: Smallest set that is summed, where it exceeds what follows from the roster and the policy.
        windows: Seconds for each stage.
        sealing_key: X25519 key to which shares and sketches are sealed, so that the broker learns nothing from them.
        revocations: Newest revocation list version the aggregator knows.
        succession: How often the operator's key has changed: who goes by another one takes no part.
    """

    epoch: Count
    bundle: Blob
    model: Blob
    plan: Plan
    clip: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    n_min: RosterSize
    n_max: RosterSize
    windows: Windows
    sealing_key: Key
    masking: bool = True
    sketch: SketchSize = 0
    lot: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    noise: NoiseMultiplier = 0.0
    a_min: Annotated[int, msgspec.Meta(ge=0, le=ROSTER_MAX)] = 0
    delta: Delta | None = None
    revocations: Count = 0
    succession: Count = 0


class RevocationHead(Payload, frozen=True, kw_only=True):
    """REVOCATIONS, retained and signed by the operator: the newest version of the list, and its entries by name."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    entries: Blob


class Join(Payload, frozen=True, kw_only=True):
    """JOIN: a device takes part, with keys made for this round only.

    ``revocations`` is the version of the revocation list that it holds: whoever holds an older one was denied it.

    ``manifest`` is the digest of the OPEN payload it saw: members who were shown different manifests notice it in the
    roster. ``sequence`` never repeats on a device, so a key pair is never used twice, not even by a restored disk.
    ``draw`` commits to the random r_i that is opened when everybody's vectors are fixed.
    """

    manifest: Digest
    mask_key: Key
    share_key: Key
    self_mask: Digest
    draw: Digest
    sequence: Count
    chain: Chain
    revocations: Count = 0


class Roster(Payload, frozen=True, kw_only=True):
    """ROSTER: a group's joins as they were signed, in the order of the epoch's grouping; n, t and a_min hang on it."""

    manifest: Digest
    joins: SignedList
    t: Threshold
    a_min: RosterSize


Leaf = Annotated[bytes, msgspec.Meta(max_length=32)]


class Leaves(Payload, frozen=True, kw_only=True):
    """What a dealer signs about its shares: one leaf a member, in roster order."""

    leaves: Annotated[list[Leaf], msgspec.Meta(max_length=ROSTER_MAX)]


EntryArray = Annotated[
    list[Annotated[bytes, msgspec.Meta(max_length=_MAX_CIPHERTEXT)]], msgspec.Meta(min_length=3, max_length=3)
]


class Shares(Payload, frozen=True, kw_only=True):
    """SHARES: a dealer's signed leaves, and an entry for every member; its own has commitments and no ciphertext."""

    leaves: Signed
    entries: Annotated[list[tuple[Name, EntryArray]], msgspec.Meta(max_length=ROSTER_MAX)]


class Dealt(Payload, frozen=True, kw_only=True):
    """DEALT, to one device: everybody who dealt (the list D, with signed leaves) and its own column of entries."""

    dealt: SignedList
    entries: Annotated[list[tuple[Name, EntryArray]], msgspec.Meta(max_length=ROSTER_MAX)]


class Complaint(Payload, frozen=True, kw_only=True):
    """COMPLAINT: the entries of these dealers, which they signed, do not open or are not what they committed to.

    ``dealt`` is the digest of the list D, which holds the signed leaves: so it is fixed which entries are meant.
    """

    dealt: Digest
    dealers: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=ROSTER_MAX)]


class Complaints(Payload, frozen=True, kw_only=True):
    """COMPLAINT, to a dealer: complaints that name it, as their senders signed them."""

    complaints: SignedList


class Answer(Payload, frozen=True, kw_only=True):
    """ANSWER: a dealer's ephemeral keys, sealed to the manifest's key."""

    sealed: Annotated[bytes, msgspec.Meta(max_length=16 * 1024)]


class EphemeralKeys(Payload, frozen=True, kw_only=True):
    """Inside an answer, signed: for each receiver the secret key that its entry was made with."""

    keys: Annotated[list[tuple[Name, Key]], msgspec.Meta(max_length=ROSTER_MAX)]


class Masked(Payload, frozen=True, kw_only=True):
    """MASKED: a device commits to its masked vector, which follows as a transfer."""

    dealt: Digest
    vector: Blob


class Survivors(Payload, frozen=True, kw_only=True):
    """SURVIVORS, published: U with each member's signed MASKED message."""

    survivors: SignedList


class Consent(Payload, frozen=True, kw_only=True):
    """SURVIVORS, from a device: its one signature on U for this model, and its r_i opened."""

    survivors: Digest
    draw: Digest


class Attest(Payload, frozen=True, kw_only=True):
    """ATTEST, published: the certificate on U, and what fixes the shard's seed ρ.

    ``certificate`` holds every consent that came in time; ``entries`` one digest for each group whose vectors are
    fixed, this one among them, by group; ``watched`` has the group attest however the lot falls.
    """

    certificate: SignedList
    entries: Annotated[list[tuple[GroupName, Digest]], msgspec.Meta(max_length=SHARD_MAX)]
    watched: bool = False


class ReportHead(Payload, frozen=True, kw_only=True):
    """What a device signs about its sketches: the seed that they were made with, and the report's digest."""

    seed: Digest
    report: Digest


class Report(Payload, frozen=True, kw_only=True):
    """Sketches of a device's masks, sealed: of its self-mask, and of its mask with every other member of D.

    Each has two bytes, little-endian, for each of the k buckets.
    """

    own: SketchBytes
    pairs: Annotated[list[tuple[Name, SketchBytes]], msgspec.Meta(max_length=ROSTER_MAX)]


class Attestation(Payload, frozen=True, kw_only=True):
    """ATTEST, from a device: the signed head of its report, and the report sealed to the manifest's key."""

    head: Signed
    sealed: Annotated[bytes, msgspec.Meta(max_length=16 * 1024)]


class Accept(Payload, frozen=True, kw_only=True):
    """ACCEPT, published: the set A, and the signed heads of its members' reports if they attested."""

    accepted: RosterNames
    heads: SignedList


class Assent(Payload, frozen=True, kw_only=True):
    """ACCEPT, from a device: its one signature on A for this model."""

    accepted: Digest


class Decline(Payload, frozen=True, kw_only=True):
    """DECLINE: a device leaves a round that it has joined, and says why, so that nobody waits for it."""

    cause: Annotated[str, msgspec.Meta(max_length=40)]
    reason: Annotated[str, msgspec.Meta(max_length=200)]


class Unmask(Payload, frozen=True, kw_only=True):
    """UNMASK, published: t consents or, in rounds with sketches, t assents: the certificate on the set to be summed."""

    certificate: SignedList


class Reveal(Payload, frozen=True, kw_only=True):
    """UNMASK, from a device: shares sealed to the manifest's key."""

    sealed: Annotated[bytes, msgspec.Meta(max_length=16 * 1024)]


class RevealedShares(Payload, frozen=True, kw_only=True):
    """Inside a reveal: shares of self-masks for members of the sum, of masking secrets for the others in D."""

    self_mask: Annotated[list[tuple[Name, Key]], msgspec.Meta(max_length=ROSTER_MAX)]
    masking: Annotated[list[tuple[Name, Key]], msgspec.Meta(max_length=ROSTER_MAX)]


class Abort(Payload, frozen=True, kw_only=True):
    """ABORT: a group's part in the round is over without a sum."""

    cause: Annotated[str, msgspec.Meta(max_length=40)]
    reason: Annotated[str, msgspec.Meta(max_length=REASON_MAX)]


class Close(Payload, frozen=True, kw_only=True):
    """CLOSE: the round's end: the new model and how it came about."""

    model: Blob
    delta: Delta
    groups_closed: Count
    groups_aborted: Count
    participants: Count
    accuracy: float | None = None


class Alert(Payload, frozen=True, kw_only=True):
    """ALERT: something that the operator should hear of; ``number`` never repeats, ``at`` is in Unix seconds.

    Devices have no use for it, and a broker with access rules keeps it from them.
    """

    number: Count
    at: Count
    alert: Annotated[str, msgspec.Meta(max_length=40)]
    device: Annotated[str, msgspec.Meta(max_length=63)] = ""
    text: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    task: Annotated[str, msgspec.Meta(max_length=63)] = ""
    round: Count = 0


class TimeSignal(Payload, frozen=True, kw_only=True):
    """TIME, retained: the aggregator's word for the time, in Unix seconds; see ``signed_time``."""

    at: Count


class Want(Payload, frozen=True, kw_only=True):
    """WANT: a device asks for the pieces of a blob that it lacks.

    Bit i of ``have``, least significant first, is set for every piece i that is there or that was asked for and is
    still expected. ``size`` is the piece size that the bitmap counts in, 0 when no piece has come yet.
    """

    digest: Digest
    have: Annotated[bytes, msgspec.Meta(max_length=64 * 1024)] = b""
    size: PieceSize = 0


class Have(Payload, frozen=True, kw_only=True):
    """HAVE: the aggregator tells which pieces of a transfer it lacks, in the same form."""

    digest: Digest
    have: Annotated[bytes, msgspec.Meta(max_length=64 * 1024)] = b""
    size: PieceSize = 0


class Recall(Payload, frozen=True, kw_only=True):
    """RECALL: what a device itself has said last, for one whose disk was put back to an older state.

    ``state`` and ``join`` are its own signed messages with the highest counter and sequence; ``grouping`` is the digest
    that the JOIN was signed over.
    """

    state: Signed = b""
    join: Signed = b""
    grouping: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


class Renew(Payload, frozen=True, kw_only=True):
    """RENEW: a device asks for a TLS certificate for a new Ed25519 key."""

    public_key: Key


class IssuedCertificate(Payload, frozen=True, kw_only=True):
    """CERTIFICATE: a TLS certificate as PEM text, its key, when it ends and when it was made, in Unix seconds."""

    certificate: Annotated[str, msgspec.Meta(max_length=16 * 1024)]
    public_key: Key
    not_after: Count
    made: Count


class Refused(Payload, frozen=True, kw_only=True):
    """REFUSED: why a device's STATE is not taken, for good; ``state`` is the digest of that message."""

    state: Digest
    cause: Annotated[str, msgspec.Meta(max_length=40)]
    reason: Annotated[str, msgspec.Meta(max_length=REASON_MAX)]


prepare(globals())
