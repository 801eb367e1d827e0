"""exposure.py: distinct sums and groupings of each device, from the records of rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from tests.aggregator.fleet import Fleet

from covey_aggregator.cli import cli
from covey_aggregator.exposure import Exposure, count, in_words
from covey_aggregator.records import GroupRecord, RoundRecord
from covey_protocol import topics


def record(details: list[GroupRecord]) -> RoundRecord:
    fields: dict[str, Any] = dict.fromkeys(RoundRecord.__struct_fields__, 0)
    return RoundRecord(**{**fields, "model": "", "stage_seconds": {}, "details": details})


def closed(group: str, *members: str) -> GroupRecord:
    return GroupRecord(group=group, members=list(members), survivors=list(members), published=list(members))


def test_sets_and_groupings_are_counted_once_each() -> None:
    found = count(
        [
            record([closed("1-s-0", "a", "b"), closed("1-s-1", "c")]),
            record([closed("1-s-0", "a", "b"), closed("1-s-1", "c", "d")]),
            record([closed("1-s-0", "a"), closed("2-s-0", "c", "a")]),
        ]
    )
    assert found == {"a": Exposure(3, 2), "b": Exposure(1, 1), "c": Exposure(3, 2), "d": Exposure(1, 1)}
    assert in_words(found) == "exposure: up to 3 different sums in 2 groupings for one device"
    assert in_words({}) == "nobody was in a sum yet"


def test_a_set_that_was_published_counts_though_its_group_aborted() -> None:
    aborted = GroupRecord(group="g", members=["a", "b"], survivors=[], cause="too-few-signed", published=["a"])
    unpublished = GroupRecord(group="h", members=["c"], survivors=[], cause="too-few-dealt")
    assert count([record([aborted, unpublished])]) == {"a": Exposure(1, 1)}


def test_commands_show_it(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 8)
    fleet.silent_from["pi-7"] = topics.UNMASK
    fleet.start(rounds=2, epoch_rounds=1, group_size=8)
    fleet.finish()
    fleet.store.close()
    home = str(fleet.home.path)
    show = json.loads(CliRunner().invoke(cli, ["device", "show", "pi-0", "--home", home, "--json"]).stdout)
    assert (show["sets"], show["groupings"]) == (2, 2)
    (task,) = json.loads(CliRunner().invoke(cli, ["task", "status", "digits", "--home", home, "--json"]).stdout)
    assert task["exposure"]["pi-0"] == {"sets": 2, "groupings": 2}
    assert task["exposure"]["pi-7"] == {"sets": 1, "groupings": 1}
    words = CliRunner().invoke(cli, ["task", "status", "digits", "--home", home]).stdout
    assert "exposure: up to 2 different sums in 2 groupings for one device" in words
