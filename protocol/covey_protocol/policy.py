"""The operator's policy: floors that the aggregator cannot lower, because it does not hold the operator's key."""

from __future__ import annotations

from typing import Annotated

import msgspec
from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.envelope import Context
from covey_protocol.errors import RefusedError
from covey_protocol.identity import OPERATOR
from covey_protocol.messages import Manifest, NoiseMultiplier, SketchSize
from covey_protocol.payload import Count, Payload, prepare, read, write
from covey_protocol.thresholds import ROSTER_MAX, ROSTER_MIN

_MAX_POLICY_BYTES = 4096


class Policy(Payload, frozen=True, kw_only=True):
    """What every round in the fleet has to respect.

    Attributes:
        version: Grows with every change: devices take a newer version, and two of one version are an alarm.
        n_min: Smallest roster.
        t_min: Fewest signatures and shares; the formula of ``thresholds`` holds beside it. A number and no fraction,
            so that two implementations cannot round it differently.
        a_min: Smallest set whose sum may be unmasked; the formula of ``thresholds`` holds beside it.
        list_min: Smallest member list from which groups may be drawn.
        exposure_max: How many different sums a device takes part in, over all groupings; 0 sets no limit.
        clear_updates: Whether rounds without masks are allowed. For laboratories only.
        sketch_max: Largest sketch that a device answers. Its numbers are what a device tells of its update besides the
            group's sum, so they have a ceiling; 0 forbids sketches.
        sketch_budget: How many numbers a device tells in sketches in its life; 0 sets no limit. Beyond it a device
            joins only rounds without sketches.
        noise_min: Least noise multiplier.
        epsilon_max: How much privacy the data of one device may lose in all rounds of all tasks, by ``delta``; a device
            that would lose more joins no round. 0 sets no limit, any other value forbids rounds without noise.
        delta: The probability that goes with it.
    """

    version: Count = 1
    n_min: Annotated[int, msgspec.Meta(ge=ROSTER_MIN, le=ROSTER_MAX)] = ROSTER_MIN
    t_min: Annotated[int, msgspec.Meta(ge=0, le=ROSTER_MAX)] = 0
    a_min: Annotated[int, msgspec.Meta(ge=0, le=ROSTER_MAX)] = 0
    list_min: Annotated[int, msgspec.Meta(ge=ROSTER_MIN)] = ROSTER_MIN
    exposure_max: Count = 0
    clear_updates: bool = False
    sketch_max: SketchSize = 64
    sketch_budget: Count = 0
    noise_min: NoiseMultiplier = 0.0
    epsilon_max: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5

    @property
    def roster_min(self) -> int:
        """Smallest roster that can reach every floor."""
        return max(self.n_min, self.t_min, self.a_min)

    def check(self, manifest: Manifest) -> None:
        """Refuse a manifest that lies below a floor.

        Raises:
            RefusedError: The message names the floor.
        """
        if not manifest.masking and not self.clear_updates:
            raise RefusedError("the policy does not allow rounds without masks", cause="policy")
        if manifest.n_min < self.n_min:
            raise RefusedError(f"n_min {manifest.n_min} is below the policy's {self.n_min}", cause="policy")
        if manifest.n_max < manifest.n_min:
            raise RefusedError(f"n_max {manifest.n_max} is below n_min {manifest.n_min}", cause="policy")
        if manifest.n_max < self.roster_min:
            raise RefusedError(
                f"n_max {manifest.n_max} is below the policy's t_min {self.t_min} or a_min {self.a_min}", cause="policy"
            )
        if manifest.n_max < manifest.a_min:
            raise RefusedError(f"n_max {manifest.n_max} is below a_min {manifest.a_min}", cause="policy")
        if manifest.sketch > self.sketch_max:
            raise RefusedError(f"sketch {manifest.sketch} is above the policy's {self.sketch_max}", cause="policy")
        if manifest.noise < self.noise_min:
            raise RefusedError(f"noise {manifest.noise:g} is below the policy's {self.noise_min:g}", cause="policy")
        if self.epsilon_max and not manifest.noise:
            raise RefusedError(f"no noise, and the policy's epsilon_max is {self.epsilon_max:g}", cause="policy")


def sign_policy(policy: Policy, operator: SigningKey, fleet: str) -> bytes:
    """Return the policy signed by the operator."""
    return envelope.sign(write(policy), Context(fleet=fleet, kind=topics.POLICY, sender=OPERATOR), operator)


def verify_policy(data: bytes, *, operator_key: bytes, fleet: str) -> Policy:
    """Return the policy once the operator's signature holds.

    Raises:
        SignatureError: It does not.
        MalformedError: It is no policy.
    """
    context = Context(fleet=fleet, kind=topics.POLICY, sender=OPERATOR)
    return read(Policy, envelope.open_signed(data, context, operator_key, max_bytes=_MAX_POLICY_BYTES))


prepare(globals())
