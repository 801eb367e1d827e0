"""docs/configuration.md against the structs that read the files."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml
from docs.tools import descriptions, generate, settings

from covey_agent.profile import FirmwareProfile
from covey_aggregator.rules import RULES
from covey_aggregator.task import load_task

PAGE = (generate.DOCS / "configuration.md").read_text(encoding="utf-8")


def test_the_page_is_not_stale() -> None:
    assert generate.fill(PAGE, settings.blocks()) == PAGE


def structs(struct: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    inner = [field.type.cls for field in info.fields if isinstance(field.type, msgspec.inspect.StructType)]
    return [struct, *(each for one in inner for each in structs(one))]


def test_no_description_is_left_over() -> None:
    found = {each for struct in settings.FILES.values() for each in structs(struct)} | set(RULES.values())
    fields = {f"{struct.__name__}.{field}" for struct in found for field in struct.__struct_fields__}
    assert set(descriptions.DESCRIPTIONS) == {name for name in fields if not name.startswith("BrokerSettings.")}
    for struct in found:
        if struct.__name__ == "BrokerSettings":
            assert set(descriptions.BROKER[struct.__module__]) == set(struct.__struct_fields__)


@pytest.mark.parametrize("file", settings.FILES)
def test_every_key_has_a_row(file: str) -> None:
    keys = re.findall(r"^\| `([^`]+)` \|", settings.settings_table(file), re.MULTILINE)
    assert {key.partition(".")[0] for key in keys} == set(settings.FILES[file].__struct_fields__)
    assert len(keys) == len(set(keys))


def test_the_agents_use_of_profiles_is_found_in_its_code() -> None:
    used = settings.honoured()
    assert {"threads", "chunk_bytes", "model_bytes_max"} <= used < set(FirmwareProfile.__struct_fields__)


def test_the_examples_are_good(tmp_path: Path) -> None:
    task, *_ = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "# TASK.yaml" in block]
    (tmp_path / "TASK.yaml").write_text(task)
    (tmp_path / "digits.bundle").touch()
    assert load_task(tmp_path / "TASK.yaml").name == "digits"
    for file in ("policy.yaml", "agent.yaml"):
        block = settings.blocks()[f"default {file}"]
        value = yaml.safe_load(block.removeprefix("```yaml\n").removesuffix("```"))
        assert msgspec.convert(value, settings.FILES[file]) == settings.FILES[file]()
