"""What a simulated fleet is to do: the scenario, read from YAML or from the demo's flags.

Only what can be honoured is a field. Anything else in a file (a typo, a setting of a later version) is refused by its
path, because a scenario that is half obeyed gives numbers for an experiment that nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import yaml

from covey_aggregator.privacy import Privacy
from covey_aggregator.rules import CONTAMINATION, AnyRule, RuleField
from covey_aggregator.rules import rule as find_rule
from covey_protocol import cbor
from covey_protocol.digest import digest
from covey_protocol.errors import ConfigError
from covey_protocol.messages import SHARD_MAX
from covey_protocol.plan import Plan
from covey_protocol.sketch import K_MAX, K_MIN
from covey_protocol.thresholds import ROSTER_MAX, ROSTER_MIN
from covey_simulator.attack_kinds import KINDS
from covey_simulator.attack_settings import Attack

Source = Literal["digits", "breast-cancer", "file"]
Transport = Literal["broker", "direct"]
OddityKind = Literal["none", "adversarial-training", "one-class", "few-samples"]
Masking = bool | Literal["simulated"]
ReputationMode = Literal["observe", "enforce"]

MAX_DEVICES = 10_000
MAX_ROUNDS = 100_000

# Chosen over five seeds of the demo's fleet (30 devices with 48 digits each): in the clear and without attack ten
# rounds reach 0.944 to 0.969; a fifth of sign-flippers (x1) leave 0.933 to 0.953 under the trimmed mean of five groups.
# An honest update of the first round has norm 5.86 in the median; the clip is 1.54 times that.
DEMO_PLAN = Plan(steps=40, batch_size=16, learning_rate=0.3, momentum=0.5)
DEMO_CLIP = 9.0
DEMO_SCALE = 5.0


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a scenario's parts: immutable, by keyword, unknown fields refused."""


class Data(_Strict, frozen=True, kw_only=True):
    """Where the samples come from.

    Attributes:
        source: A data set that scikit-learn carries, or ``file``.
        path: For ``file``: an ``.npz`` with arrays x and y, and x_test and y_test if they are held out already.
    """

    source: Source = "digits"
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.source == "file") != (self.path is not None):
            raise ValueError("path is needed for source 'file' and belongs to no other")


class Model(_Strict, frozen=True, kw_only=True):
    """What is learnt: a preset, or an author's ONNX file; the preset ``mlp`` if nothing is said."""

    preset: Literal["softmax", "mlp"] | None = None
    onnx: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.onnx is not None:
            raise ValueError("name either a preset or an onnx file, not both")


class Partition(_Strict, frozen=True, kw_only=True):
    """How samples are dealt.

    Attributes:
        iid: Evenly, whatever their labels.
        dirichlet: By label, with Dirichlet's concentration; small means lopsided.
        labels: So many labels to each device, and no samples of others.
        repeat: Draw with putting back, so that a device, or two, may hold a sample more than once; for fleets that
            need more samples than there are.
    """

    iid: bool | None = None
    dirichlet: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    labels: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    repeat: bool = False

    def __post_init__(self) -> None:
        if bool(self.iid) + (self.dirichlet is not None) + (self.labels is not None) > 1:
            raise ValueError("name one of iid, dirichlet and labels, not two")
        if self.dirichlet is None and self.labels is None and self.iid is False:
            raise ValueError("iid: false needs a concentration: write dirichlet: 0.5 instead")
        if self.labels is not None and not self.repeat:
            raise ValueError("labels go with repeat: true, or devices would be left without samples")


class Attestation(_Strict, frozen=True, kw_only=True):
    """What is asked of devices about their updates.

    Attributes:
        sketch: Numbers in a sketch; 0 takes what suits the model's size.
        lot: Trusted groups attest in one round of so many.
    """

    sketch: Annotated[int, msgspec.Meta(ge=0)] = 0
    lot: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1

    def __post_init__(self) -> None:
        if self.sketch and not K_MIN <= self.sketch <= K_MAX:
            raise ValueError(f"sketch: {K_MIN} to {K_MAX} numbers, or 0 for what suits the model")


class Local(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How each device trains; the fields, defaults and ranges of the protocol's plan."""


class Oddities(_Strict, frozen=True, kw_only=True):
    """Honest devices that train differently; they are not malicious, and nobody should take them for it.

    Attributes:
        kind: ``adversarial-training`` on perturbed samples, samples of ``one-class``, or ``few-samples``.
        fraction: Share of all devices that are odd, rounded to whole devices; the malicious are not among them.
        samples: How many are few; 5 by default.
        share: Share of its samples that an adversarially trained device perturbs; 0.5 by default.
        epsilon: Bound on the change of each input value; 0.2 by default.
        steps: Gradient steps towards a perturbation; 1 by default, which is FGSM.
    """

    kind: OddityKind = "none"
    fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    samples: Annotated[int, msgspec.Meta(ge=1)] | None = None
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    steps: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None

    def __post_init__(self) -> None:
        uses = _ODDITY_USES.get(self.kind, {})
        for name in ("samples", "share", "epsilon", "steps"):
            given = getattr(self, name)
            if given is not None and name not in uses:
                raise ValueError(f"{name} has no meaning for {self.kind}, leave it out")
            if given is None and name in uses:
                msgspec.structs.force_setattr(self, name, uses[name])


_ODDITY_USES: dict[str, dict[str, Any]] = {
    "few-samples": {"samples": 5},
    "adversarial-training": {"share": 0.5, "epsilon": 0.2, "steps": 1},
}


class Scenario(_Strict, frozen=True, kw_only=True):
    """One experiment.

    Attributes:
        name: Shown in reports.
        seed: Of everything the simulator draws: slices, attackers, the clear baselines. Devices draw their own
            randomness from the operating system, so a fleet's figures differ a little from run to run.
        samples_per_device: 0 deals out everything evenly.
        group_size: Members that a masked group should have.
        clip: Bound on the L2 norm of a device's update.
        oddities: Honest devices that train differently.
        adaptive_clip: Lower the bound to twice the norm that was usual among the accepted of the last attested round,
            where devices attest and reputations act.
        rule: How group means are combined, by its name or as a map of name and parameters.
        contamination: Share of hostile devices to be expected among those whose updates are accepted.
        masking: ``simulated`` leaves masks out where they cancel exactly. False is for laboratories: the aggregator
            then sees single updates.
        signatures: False leaves signatures, shares and certificates out as well, for quick rehearsals.
        attestation: Whether devices attest sketches of their updates, and of what size and how often.
        reputation: ``observe`` scores devices and acts on nothing.
        probes: Whether sketches are held against what the held-out samples would teach, to find backdoors.
        privacy: Noise that devices add to their updates.
        transport: ``broker`` runs real agents over MQTT, ``direct`` rehearses the fleet in this process.
        participation: Chance of a device to take part in a round.
        dropout: Chance of a device that takes part to fall silent somewhere in the round.
        epoch_rounds: Rounds before the groups are drawn anew.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    data: Data = Data()
    model: Model = Model()
    devices: Annotated[int, msgspec.Meta(ge=ROSTER_MIN, le=MAX_DEVICES)] = 30
    samples_per_device: Annotated[int, msgspec.Meta(ge=0)] = 0
    partition: Partition = Partition()
    rounds: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROUNDS)] = 10
    group_size: Annotated[int, msgspec.Meta(ge=ROSTER_MIN, lt=ROSTER_MAX)] = 6
    local: Local = Local()
    clip: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = DEMO_CLIP
    attack: Attack = Attack()
    oddities: Oddities = Oddities()
    adaptive_clip: bool = True
    rule: RuleField = "trimmed-mean"
    contamination: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = CONTAMINATION
    masking: Masking = True
    signatures: bool = True
    attestation: bool | Attestation = False
    reputation: ReputationMode = "enforce"
    probes: bool = False
    privacy: Privacy = Privacy()
    transport: Transport = "broker"
    participation: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    epoch_rounds: Annotated[int, msgspec.Meta(ge=1)] = 50

    def __post_init__(self) -> None:
        # Terminals and pages show the name.
        if not self.name.isprintable():
            raise ValueError("name holds characters that cannot be printed")
        for wrong, why in _CONTRADICTIONS:
            if wrong(self):
                raise ValueError(why)
        try:
            find_rule(self.rule)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def plan(self) -> Plan:
        """The training plan as the protocol carries it."""
        return msgspec.convert(msgspec.structs.asdict(self.local), Plan)

    @property
    def across_groups(self) -> AnyRule:
        """The rule that combines group means."""
        return find_rule(self.rule)

    @property
    def attesting(self) -> Attestation | None:
        """What is asked of devices about their updates, if anything."""
        if self.attestation is True:
            return Attestation()
        return self.attestation or None

    @property
    def adapts_clip(self) -> bool:
        """Whether the bound on norms follows what is usual."""
        return (
            self.adaptive_clip and not self.privacy.on and self.attesting is not None and self.reputation == "enforce"
        )

    @property
    def malicious_count(self) -> int:
        """How many devices misbehave."""
        return 0 if self.attack.kind == "none" else round(self.attack.fraction * self.devices)

    @property
    def odd_count(self) -> int:
        """How many honest devices are to train differently."""
        return 0 if self.oddities.kind == "none" else round(self.oddities.fraction * self.devices)

    def seed_for(self, *purpose: str | int) -> bytes:
        """Return 32 bytes that follow from the scenario's seed and a purpose; distinct purposes are independent."""
        return digest(cbor.encode([self.seed, *purpose]), person=b"covey-simulate")

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """Return a random generator for one purpose."""
        return np.random.default_rng(int.from_bytes(self.seed_for(*purpose), "big"))


_CONTRADICTIONS: tuple[tuple[Callable[[Scenario], bool], str], ...] = (
    (
        lambda it: it.privacy.on and not it.masking,
        "privacy hides a device in its group's sum, and without masks the aggregator sees single updates",
    ),
    (
        lambda it: 0 < it.privacy.rounds < it.rounds,
        "privacy.rounds are fewer than the scenario's rounds",
    ),
    (
        lambda it: not it.privacy.on and it.privacy != Privacy(delta=it.privacy.delta),
        "privacy names neither noise_multiplier nor epsilon",
    ),
    (
        lambda it: it.privacy.a_min > it.group_size,
        "privacy.a_min exceeds group_size",
    ),
    (
        lambda it: it.transport == "broker" and it.masking == "simulated",
        "masking: simulated goes with transport: direct; real agents mask",
    ),
    (
        lambda it: not it.signatures and (it.transport == "broker" or it.masking != "simulated"),
        "signatures: false goes with transport: direct and masking: simulated",
    ),
    (
        lambda it: it.attestation is not False and not it.masking,
        "attestation is about masked updates: leave it out where masking is off",
    ),
    (
        lambda it: it.transport == "direct" and it.attestation is not False and it.devices > SHARD_MAX,
        f"a rehearsal judges one shard: at most {SHARD_MAX} devices attest in it",
    ),
    (
        lambda it: it.transport == "broker" and bool(it.attestation) and not it.adaptive_clip,
        "adaptive_clip: false is rehearsed with transport: direct; the aggregator goes by the usual norm",
    ),
    (
        lambda it: it.probes and it.attestation is False,
        "probes look at sketches: they need attestation",
    ),
    (
        lambda it: KINDS[it.attack.kind].protocol and not (it.masking and it.signatures),
        "attack.kind attestation-liar, share-poisoner, sketch-withholder and unmask-refuser break the protocol's "
        "messages, which are not sent where masking or signatures are off",
    ),
    (
        lambda it: it.attack.kind == "attestation-liar" and it.masking == "simulated",
        "attack.kind attestation-liar lies about masks, which masking: simulated leaves out",
    ),
    (
        lambda it: it.attack.kind in ("attestation-liar", "sketch-withholder") and it.attestation is False,
        "attack.kind attestation-liar and sketch-withholder need attestation",
    ),
    (
        lambda it: KINDS[it.attack.kind].late and it.transport == "broker",
        "attack.kind sybil-wave needs devices that join later: it is rehearsed with transport: direct",
    ),
    (
        lambda it: it.transport == "broker" and (it.participation < 1 or it.dropout > 0 or it.attack.joins_at > 1),
        "participation, dropout and attack.joins_at are rehearsed with transport: direct",
    ),
)


def load_scenario(path: Path) -> Scenario:
    """Read a scenario from a YAML file; relative paths in it count from the file's folder.

    Raises:
        ConfigError: The file cannot be read, or a field is unknown, missing or out of range; the message says where.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    return parse_scenario(value, origin=str(path), folder=path.parent)


def demo_scenario(
    *,
    devices: int = 30,
    rounds: int = 10,
    malicious: float = 0.2,
    attack: str = "sign-flip",
    scale: float | None = None,
    seed: int = 0,
    masking: bool = True,
    attestation: bool = True,
) -> Scenario:
    """Return the demo: handwritten digits, dealt evenly, some of the devices hostile.

    Those who flip signs send five times the opposite if no scale is given. Without masks nobody attests.

    Raises:
        ConfigError: A flag is out of range; the message names the field.
    """
    if attack == "sign-flip" and scale is None:
        scale = DEMO_SCALE
    value = {
        "name": "demo",
        "seed": seed,
        "devices": devices,
        "rounds": rounds,
        "model": {"preset": "mlp"},
        "local": msgspec.structs.asdict(DEMO_PLAN),
        "clip": DEMO_CLIP,
        "attack": {"kind": attack, "fraction": malicious, "scale": scale},
        "masking": masking,
        "attestation": masking and attestation,
    }
    return parse_scenario(value, origin="demo", folder=Path())


def parse_scenario(value: Any, *, origin: str, folder: Path) -> Scenario:
    """Check plain values, as YAML gives them, and make a scenario of them.

    Args:
        value: The outermost map.
        origin: What messages call the source.
        folder: Where relative paths start.

    Raises:
        ConfigError: A field is unknown, missing or out of range; the message names origin and field.
    """
    _refuse_infinite(value, origin, "")
    try:
        scenario = msgspec.convert(value, Scenario)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {str(error).replace('`$.', '`')}") from error
    data, model = scenario.data, scenario.model
    if data.path is not None:
        data = msgspec.structs.replace(data, path=str(folder / data.path))
    if model.onnx is not None:
        model = msgspec.structs.replace(model, onnx=str(folder / model.onnx))
    elif model.preset is None:
        model = Model(preset="mlp")
    # Defaults are spelled out, so that a report shows what was done.
    partition = scenario.partition
    if partition.dirichlet is None and partition.labels is None:
        partition = msgspec.structs.replace(partition, iid=True)
    return msgspec.structs.replace(scenario, data=data, model=model, partition=partition)


def _refuse_infinite(value: Any, origin: str, path: str) -> None:
    """Refuse NaN and infinity: no comparison with a bound catches the former."""
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_infinite(part, origin, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{origin}: {value} is not a finite number - at `{path}`")
