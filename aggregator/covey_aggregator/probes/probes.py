"""Which labels devices pull which samples to, round after round, and what stands against whom for it.

An update is nearly a mixture of what each class of samples would teach by itself. With the held-out samples' gradients
as the ingredients, g_1 … g_p, a device's mixture x is the non-negative least-squares fit of its sketches,
s ≈ Σ x_j P·g_j. One sketch says next to nothing, but rounds add up although each has a model and a P of its own:
A ← λA + w(PG)ᵀ(PG)/|s|² and b ← λb + w(PG)ᵀs/|s|² with w = (usual norm / largest usual norm)², and x solves A and b.

Beside what is right (a class's samples under its label) the ingredients hold what is wrong: everything else under its
label. Its share in the mixture, F_ic, is device i's *pull* to class c. Honest devices have weak ones, with whatever
labels they hold; who trains samples of all classes to one label has a strong one, trigger or not.

A second fit, with nothing but what is right, says how much of a device's updates its own labels explain. Where that is
nearly all, differing from others is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey_aggregator.probes.gradients import HARD, Gradients
from covey_aggregator.probes.nonnegative import solve
from covey_aggregator.probes.settings import Settings
from covey_protocol.errors import StateError
from covey_protocol.model import Weights
from covey_protocol.sketch import SketchMatrix

Array = NDArray[np.float64]
_VERSION = 2


class _Device(msgspec.Struct, kw_only=True):
    """A and b of one device, and what followed from them last."""

    squares: bytes
    products: bytes
    mixture: bytes
    rounds: int = 0
    length: float = 0.0


class _Kept(msgspec.Struct, kw_only=True):
    version: int = _VERSION
    size: int = 0
    peak: float = 0.0
    gate: float = 0.0
    alarmed: list[int] = []
    streaks: list[int] = []
    devices: dict[str, _Device] = {}


class Probes:
    """What is known of the devices' pulls.

    Args:
        gradients: Of the task's model on its held-out samples.
        settings: Parameters.
        state: What ``encode`` returned.

    Raises:
        StateError: The state is damaged, of another version, or of another number of classes.
    """

    def __init__(self, gradients: Gradients, settings: Settings | None = None, state: bytes | None = None) -> None:
        self.settings, self._gradients = settings or Settings(), gradients
        self._size = 3 * gradients.classes + 1
        self._names: list[str] = []
        self._squares = np.zeros((0, self._size, self._size))
        self._products, self._mixtures = np.zeros((0, self._size)), np.zeros((0, self._size))
        self._rounds, self._lengths = np.zeros(0, int), np.zeros(0)
        self._peak = self._gate = 0.0
        self._alarmed: set[int] = set()
        self._streaks = [0] * gradients.classes
        if state is not None:
            self._decode(state)

    def look(self, weights: Weights, rounds: Mapping[bytes, Mapping[str, NDArray[Any]]]) -> None:
        """Take an attested round into account.

        Args:
            weights: The model that it started from.
            rounds: Sketches in the units of updates, by device, for each shard's seed ρ.
        """
        sketches = {seed: {name: s for name, s in part.items() if np.any(s)} for seed, part in rounds.items()}
        sizes = [float(np.linalg.norm(s)) for part in sketches.values() for s in part.values()]
        if not sizes:
            return
        usual = float(np.median(sizes))
        self._peak = max(self._peak, usual)
        # Near convergence what is left of an update is a device's own odd samples: such rounds weigh little.
        informative = (usual / self._peak) ** 2
        s = self.settings
        self._gate = float(np.clip((usual / self._peak - s.open_from) / s.open_width, 0, 1))
        directions = list(self._gradients(weights))
        for seed, part in sorted(sketches.items()):
            if part:
                self._take(seed, part, directions, informative)
        self._mixtures = solve(self._squares, self._products, self._mixtures)
        self._listen()

    def pulls(self) -> dict[str, Array]:
        """Return F_i of the devices that were looked at often enough: their pull to each class, 0 to 1."""
        return dict(zip(*self._shares(), strict=True))

    def strengths(self) -> dict[str, Array]:
        """Return the same in how many times what is usual."""
        return dict(zip(*self._strengths(), strict=True))

    def alarms(self) -> dict[int, float]:
        """Return the classes that suspiciously many devices pull to, and what share of them does."""
        notable, _ = self._shares_of(self._strengths()[1])
        return {label: float(notable[label]) for label in sorted(self._alarmed)}

    def evidence(self) -> dict[str, float]:
        """Return what counts against devices in the next attested round; those with nothing are left out."""
        s = self.settings
        names, strengths = self._strengths()
        if not self._alarmed or not self._gate:
            return {}
        worst = strengths[:, sorted(self._alarmed)].max(axis=1)
        found = self._gate * np.clip(s.weight * (worst - s.from_), 0, s.most)
        return {name: float(x) for name, strength, x in zip(names, worst, found, strict=True) if strength > s.notable}

    def explained(self) -> dict[str, float]:
        """Return what share of a device's updates is a mixture of its own labels' gradients, from 0 to 1.

        It is 1 − |residual|²/|sketches|² over the rounds, for the fit with right ingredients alone, one a class: with
        fewer than all it takes fewer rounds until a good fit means something.
        """
        names, shares, _ = self._explained()
        return dict(zip(names, shares.tolist(), strict=True))

    def excused(self) -> dict[str, float]:
        """Return how far devices are excused for differing in the next attested round; those who are not are left out.

        Whose updates are nearly a non-negative mixture of what honest samples of each class teach is honest about its
        labels, whatever labels those are, and however far its updates lie from the others'. Many who teach the same
        label are a crowd, whose excuse would move the whole fleet: they have none.
        """
        s = self.settings
        names, shares, labels = self._explained()
        far = np.clip((shares - s.excuse_from) / s.excuse_width, 0, 1)
        crowd = np.bincount(labels[far > 0], minlength=self._gradients.classes) > s.excuse_crowd * len(names)
        far[crowd[labels]] = 0
        return {name: float(share) for name, share in zip(names, far, strict=True) if share > 0}

    def forget(self, name: str) -> None:
        """Erase what is held about a device."""
        if name in self._names:
            left = [place for place, other in enumerate(self._names) if other != name]
            self._names = [self._names[place] for place in left]
            self._squares, self._products = self._squares[left], self._products[left]
            self._mixtures, self._rounds = self._mixtures[left], self._rounds[left]
            self._lengths = self._lengths[left]

    def encode(self) -> bytes:
        """Return the book as it is to be kept."""
        devices = {
            name: _Device(
                squares=self._squares[place].astype("<f4").tobytes(),
                products=self._products[place].astype("<f4").tobytes(),
                mixture=self._mixtures[place].astype("<f4").tobytes(),
                rounds=int(self._rounds[place]),
                length=float(self._lengths[place]),
            )
            for place, name in enumerate(self._names)
        }
        return msgspec.msgpack.encode(
            _Kept(
                size=self._size,
                peak=self._peak,
                gate=self._gate,
                alarmed=sorted(self._alarmed),
                streaks=self._streaks,
                devices=devices,
            )
        )

    def _take(
        self, seed: bytes, part: Mapping[str, NDArray[Any]], directions: Sequence[NDArray[np.float32]], weight: float
    ) -> None:
        names = sorted(part)
        values = np.array([part[name] for name in names], np.float64)
        design = SketchMatrix(seed, self._gradients.dimension, values.shape[1]).of_directions(directions)
        # What all updates have in common, such as several steps where gradients are of one, is nobody's pull.
        design = np.vstack([design, np.median(values, axis=0)])
        size = (values**2).sum(axis=1)
        for name in names:
            if name not in self._names:
                self._grow(name)
        places = [self._names.index(name) for name in names]
        memory = self.settings.memory
        self._squares[places] *= memory
        self._squares[places] += weight * (design @ design.T)[None] / size[:, None, None]
        self._products[places] *= memory
        self._products[places] += weight * (values @ design.T) / size[:, None]
        self._lengths[places] = memory * self._lengths[places] + weight
        self._rounds[places] += 1

    def _grow(self, name: str) -> None:
        self._names.append(name)
        self._squares = np.concatenate([self._squares, np.zeros((1, self._size, self._size))])
        self._products = np.concatenate([self._products, np.zeros((1, self._size))])
        self._mixtures = np.concatenate([self._mixtures, np.zeros((1, self._size))])
        self._rounds, self._lengths = np.append(self._rounds, 0), np.append(self._lengths, 0.0)

    def _explained(self) -> tuple[list[str], Array, NDArray[np.int64]]:
        """Return who was looked at often enough, what share its own labels explain, and which of them explains most."""
        s, classes = self.settings, self._gradients.classes
        seen = np.flatnonzero((self._rounds >= s.excuse_age) & (self._lengths > 0))
        if not len(seen):
            return [], np.zeros(0), np.zeros(0, np.int64)
        both = np.zeros((classes, self._size))  # the easier and the harder samples of a class in their usual parts
        both[:, :classes], both[:, classes : 2 * classes] = (1 - HARD) * np.eye(classes), HARD * np.eye(classes)
        products = self._products[seen] @ both.T
        explained = solve(both @ self._squares[seen] @ both.T, products) * products
        shares = np.clip(explained.sum(axis=1) / self._lengths[seen], 0, 1)
        return [self._names[place] for place in seen], shares, explained.argmax(axis=1)

    def _shares(self) -> tuple[list[str], Array]:
        seen = self._rounds >= self.settings.age
        mixtures = self._mixtures[seen, :-1]  # without what is common
        total = np.maximum(mixtures.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        names = [name for name, fine in zip(self._names, seen, strict=True) if fine]
        return names, mixtures[:, 2 * self._gradients.classes :] / total

    def _strengths(self) -> tuple[list[str], Array]:
        """Return pulls, in how many times the usual strength; the class in question does not say what is usual."""
        names, shares = self._shares()
        if len(names) < self.settings.smallest:
            return names, np.zeros_like(shares)
        high = np.quantile(shares, self.settings.usual, axis=0)
        usual = np.array([np.median(np.delete(high, label)) for label in range(len(high))])
        return names, shares / np.maximum(usual, self.settings.least)

    def _listen(self) -> None:
        """Raise and end alarms."""
        s = self.settings
        notable, nearly = self._shares_of(self._strengths()[1])
        alarming = (notable >= s.alarm) & (nearly <= s.slope * notable)
        self._streaks = [(streak + 1) * int(held) for streak, held in zip(self._streaks, alarming, strict=True)]
        raised = {label for label, streak in enumerate(self._streaks) if streak >= s.looks}
        self._alarmed = {label for label in self._alarmed if notable[label] >= s.calm} | raised

    def _shares_of(self, strengths: Array) -> tuple[Array, Array]:
        """Return what share of the devices pulls notably to each class, and what share nearly notably."""
        if not len(strengths):
            return np.zeros(strengths.shape[1]), np.zeros(strengths.shape[1])
        notable = (strengths > self.settings.notable).mean(axis=0)
        return notable, (strengths > self.settings.slope_from).mean(axis=0) - notable

    def _decode(self, state: bytes) -> None:
        try:
            kept = msgspec.msgpack.decode(state, type=_Kept)
        except msgspec.MsgspecError as error:
            raise StateError(f"probes: the book cannot be read: {error}") from error
        if (kept.version, kept.size) != (_VERSION, self._size):
            raise StateError(f"probes: the book is of version {kept.version} and size {kept.size}, not this model's")
        self._peak, self._gate, self._names = kept.peak, kept.gate, list(kept.devices)
        self._alarmed, self._streaks = set(kept.alarmed), list(kept.streaks)
        size, devices = self._size, list(kept.devices.values())
        wanted = {"squares": 4 * size * size, "products": 4 * size, "mixture": 4 * size}
        if any(len(getattr(device, field)) != length for device in devices for field, length in wanted.items()):
            raise StateError("probes: the book is incomplete")
        flat = {
            field: np.array([np.frombuffer(getattr(device, field), "<f4") for device in devices], np.float64)
            for field in wanted
        }
        self._squares = flat["squares"].reshape(-1, size, size)
        self._products, self._mixtures = flat["products"].reshape(-1, size), flat["mixture"].reshape(-1, size)
        self._rounds = np.array([device.rounds for device in devices], int)
        self._lengths = np.array([device.length for device in devices], float)
