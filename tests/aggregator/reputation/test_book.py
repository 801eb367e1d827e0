"""book.py: what is kept of devices, who may change it, and what survives."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tests.aggregator.reputation.world import World, flipped

from covey_aggregator.reputation import Reputation, Settings, State
from covey_protocol.errors import StateError


def out(world: World) -> list[str]:
    return world.book.names(State.QUARANTINED)


def test_a_ruling_changes_nothing_until_it_is_settled() -> None:
    world = World(20)
    world.play(3)
    before = world.book.encode()
    ruling = world.book.ruling(world.sketches())
    assert world.book.encode() == before
    world.book.settle(ruling)
    assert world.book.encode() != before
    assert world.book.rounds == ruling.round == 4


def test_a_ruling_is_settled_once_and_before_any_later_one() -> None:
    world = World(20)
    first, second = world.book.ruling(world.sketches()), world.book.ruling(world.sketches())
    world.book.settle(first)
    for ruling in (first, second):
        with pytest.raises(StateError, match="out of date or was settled before"):
            world.book.settle(ruling)


def test_the_book_survives_a_restart_in_the_middle_of_a_round() -> None:
    world = World(30, hostile={0: flipped, 1: flipped})
    world.play(6)
    sketches = world.sketches()
    ruling = world.book.ruling(sketches)
    again = Reputation(world.book.settings, world.book.encode())
    repeated = again.ruling(dict(reversed(sketches.items())))
    assert repeated.accepted == ruling.accepted and repeated.verdicts == ruling.verdicts
    again.settle(repeated)
    world.book.settle(ruling)
    assert again.encode() == world.book.encode()


def test_books_of_other_versions_and_damaged_ones_are_refused() -> None:
    world = World(10)
    world.play(2)
    fields = msgspec.msgpack.decode(world.book.encode())
    for change, words in (
        ({"version": 2}, "version 2"),
        ({"averages": b""}, "incomplete"),
        ({"fleet": 1}, "cannot be"),
    ):
        with pytest.raises(StateError, match=words):
            Reputation(state=msgspec.msgpack.encode(fields | change))
    with pytest.raises(StateError, match="cannot be read"):
        Reputation(state=b"\xc1")


def test_a_group_that_was_lied_about_leaves_no_trace() -> None:
    """Its devices are judged as if they had not been there, and so is everybody else."""
    world, other = World(30, seed=4), World(30, seed=4)
    world.play(5)
    other.play(5)
    sketches = world.sketches()
    lied = set(world.names[:6])
    settled = world.book.settle(world.book.ruling(sketches), without=lied)
    assert not lied & set(settled.verdicts)
    other.book.settle(other.book.ruling({name: s for name, s in sketches.items() if name not in lied}))
    assert world.book.encode() == other.book.encode()


def test_who_refuses_after_the_ruling_is_remembered() -> None:
    world = World(20)
    ruling = world.book.ruling(world.sketches())
    settled = world.book.settle(ruling, refused=[world.names[0]])
    assert settled.verdicts[world.names[0]].parts.refusals > 0
    assert world.book.standing(world.names[0]).parts.refusals > 0


def test_what_the_operator_does_in_the_middle_of_a_round_stands() -> None:
    world = World(20)
    ruling = world.book.ruling(world.sketches())
    world.book.quarantine(world.names[3], "it was stolen")
    world.book.ban(world.names[4], "proof 17")
    settled = world.book.settle(ruling)
    assert world.names[3] in ruling.accepted and world.names[3] not in settled.accepted
    assert world.book.standing(world.names[3]).state is State.QUARANTINED
    assert world.book.standing(world.names[4]).state is State.BANNED


def test_observing_accepts_everybody_but_proven_liars_and_scores_all_the_same() -> None:
    world = World(20, hostile=dict.fromkeys(range(4), flipped))
    for _ in range(10):
        world.book.settle(world.book.ruling(world.sketches(), enforce=False))
    world.book.ban(world.names[19], "proof 17")
    ruling = world.book.ruling(world.sketches(), enforce=False)
    assert ruling.accepted == set(world.names[:19])
    assert set(out(world)) == set(world.attacks)


def test_nobody_unknown_is_judged() -> None:
    world = World(10)
    with pytest.raises(StateError, match="device stranger was never admitted"):
        world.book.ruling({**world.sketches(), "stranger": np.ones(16)})
    for act in (world.book.standing, world.book.forget):
        with pytest.raises(StateError, match="stranger"):
            act("stranger")


def test_enrolling_again_washes_no_record() -> None:
    world = World(20, hostile={0: flipped})
    world.play(10)
    (bad,) = out(world)
    world.book.admit(bad, key=b"another key", token=f"token of {bad}")
    assert world.book.standing(bad).state is State.QUARANTINED
    world.book.admit("a-new-name", key=b"another key", token=f"token of {bad}")
    assert world.book.standing("a-new-name").state is State.QUARANTINED and bad not in world.book
    world.book.admit("a-new-name", token="a token of another day")
    assert world.book.standing("a-new-name").state is State.QUARANTINED


def test_where_a_token_and_a_name_lead_to_two_records_the_worse_one_counts() -> None:
    for order in (("good", "bad"), ("bad", "good")):
        book = Reputation()
        book.admit("good", token="t-good")
        book.admit("bad", token="t-bad")
        book.ban("bad", "proof 17")
        book.admit(order[0], token=f"t-{order[1]}")
        assert book.standing(order[0]).state is State.BANNED and order[1] not in book


def test_recognising_a_device_changes_nothing() -> None:
    world = World(20)
    world.play(7)
    before = world.book.standing(world.names[0])
    world.book.admit(world.names[0], token=f"token of {world.names[0]}")
    assert world.book.standing(world.names[0]) == before


def test_a_ban_is_for_ever() -> None:
    world = World(20)
    world.book.ban(world.names[0], "proof 17")
    world.book.ban(world.names[0], "proof 18")
    world.play(20)
    assert world.book.standing(world.names[0]).state is State.BANNED
    assert "proof 17" in world.book.standing(world.names[0]).words
    for act in (world.book.quarantine, world.book.release):
        with pytest.raises(StateError, match="has no place in state banned"):
            act(world.names[0], "please")


def test_what_the_operator_quarantines_only_the_operator_releases() -> None:
    world = World(20)
    world.play(6)
    name = world.names[0]
    world.book.quarantine(name, "it was stolen")
    world.play(30)
    assert world.book.standing(name).state is State.QUARANTINED and "it was stolen" in world.book.standing(name).words
    world.book.release(name, "it was found")
    assert world.book.standing(name).state is State.PROBATION and world.book.standing(name).score == 1
    world.play(2)
    assert world.book.standing(name).state is State.TRUSTED
    with pytest.raises(StateError, match="released has no place in state trusted"):
        world.book.release(name, "again")


def test_forgetting_washes_no_record_either() -> None:
    world = World(20)
    world.play(6)
    world.book.forget(world.names[0])
    assert world.names[0] not in world.book and world.names[0].encode() not in world.book.encode()
    world.book.quarantine(world.names[1], "it was stolen")
    with pytest.raises(StateError, match="cannot be forgotten"):
        world.book.forget(world.names[1])


def test_quarantine_ends_on_parole_and_parole_at_the_first_doubt() -> None:
    behaving = {"now": False}
    world = World(30, hostile={0: lambda s, c, r: s if behaving["now"] else -s})
    world.play(10)
    assert out(world) == ["d-000"]
    behaving["now"] = True
    world.play(25)
    assert world.book.standing("d-000").state in {State.PAROLE, State.TRUSTED}
    behaving["now"] = False
    world.play(8)
    assert out(world) == ["d-000"]
    behaving["now"] = True
    world.play(19)
    assert out(world) == ["d-000"], "the second time is longer"


def test_newcomers_to_a_fleet_weigh_little_and_together_no_more_than_a_share() -> None:
    world = World(20)
    old = {f"old-{at}": world.names[at : at + 5] for at in range(0, 20, 5)}
    assert set(world.book.influence(old).values()) == {1.0}, "where nobody is known, everybody counts"
    world.play(6)
    few = {"few": world.join(10)}
    assert world.book.influence(old | few) == pytest.approx(dict.fromkeys(old, 1.0) | {"few": 0.1})
    many = {f"many-{number}": world.join(4) for number in range(30)}
    counts = world.book.influence(old | few | many)
    assert sum(counts[name] for name in (*few, *many)) / sum(counts.values()) == pytest.approx(0.2)
    assert {counts[name] for name in old} == {1.0}
    assert min(world.book.influence(few | many).values()) == pytest.approx(0.1), "of newcomers alone nobody is outvoted"


def test_a_group_counts_for_what_most_of_its_members_count_for() -> None:
    world = World(20)
    world.play(6)
    new = world.join(6)
    mostly_old, mostly_new = [*world.names[:4], *new[:3]], [*world.names[4:7], *new[3:7], *new[:1]]
    assert world.book.influence({"a": mostly_old, "b": mostly_new}) == pytest.approx({"a": 1.0, "b": 0.1})


def test_standing_says_it_in_words() -> None:
    world = World(20, hostile={0: flipped})
    world.play(10)
    good, bad = world.book.standing("d-001"), world.book.standing("d-000")
    assert good.state is State.TRUSTED and good.score == 1 and "d-001 is trusted" in good.words
    assert bad.score == 0 and "in quarantine" in bad.words and "point away from what the others learn" in bad.words
    assert "since attested round" in bad.words


def test_settings_are_checked() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"memory": 1.5}, Settings)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"unknown": 1}, Settings)
