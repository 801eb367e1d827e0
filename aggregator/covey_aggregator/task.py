"""A learning task as its author writes it: ``covey task start TASK.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from covey_aggregator.files import read_yaml
from covey_aggregator.privacy import Privacy, check_policy
from covey_aggregator.rules import CONTAMINATION, AnyRule, RuleField, rule
from covey_aggregator.rules.trimmed_mean import TrimmedMean
from covey_protocol import topics
from covey_protocol.errors import ConfigError
from covey_protocol.messages import RosterSize, Windows
from covey_protocol.noise import Noise
from covey_protocol.plan import Plan
from covey_protocol.policy import Policy
from covey_protocol.ring import RingScale
from covey_protocol.sketch import K_MAX, K_MIN, default_k
from covey_protocol.thresholds import ROSTER_MAX

DEFAULT_WINDOWS = Windows(join=20, shares=20, masked=120, survivors=20, attest=30, accept=20, unmask=20)
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class Attestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether devices attest sketches of their updates, from which the aggregator tells who poisons the model.

    Attributes:
        sketch: ``auto``: a number for every 128 parameters, 8 to 64 of them; a number; or ``off``.
        lot: Groups whose members are all trusted attest in one round of so many.
    """

    sketch: Literal["auto", "off"] | Annotated[int, msgspec.Meta(ge=K_MIN, le=K_MAX)] | bool = "auto"
    lot: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1

    @property
    def on(self) -> bool:
        """Whether sketches are asked for at all; YAML reads ``off`` as false."""
        return self.sketch not in ("off", False)

    def size(self, dimension: int, policy: Policy) -> int:
        """Return k for a model, 0 for none.

        Raises:
            ConfigError: The policy does not allow it.
        """
        if not self.on:
            return 0
        if self.sketch == "auto":
            k = min(default_k(dimension), policy.sketch_max)
            return k if k >= K_MIN else 0
        k = int(self.sketch)
        if k > policy.sketch_max:
            raise ConfigError(f"attestation.sketch {k}: the policy's sketch_max is {policy.sketch_max}")
        return k


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a task.

    Attributes:
        name: Stands in topics.
        bundle: The trainable model; a path that starts at the task's file.
        rounds: How many to run.
        clip: Bound on the L2 norm of one device's update.
        group_size: Members a group should have, 4 to 31; about 10 is a good choice where there are enough devices.
        devices_min: Wait for this many before the first round.
        settle: Seconds without a new device before the first grouping.
        local: Training on the device.
        rule: Across groups, by its name or as a map of name and parameters.
        beta: Share of groups that the trimmed mean cuts on each side, where its own map does not say so.
        contamination: Share of hostile devices to be expected among those whose updates are accepted. Where devices
            attest, it is what is expected at least.
        attestation: Sketches that updates are judged by.
        reputation: ``enforce`` leaves out whose sketches speak against them; ``observe`` scores and warns only.
        probes: Look at what devices teach with the held-out samples, to find backdoors that agree with everybody.
        privacy: Noise that hides single devices in their groups' sums.
        held_out: ``.npz`` file with x and y that the new model is measured on, if there is one.
        windows: Seconds for each stage.
        adaptive: Shorten the windows to what devices have shown to need.
        sleep: Devices sleep between the stages of a round: wait the whole windows, for lost devices too.
        epoch_rounds: Rounds before the groups are drawn anew.
        attempts: How often in a row a round may fail before the task stops.
    """

    name: str
    bundle: str
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    clip: Positive
    group_size: RosterSize = 10
    devices_min: Annotated[int, msgspec.Meta(ge=4)] = 4
    settle: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 3.0
    local: Plan = Plan()
    rule: RuleField = "trimmed-mean"
    beta: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] | None = None
    contamination: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = CONTAMINATION
    attestation: Attestation = Attestation()
    reputation: Literal["observe", "enforce"] = "enforce"
    probes: bool = False
    privacy: Privacy = Privacy()
    held_out: str = ""
    windows: Windows = DEFAULT_WINDOWS
    adaptive: bool = True
    sleep: bool = False
    epoch_rounds: Annotated[int, msgspec.Meta(ge=1)] = 50
    attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10

    @property
    def across_groups(self) -> AnyRule:
        """The rule with its parameters."""
        chosen = rule(self.rule)
        if isinstance(chosen, TrimmedMean) and chosen.beta is None:
            return TrimmedMean(beta=self.beta)
        return chosen

    def noise(self, dimension: int, policy: Policy) -> Noise | None:
        """Return the noise of each round, in groups of the size that is asked for; None without any.

        Raises:
            ConfigError: It cannot be had, or devices would refuse it now or before the last round.
        """
        sketch = self.attestation.size(dimension, policy)
        noise = self.privacy.noise(rounds=self.rounds, group_size=self.group_size, dimension=dimension, sketch=sketch)
        check_policy(noise, policy, rounds=self.rounds, sketch=sketch)
        return noise

    @property
    def enforces(self) -> bool:
        """Whether reputations act."""
        return self.reputation == "enforce"

    def check(self) -> None:
        """Check what the types cannot say.

        Raises:
            ConfigError: A name that cannot stand in a topic, an unknown rule, probes without sketches or samples, or a
                ring that could wrap.
        """
        topics.check_name(self.name, "name")
        if isinstance(self.rule, TrimmedMean) and self.rule.beta is not None and self.beta is not None:
            raise ConfigError("beta: is said twice, in the rule's map and beside it")
        rule(self.rule)
        if self.group_size >= ROSTER_MAX:
            raise ConfigError(f"group_size {self.group_size}: at most {ROSTER_MAX - 1}, so that a newcomer has a place")
        if self.attestation.sketch is True:
            raise ConfigError("attestation.sketch: is auto, off or a number")
        if self.probes and not self.attestation.on:
            raise ConfigError("probes: look at sketches, and attestation.sketch is off")
        if self.probes and not self.held_out:
            raise ConfigError("probes: need held-out samples, and held_out names no file")
        RingScale(self.clip, ROSTER_MAX)


def load_task(path: Path) -> Task:
    """Read a task's file; paths in it become absolute.

    Raises:
        ConfigError: It is not YAML, breaks the schema, or names a file that is not there.
    """
    task = read_yaml(path, Task)
    _refuse_unknown(path)
    changes = {}
    for field in ("bundle", "held_out"):
        value = getattr(task, field)
        if value or field == "bundle":
            file = (path.parent / value).absolute()
            if not file.is_file():
                raise ConfigError(f"{path}: {field}: there is no file {file}")
            changes[field] = str(file)
    task = msgspec.structs.replace(task, **changes)
    try:
        task.check()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return task


def _refuse_unknown(path: Path) -> None:
    """Refuse misspelt fields in the parts that also travel in messages, where unknown fields are tolerated."""
    parts = read_yaml(path, dict[str, Any])
    for field, kind in (("local", Plan), ("windows", Windows)):
        unknown = sorted(set(parts.get(field, ())) - set(kind.__struct_fields__))
        if unknown:
            raise ConfigError(f"{path}: {field} contains unknown field `{unknown[0]}`")
