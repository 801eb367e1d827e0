"""The generated parts of ``docs/configuration.md``: every field of every settings file, from the structs themselves."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import yaml
from docs.tools.descriptions import describe
from docs.tools.figures import table
from msgspec import inspect

from covey_agent import profile
from covey_agent.config import AgentConfig
from covey_agent.profile import FirmwareProfile
from covey_aggregator.home import ServerSettings, WebhookSettings
from covey_aggregator.operator import OperatorSettings
from covey_aggregator.rules import RULES
from covey_aggregator.task import Task
from covey_protocol import plan
from covey_protocol.policy import Policy

ROOT = Path(__file__).resolve().parents[2]

FILES: dict[str, type[msgspec.Struct]] = {
    "covey.yaml": ServerSettings,
    "operator.yaml": OperatorSettings,
    "policy.yaml": Policy,
    "agent.yaml": AgentConfig,
    "profile": FirmwareProfile,
    "TASK.yaml": Task,
    "webhook": WebhookSettings,
}
# What a struct checks in code and not in a type.
RANGES = {
    "Plan.epochs": f"1 to {plan.MAX_EPOCHS:,}",
    "Plan.steps": f"0 to {plan.MAX_STEPS:,}",
    "Plan.batch_size": f"1 to {plan.MAX_BATCH:,}",
    "Plan.learning_rate": f"above 0, at most {plan.MAX_LEARNING_RATE:g}",
    "Plan.momentum": "0 to below 1",
    "Plan.optimiser": " or ".join(f"`{name}`" for name in plan.OPTIMISERS),
    "Plan.weight_decay": f"0 to {plan.MAX_WEIGHT_DECAY:g}",
    "Plan.proximal": f"0 to {plan.MAX_PROXIMAL:g}",
    "Plan.beta2": "0 to below 1",
    "Plan.balance": f"0 to {plan.MAX_BALANCE:g}",
    "Task.group_size": "4 to 31",
    "Task.rule": ", ".join(f"`{name}`" for name in RULES) + "; or [a map](#rules)",
    "Attestation.sketch": "`auto`, 8 to 64, `off`",
    "Task.name": "1 to 63 of `a-z 0-9 -`, no `-` first",
    "ServerSettings.fleet": "1 to 63 of `a-z 0-9 -`, no `-` first",
    "OperatorSettings.fleet": "1 to 63 of `a-z 0-9 -`, no `-` first",
    "FirmwareProfile.name": "1 to 63 of `a-z 0-9 -`, no `-` first",
    "FirmwareProfile.windows": "each `HH:MM-HH:MM`",
}
_TYPES = {
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "text",
    inspect.BoolType: "true or false",
    inspect.LiteralType: "one of",
    inspect.ListType: "list",
    inspect.UnionType: "text or map",
}
_KINDS = {"Attestation.sketch": "integer or text"}  # of unions that are no map


def rows(struct: type[msgspec.Struct], prefix: str = "", defaults: Any = None) -> list[list[str]]:
    """Return key, type, default, range and meaning of every field, nested structs laid out flat.

    Args:
        struct: The struct that reads the file or the part.
        prefix: What stands before the key, such as ``broker.``.
        defaults: The instance that is the default of this part, if there is one.

    Raises:
        KeyError: A field has no description.
    """
    result: list[list[str]] = []
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        name = f"{struct.__name__}.{field.name}"
        default = getattr(defaults, field.name) if defaults is not None else _default(field)
        if isinstance(field.type, inspect.StructType):
            result.append([f"`{prefix}{field.name}`", "map", "as below", "", describe(struct, field.name)])
            result += rows(field.type.cls, f"{prefix}{field.name}.", default)
            continue
        shown = "**required**" if default is msgspec.NODEFAULT else _show(default)
        kind = _bare(field.type)
        limits = RANGES.get(name) or _limits(kind)
        word = _KINDS.get(name) or _TYPES[type(kind)]
        result.append([f"`{prefix}{field.name}`", word, shown, limits, describe(struct, field.name)])
    return result


def _default(field: inspect.Field) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else msgspec.NODEFAULT


def _bare(kind: inspect.Type) -> inspect.Type:
    """Return the type without its None."""
    if isinstance(kind, inspect.UnionType):
        others = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
        return others[0] if len(others) == 1 else kind
    return kind


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return "empty" if value in ("", []) else f"{value:g}" if isinstance(value, float) else str(value)


def _limits(kind: Any) -> str:
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    parts = []
    for attribute, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        bound = getattr(kind, attribute, None)
        if bound is not None:
            parts.append(f"{word} {int(bound) if bound == int(bound) else bound:,}")
    return ", ".join(parts)


def honoured() -> set[str]:
    """Return the fields of a firmware profile that the agent's code reads, apart from the file that defines them."""
    found = set()
    for path in (ROOT / "agent" / "covey_agent").glob("*.py"):
        if path.name == "profile.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                if name in ("profile", "_profile"):
                    found.add(node.attr)
    return found & set(FirmwareProfile.__struct_fields__)


def profile_rows() -> list[list[str]]:
    """Return the rows of a firmware profile with a column that says whether the agent acts on the field."""
    read = honoured()
    return [[*row, "yes" if row[0].strip("`") in read else "not yet"] for row in rows(FirmwareProfile)]


def profile_values() -> str:
    """Return what the profiles that come along say."""
    profiles = [profile.load_profile(name) for name in profile.profile_names()]
    lines = [
        [f"`{field}`", *(_show(getattr(each, field)) for each in profiles)]
        for field in FirmwareProfile.__struct_fields__
        if field != "name"
    ]
    return table(["field", *(each.name for each in profiles)], lines)


def settings_table(file: str) -> str:
    """Return the reference of one file."""
    head = ["key", "type", "default", "range", "meaning"]
    if file == "profile":
        return table([*head, "acted on today"], profile_rows())
    return table(head, rows(FILES[file]))


def rules_table() -> str:
    """Return the parameters of every rule across groups."""
    lines = []
    for name, kind in RULES.items():
        parameters = rows(kind) or [["-"] * 5]
        lines += [[f"`{name}`" if number == 0 else "", *row] for number, row in enumerate(parameters)]
    return table(["rule", "parameter", "type", "default", "range", "meaning"], lines)


def default_policy() -> str:
    """Return ``policy.yaml`` as ``covey operator init`` writes it."""
    return f"```yaml\n{yaml.safe_dump(msgspec.to_builtins(Policy()), sort_keys=False)}```"


def default_agent() -> str:
    """Return ``agent.yaml`` as ``covey-agent enrol`` writes it."""
    return f"```yaml\n{yaml.safe_dump(msgspec.to_builtins(AgentConfig()), sort_keys=False)}```"


def blocks() -> dict[str, str]:
    """Return every generated block of the page by name."""
    result = {file: settings_table(file) for file in FILES}
    return result | {
        "profiles": profile_values(),
        "rules": rules_table(),
        "default policy.yaml": default_policy(),
        "default agent.yaml": default_agent(),
    }
