"""A device installs ``covey`` without extras: protocol and agent must run on that alone."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.packaging.layout import closure, import_names, modules, required

BASE = {"cbor2", "click", "msgspec", "numpy", "onnxruntime", "paho-mqtt", "pynacl", "pyyaml"}

# Stands in for a machine that has only the base dependencies: any other top-level import is refused. (Names
# such as _sysconfigdata_… are the interpreter's own, made at its build.)
GUARD = """
import importlib, json, sys

allowed, names = json.loads(sys.stdin.read())
allowed = set(allowed) | set(sys.stdlib_module_names)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"{name} is not among the base dependencies", name=name)
        return None

sys.meta_path.insert(0, Refuse())
for name in list(sys.modules):
    if name.partition(".")[0] not in allowed | {"__main__"}:
        del sys.modules[name]
for name in names:
    importlib.import_module(name)
"""


def import_on_base(names: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules, one after the other, where nothing but the base dependencies can be imported."""
    extras_only = {"covey_aggregator", "covey_modelkit", "covey_simulator"}
    allowed = sorted(import_names(closure("covey")) - extras_only | {"covey_protocol", "covey_agent"})
    return subprocess.run(
        [sys.executable, "-c", GUARD],
        input=json.dumps([allowed, names]),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_base_is_the_agents_dependencies_and_nothing_more() -> None:
    assert required("covey") == BASE


def test_protocol_and_agent_import_on_the_base_dependencies_alone() -> None:
    names = [*modules("covey_protocol"), *modules("covey_agent")]
    done = import_on_base([name for name in names if not name.endswith(".__main__")])
    assert done.returncode == 0, done.stderr


def test_other_dependencies_are_refused() -> None:
    for name in (
        "onnx",
        "rich",
        "sklearn",
        "aiomqtt",
        "cryptography",
        "segno",
        "pytest",
        "covey_aggregator",
        "covey_simulator",
    ):
        done = import_on_base([name])
        assert done.returncode == 1
        assert f"{name} is not among the base dependencies" in done.stderr
