"""covey_protocol.attestation: sketches without their masks, and who can be told to have lied about one."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_protocol import masking, prg
from covey_protocol.attestation import Report, disputes, liars_about_pair, lie_about_self, recover, smallest_cover
from covey_protocol.digest import digest
from covey_protocol.prg import Ring
from covey_protocol.sketch import SketchMatrix

LENGTH, K = 300, 8
MATRIX = SketchMatrix(b"\x05" * 32, LENGTH, K)


def seed(*parts: object) -> bytes:
    return digest(repr(parts).encode(), person=b"test")


class Group:
    """n members with masked vectors and honest reports."""

    def __init__(self, n: int) -> None:
        self.names = [f"pi-{index:02}" for index in range(n)]
        self.places = {name: place for place, name in enumerate(self.names)}
        self.updates = {name: prg.expand(seed("update", name), LENGTH) for name in self.names}
        self.reports = {name: self.report(name) for name in self.names}

    def pair(self, one: str, other: str) -> bytes:
        return seed("pair", *sorted((one, other)))

    def masked(self, name: str) -> Ring:
        vector = self.updates[name].copy()
        pairs = [(self.places[other], self.pair(name, other)) for other in self.names if other != name]
        masking.mask(vector, seed("self", name), pairs, self.places[name])
        return vector

    def report(self, name: str) -> Report:
        others = [other for other in self.names if other != name]
        sketches = MATRIX.of_masks([seed("self", name), *(self.pair(name, other) for other in others)])
        return Report(sketches[0], dict(zip(others, sketches[1:], strict=True)))

    def lie(self, name: str, about: str, by: int = 1) -> None:
        """Let a member report another sketch than is true, of a pair or, under its own name, of its self-mask."""
        report = self.reports[name]
        if about == name:
            self.reports[name] = Report(report.own + np.uint16(by), report.pairs)
        else:
            self.reports[name] = Report(report.own, {**report.pairs, about: report.pairs[about] + np.uint16(by)})

    def recovered(self, name: str) -> Ring:
        (masked,) = MATRIX.of([self.masked(name)])
        return recover(masked, self.reports[name], self.places[name], self.places)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 10))
def test_masks_come_off_a_sketch(n: int) -> None:
    group = Group(n)
    assert not disputes(group.reports)
    for name in group.names:
        assert np.array_equal(group.recovered(name), MATRIX.of([group.updates[name]])[0])


def test_a_lie_about_a_pair_is_a_dispute_and_the_seed_tells_whose() -> None:
    group = Group(5)
    group.lie("pi-03", "pi-01")
    assert disputes(group.reports) == {("pi-01", "pi-03")}
    for pair in (("pi-01", "pi-03"), ("pi-03", "pi-01")):
        assert liars_about_pair(MATRIX, group.reports, pair, group.pair(*pair)) == {"pi-03"}
    assert not liars_about_pair(MATRIX, group.reports, ("pi-00", "pi-01"), group.pair("pi-00", "pi-01"))


def test_a_lie_about_a_self_mask_shows_when_it_is_restored() -> None:
    group = Group(4)
    group.lie("pi-02", "pi-02")
    assert not disputes(group.reports)
    guilty = {name for name in group.names if lie_about_self(MATRIX, group.reports[name], seed("self", name))}
    assert guilty == {"pi-02"}


def test_colluders_who_agree_on_a_lie_move_a_difference_from_one_to_the_other() -> None:
    # Nobody can prove it where neither is rejected, and the sketch of the sum stays what it was.
    group = Group(5)
    group.lie("pi-01", "pi-02", by=7)
    group.lie("pi-02", "pi-01", by=7)
    assert not disputes(group.reports)
    total = sum((group.recovered(name) for name in group.names), np.zeros(K, np.uint16))
    assert np.array_equal(total, MATRIX.of([sum(group.updates.values(), np.zeros(LENGTH, np.uint16))])[0])
    # If one of them is rejected, the seed proves both of them wrong.
    pair = ("pi-01", "pi-02")
    assert liars_about_pair(MATRIX, group.reports, pair, group.pair(*pair)) == set(pair)


def test_who_has_not_reported_disputes_nothing() -> None:
    group = Group(4)
    group.lie("pi-00", "pi-03")
    del group.reports["pi-03"]
    assert not disputes(group.reports)
    assert liars_about_pair(MATRIX, group.reports, ("pi-00", "pi-03"), group.pair("pi-00", "pi-03")) == {"pi-00"}


NAMES = [f"pi-{index}" for index in range(8)]
PAIRS = st.sets(st.sampled_from(list(combinations(NAMES, 2))))


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_the_cover_is_smallest_and_always_the_same(pairs: set[tuple[str, str]]) -> None:
    cover = smallest_cover(pairs)
    assert all(cover & set(pair) for pair in pairs)
    subsets = chain.from_iterable(combinations(NAMES, size) for size in range(len(NAMES) + 1))
    smallest = next(subset for subset in subsets if all(set(subset) & set(pair) for pair in pairs))
    assert len(cover) == len(smallest)
    assert smallest_cover([(b, a) for a, b in sorted(pairs, reverse=True)]) == cover


@settings(max_examples=100, deadline=None)
@given(st.integers(4, 32), st.data())
def test_few_liars_never_get_more_than_themselves_rejected(n: int, data: st.DataObject) -> None:
    """Whoever disputes more honest members than there are liars is rejected, and no more are rejected than lie."""
    names = [f"pi-{index:02}" for index in range(n)]
    liars = data.draw(st.lists(st.sampled_from(names), max_size=(n - 1) // 3, unique=True))
    pairs = set()
    for liar in liars:
        for victim in data.draw(st.sets(st.sampled_from([name for name in names if name != liar]))):
            pairs.add((min(liar, victim), max(liar, victim)))
    cover = smallest_cover(pairs)
    assert len(cover) <= len(liars)
    for liar in liars:
        honest = {name for pair in pairs if liar in pair for name in pair} - set(liars)
        assert liar in cover or len(honest) <= len(liars)


def test_one_who_disputes_everybody_is_the_one_to_go() -> None:
    names = [f"pi-{index:02}" for index in range(32)]
    assert smallest_cover([(min(name, "pi-17"), max(name, "pi-17")) for name in names if name != "pi-17"]) == {"pi-17"}


def test_everybody_disputing_everybody_takes_no_time() -> None:
    assert len(smallest_cover(combinations([f"pi-{index}" for index in range(32)], 2))) == 31
