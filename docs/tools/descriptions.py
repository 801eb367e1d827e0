"""What every field of every settings file means; a test refuses a field without a line and a line without a field."""

from __future__ import annotations

DESCRIPTIONS = {
    # covey.yaml
    "ServerSettings.fleet": "The fleet's name. It stands in topics and in every signature.",
    "ServerSettings.operator_home": (
        "Where `covey renew`, `covey device add` and `revoke` look for the operator's home; a path, never a key. "
        "Empty where it is elsewhere."
    ),
    "ServerSettings.broker": "The MQTT broker.",
    "ServerSettings.alerts": "Whom [alerts](operations.md#alerts) reach, and what is worth one.",
    "AlertSettings.webhooks": "Receivers by HTTP, each a map of the fields [below](#webhooks).",
    "AlertSettings.mqtt": "Whether alerts are published, signed, on `covey/v1/FLEET/pub/alert`.",
    "AlertSettings.accuracy_drop": "How far accuracy must fall below the best of the last five rounds; 0 for never.",
    "AlertSettings.joined_share": "What share of the fleet, and at least eight devices, must join between two rounds.",
    "WebhookSettings.url": "`http://` or `https://`; a user name and password in it are sent as Basic authorisation.",
    "WebhookSettings.url_file": "File with the URL in one line, relative to the home, in place of `url`.",
    "WebhookSettings.key_file": "File with a key of 16 to 64 bytes in one line; requests are then signed with it.",
    "WebhookSettings.ca_file": "PEM file of the CA, where the receiver's certificate is not signed by a public one.",
    "WebhookSettings.kinds": "Only these kinds of alerts; empty for all.",
    "WebhookSettings.timeout": "Seconds for one request.",
    "ServerSettings.log_level": "How much is logged.",
    # operator.yaml
    "OperatorSettings.fleet": "The fleet that this operator key is the root of.",
    # policy.yaml
    "Policy.version": (
        "At least this version is signed; it grows by itself with every change. Devices take newer versions only, and "
        "two of one are an alarm."
    ),
    "Policy.n_min": "Smallest roster. A manifest or roster below it is refused.",
    "Policy.t_min": "Fewest signatures and shares, where it exceeds ⌊2n/3⌋ + 1; 0 leaves the formula alone.",
    "Policy.a_min": "Smallest set whose sum may be unmasked, where it exceeds c + 3; 0 leaves the formula alone.",
    "Policy.list_min": "Smallest member list, and smallest number of commitments, from which groups may be drawn.",
    "Policy.exposure_max": "How many different sets a device is in, over all groupings and tasks; 0 sets no limit.",
    "Policy.clear_updates": "Whether manifests without masks pass the policy. Devices refuse them all the same today.",
    "Policy.sketch_max": "Largest sketch that a device answers; 0 forbids sketches.",
    "Policy.sketch_budget": "How many numbers a device tells in sketches in its life; 0 sets no limit.",
    "Policy.noise_min": "Least [noise](privacy.md) multiplier: a manifest with less is refused.",
    "Policy.epsilon_max": (
        "How much privacy the data of one device may lose in all rounds of all tasks, as ε: a device that would lose "
        "more joins no round. 0 sets no limit; any other value forbids rounds without noise."
    ),
    "Policy.delta": "The δ that goes with `epsilon_max`.",
    # agent.yaml
    "AgentConfig.data": "`.npz` file, or folder of them, with arrays x and y. A relative path starts at the home.",
    "AgentConfig.profile": "Firmware profile by name or path; empty takes the one from enrolment.",
    "AgentConfig.threads": "Threads for training; 0 takes the profile's.",
    "AgentConfig.broker": "Overrides of what the provisioning bundle says about the broker.",
    "AgentConfig.log_level": "How much is logged.",
    # a firmware profile
    "FirmwareProfile.name": "The profile's name, as the device's token carries it.",
    "FirmwareProfile.memory_mb": (
        "Memory of the device. A step of training may take half of it, and `model_bytes_max` not exceed it."
    ),
    "FirmwareProfile.threads": "Threads that training may use.",
    "FirmwareProfile.batch_size_max": "A manifest with larger batches is refused.",
    "FirmwareProfile.model_bytes_max": (
        "A manifest with a larger model is refused; twice this is the budget for blobs on their way in."
    ),
    "FirmwareProfile.upload_bytes_max": "Largest upload in one round.",
    "FirmwareProfile.chunk_bytes": "Largest piece of a masked vector, in bytes; the broker's limit may lower it.",
    "FirmwareProfile.daily_bytes": "Bytes a day, both directions together; 0 for no limit. Not below `chunk_bytes`.",
    "FirmwareProfile.thermal_ceiling_c": "Temperature at which training pauses; 0 where no sensor is asked.",
    "FirmwareProfile.power": "What the device runs on.",
    "FirmwareProfile.windows": (
        "Local times of day in which the device may train and transfer; none means always, and one may cross midnight."
    ),
    "FirmwareProfile.poll_seconds": "How often a device that polls looks for work.",
    "FirmwareProfile.backoff_base": "Ceiling of the first wait before a new connection, in seconds.",
    "FirmwareProfile.backoff_cap": "Ceiling of all such waits. Not below `backoff_base`.",
    "FirmwareProfile.sleep": "The device suspends between the stages of a round.",
    "ServerSettings.budgets": "What senders may ask for: [floods](security.md#floods). A rate of 0 is no limit.",
    "BudgetSettings.messages_per_second": (
        "Messages that a device may send in the long run. A STATE counts as ten, a JOIN as five; pieces of a masked "
        "vector that it has announced do not count."
    ),
    "BudgetSettings.messages_burst": "As many at once.",
    "BudgetSettings.bytes_per_second": "Bytes that a device may send in the long run, beside announced vectors.",
    "BudgetSettings.bytes_burst": "As many at once.",
    "BudgetSettings.newcomers_per_second": "New names that may show an identity; 0 lets anybody send anything.",
    "BudgetSettings.newcomers_burst": "As many at once; those beyond it come from the broker's retained states later.",
    "BudgetSettings.reassembly_bytes": (
        "Memory for masked vectors that are on their way. Devices beyond it are asked for theirs a little later."
    ),
    # TASK.yaml
    "Task.name": "The task's name. It stands in topics and signatures, and is used once in a home's life.",
    "Task.bundle": "The trainable bundle that `covey model build` wrote; a relative path starts at this file.",
    "Task.rounds": "How many rounds to run.",
    "Task.clip": (
        "Bound C on the L2 norm of one device's update; it also sets the ring's step. With sketches it shrinks to "
        "twice the norm that is usual."
    ),
    "Task.group_size": "Members that a group should have; about 10 is a good choice where there are enough devices.",
    "Task.devices_min": "Wait for this many devices before the first round.",
    "Task.settle": "Seconds without a new device before groups are drawn.",
    "Task.local": "Local training.",
    "Task.rule": "How the groups' means are combined: [rules across groups](robustness.md#across-groups).",
    "Task.beta": (
        "The trimmed mean's `beta`, where `rule` is its name alone. None, here or there, goes by `contamination`."
    ),
    "Task.contamination": (
        "Share of hostile devices to be expected among those whose updates are accepted. The number of groups that "
        "they may spoil follows, and with it what `trimmed-mean` and `multi-krum` leave out. With sketches, the "
        "estimate made of them counts where it is larger."
    ),
    "Task.attestation": "Sketches of updates, from which the aggregator tells who poisons the model.",
    "Attestation.sketch": (
        "Numbers in a sketch. `auto` asks for one for every 128 parameters, 8 to 64 of them and no more than the "
        "policy allows; `off` for none. More tell more of a device's update."
    ),
    "Attestation.lot": (
        "Groups whose members are all trusted attest in one round of so many, as the lot falls; others always do."
    ),
    "Task.reputation": (
        "`enforce` leaves out whose sketches speak against them, and lets `clip` shrink to what is usual; `observe` "
        "scores and warns, and acts on proofs alone."
    ),
    "Task.probes": (
        "Look at what devices teach with the held-out samples, and hold against them one label for samples of all "
        "kinds: [mild backdoors](robustness.md#mild-backdoors). Needs `attestation` and `held_out`, with six "
        "samples of every class at least, and at most 32 classes."
    ),
    "Task.privacy": "[Noise](privacy.md) that hides single devices in their groups' sums. Names one of the first two.",
    "Privacy.noise_multiplier": "What the noise of a sum's honest members is to the largest update.",
    "Privacy.epsilon": (
        "What all rounds may cost one device, as ε. Alone, the noise follows from it; beside a multiplier it is a "
        "ceiling, and a task that exceeds it is refused."
    ),
    "Privacy.delta": "The δ that goes with it.",
    "Privacy.rounds": (
        "How many rounds the budget is to last; 0 for `rounds`. More leaves room for attempts that fail after updates "
        "were masked, which cost as much as others."
    ),
    "Privacy.a_min": (
        "Smallest set that is summed, where it exceeds c + 3. The more members are sure to be in a sum, the less noise "
        "each adds; a group that falls under it aborts."
    ),
    "Task.held_out": "`.npz` file with x and y that every new model is measured on; empty for none.",
    "Task.windows": "Seconds for each stage. Whoever gives one gives all but `attest` and `accept`.",
    "Task.adaptive": "Shorten windows to what devices have shown to need; `windows` are then the longest they can be.",
    "Task.sleep": "Devices sleep between stages: wait whole windows, also for devices that the broker reports lost.",
    "Task.epoch_rounds": "Closed rounds before the groups are drawn anew.",
    "Task.attempts": "How often in a row a round may fail before the task does.",
    "TrimmedMean.beta": (
        "Share of groups cut on each side: ⌈beta·G⌉ of G, at least one from three on, fewer than half. None cuts as "
        "many as are expected to be spoilt."
    ),
    "GeometricMedian.smoothing": "Distances below this share of the typical one count as that long.",
    "GeometricMedian.tolerance": "Stop when a step would be shorter than this share of the typical distance.",
    "GeometricMedian.iterations": "Stop after as many steps in any case.",
    "MultiKrum.f": (
        "Groups left out, at least one from three on, fewer than half. None takes as many as are expected to be spoilt."
    ),
    "CentredClipping.radius": "Longest step that a group can ask for. None takes the typical distance.",
    "CentredClipping.iterations": "How many steps.",
    "Plan.epochs": "Passes over the local data; ignored where `steps` is set.",
    "Plan.steps": "Exactly this many batches; 0 goes by `epochs`.",
    "Plan.batch_size": "Samples a step.",
    "Plan.learning_rate": "Step size of gradient descent.",
    "Plan.momentum": (
        "Share of the last step that the next one keeps, Adam's first decay rate; at rest at the start of each round."
    ),
    "Plan.optimiser": "What turns gradients into steps. Adam's decay is decoupled, as in AdamW.",
    "Plan.weight_decay": "Share of each weight that a step takes off, times the learning rate.",
    "Plan.proximal": "FedProx's μ: how strongly weights are drawn back to the round's model.",
    "Plan.beta2": "Adam's second decay rate.",
    "Plan.balance": (
        "A sample of a class with n samples on the device is drawn with a chance proportional to n^-balance: 0 takes "
        "every sample once a pass, 1 sees all classes equally often. It hides how often each label occurs, and helps "
        "learning where devices differ; where the classes' own shares have to be learnt, set 0."
    ),
    "Windows.join": "For JOIN.",
    "Windows.shares": "For SHARES.",
    "Windows.masked": "For MASKED, training included.",
    "Windows.survivors": "For signing U.",
    "Windows.unmask": "For revealing shares.",
    "Windows.attest": "For sketching, in rounds with sketches.",
    "Windows.accept": "For signing A, in rounds with sketches.",
}

# Two structs share a name: the aggregator's side of the broker and the agent's.
BROKER = {
    "covey_aggregator.home": {
        "host": "Where the aggregator connects.",
        "port": "Its port.",
        "advertise": "Host name that devices are given, if it is another one.",
        "username": "Name to log in with; empty for none.",
        "password_file": "File with the password, in one line; relative to the home.",
        "ca_file": "PEM file of the broker's CA. TLS is used if, and only if, this is set.",
        "cert_file": "The aggregator's certificate, where the broker asks for one.",
        "key_file": "The certificate's key.",
        "protocol": "MQTT version.",
        "max_packet_bytes": (
            "Largest MQTT packet that the broker takes; payloads are cut to 1,024 bytes less, at most 64 KiB. "
            "What an MQTT 5 broker says itself counts where it is less."
        ),
        "keepalive": "Seconds without traffic before the aggregator shows that it is alive.",
    },
    "covey_agent.config": {
        "host": "Another host; empty keeps the bundle's.",
        "port": "Another port; 0 keeps the bundle's.",
        "username": "Name to log in with; empty keeps the bundle's.",
        "password_file": "File with the password; relative to the home.",
        "protocol": "MQTT version; `auto` tries 5 and falls back.",
        "keepalive": "Seconds without traffic before the device shows that it is alive.",
        "session_expiry": "Seconds that the broker keeps the session of a device that is away (MQTT 5 only).",
    },
}


def describe(struct: type, field: str) -> str:
    """Return the line about a field.

    Raises:
        KeyError: There is none.
    """
    if struct.__module__ in BROKER and struct.__name__ == "BrokerSettings":
        return BROKER[struct.__module__][field]
    return DESCRIPTIONS[f"{struct.__name__}.{field}"]
