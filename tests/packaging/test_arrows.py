"""Who may import whom, and what the protocol may never touch: read from the source, so lazy imports count."""

from __future__ import annotations

import ast
import sys

import pytest
from tests.packaging.layout import PACKAGES, import_names, modules, required

EVERYTHING = set(PACKAGES)
ARROWS = {
    "covey_protocol": set[str](),
    "covey_agent": {"covey_protocol"},
    "covey_aggregator": {"covey_protocol"},
    "covey_modelkit": {"covey_protocol"},
    "covey_simulator": EVERYTHING,
}
EXTRAS = {
    "covey_protocol": "",
    "covey_agent": "",
    "covey_aggregator": "aggregator",
    "covey_modelkit": "modelkit",
    "covey_simulator": "simulator",
}
# The protocol is pure: bytes, time and entropy are arguments. What reaches outside is shut out by name.
PROTOCOL_THIRD_PARTY = {"cbor2", "msgspec", "nacl", "numpy"}
OUTSIDE = {
    *("asyncio", "concurrent", "multiprocessing", "queue", "sched", "signal", "subprocess", "threading"),
    *("ftplib", "http", "select", "selectors", "smtplib", "socket", "socketserver", "ssl", "urllib"),
    *("dbm", "fileinput", "glob", "io", "mmap", "os", "pathlib", "shelve", "shutil", "sqlite3", "tempfile"),
    *("calendar", "datetime", "time", "zoneinfo"),
    *("random", "secrets", "uuid"),
    *("ctypes", "marshal", "pickle"),
    *("nacl.utils", "numpy.random"),
}
# The same reached without an import of its own. `name` matches a bare call, `.name` an attribute.
OUTSIDE_CALLS = {
    *("open", "input", "print", "__import__"),
    *(".import_module", ".urandom", ".randombytes", ".default_rng"),
    *(".fromfile", ".tofile", ".memmap", ".save", ".savez", ".load"),
}


def imported(tree: ast.AST, module: str, *, is_package: bool = False) -> set[str]:
    """Return the dotted names that a module imports anywhere in it, relative ones resolved."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            if node.level:
                parents = parents[: len(parents) - node.level + is_package]
            base = ".".join([*(parents if node.level else []), *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def called(tree: ast.AST) -> set[str]:
    """Return what a module calls: bare names as they are, attributes as ``.name``."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {function.id for function in functions if isinstance(function, ast.Name)} | {
        f".{function.attr}" for function in functions if isinstance(function, ast.Attribute)
    }


def reaches_outside(name: str) -> bool:
    """Tell whether a dotted name is one of those that the protocol may not import, or stands below one."""
    return any(f"{name}.".startswith(f"{out}.") for out in OUTSIDE)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return each rule that a module's source breaks, in words."""
    tree = ast.parse(source)
    package = module.partition(".")[0]
    names = imported(tree, module, is_package=is_package)
    tops = {name.partition(".")[0] for name in names} - {package, "__future__"}
    found = [f"imports {top}" for top in tops & EVERYTHING - ARROWS[package]]
    declared = import_names(required("covey", EXTRAS[package])) - EVERYTHING
    third_party = tops - EVERYTHING - set(sys.stdlib_module_names)
    found += [f"imports undeclared {top}" for top in third_party - declared]
    if package == "covey_protocol":
        found += [f"imports {top}" for top in third_party - PROTOCOL_THIRD_PARTY]
        found += [f"imports {name}" for name in names if reaches_outside(name)]
        found += [f"calls {name}" for name in called(tree) & OUTSIDE_CALLS]
    return sorted(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_keeps_to_its_arrows(package: str) -> None:
    found = {
        name: broken
        for name, path in modules(package).items()
        if (broken := violations(path.read_text(), name, is_package=path.name == "__init__.py"))
    }
    assert modules(package)
    assert found == {}


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("covey_agent.x", "import covey_aggregator", "imports covey_aggregator"),
        ("covey_agent.x", "def f():\n  from covey_simulator.demo import main", "imports covey_simulator"),
        ("covey_aggregator.x", "from covey_agent import trainer", "imports covey_agent"),
        ("covey_modelkit.x", "import covey_agent.trainer as t", "imports covey_agent"),
        ("covey_protocol.x", "from covey_agent.trainer import Trainer", "imports covey_agent"),
        ("covey_agent.x", "import onnx", "imports undeclared onnx"),
        ("covey_agent.x", "import rich.table", "imports undeclared rich"),
        ("covey_aggregator.x", "import sklearn", "imports undeclared sklearn"),
        ("covey_protocol.x", "import paho.mqtt.client", "imports paho"),
        ("covey_protocol.x", "import onnxruntime", "imports onnxruntime"),
        ("covey_protocol.x", "from os import path", "imports os.path"),
        ("covey_protocol.x", "import os.path", "imports os.path"),
        ("covey_protocol.x", "def f():\n  from time import monotonic", "imports time.monotonic"),
        ("covey_protocol.x", "if True:\n  import threading", "imports threading"),
        ("covey_protocol.x", "from nacl import utils", "imports nacl.utils"),
        ("covey_protocol.x", "from numpy import random", "imports numpy.random"),
        ("covey_protocol.x", "import numpy as np\nnp.random.default_rng()", "calls .default_rng"),
        ("covey_protocol.x", "data = open('x').read()", "calls open"),
        ("covey_protocol.x", "__import__('socket')", "calls __import__"),
        *(
            ("covey_protocol.x", f"import {name}", f"imports {name}")
            for name in (
                *("socket", "ssl", "asyncio", "subprocess", "sqlite3", "pathlib"),
                *("os", "random", "datetime", "secrets", "time"),
            )
        ),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, said: str) -> None:
    assert said in violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("covey_protocol.x", "import hashlib\nfrom nacl.signing import VerifyKey\nfrom . import cbor"),
        ("covey_agent.x", "import socket, onnxruntime\nfrom covey_protocol.cbor import decode"),
        ("covey_aggregator.x", "import rich, asyncio\nfrom covey_protocol import cbor"),
        ("covey_simulator.x", "import covey_agent, covey_aggregator, sklearn, amqtt"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_are_resolved_against_their_package() -> None:
    tree = ast.parse("from . import a\nfrom .b import c\nfrom ..d import e")
    assert imported(tree, "covey_agent.sub.module") == {
        "covey_agent.sub.a",
        "covey_agent.sub.b.c",
        "covey_agent.d.e",
    }
    tree = ast.parse("from .b import c")
    assert imported(tree, "covey_agent.sub", is_package=True) == {"covey_agent.sub.b.c"}
