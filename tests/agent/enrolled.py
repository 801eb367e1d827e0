"""Devices of the fleet "meadow": provisioning bundles and enrolled homes, under the operator of the protocol's rig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, OPERATOR, SERVER, signing_key

from covey_agent.home import AgentHome, enrol
from covey_protocol import identity, provisioning
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.provisioning import Broker, Provisioning

NEVER = 0


def provision(device: str = "pi-0", **changes: Any) -> Provisioning:
    """Return what a provisioning bundle for a device holds, with fields changed."""
    fleet: str = changes.get("fleet", FLEET)
    operator: SigningKey = changes.pop("operator", OPERATOR)
    not_after: int = changes.pop("not_after", NEVER)
    profile: str = changes.get("profile", "pi-4")
    secret = changes.pop("secret", None) or signing_key(f"token {device}")
    token = identity.issue_token(
        operator, fleet, device, token_key=bytes(secret.verify_key), profile=profile, not_after=not_after
    )
    fields: dict[str, Any] = {
        "fleet": fleet,
        "device": device,
        "profile": profile,
        "operator_key": bytes(operator.verify_key),
        "token": token,
        "token_secret": bytes(secret),
        "delegation": identity.issue_delegation(operator, fleet, bytes(SERVER.verify_key), 1, NEVER),
        "policy": sign_policy(changes.pop("rules", Policy()), operator, fleet),
        "broker": Broker(host="127.0.0.1", port=1883),
    }
    return Provisioning(**{**fields, **changes})


def bundle_file(folder: Path, content: Provisioning | None = None, name: str = "device.bundle") -> Path:
    """Write a bundle as ``covey device add`` does."""
    path = folder / name
    path.write_text(provisioning.encode(content or provision()) + "\n", encoding="ascii")
    return path


def enrolled(folder: Path, device: str = "pi-0", *, data: str = "", **changes: Any) -> AgentHome:
    """Enrol a device in ``folder``/its name."""
    bundle = bundle_file(folder, provision(device, **changes), f"{device}.bundle")
    return enrol(bundle, folder / device, data=data)
