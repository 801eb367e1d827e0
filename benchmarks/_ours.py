"""Covey's side of the comparisons: the protocol package and the aggregator's rules, run by ``_worker``."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from nacl.signing import SigningKey
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks._group import Group
from benchmarks._inputs import CLIP, fingerprint, group_means, updates
from benchmarks._worker import serve
from covey_aggregator.combine import group_mean
from covey_aggregator.rules import cap_norms, rule
from covey_aggregator.rules.rows import THREADS
from covey_aggregator.rules.trimmed_mean import TrimmedMean, trimmed_count, trimmed_mean
from covey_protocol import __version__, masking, prg, ring, shamir, sharing, topics
from covey_protocol.cbor import encode
from covey_protocol.masking import PairParty, RoundSecrets
from covey_protocol.ring import Metrics, RingScale
from covey_protocol.round_table import DeviceStage
from covey_protocol.thresholds import threshold

METRICS = Metrics(loss=1.5, accuracy=0.5, samples=40, norm=0.0)
ROSTER = bytes(range(32))
CONTEXT = b"context of the benchmark"
N_MAX = 32  # what a manifest allows by default in the fleets measured, so also the ring's scale

Update = NDArray[np.float32]


class Party:
    """One member's secrets and keys, without the messages around them."""

    def __init__(self, place: int) -> None:
        self.place, self.name = place, f"pi-{place}"
        self.secrets = RoundSecrets.from_entropy(os.urandom(RoundSecrets.ENTROPY_BYTES))
        self.key = masking.masking_key(self.secrets.masking)
        self.share_key = masking.public_key(self.secrets.sharing)
        self.pair_party = PairParty(place, self.name, masking.public_key(self.key))

    def masked(self, update: Update, others: list[Party], scale: RingScale) -> bytes:
        """Clip, quantise and mask: from an update to the bytes that go out."""
        factor, _ = ring.clip_factor(update, scale.clip)
        vector = ring.encode(update, METRICS, scale, os.urandom(prg.SEED_BYTES), factor)
        pairs = [
            (other.place, masking.pair_seed(self.key, self.pair_party, other.pair_party, CONTEXT)) for other in others
        ]
        masking.mask(vector, masking.self_mask_seed(self.secrets.self_mask), pairs, self.place)
        return vector.astype("<u2", copy=False).tobytes()


class Mask:
    """Clip, quantise and mask one update among ``peers`` others."""

    def __init__(self, dimension: int, peers: int) -> None:
        self._scale = RingScale(CLIP, N_MAX)
        self._updates = updates(peers + 1, dimension)
        parties = [Party(place) for place in range(peers + 1)]
        self._me, self._others = parties[peers // 2], [party for party in parties if party.place != peers // 2]
        # The sum of everybody else, with all self-masks gone: mine must make it the sum of everybody.
        self._rest = np.zeros(dimension + len(ring.METRICS), np.uint16)
        for party in self._others:
            others = [other for other in parties if other is not party]
            self._rest += np.frombuffer(party.masked(self._updates[party.place], others, self._scale), "<u2")
        for party in parties:
            prg.subtract_mask(self._rest, masking.self_mask_seed(party.secrets.self_mask))

    def inputs(self) -> Update:
        return self._updates[self._me.place]

    def run(self, update: Update) -> bytes:
        return self._me.masked(update, self._others, self._scale)

    def check(self, result: bytes) -> dict[str, Any]:
        count = len(self._others) + 1
        mean, metrics = ring.decode_mean(self._rest + np.frombuffer(result, "<u2"), count, self._scale)
        expected = np.mean([ring.clip_norm(update, CLIP)[0] for update in self._updates], axis=0)
        assert np.abs(mean - expected).max() <= self._scale.step, "the masks do not cancel, or the mean is wrong"
        assert abs(metrics.accuracy - METRICS.accuracy) < 0.01
        return {"inputs": fingerprint(self._updates), "size": len(result)}


class MaskStep:
    """The device's whole step from an update to signed bytes: ``DeviceRound.trained``."""

    def __init__(self, dimension: int, peers: int) -> None:
        group = Group(peers + 1, dimension)
        group.joined()
        self._device = group.devices[group.names[peers // 2]]
        assert self._device.stage is DeviceStage.DEALT
        self._all, self._update = group.updates, group.updates[peers // 2]

    def inputs(self) -> Any:
        device = copy.copy(self._device)  # a device masks once a round, and once for a model
        device._machine, device._ledger = copy.copy(device._machine), copy.deepcopy(device._ledger)
        return device

    def run(self, device: Any) -> Any:
        return device.trained(self._update, METRICS)

    def check(self, result: Any) -> dict[str, Any]:
        assert len(result[-1].data) == 2 * (len(self._update) + len(ring.METRICS))
        return {"inputs": fingerprint(self._all)}


class Attest:
    """A device's answer to ATTEST: sketch its self-mask and its masks with ``peers`` others, seal and sign."""

    def __init__(self, dimension: int, peers: int, sketch: int) -> None:
        group = Group(peers + 1, dimension, sketch)
        name, held = group.names[peers // 2], list[bytes]()

        def hold(way: str, who: str, kind: str) -> bool:
            return (way, who, kind) == ("down", name, topics.ATTEST)

        group.hold = hold
        group.joined()
        group.train()
        held += {data for _, _, _, data in group.held}
        (self._message,), self._device = held, group.devices[name]
        self._all, self._sketch, self._peers = group.updates, sketch, peers

    def inputs(self) -> Any:
        device = copy.copy(self._device)  # a device sketches once a round, and once for a model
        device._machine, device._ledger = copy.copy(device._machine), copy.deepcopy(device._ledger)
        return device

    def run(self, device: Any) -> Any:
        return device.receive(topics.ATTEST, self._message)

    def check(self, result: Any) -> dict[str, Any]:
        numbers = 2 * self._sketch * (self._peers + 1)
        assert numbers < len(result[-1].data) < numbers + 4096
        return {"inputs": fingerprint(self._all), "size": len(result[-1].data)}


class Share:
    """Make and encrypt the shares of both secrets for ``peers`` others, with the leaves that are signed."""

    def __init__(self, peers: int) -> None:
        self._n, self._t = peers + 1, threshold(peers + 1)
        self._me, *self._others = [Party(place) for place in range(self._n)]
        self._signer = SigningKey.generate()

    def inputs(self) -> None:
        return None

    def run(self, _: None) -> Any:
        secrets, polynomial = self._me.secrets, shamir.ENTROPY_BYTES * (self._t - 1)
        of_masking = shamir.split(secrets.masking, self._n, self._t, os.urandom(polynomial))
        of_self_mask = shamir.split(secrets.self_mask, self._n, self._t, os.urandom(polynomial))
        entries = [
            sharing.seal(
                sharing.Shares(of_masking[other.place], of_self_mask[other.place]),
                roster=ROSTER,
                dealer=self._me.name,
                receiver=other.name,
                public=other.share_key,
                ephemeral=os.urandom(sharing.EPHEMERAL_BYTES),
            )
            for other in self._others
        ]
        self._signer.sign(encode([entry.leaf() for entry in entries]))
        return entries

    def check(self, result: Any) -> dict[str, Any]:
        opened = {
            other.place: sharing.unseal(
                entry,
                roster=ROSTER,
                dealer=self._me.name,
                receiver=other.name,
                public=other.share_key,
                secret=other.secrets.sharing,
            )
            for other, entry in zip(self._others, result, strict=True)
        }
        last = list(opened)[-self._t :]
        assert shamir.combine({place: opened[place].masking for place in last}) == self._me.secrets.masking
        assert shamir.combine({place: opened[place].self_mask for place in last}) == self._me.secrets.self_mask
        return {"threshold": self._t, "size": sum(len(encode(entry.array())) for entry in result)}


class Unmask:
    """Take the masks off a real group's sum and decode its mean; ``dropped`` members dealt and then fell silent."""

    def __init__(self, dimension: int, members: int, dropped: int) -> None:
        group = Group(members, dimension)
        group.sum_up(dropped)
        self._group, self._members = group.group, group
        assert self._group._total is not None
        self._masked = self._group._total.copy()
        self._scale = RingScale(CLIP, N_MAX)

    def inputs(self) -> Any:
        self._group._total = self._masked.copy()  # unmasking works in place
        return self._group

    def run(self, group: Any) -> Any:
        total, count = group.unmask()
        return group_mean(total, count, self._scale)

    def check(self, result: Any) -> dict[str, Any]:
        assert result is not None
        names = self._group.survivors
        expected = np.mean([ring.clip_norm(self._members.update(name), CLIP)[0] for name in names], axis=0)
        assert result.count == len(names)
        assert np.abs(result.update - expected).max() <= self._scale.step
        return {"inputs": fingerprint(self._members.updates), "survivors": len(names)}


class Trim:
    """The aggregator's trimmed mean of ``groups`` rows, on as many threads as it takes, or on one."""

    def __init__(self, groups: int, dimension: int, beta: float, threads: int = THREADS) -> None:
        self._rows, self._beta, self._threads = np.stack(group_means(groups, dimension)), beta, threads

    def inputs(self) -> Update:
        return self._rows

    def run(self, rows: Update) -> Update:
        return trimmed_mean(rows, trimmed_count(len(rows), self._beta), self._threads)

    def check(self, result: Update) -> dict[str, Any]:
        check_trimmed(result, self._rows, self._beta)
        return {"inputs": fingerprint(list(self._rows)), "cut": trimmed_count(len(self._rows), self._beta)}


class Combine:
    """What the aggregator does with its groups' means: cap their norms, trim."""

    def __init__(self, groups: int, dimension: int, beta: float) -> None:
        self._vectors, self._beta = group_means(groups, dimension), beta

    def inputs(self) -> list[Update]:
        return self._vectors

    def run(self, vectors: list[Update]) -> Update:
        return TrimmedMean(beta=self._beta)(cap_norms(vectors), 0)

    def check(self, result: Update) -> dict[str, Any]:
        check_trimmed(result, np.stack(self._vectors), self._beta)  # norms this close are not capped
        return {"inputs": fingerprint(self._vectors)}


class AnotherRule:
    """One of the other rules, with its defaults and a tenth of the groups expected to be spoilt."""

    def __init__(self, groups: int, dimension: int, name: str) -> None:
        self._rows, self._rule = np.stack(group_means(groups, dimension)), rule(name)

    def inputs(self) -> Update:
        return self._rows

    def run(self, rows: Update) -> Update:
        return self._rule(rows, len(rows) // 10)

    def check(self, result: Update) -> dict[str, Any]:
        low, high = self._rows.min(axis=0), self._rows.max(axis=0)
        assert ((low <= result) & (result <= high)).all()  # as holds here for all; the tests say what each must be
        return {"inputs": fingerprint(list(self._rows))}


class PlainMean:
    """The bare primitive: numpy's mean of the rows."""

    def __init__(self, groups: int, dimension: int) -> None:
        self._rows = np.stack(group_means(groups, dimension))

    def inputs(self) -> Update:
        return self._rows

    def run(self, rows: Update) -> Update:
        result: Update = rows.mean(axis=0)
        return result

    def check(self, result: Update) -> dict[str, Any]:
        return {"inputs": fingerprint(list(self._rows))}


def check_trimmed(result: Update, rows: Update, beta: float) -> None:
    """Hold fifty columns against a mean made the slow way."""
    groups = len(rows)
    cut = trimmed_count(groups, beta)
    for at in range(0, rows.shape[1], max(1, rows.shape[1] // 50)):
        kept = np.sort(rows[:, at])[cut : groups - cut].astype(np.float64)
        assert np.isclose(result[at], kept.mean(), rtol=1e-6, atol=1e-12)


WORKS = {
    "mask": Mask,
    "mask-step": MaskStep,
    "attest": Attest,
    "share": Share,
    "unmask": Unmask,
    "trimmed-mean": Trim,
    "rule": AnotherRule,
    "combine": Combine,
    "plain-mean": PlainMean,
}

if __name__ == "__main__":
    serve(WORKS, {"covey": __version__, "numpy": np.__version__})
