"""All that is random in a rehearsed fleet, as it follows from the scenario's seed.

A real device takes bytes from its operating system. Here each device has a source of its own, and for every purpose in
it (a round's secrets, the rounding of an update) a sequence of its own, so that a level that does not need the one
still draws the other alike.
"""

from __future__ import annotations

from nacl.signing import SigningKey

from covey_protocol import prg
from covey_simulator.scenario import Scenario

ROUNDING, OPENING, JOINING, ANSWERING = "rounding", "opening", "joining", "answering"


class Source:
    """Uniform bytes for one device; ``at`` says what for."""

    def __init__(self, scenario: Scenario, device: str) -> None:
        self._scenario, self._device = scenario, device
        self._purpose: tuple[str | int, ...] = ()
        self._count = 0

    def at(self, *purpose: str | int) -> Source:
        """Begin the sequence of a purpose."""
        self._purpose, self._count = purpose, 0
        return self

    def __call__(self, size: int) -> bytes:
        """Return the sequence's next bytes."""
        seed = self._scenario.seed_for("device", self._device, *self._purpose, self._count)
        self._count += 1
        return seed[:size] if size <= len(seed) else prg.expand(seed, -(-size // 2)).tobytes()[:size]


class Draws:
    """What the fast level needs of all that.

    Args:
        scenario: Gives the seed.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._public: dict[str, bytes] = {}

    def signing_key(self, device: str) -> SigningKey:
        """Return a device's key pair."""
        return SigningKey(self._scenario.seed_for("device key", device))

    def public_key(self, device: str) -> bytes:
        """Return a device's public key."""
        if device not in self._public:
            self._public[device] = bytes(self.signing_key(device).verify_key)
        return self._public[device]

    def opening(self, device: str, epoch: int, attempt: int) -> bytes:
        """Return e_i."""
        return Source(self._scenario, device).at(OPENING, epoch, attempt)(32)

    def rounding(self, device: str, round_: int, attempt: int) -> bytes:
        """Return the seed of an update's rounding."""
        return Source(self._scenario, device).at(ROUNDING, round_, attempt)(prg.SEED_BYTES)

    def shard_seed(self, shard: str, round_: int, attempt: int) -> bytes:
        """Return ρ."""
        return self._scenario.seed_for("shard seed", shard, round_, attempt)
