"""The wheel holds the five packages, their typing marks and data, and nothing of the checkout besides."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.packaging.layout import PACKAGES, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return the distribution's wheel, built as a release would be."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return zipfile.ZipFile(path)


def shipped(folder: Path) -> set[str]:
    """Return the files below a folder that belong in a wheel."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_only_covey_packages_are_installed(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert info.startswith("covey-")
    assert tops - {info} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_whole_and_typed(wheel: zipfile.ZipFile, package: str) -> None:
    held = {name for name in wheel.namelist() if name.startswith(f"{package}/")}
    assert {f"{package}/py.typed", f"{package}/__init__.py"} <= held
    assert {f"{package}/{name}" for name in shipped(PACKAGES[package])} <= held


def test_firmware_profiles_are_shipped_beside_the_code_that_reads_them(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if name.startswith("covey_agent/profiles/")}
    assert held == {f"covey_agent/profiles/{name}" for name in shipped(ROOT / "firmware_profiles")}
    assert any(name.endswith(".yaml") for name in held)


def test_broker_configurations_are_shipped_beside_the_code_that_reads_them(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if name.startswith("covey_aggregator/broker_config/")}
    assert held == {f"covey_aggregator/broker_config/{name}" for name in shipped(ROOT / "broker_config")}
    assert "covey_aggregator/broker_config/mosquitto-tls.conf" in held


def test_the_licence_and_both_commands_are_there(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "Copyright 2026 The Covey authors" in wheel.read(f"{info}/licenses/LICENSE").decode()
    commands = wheel.read(f"{info}/entry_points.txt").decode()
    assert "covey = covey_aggregator.cli:main" in commands
    assert "covey-agent = covey_agent.cli:main" in commands
