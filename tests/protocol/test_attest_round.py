"""ATTEST and ACCEPT through whole rounds: what a lying server, lying members and crashes can and cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import SEALING, Rig, knowing, make_manifest, revoke, signing_key, snapshot

from covey_protocol import attest_stage, envelope, topics
from covey_protocol.attest_stage import REPORT, accepted_digest, drawn, group_entry, shard_seed
from covey_protocol.digest import content_digest
from covey_protocol.effects import Note, Send
from covey_protocol.errors import PeerError, RefusedError, StateError
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import (
    Accept,
    Assent,
    Attest,
    Attestation,
    Complaint,
    Consent,
    Report,
    ReportHead,
    Reveal,
    RevealedShares,
    Unmask,
)
from covey_protocol.payload import read, write
from covey_protocol.policy import Policy
from covey_protocol.round_table import DeviceStage, GroupStage
from covey_protocol.sealing import open_sealed, seal_anonymously
from covey_protocol.sketch import K_MAX, SketchMatrix
from covey_protocol.thresholds import accepted_min, colluders

ME, OTHER, CHEAT = "pi-0", "pi-1", "pi-3"
K = 8


def sketching(n: int = 6, *, lot: int = 1, **changes: object) -> Rig:
    dimension = 50
    return Rig(n=n, dimension=dimension, manifest=make_manifest(dimension, sketch=K, lot=lot), **changes)  # type: ignore[arg-type]


def closes(rig: Rig) -> None:
    assert rig.group.stage is GroupStage.SUMMING, rig.group.aborted
    total, count = rig.group.unmask(rig.vector)
    assert count == len(rig.group.summed)
    assert np.array_equal(total, rig.sum_of(rig.group.summed))


def before(kind: str, **changes: object) -> Rig:
    """Return a rig in which the first message of a kind to ``ME`` is held."""
    rig = sketching(hold=lambda way, name, sent: (way, name, sent) == ("down", ME, kind), **changes)  # type: ignore[arg-type]
    rig.joined()
    rig.train()
    while not any(sent == kind for _, _, sent, _ in rig.held):
        assert not rig.group.finished
        rig.late()
    return rig


def held(rig: Rig, kind: str) -> bytes:
    (data,) = {data for _, name, sent, data in rig.held if (name, sent) == (ME, kind)}
    return data


def refused(rig: Rig, kind: str, data: bytes, cause: str) -> None:
    was = snapshot(rig.devices[ME])
    with pytest.raises(PeerError) as caught:
        rig.devices[ME].receive(kind, data)
    assert caught.value.cause == cause, caught.value
    assert snapshot(rig.devices[ME]) == was


# --- whole rounds -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(4, 10), st.data())
def test_a_round_with_sketches_sums_the_accepted_and_nobody_else(n: int, data: st.DataObject) -> None:
    rig = sketching(n, repeat=data.draw(st.sampled_from([1, 2])))
    most = n - accepted_min(n)
    rig.rejected = set(data.draw(st.lists(st.sampled_from(rig.names), max_size=max(0, most), unique=True)))
    rig.run()
    assert set(rig.group.summed) == set(rig.names) - rig.rejected
    closes(rig)
    assert not rig.group.liars
    assert all(device.stage is DeviceStage.UNMASKED for device in rig.devices.values())


def test_the_aggregator_learns_the_sketch_of_every_update_that_was_attested() -> None:
    rig = sketching()
    rig.rejected = {CHEAT}
    rig.run()
    attestation = rig.group.attestation
    assert attestation is not None
    matrix = SketchMatrix(attestation.seed, rig.dimension, K)
    sketches = attestation.sketches(rig.vector)
    assert set(sketches) == set(rig.names)  # the rejected one's too
    for name, sketch in sketches.items():
        assert np.array_equal(sketch, matrix.of([rig.encoded[name][: rig.dimension]])[0])


@pytest.mark.parametrize(
    "kind", [topics.SHARES, "vector", topics.SURVIVORS, topics.ATTEST, topics.ACCEPT, topics.UNMASK]
)
def test_one_member_may_fall_silent_anywhere(kind: str) -> None:
    rig = sketching(dies={CHEAT: kind})
    rig.run()
    for _ in range(3):
        if not rig.group.finished:
            rig.late()
    # Without its consent or its report it cannot be accepted; later its vector is in.
    assert (CHEAT in rig.group.summed) == (kind in (topics.ACCEPT, topics.UNMASK))
    closes(rig)


def test_too_few_accepted_abort_the_group() -> None:
    rig = sketching()
    rig.rejected = {"pi-0", "pi-1", "pi-2"}
    rig.run()
    assert rig.group.aborted is not None
    assert rig.group.aborted.cause == "too-few-accepted"


def test_the_lot_spares_a_group_that_is_not_watched() -> None:
    attested = 0
    for seed in range(12):
        rig = sketching(lot=3, seed=f"lot {seed}")
        rig.watched = False
        rig.run()
        assert rig.group.attestation is not None
        fell = drawn(rig.group.attestation.seed, 3)
        assert rig.group.attestation.attesting == fell
        reports = [kind for way, _, kind, _ in rig.wire if (way, kind) == ("up", topics.ATTEST)]
        assert len(reports) == (6 if fell else 0)
        assert rig.ledgers[ME].sketched() == (K if fell else 0)
        assert rig.group.summed == rig.group.survivors
        closes(rig)
        attested += fell
    assert 0 < attested < 12


def test_the_seed_hangs_on_every_set_and_every_draw() -> None:
    draws = [("a", b"1" * 32), ("b", b"2" * 32)]
    entries = [("1-s-0", group_entry("1-s-0", b"u" * 32, draws)), ("1-s-1", group_entry("1-s-1", b"v" * 32, draws))]
    seeds = {
        shard_seed(entries),
        shard_seed(entries[:1]),
        shard_seed([entries[0], ("1-s-1", group_entry("1-s-1", b"w" * 32, draws))]),
        shard_seed([entries[0], ("1-s-1", group_entry("1-s-1", b"v" * 32, draws[:1]))]),
        shard_seed([entries[0], ("1-s-1", group_entry("1-s-1", b"v" * 32, [("a", b"1" * 32), ("b", b"3" * 32)]))]),
    }
    assert len(seeds) == 5
    for wrong in (entries[::-1], [entries[0], entries[0]]):
        with pytest.raises(RefusedError):
            shard_seed(wrong)


# --- ATTEST: no sketch before a certificate on U ------------------------------------------------------------------


def attest_body(rig: Rig) -> Attest:
    return read(Attest, envelope.parse(held(rig, topics.ATTEST)).payload)


def with_own_entry(rig: Rig, certificate: list[tuple[str, bytes]]) -> Attest:
    """Return an ATTEST whose seed fits its certificate."""
    draws = [(name, read(Consent, envelope.parse(data).payload).draw) for name, data in certificate]
    entry = group_entry(rig.grouping.group, rig.group._survivors_digest, draws)
    return Attest(certificate=certificate, entries=[(rig.grouping.group, entry)], watched=True)


def watched(certificate: list[tuple[str, bytes]], entries: list[tuple[str, bytes]]) -> Attest:
    return Attest(certificate=certificate, entries=entries, watched=True)


def without(rig: Rig, *names: str) -> list[tuple[str, bytes]]:
    return [(name, data) for name, data in attest_body(rig).certificate if name not in names]


def replaced(rig: Rig, name: str, data: bytes) -> list[tuple[str, bytes]]:
    return [(other, data if other == name else signed) for other, signed in attest_body(rig).certificate]


ATTEST_LIES: dict[str, tuple[Callable[[Rig], Attest], str]] = {
    "too-few-consents": (lambda rig: with_own_entry(rig, without(rig, "pi-4", "pi-5")), "certificate"),
    "my-draw-left-out": (lambda rig: with_own_entry(rig, without(rig, ME)), "seed"),
    "another-set": (
        lambda rig: with_own_entry(rig, replaced(rig, OTHER, rig.consent(OTHER, bytes(32)))),
        "certificate",
    ),
    "a-draw-that-was-not-committed": (
        lambda rig: with_own_entry(
            rig,
            replaced(
                rig,
                OTHER,
                rig.say(OTHER, topics.SURVIVORS, Consent(survivors=rig.group._survivors_digest, draw=bytes(32))),
            ),
        ),
        "draw",
    ),
    "a-draw-that-was-not-counted": (
        lambda rig: Attest(
            certificate=attest_body(rig).certificate,
            entries=with_own_entry(rig, without(rig, OTHER)).entries,
            watched=True,
        ),
        "seed",
    ),
    "my-group-left-out": (
        lambda rig: Attest(certificate=attest_body(rig).certificate, entries=[("1-0-9", bytes(32))], watched=True),
        "seed",
    ),
    "groups-out-of-order": (
        lambda rig: Attest(
            certificate=attest_body(rig).certificate,
            entries=[("9-0-0", bytes(32)), *attest_body(rig).entries],
            watched=True,
        ),
        "seed",
    ),
    "a-group-twice": (
        lambda rig: Attest(
            certificate=attest_body(rig).certificate, entries=attest_body(rig).entries * 2, watched=True
        ),
        "seed",
    ),
}


@pytest.mark.parametrize(("lie", "cause"), ATTEST_LIES.values(), ids=ATTEST_LIES)
def test_lies_about_the_seed(lie: Callable[[Rig], Attest], cause: str) -> None:
    rig = before(topics.ATTEST)
    refused(rig, topics.ATTEST, rig.serve(topics.ATTEST, lie(rig)), cause)
    effects = rig.devices[ME].receive(topics.ATTEST, held(rig, topics.ATTEST))
    assert isinstance(effects[-1], Send)


def test_no_sketch_that_the_manifest_did_not_announce() -> None:
    rig = Rig(n=6, hold=lambda way, name, kind: (way, name, kind) == ("down", ME, topics.UNMASK))
    rig.joined()
    rig.train()
    refused(rig, topics.ATTEST, rig.serve(topics.ATTEST, Attest(certificate=[], entries=[])), "unannounced")


def test_one_sketch_for_one_model() -> None:
    rig = before(topics.ATTEST)
    model = rig.opened.manifest.model.digest
    rig.ledgers[ME].take_seed(model, b"another seed", K, 0)
    refused(rig, topics.ATTEST, held(rig, topics.ATTEST), "second-set")


def test_a_second_seed_in_one_round_is_late() -> None:
    rig = before(topics.ATTEST)
    rig.devices[ME].receive(topics.ATTEST, held(rig, topics.ATTEST))
    other = Attest(
        certificate=attest_body(rig).certificate,
        entries=[("0-0-0", bytes(32)), *attest_body(rig).entries],
        watched=True,
    )
    refused(rig, topics.ATTEST, rig.serve(topics.ATTEST, other), "stage")


def test_marks_are_stored_before_a_sketch_leaves() -> None:
    rig = before(topics.ATTEST)
    effects = rig.devices[ME].receive(topics.ATTEST, held(rig, topics.ATTEST))
    assert [getattr(effect, "key", "").split("/")[0] for effect in effects] == ["sketched", "sketches", ""]


def test_a_budget_of_numbers_is_kept_over_rounds_and_tasks() -> None:
    policy = Policy(sketch_budget=2 * K)
    first = sketching(policy=policy)
    first.run()
    closes(first)
    ledgers = first.ledgers
    assert ledgers[ME].sketched() == K
    manifest = make_manifest(50, sketch=K)
    for round_, model in ((2, b"2" * 32), (3, b"3" * 32)):
        blob = type(manifest.model)(digest=model, bytes=manifest.model.bytes)
        rig = Rig(n=6, manifest=make_manifest(50, sketch=K, model=blob), policy=policy, ledgers=ledgers, round=round_)
        if round_ == 2:
            rig.run()
            closes(rig)
            continue
        marks = dict(ledgers[ME]._rows)
        with pytest.raises(RefusedError) as caught:
            rig.devices[ME].join()
        assert caught.value.cause == "sketch-budget"
        assert ledgers[ME]._rows == marks
        clear = Rig(n=6, manifest=make_manifest(50, model=blob), policy=policy, ledgers=ledgers, round=round_)
        clear.run()
        closes(clear)  # rounds without sketches go on


# --- ACCEPT: no share before a certificate on A -------------------------------------------------------------------


def accept_body(rig: Rig) -> Accept:
    return read(Accept, envelope.parse(held(rig, topics.ACCEPT)).payload)


def only(rig: Rig, names: Iterable[str]) -> Accept:
    kept, body = set(names), accept_body(rig)
    return Accept(
        accepted=[name for name in body.accepted if name in kept],
        heads=[(name, head) for name, head in body.heads if name in kept],
    )


def head(rig: Rig, name: str, seed: bytes) -> bytes:
    return rig.say(name, REPORT, ReportHead(seed=seed, report=bytes(32)))


def with_head(rig: Rig, name: str, data: bytes) -> Accept:
    body = accept_body(rig)
    return Accept(accepted=body.accepted, heads=[(n, data if n == name else h) for n, h in body.heads])


def the_seed(rig: Rig) -> bytes:
    assert rig.group.attestation is not None
    return rig.group.attestation.seed


ACCEPT_LIES: dict[str, tuple[Callable[[Rig], Accept], str]] = {
    # n = 6: a_min is 4
    "one-below-a-min": (lambda rig: only(rig, rig.names[:3]), "a-min"),
    "out-of-order": (
        lambda rig: Accept(accepted=accept_body(rig).accepted[::-1], heads=accept_body(rig).heads[::-1]),
        "roster",
    ),
    "unattested": (
        lambda rig: Accept(accepted=accept_body(rig).accepted, heads=accept_body(rig).heads[:-1]),
        "unattested",
    ),
    "head-of-another": (lambda rig: with_head(rig, OTHER, dict(accept_body(rig).heads)["pi-2"]), "signature"),
    "head-under-another-seed": (lambda rig: with_head(rig, OTHER, head(rig, OTHER, bytes(32))), "seed"),
    "another-report-of-mine": (lambda rig: with_head(rig, ME, head(rig, ME, the_seed(rig))), "accepted"),
}


@pytest.mark.parametrize(("lie", "cause"), ACCEPT_LIES.values(), ids=ACCEPT_LIES)
def test_lies_about_the_accepted(lie: Callable[[Rig], Accept], cause: str) -> None:
    rig = before(topics.ACCEPT)
    refused(rig, topics.ACCEPT, rig.serve(topics.ACCEPT, lie(rig)), cause)
    effects = rig.devices[ME].receive(topics.ACCEPT, held(rig, topics.ACCEPT))
    assert isinstance(effects[-1], Send)


def test_somebody_without_a_vector_is_not_accepted() -> None:
    rig = before(topics.ACCEPT, dies={"pi-5": "vector"})
    body = accept_body(rig)
    lie = Accept(accepted=[*body.accepted, "pi-5"], heads=[*body.heads, ("pi-5", head(rig, "pi-5", the_seed(rig)))])
    refused(rig, topics.ACCEPT, rig.serve(topics.ACCEPT, lie), "accepted")


def test_where_nobody_attests_the_accepted_are_the_survivors() -> None:
    rig = sketching(lot=1000, hold=lambda way, name, kind: (way, name, kind) == ("down", ME, topics.ACCEPT))
    rig.watched = False
    rig.joined()
    rig.train()
    assert not accept_body(rig).heads
    refused(rig, topics.ACCEPT, rig.serve(topics.ACCEPT, only(rig, rig.names[:5])), "accepted")


def test_a_set_then_the_set_without_one_on_the_same_model() -> None:
    rig = before(topics.ACCEPT)
    model = rig.opened.manifest.model.digest
    whole = accepted_digest(rig.group._survivors_digest, the_seed(rig), rig.names)
    rig.ledgers[ME].accept_set(model, whole, "another group", b"members", 0)
    lie = rig.serve(topics.ACCEPT, only(rig, [name for name in rig.names if name != OTHER]))
    refused(rig, topics.ACCEPT, lie, "second-set")


def test_each_device_shown_another_set_brings_out_no_share() -> None:
    """A different A for every device, always with the victim in it, would restore everybody else's secrets."""
    rig = sketching(10, hold=lambda way, name, kind: way == "down" and kind in (topics.ACCEPT, topics.UNMASK))
    rig.joined()
    rig.train()
    body = read(Accept, envelope.parse(next(data for _, _, kind, data in rig.held if kind == topics.ACCEPT)).payload)
    assents: dict[bytes, list[tuple[str, bytes]]] = {}
    for number, name in enumerate(rig.names):
        others = [other for other in rig.names if other != ME]
        kept = {ME, *(others[(number + step) % len(others)] for step in range(5))}
        lie = Accept(
            accepted=[n for n in body.accepted if n in kept], heads=[(n, h) for n, h in body.heads if n in kept]
        )
        effects = rig.devices[name].receive(topics.ACCEPT, rig.serve(topics.ACCEPT, lie))
        sent = next(effect for effect in effects if isinstance(effect, Send))
        assents.setdefault(read(Assent, envelope.parse(sent.data).payload).accepted, []).append((name, sent.data))
    assert max(len(signed) for signed in assents.values()) < rig.group.roster.t  # type: ignore[union-attr]
    everything = [pair for signed in assents.values() for pair in signed]
    everything.sort(key=lambda pair: rig.names.index(pair[0]))
    pools = [everything, *assents.values()]
    for name in rig.names:
        for pool in pools:
            with pytest.raises(PeerError):
                rig.devices[name].receive(topics.UNMASK, rig.serve(topics.UNMASK, Unmask(certificate=pool)))


def test_consents_to_u_bring_out_no_share() -> None:
    rig = before(topics.ATTEST)
    certificate = attest_body(rig).certificate
    refused(rig, topics.UNMASK, rig.serve(topics.UNMASK, Unmask(certificate=certificate)), "certificate")
    rig = before(topics.ACCEPT)
    assert rig.devices[ME].stage is DeviceStage.ATTESTED
    consents = [(name, rig.consent(name, rig.group._survivors_digest)) for name in rig.names]
    refused(rig, topics.UNMASK, rig.serve(topics.UNMASK, Unmask(certificate=consents)), "stage")
    rig.devices[ME].receive(topics.ACCEPT, held(rig, topics.ACCEPT))
    with pytest.raises(PeerError):
        rig.devices[ME].receive(topics.UNMASK, rig.serve(topics.UNMASK, Unmask(certificate=consents)))


def test_shares_of_self_masks_are_of_the_accepted_and_of_nobody_else() -> None:
    rig = sketching()
    rig.rejected = {CHEAT}
    rig.run()
    for name in rig.names:
        sealed = read(Reveal, envelope.parse(rig.sent(name, topics.UNMASK)).payload).sealed
        shares = read(RevealedShares, open_sealed(sealed, rig.opened.manifest.sealing_key, SEALING))
        assert {dealer for dealer, _ in shares.self_mask} == set(rig.names) - {CHEAT}
        assert {dealer for dealer, _ in shares.masking} == {CHEAT}


# --- the aggregator, and members who lie --------------------------------------------------------------------------


def tampering(rig: Rig, name: str, change: Callable[[Report], Report], *, sign: bool = True) -> None:
    """Let a member send another report than it made, signed as its own."""

    def tampered(way: str, sender: str, kind: str, data: bytes) -> bytes:
        if (way, sender, kind) != ("up", name, topics.ATTEST):
            return data
        message = read(Attestation, envelope.parse(data).payload)
        public = rig.opened.manifest.sealing_key
        body = write(change(read(Report, open_sealed(message.sealed, public, SEALING))))
        seed = read(ReportHead, envelope.parse(message.head).payload).seed
        signed = rig.say(name, REPORT, ReportHead(seed=seed, report=content_digest(body))) if sign else message.head
        # Its own machine stands by the report.
        rig.devices[name]._head = signed
        return rig.say(name, topics.ATTEST, Attestation(head=signed, sealed=seal_anonymously(body, public, b"e" * 32)))

    rig.on_wire = tampered


def flipped(sketch: bytes) -> bytes:
    return bytes([sketch[0] ^ 1]) + sketch[1:]


def about(victims: Iterable[str]) -> Callable[[Report], Report]:
    chosen = set(victims)
    return lambda report: Report(
        own=report.own,
        pairs=[(name, flipped(sketch) if name in chosen else sketch) for name, sketch in report.pairs],
    )


def with_own(change: Callable[[Report], Report]) -> Callable[[Report], Report]:
    return lambda report: Report(own=flipped(report.own), pairs=change(report).pairs)


def test_one_who_disputes_everybody_is_rejected_and_proven() -> None:
    rig = sketching()
    tampering(rig, CHEAT, about(rig.names))
    rig.run()
    assert set(rig.group.summed) == set(rig.names) - {CHEAT}
    closes(rig)
    assert set(rig.group.liars) == {CHEAT}


def test_a_lie_about_one_pair_is_proven_whoever_of_the_two_is_rejected() -> None:
    for victim in (ME, "pi-5"):
        rig = sketching()
        tampering(rig, CHEAT, about([victim]))
        rig.run()
        assert len(rig.group.summed) == 5
        if CHEAT in rig.group.summed:
            with pytest.raises(RefusedError, match="false sketch") as caught:
                rig.group.unmask(rig.vector)
            assert caught.value.culprits == (CHEAT,)
        else:
            closes(rig)
        assert set(rig.group.liars) == {CHEAT}


def test_a_lie_about_its_own_mask_is_proven_and_the_group_is_dropped() -> None:
    rig = sketching()
    tampering(rig, CHEAT, lambda report: Report(own=flipped(report.own), pairs=report.pairs))
    rig.run()
    assert CHEAT in rig.group.summed
    with pytest.raises(RefusedError, match="self-mask") as caught:
        rig.group.unmask(rig.vector)
    assert caught.value.culprits == (CHEAT,)
    assert caught.value.cause == "false-sketch"


@settings(deadline=None, max_examples=25)
@given(st.integers(6, 10), st.data())
def test_every_single_liar_is_proven_and_nobody_else_ever_is(n: int, data: st.DataObject) -> None:
    rig = sketching(n)
    liars = data.draw(st.lists(st.sampled_from(rig.names), max_size=colluders(n), unique=True))
    lies = {liar: data.draw(st.sets(st.sampled_from([x for x in rig.names if x != liar]))) for liar in liars}
    own = {liar: data.draw(st.booleans()) for liar in liars}
    carriers = {}
    for liar in liars:
        change = about(lies[liar])
        both = (
            (lambda report, c=change: Report(own=flipped(report.own), pairs=c(report).pairs)) if own[liar] else change
        )
        tampering(rig, liar, both)
        carriers[liar] = rig.on_wire

    def carry(way: str, name: str, kind: str, data: bytes) -> bytes:
        return carriers[name](way, name, kind, data) if name in carriers and way == "up" else data

    rig.on_wire = carry
    rig.run()
    if rig.group.stage is GroupStage.SUMMING:
        try:
            closes(rig)
        except RefusedError as error:
            assert set(error.culprits) <= set(liars)
    assert set(rig.group.liars) <= set(liars)
    if rig.group.aborted is None and len(liars) == 1 and (lies[liars[0]] or own[liars[0]]):
        rejected = liars[0] not in rig.group.summed
        assert set(rig.group.liars) == set(liars) or (rejected and not lies[liars[0]])


def refused_report(rig: Rig, cause: str) -> None:
    rig.run()
    assert cause in [error.cause for error in rig.errors]
    for _ in range(2):
        if not rig.group.finished:
            rig.late()
    assert CHEAT not in rig.group.summed
    closes(rig)


def test_reports_that_are_not_whole() -> None:
    for change in (
        lambda report: Report(own=report.own[:-1], pairs=report.pairs),
        lambda report: Report(own=report.own + b"xx", pairs=report.pairs),
        lambda report: Report(own=report.own, pairs=report.pairs[1:]),
        lambda report: Report(own=report.own, pairs=report.pairs[::-1]),
    ):
        rig = sketching()
        tampering(rig, CHEAT, change)
        refused_report(rig, "report")


def test_a_report_that_was_not_signed() -> None:
    rig = sketching()
    tampering(rig, CHEAT, about([ME]), sign=False)
    refused_report(rig, "report")


def group_refuses(rig: Rig, kind: str, name: str, data: bytes, cause: str) -> None:
    was = snapshot(rig.group)
    with pytest.raises(PeerError) as caught:
        rig.group.receive(kind, name, data, rig.now)
    assert caught.value.cause == cause, caught.value
    assert snapshot(rig.group) == was


def test_reports_and_assents_that_come_twice_late_or_for_another_set() -> None:
    rig = sketching(hold=lambda way, name, kind: (way, name, kind) == ("up", CHEAT, topics.ATTEST))
    rig.joined()
    rig.train()
    (report,) = [data for _, _, kind, data in rig.held if kind == topics.ATTEST]
    group_refuses(rig, topics.ATTEST, ME, rig.sent(ME, topics.ATTEST), "repeated")
    rig.hold = lambda way, name, kind: (way, name, kind) == ("up", CHEAT, topics.ACCEPT) or kind == topics.UNMASK
    rig.late()
    group_refuses(rig, topics.ATTEST, CHEAT, report, "stage")
    assert rig.group.stage is GroupStage.UNMASKING
    group_refuses(rig, topics.ACCEPT, ME, rig.sent(ME, topics.ACCEPT), "stage")


def test_an_assent_to_another_set() -> None:
    rig = sketching(hold=lambda way, name, kind: (way, kind) == ("up", topics.ACCEPT))
    rig.joined()
    rig.train()
    assert rig.group.stage is GroupStage.ACCEPTING
    group_refuses(rig, topics.ACCEPT, ME, rig.say(ME, topics.ACCEPT, Assent(accepted=bytes(32))), "accepted")
    mine = next(data for _, name, _, data in rig.held if name == ME)
    rig.group.receive(topics.ACCEPT, ME, mine, rig.now)
    group_refuses(rig, topics.ACCEPT, ME, mine, "repeated")


def test_the_aggregator_takes_its_steps_in_order() -> None:
    rig = sketching()
    rig.attesting = False
    rig.joined()
    with pytest.raises(StateError):
        rig.group.attest([], True, 0.0)
    with pytest.raises(StateError):
        rig.group.accept([], 0.0)
    rig.train()
    assert rig.group.stage is GroupStage.SIGNING
    assert rig.group.entry
    rig.attesting = True
    rig.pump()
    closes(rig)


def test_too_few_consents_abort_before_any_sketch() -> None:
    rig = sketching(dies={"pi-4": topics.SURVIVORS, "pi-5": topics.SURVIVORS})
    rig.run()
    assert rig.group.aborted is not None
    assert rig.group.aborted.cause == "too-few-signed"
    assert not [kind for _, _, kind, _ in rig.wire if kind == topics.ATTEST]
    assert [note for note in rig.notes if isinstance(note, Note)]
    assert attest_stage.REPORT
    assert signing_key(ME)


# --- together with what else happens in a round -------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "kind"), [("attested", topics.ATTEST), ("accepted", topics.ACCEPT)])
def test_a_dealer_answers_complaints_while_sketches_are_decided_on(stage: str, kind: str) -> None:
    rig = sketching(hold=lambda way, name, sent: (way, sent) == ("up", kind))
    rig.joined()
    rig.train()
    assert rig.devices[ME].stage == stage
    complaint = rig.say(CHEAT, topics.COMPLAINT, Complaint(dealt=rig.group._dealt_digest, dealers=[ME]))
    rig.from_group(rig.group.receive(topics.COMPLAINT, CHEAT, complaint, rig.now))
    rig.pump()
    assert set(rig.group.complaints.blamed) == {CHEAT}
    assert rig.devices[ME].stage == stage
    for _, name, _, data in rig.held[: rig.group.roster.t if kind == topics.ACCEPT else None]:  # type: ignore[union-attr]
        rig.from_group(rig.group.receive(kind, name, data, rig.now))
    rig.pump()
    closes(rig)


def test_a_consent_that_comes_after_the_seeds_part_was_fixed_changes_nothing() -> None:
    rig = sketching(hold=lambda way, name, kind: (way, name, kind) == ("up", CHEAT, topics.SURVIVORS))
    rig.attesting = False  # other groups are waited for
    rig.joined()
    rig.train()
    rig.late()
    assert rig.group.entry
    (consent,) = {data for _, _, kind, data in rig.held if kind == topics.SURVIVORS}
    group_refuses(rig, topics.SURVIVORS, CHEAT, consent, "stage")
    rig.attesting = True
    rig.pump()
    assert rig.devices[CHEAT].stage is DeviceStage.SIGNED  # it saw a seed without its own draw, and refused
    assert CHEAT not in rig.group.summed  # and nobody has waited for a report that it cannot make
    closes(rig)


def test_who_is_revoked_while_sketches_are_made_is_not_accepted() -> None:
    rig = sketching(hold=lambda way, name, kind: (way, name, kind) == ("up", ME, topics.ATTEST))
    rig.joined()
    rig.train()
    knowing(revoke(CHEAT, key=True), rig.group._trust.revocations)
    rig.from_group(rig.group.new_list(rig.now))
    assert CHEAT not in rig.group.candidates()
    rig.late()
    assert set(rig.group.summed) == set(rig.names) - {CHEAT, ME}
    closes(rig)


def test_the_rejected_are_the_cause_when_too_few_are_left() -> None:
    rig = sketching()
    rig.rejected = {"pi-0", "pi-1", "pi-2"}
    rig.run()
    assert rig.group.causers == rig.rejected


def test_several_liars_are_named_at_once() -> None:
    rig = sketching(8)
    liars = ("pi-1", "pi-4")
    carriers = {}
    for liar in liars:
        tampering(rig, liar, lambda report: Report(own=flipped(report.own), pairs=report.pairs))
        carriers[liar] = rig.on_wire
    rig.on_wire = lambda way, name, kind, data: (
        carriers[name](way, name, kind, data) if name in carriers and way == "up" else data
    )
    rig.run()
    with pytest.raises(RefusedError) as caught:
        rig.group.unmask(rig.vector)
    assert set(caught.value.culprits) == set(liars)


@pytest.mark.parametrize("k", [1, 7, 65])
def test_a_sketch_of_another_size_is_not_joined(k: int) -> None:
    rig = Rig(n=6, manifest=make_manifest(50, sketch=k), policy=Policy(sketch_max=4096))
    with pytest.raises(RefusedError) as caught:
        rig.devices[ME].join()
    assert caught.value.cause == "unsupported"
    assert not rig.ledgers[ME]._rows


def test_joins_that_were_forgotten_count_as_sketches() -> None:
    ledger = DeviceLedger({"sequence": b"3", "sketches": b"24"})
    ledger.put_back(8, "digits", 9, 2)
    assert ledger.sketched() == 24 + 5 * K_MAX
    with pytest.raises(RefusedError, match="sketch budget"):
        ledger.check_sketch(K, 24 + 5 * K_MAX + K - 1)
    marks = {mark.key: mark.value for mark in ledger.take_seed(b"model", b"seed", K, 0)}
    assert marks["sketches"] == b"32"
