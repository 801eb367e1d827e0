"""Proofs: every lie that the aggregator catches can be shown to others, and nothing can be shown of honest devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import FLEET, OPERATOR, Rig, signing_key
from tests.protocol.test_attest_round import CHEAT, ME, K, about, sketching, tampering, with_own
from tests.protocol.test_complaints import Cheats

from covey_protocol import cbor, envelope, masking, sharing, topics
from covey_protocol.attest_stage import REPORT
from covey_protocol.certificates import LEAVES
from covey_protocol.complaints import KEYS
from covey_protocol.errors import PeerError, RefusedError
from covey_protocol.group_attestation import Lied
from covey_protocol.identity import Former
from covey_protocol.messages import Assent, Attestation, Complaint, EphemeralKeys, Leaves, Masked, Report, ReportHead
from covey_protocol.payload import read, write
from covey_protocol.proof_forms import FalseComplaint, Proof
from covey_protocol.proofs import Verdict, verify
from covey_protocol.round_table import GroupStage
from covey_protocol.sharing import Shares
from covey_protocol.thresholds import colluders
from covey_protocol.unmasking import Restored, Revealed

ANCHOR = bytes(OPERATOR.verify_key)


def holds(proof: bytes) -> Verdict:
    return verify(proof, operator_key=ANCHOR, fleet=FLEET)


def fails(proof: bytes, match: str) -> None:
    with pytest.raises(PeerError, match=match):
        holds(proof)


def finished(rig: Rig) -> Rig:
    rig.run()
    if rig.group.stage is GroupStage.SUMMING:
        with contextlib.suppress(RefusedError):
            rig.group.unmask(rig.vector)
    return rig


def tampered(change: Callable[[Report], Report]) -> Rig:
    rig = sketching()
    tampering(rig, CHEAT, change)
    return finished(rig)


@cache
def self_liar() -> Rig:
    return tampered(with_own(lambda report: report))


@cache
def pair_liar(victim: str = ME) -> Rig:
    return tampered(about([victim]))


def secret_of(rig: Rig, name: str) -> masking.RoundSecrets:
    secrets = rig.devices[name]._secrets
    assert secrets is not None
    return secrets


# --- what is caught is proven --------------------------------------------------------------------------------------


def test_a_lie_about_its_own_mask() -> None:
    rig = self_liar()
    verdict = holds(rig.group.proofs[CHEAT])
    assert verdict.device == CHEAT
    assert verdict.key == bytes(signing_key(CHEAT).verify_key)
    assert (verdict.lie, verdict.task, verdict.round, verdict.attempt) == ("self-mask", "digits", 1, 1)
    assert "self-mask" in verdict.words


@pytest.mark.parametrize("victim", [ME, "pi-5"])
def test_a_lie_about_a_pair_whichever_end_was_rejected(victim: str) -> None:
    rig = pair_liar(victim)
    assert len(rig.group.summed) == 5  # one of the two, whoever comes first
    verdict = holds(rig.group.proofs[CHEAT])
    assert (verdict.device, verdict.lie) == (CHEAT, "pair-mask")
    assert victim in verdict.words
    assert list(rig.group.proofs) == [CHEAT]


@settings(deadline=None, max_examples=15)
@given(st.integers(6, 10), st.data())
def test_every_single_liar_is_proven_and_no_honest_member_of_any_coalition(n: int, data: st.DataObject) -> None:
    rig = sketching(n)
    liars = data.draw(st.lists(st.sampled_from(rig.names), max_size=colluders(n), unique=True))
    lies = {liar: data.draw(st.sets(st.sampled_from([x for x in rig.names if x != liar]))) for liar in liars}
    own = {liar: data.draw(st.booleans()) for liar in liars}
    carriers = {}
    for liar in liars:
        change = about(lies[liar])
        tampering(rig, liar, with_own(change) if own[liar] else change)
        carriers[liar] = rig.on_wire
    rig.on_wire = lambda way, name, kind, sent: carriers[name](way, name, kind, sent) if name in carriers else sent
    finished(rig)
    for name, proof in rig.group.proofs.items():
        assert holds(proof).device == name
    assert set(rig.group.proofs) == set(rig.group.liars) <= set(liars)
    if rig.group.aborted is None and len(liars) == 1 and (lies[liars[0]] or own[liars[0]]):
        rejected = liars[0] not in rig.group.summed  # its self-mask stays hidden, and its sketch is not used
        assert set(rig.group.proofs) == set(liars) or (rejected and not lies[liars[0]])


def bad_share() -> Rig:
    rig = Cheats(garbage={CHEAT: {ME}}).start()
    rig.run()
    return rig


def test_a_share_that_is_of_no_use() -> None:
    rig = bad_share()
    verdict = holds(rig.group.proofs[CHEAT])
    assert (verdict.device, verdict.lie) == (CHEAT, "bad-share")


def false_complaint() -> Rig:
    rig = Rig(n=6)
    rig.joined()
    body = Complaint(dealt=rig.group._dealt_digest, dealers=[ME])
    rig.from_group(rig.group.receive(topics.COMPLAINT, CHEAT, rig.say(CHEAT, topics.COMPLAINT, body), rig.now))
    rig.pump()
    return rig


def test_a_complaint_of_a_good_share() -> None:
    rig = false_complaint()
    verdict = holds(rig.group.proofs[CHEAT])
    assert (verdict.device, verdict.lie) == (CHEAT, "false-complaint")
    assert list(rig.group.proofs) == [CHEAT]


def poisoned(*, rejected: bool, silent: bool = False) -> Rig:
    """Return a rig in which the cheat dealt good-looking shares of other secrets than it published."""
    rig = sketching(dies={CHEAT: topics.UNMASK} if silent else {})
    other = masking.RoundSecrets.from_entropy(b"\7" * masking.RoundSecrets.ENTROPY_BYTES)

    if rejected:
        rig.rejected = {CHEAT}
    device = rig.devices[CHEAT]
    mine = device._round_secrets

    def dealing_secrets() -> masking.RoundSecrets:
        if rig.group.stage is GroupStage.SHARING:
            return other.__class__(
                masking=other.masking, self_mask=other.self_mask, sharing=mine().sharing, draw=mine().draw
            )
        return mine()

    device._round_secrets = dealing_secrets  # type: ignore[method-assign]
    return finished(rig)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("rejected", [False, True])
def test_shares_of_another_secret_than_was_published(rejected: bool, silent: bool) -> None:
    rig = poisoned(rejected=rejected, silent=silent)
    verdict = holds(rig.group.proofs[CHEAT])
    assert (verdict.device, verdict.lie) == (CHEAT, "wrong-secret")
    assert ("masking" if rejected else "self-mask") in verdict.words


def honest_round() -> Rig:
    rig = finished(sketching())
    assert not rig.group.proofs
    return rig


SECOND: dict[str, Callable[[Rig], bytes]] = {
    "survivors": lambda rig: rig.consent(CHEAT, bytes(32)),
    "accept": lambda rig: rig.say(CHEAT, topics.ACCEPT, Assent(accepted=bytes(32))),
    "report": lambda rig: rig.say(CHEAT, REPORT, ReportHead(seed=bytes(32), report=bytes(32))),
    "masked": lambda rig: rig.say(
        CHEAT,
        topics.MASKED,
        msgspec.structs.replace(
            read(Masked, envelope.parse(rig.sent(CHEAT, topics.MASKED)).payload),
            vector=type(rig.opened.manifest.model)(digest=bytes(32), bytes=1),
        ),
    ),
}


@pytest.mark.parametrize("kind", SECOND)
def test_two_signatures_where_one_is_allowed(kind: str) -> None:
    rig = honest_round()
    attestation = rig.group.attestation
    assert attestation is not None
    first = attestation.heads[CHEAT] if kind == "report" else rig.sent(CHEAT, kind)
    verdict = holds(rig.group.prover().of_signatures(CHEAT, kind, first, SECOND[kind](rig)))  # type: ignore[arg-type]
    assert (verdict.device, verdict.lie) == (CHEAT, "second-signature")
    fails(rig.group.prover().of_signatures(CHEAT, kind, first, first), "has not signed two different")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SECOND)
def test_a_second_signature_is_proven_when_it_comes(kind: str) -> None:
    rig = honest_round()
    other = SECOND[kind](rig)
    forged, topic = other[:-1] + bytes([other[-1] ^ 1]), kind
    if kind == "report":
        topic = topics.ATTEST
        other, forged = (rig.say(CHEAT, topic, Attestation(head=head, sealed=bytes(64))) for head in (other, forged))
    before = rig.group.stage
    for again in (rig.sent(CHEAT, topic), forged):
        with pytest.raises(PeerError):
            rig.group.receive(topic, CHEAT, again, rig.now)
    assert not rig.group.proofs
    rig.group.receive(topic, CHEAT, other, rig.now)
    assert rig.group.stage is before
    assert holds(rig.group.proofs[CHEAT]).lie == "second-signature"
    kept = dict(rig.group.proofs)
    with pytest.raises(PeerError):
        rig.group.receive(topic, CHEAT, other, rig.now)
    assert rig.group.proofs == kept


def as_proof(rig: Rig, device: str, lie: object) -> bytes:
    return rig.group.prover()._write(device, lie)  # type: ignore[arg-type]


# --- nothing is proven of the honest -------------------------------------------------------------------------------


def test_the_aggregator_with_every_secret_proves_nothing_of_honest_devices() -> None:
    """All secrets are known here, more than any coalition has, and still no true report can be shown to be false."""
    rig = honest_round()
    group, attestation = rig.group, rig.group.attestation
    assert attestation is not None
    secrets = {name: secret_of(rig, name) for name in rig.names}
    seeds = {name: masking.self_mask_seed(secret.self_mask) for name, secret in secrets.items()}
    everything = Restored(seeds, {}, {name: secret.masking for name, secret in secrets.items()})
    for name in rig.names:
        fails(group.prover().of_lie(name, Lied(""), attestation, everything), "is true")
        for peer in set(rig.names) - {name}:
            for shown in (name, peer):
                fails(group.prover().of_lie(name, Lied("", peer, shown), attestation, everything), "is true")
            dealing = rig.devices[name]._answers
            assert dealing is not None
            key = dealing._keys[peer]
            answer = rig.say(name, KEYS, EphemeralKeys(keys=[(peer, key)]))
            fails(group.prover().of_share(name, peer, answer), "is good")
            stranger = rig.say(peer, KEYS, EphemeralKeys(keys=[(peer, b"\x08" * 32)]))
            fails(group.prover().of_share(name, peer, stranger), "does not verify")
        itself = rig.say(name, KEYS, EphemeralKeys(keys=[(name, bytes(32))]))  # nothing is sealed for oneself
        fails(group.prover().of_share(name, name, itself), "is not the one that")
        revealed = {
            receiver: Revealed(
                {dealer: held.self_mask for dealer, held in rig.devices[receiver]._held.items()},
                {dealer: held.masking for dealer, held in rig.devices[receiver]._held.items()},
            )
            for receiver in rig.names
        }
        for summed in (True, False):
            proof = group.prover().of_secret(name, summed, revealed)
            assert proof is not None
            fails(proof, "that it published")
            made_up = {
                receiver: Revealed({name: b"\1" + bytes(31)}, {name: b"\1" + bytes(31)}) for receiver in revealed
            }
            proof = group.prover().of_secret(name, summed, made_up)
            assert proof is not None
            fails(proof, "that .* committed to")


def test_wrong_secrets_peers_and_reports_prove_nothing() -> None:
    rig = honest_round()
    group, attestation = rig.group, rig.group.attestation
    assert attestation is not None
    prover = group.prover()
    wrong = Restored({CHEAT: bytes(32)}, {}, {CHEAT: b"\1" * 32, "pi-4": secret_of(rig, "pi-4").masking})
    fails(prover.of_lie(CHEAT, Lied(""), attestation, wrong), "not the one that the JOIN")
    fails(prover.of_lie(CHEAT, Lied("", ME, CHEAT), attestation, wrong), "of neither")
    fails(prover.of_lie(CHEAT, Lied("", ME, "pi-4"), attestation, wrong), "of neither")
    fails(prover.of_lie(CHEAT, Lied("", CHEAT, CHEAT), attestation, wrong), "has not one sketch")
    attestation.bodies[CHEAT] = write(Report(own=bytes(2 * K), pairs=[]))
    fails(prover.of_lie(CHEAT, Lied(""), attestation, wrong), "not the one that .* signed")
    attestation.heads[CHEAT] = attestation.heads[ME]
    fails(prover.of_lie(CHEAT, Lied(""), attestation, wrong), "does not verify")


def test_a_dealer_in_league_with_the_aggregator_cannot_frame_who_complains_of_it() -> None:
    """The dealer signs other leaves afterwards, with a good entry: but the complaint names the list D it is about."""
    rig = bad_share()
    group = rig.group
    complaint = rig.sent(ME, topics.COMPLAINT)
    me = group.roster.member(ME) if group.roster else None
    assert group.roster is not None and me is not None
    secret = signing_key("ephemeral").encode()
    good = sharing.seal(
        Shares(b"\1" + bytes(31), b"\2" + bytes(31)),
        roster=group.roster.digest,
        dealer=CHEAT,
        receiver=ME,
        public=me.join.share_key,
        ephemeral=secret,
    )
    leaves = [good.leaf() for _ in group.roster.members]
    signed = rig.say(CHEAT, LEAVES, Leaves(leaves=leaves))
    honest = group._shares[CHEAT]
    group._shares[CHEAT] = (signed, {**honest[1], ME: good})
    framed = group.prover().of_complaint(ME, CHEAT, complaint, group.dealt, secret)
    fails(framed, "not the one that .* complains of")
    # Nor with the list as it was, and the new leaves beside it.
    lie = complaint_in(framed)
    group._shares[CHEAT] = honest
    unchanged = complaint_in(group.prover().of_complaint(ME, CHEAT, complaint, group.dealt, secret))
    fails(as_proof(rig, ME, msgspec.structs.replace(lie, dealt=unchanged.dealt)), "not those in the list D")


def test_there_is_one_form_of_a_key() -> None:
    """The lowest bits of an X25519 key do not count, so that a key has many forms; a proof has one."""
    rig = false_complaint()
    lie = complaint_in(rig.group.proofs[CHEAT])
    other = bytes([lie.ephemeral[0] | 1, *lie.ephemeral[1:]])
    assert masking.public_key(other) == masking.public_key(lie.ephemeral)
    fails(as_proof(rig, CHEAT, msgspec.structs.replace(lie, ephemeral=other)), "clamped form")


def complaint_in(proof: bytes) -> FalseComplaint:
    lie = read(Proof, proof).lie
    assert isinstance(lie, FalseComplaint)
    return lie


# --- forms ---------------------------------------------------------------------------------------------------------


def test_a_proof_is_for_one_fleet_and_one_operator() -> None:
    proof = self_liar().group.proofs[CHEAT]
    with pytest.raises(RefusedError, match="fleet 'meadow', not 'orchard'"):
        verify(proof, operator_key=ANCHOR, fleet="orchard")
    with pytest.raises(PeerError, match="token"):
        verify(proof, operator_key=bytes(signing_key("somebody").verify_key), fleet=FLEET)


@cache
def _second() -> bytes:
    rig = honest_round()
    first = rig.sent(CHEAT, topics.SURVIVORS)
    return rig.group.prover().of_signatures(CHEAT, "survivors", first, rig.consent(CHEAT, bytes(32)))


PROOFS: dict[str, Callable[[], bytes]] = {
    "self-mask": lambda: self_liar().group.proofs[CHEAT],
    "pair-mask": lambda: pair_liar().group.proofs[CHEAT],
    "bad-share": cache(lambda: bad_share().group.proofs[CHEAT]),
    "wrong-secret": cache(lambda: poisoned(rejected=True).group.proofs[CHEAT]),
    "false-complaint": cache(lambda: false_complaint().group.proofs[CHEAT]),
    "second-signature": _second,
}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(PROOFS)), st.data())
def test_no_changed_proof_holds(which: str, data: st.DataObject) -> None:
    proof = PROOFS[which]()
    assert holds(proof).device == CHEAT
    at = data.draw(st.integers(0, len(proof) - 1))
    flip = data.draw(st.integers(1, 255))
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    changed = {
        "flip": proof[:at] + bytes([proof[at] ^ flip]) + proof[at + 1 :],
        "cut": proof[:at],
        "insert": proof[:at] + bytes([flip]) + proof[at:],
        "drop": proof[:at] + proof[at + 1 :],
    }[change]
    if changed == proof:
        return
    with pytest.raises(PeerError):
        holds(changed)


@pytest.mark.parametrize("which", PROOFS)
def test_no_part_of_a_proof_can_be_another_rounds(which: str) -> None:
    proof = read(Proof, PROOFS[which]())
    place = proof.round
    for change in (
        {"task": "other"},
        {"round": 2},
        {"attempt": 2},
        {"grouping": bytes(32)},
        {"manifest": write(msgspec.structs.replace(honest_round().opened.manifest, clip=4.0))},
    ):
        moved = msgspec.structs.replace(proof, round=msgspec.structs.replace(place, **change))
        with pytest.raises(PeerError):
            holds(write(moved))
    with pytest.raises(PeerError):
        holds(write(msgspec.structs.replace(proof, device=ME)))


def test_fields_that_no_proof_has_are_refused() -> None:
    body = cbor.decode(PROOFS["self-mask"](), max_bytes=1 << 20)
    assert isinstance(body, dict)
    fails(cbor.encode({**body, "note": "trust me"}), "fields that no proof has")


def test_a_proof_needs_the_key_that_the_devices_in_it_were_invited_under() -> None:
    """The operator has changed its key: proofs of before hold under the old one, and under both, wherever it stands."""
    proof = self_liar().group.proofs[CHEAT]
    later = bytes(signing_key("next operator").verify_key)
    with pytest.raises(PeerError):
        verify(proof, operator_key=later, fleet=FLEET)
    device = verify(proof, operator_key=ANCHOR, fleet=FLEET).device
    assert verify(proof, operator_key=later, fleet=FLEET, former=Former((ANCHOR,), None)).device == device == CHEAT
    token = verify(proof, operator_key=ANCHOR, fleet=FLEET).token
    assert verify(proof, operator_key=later, fleet=FLEET, former=Former((ANCHOR,), token)).token == token
    with pytest.raises(PeerError, match="former key"):
        verify(proof, operator_key=later, fleet=FLEET, former=Former((ANCHOR,)))
