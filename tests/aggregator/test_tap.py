"""What somebody learns who reads every message on the broker and every file of the aggregator: no clear update."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tests.aggregator.fleet import Vector
from tests.aggregator.live import Agents, Clock, Live, Tap, bundle, enrol_agent, live_homes, live_task

from covey_aggregator.records import RoundRecord
from covey_aggregator.rules import cap_norms, rule, spoilt_groups
from covey_protocol import model, ring, topics
from covey_protocol.chunks import Piece, Reassembler, is_piece
from covey_protocol.envelope import parse
from covey_protocol.messages import Manifest, Masked
from covey_protocol.payload import read
from covey_protocol.ring import RingScale
from covey_simulator.broker import RunningBroker

DEVICES, ROUNDS, CLIP = 12, 2, 0.2
WINDOW = 12  # consecutive coordinates that have to agree before it counts as found


def needles(update: Vector, weights: Vector) -> dict[str, bytes]:
    """Return exact encodings of what no one may see: the update, clipped or not, and the weights it leads to."""
    at = slice(100, 100 + WINDOW)
    clipped = ring.clip_norm(update, CLIP)[0]
    found = {}
    for name, values in (("update", update), ("clipped", clipped), ("weights", weights + update)):
        for dtype in ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8"):
            found[f"{name} {dtype}"] = values[at].astype(dtype).tobytes()
    return found


def in_ring(update: Vector, scale: RingScale) -> NDArray[np.float64]:
    """Return the update in ring units, before any rounding; its rounding is random, so it is compared with a margin."""
    return np.asarray(ring.clip_norm(update, CLIP)[0].astype(np.float64) / scale.step)


def decoded(data: bytes) -> Iterator[bytes]:
    """Yield the bytes themselves, and what every long run of hex or base64 in them says."""
    yield data
    for run in re.findall(rb"[0-9a-fA-F]{48,}", data):
        for start in (0, 1):
            yield bytes.fromhex(run[start : start + (len(run) - start) // 2 * 2].decode())
    for run in re.findall(rb"[A-Za-z0-9+/_-]{48,}", data):
        for start in range(4):
            part = run[start:].replace(b"-", b"+").replace(b"_", b"/")
            yield base64.b64decode(part[: len(part) // 4 * 4])


def holds_ring(data: bytes, units: list[NDArray[np.float64]]) -> bool:
    """Whether bytes hold some update as 16- or 32-bit integers of the ring, at any place and in either order."""
    for dtype in ("<i2", ">i2", "<i4", ">i4"):
        size = np.dtype(dtype).itemsize
        for shift in range(size):
            whole = np.frombuffer(data[shift : shift + (len(data) - shift) // size * size], dtype)
            if len(whole) < WINDOW:
                continue
            for update in units:
                wanted = update[100 : 100 + WINDOW]
                near = np.ones(len(whole) - WINDOW + 1, bool)
                for offset, value in enumerate(wanted):
                    near &= np.abs(whole[offset : offset + len(near)] - value) <= 1.0
                    if not near.any():
                        break
                else:
                    return True
    return False


class Search:
    """Looks for the clear updates of a run."""

    def __init__(self, seen: list[tuple[str, Vector, Vector]], scale: RingScale) -> None:
        self.exact = {
            f"{name}, training {number}: {what}": needle
            for number, (name, weights, update) in enumerate(seen)
            for what, needle in needles(update, weights).items()
        }
        self.units = [in_ring(update, scale) for _, _, update in seen]

    def found(self, data: bytes) -> list[str]:
        """Return what is found in some bytes."""
        result = []
        for view in decoded(data):
            result += [what for what, needle in self.exact.items() if needle in view]
            if holds_ring(view, self.units):
                result.append("ring integers")
        return result


class Run:
    """A task over a real broker, and everything that could be seen of it."""

    def __init__(self, folder: Path, broker: RunningBroker) -> None:
        operator, home = live_homes(folder, broker)
        with Tap(broker) as tap, Live(home, clock=Clock()) as live:
            live.service.store.add_task(
                live_task(folder, rounds=ROUNDS, group_size=4, devices_min=DEVICES, clip=CLIP, settle=0.0)
            )
            names = [f"pi-{number}" for number in range(DEVICES)]
            with Agents(enrol_agent(folder, operator, home, name) for name in names) as agents:
                live.until_ended()
            self.status = live.status()
            self.records: list[RoundRecord] = live.service.store.rounds("digits")
            self.models = [live.service.coordinator.models.load(bytes.fromhex(r.model)) for r in self.records]
        self.heard = tap.heard
        self.seen = agents.seen
        self.files = {str(path): path.read_bytes() for path in home.path.rglob("*") if path.is_file()}
        manifest = next(
            read(Manifest, parse(data).payload)
            for topic, data in self.heard
            if topics.parse(topic).kind == topics.OPEN and data
        )
        self.scale = RingScale(manifest.clip, manifest.n_max)

    def updates(self, round_: int) -> dict[str, Vector]:
        """Return the clear updates of a round, by device."""
        before = self.models[round_ - 2] if round_ > 1 else bundle().weights
        return {name: update for name, weights, update in self.seen if np.array_equal(weights, before)}

    def vectors(self) -> dict[tuple[str, bytes], bytes]:
        """Put the masked vectors together from their pieces, as the aggregator does."""
        announced, whole = {}, {}
        reassembler = Reassembler(1 << 24)
        for topic, data in self.heard:
            place = topics.parse(topic)
            if place.kind == topics.MASKED and not is_piece(data):
                vector = read(Masked, parse(data).payload).vector
                announced[vector.digest] = place.device
                reassembler.expect(vector.digest, vector.bytes)
        for topic, data in self.heard:
            place = topics.parse(topic)
            if place.kind == topics.MASKED and is_piece(data):
                piece = Piece.decode(data)
                blob = reassembler.add(piece) if (announced[piece.digest], piece.digest) not in whole else None
                if blob is not None:
                    whole[announced[piece.digest], piece.digest] = blob
        return whole


def test_whoever_reads_everything_learns_sums_and_no_update(mosquitto: RunningBroker, tmp_path: Path) -> None:
    run = Run(tmp_path, mosquitto)
    check_that_the_rounds_were_whole_and_everything_was_recorded(run)
    check_that_the_search_finds_an_update_in_every_encoding(run)
    check_that_no_clear_update_is_in_any_message_or_file(run)
    check_that_every_masked_vector_looks_uniform_and_no_two_are_alike(run)
    check_that_the_released_step_is_the_combination_of_the_group_means(run)


def uniformity(data: bytes) -> float:
    """Return the chance that uniform bytes look at least this uneven."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def check_that_the_rounds_were_whole_and_everything_was_recorded(run: Run) -> None:
    assert run.status == "done"
    assert [(record.accepted, record.groups, record.groups_aborted) for record in run.records] == [(12, 3, 0)] * ROUNDS
    assert len(run.seen) == DEVICES * ROUNDS
    kinds = {topics.parse(topic).kind for topic, _ in run.heard}
    assert kinds >= (topics.UP_KINDS | topics.PUB_KINDS | topics.DOWN_KINDS) - {
        topics.ALERT,
        topics.WANT,
        topics.COMPLAINT,
        topics.ANSWER,
        topics.ATTEST,
        topics.ACCEPT,
        topics.DECLINE,
        topics.HAVE,
        topics.RECALL,
        topics.ABORT,
        topics.REVOCATIONS,
        topics.REFUSED,
        topics.RENEW,
        topics.SUCCESSION,
        topics.CERTIFICATE,
    }
    assert any(name.endswith("covey.db") for name in run.files)
    assert sum("/models/" in name for name in run.files) >= ROUNDS


def check_that_the_search_finds_an_update_in_every_encoding(run: Run) -> None:
    search = Search(run.seen, run.scale)
    _, weights, update = run.seen[0]
    clipped = ring.clip_norm(update, CLIP)[0]
    metrics = ring.Metrics(loss=1, accuracy=0.5, samples=24, norm=1)
    encoded = ring.encode(clipped, metrics, run.scale, b"s" * 32)
    clear = [encoded.astype("<u2").tobytes(), encoded.astype(">u2").tobytes(), encoded.view(np.int16).tobytes()]
    clear += [encoded.view(np.int16).astype(dtype).tobytes() for dtype in ("<i4", ">i4")]
    for values in (update, clipped, weights + update):
        clear += [values.astype(dtype).tobytes() for dtype in ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8")]
    for data in clear:
        for written in (data, data.hex().encode(), data.hex().upper().encode(), base64.b64encode(data)):
            assert search.found(b"xyz " + written + b" tail")
        assert search.found(b"x" + base64.urlsafe_b64encode(b"ab" + data))
    assert not search.found(np.random.default_rng(0).bytes(100_000))


def check_that_no_clear_update_is_in_any_message_or_file(run: Run) -> None:
    search = Search(run.seen, run.scale)
    blobs: dict[bytes, str] = {data: topic for topic, data in run.heard}
    blobs.update({data: name for name, data in run.files.items()})
    assert len(blobs) > 100
    leaks = {name: found for data, name in blobs.items() if (found := search.found(data))}
    assert leaks == {}


def check_that_every_masked_vector_looks_uniform_and_no_two_are_alike(run: Run) -> None:
    vectors = run.vectors()
    assert len(vectors) == DEVICES * ROUNDS
    chances = [uniformity(vector) for vector in vectors.values()]
    assert min(chances) > 1e-5
    assert uniformity(b"".join(vectors.values())) > 1e-5
    assert len(set(vectors.values())) == len(vectors)
    assert {name for name, _ in vectors} == {f"pi-{number}" for number in range(DEVICES)}
    update = ring.clip_norm(run.seen[0][2], CLIP)[0]
    metrics = ring.Metrics(loss=1, accuracy=0.5, samples=24, norm=1)
    assert uniformity(ring.encode(update, metrics, run.scale, b"s" * 32).tobytes()) < 1e-9  # what the test can see


def check_that_the_released_step_is_the_combination_of_the_group_means(run: Run) -> None:
    before = bundle().weights
    for number, (record, after) in enumerate(zip(run.records, run.models, strict=True), start=1):
        clear = {name: ring.clip_norm(update, CLIP)[0] for name, update in run.updates(number).items()}
        assert len(clear) == DEVICES
        means = [np.mean([clear[name] for name in group.survivors], axis=0) for group in record.details]
        spoilt = spoilt_groups([len(group.survivors) for group in record.details], 0.01)
        step = rule("trimmed-mean")(cap_norms(np.stack(means).astype(np.float32)), spoilt)
        np.testing.assert_allclose(after - before, step, atol=run.scale.step + 1e-5)
        assert np.abs(step).max() > 20 * run.scale.step  # the margin is small against what is compared
        before = after
    assert model.model_digest(before).hex() == run.records[-1].model
