"""covey_agent.rotation: a key changes in one step, wherever the power goes; the old one goes when the new is known."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.agent.cuts import Cut, PowerCut, steps
from tests.agent.enrolled import enrolled
from tests.agent.test_home import everything_in
from tests.agent.world import World, grouped_world

from covey_agent.cli import cli
from covey_agent.home import AgentHome, open_home
from covey_agent.rotation import confirmed, rotate
from covey_protocol import topics
from covey_protocol.errors import ConfigError
from covey_protocol.round_table import GroupStage


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    return enrolled(tmp_path)


def test_a_new_key_follows_the_old_which_stays_until_it_is_known(home: AgentHome) -> None:
    new = rotate(home.path)
    assert new.keys == (bytes(home.key.verify_key), bytes(new.key.verify_key))
    assert open_home(home.path).key == new.key
    assert bytes(home.key) in everything_in(home.path)
    assert stat.S_IMODE((home.path / "device.next").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="has not shown yet that it knows the last new key"):
        rotate(home.path)
    blocks = home.path / "blocks"
    blocks.hardlink_to(home.path / "device.key")
    assert confirmed(new)
    assert not confirmed(new)
    assert blocks.read_bytes() == bytes(32)
    assert bytes(home.key) not in everything_in(home.path)
    assert open_home(home.path).key == new.key
    assert rotate(home.path).keys[:2] == new.keys


def test_nothing_is_destroyed_before_the_new_key_is_in_use(home: AgentHome) -> None:
    (home.path / "device.next").write_bytes(bytes(32))  # the power went before the identity was written
    assert not confirmed(home)
    assert open_home(home.path).key == home.key
    assert bytes(rotate(home.path).key) == bytes(32)
    (home.path / "device.next").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"device\.next|device\.key"):
        open_home(home.path)


@pytest.mark.parametrize("half", [False, True])
def test_power_cuts_anywhere_leave_one_key_and_a_chain_that_leads_to_it(
    tmp_path: Path, home: AgentHome, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    def both(path: Path) -> None:
        confirmed(rotate(path))

    rehearsal = tmp_path / "rehearsal"
    shutil.copytree(home.path, rehearsal)
    count = steps(monkeypatch, lambda: both(rehearsal))
    assert count > 12
    for step in range(count):
        path = tmp_path / str(step)
        shutil.copytree(home.path, path)
        with Cut(monkeypatch, step, half=half), pytest.raises(PowerCut):
            both(path)
        found = open_home(path)  # the next start
        assert found.key in (home.key, found.key)
        assert len(found.keys) in (1, 2)
        if len(found.keys) == 1:
            assert found.key == home.key
            found = rotate(path)
        confirmed(found)
        again = open_home(path)
        assert again.keys == found.keys
        assert len(again.keys) == 2
        assert bytes(home.key) not in everything_in(path)


def test_the_command_changes_the_key(home: AgentHome) -> None:
    answer = CliRunner().invoke(cli, ["rotate", "--home", str(home.path)], catch_exceptions=False)
    assert answer.output.startswith(f"pi-0 has key {bytes(open_home(home.path).key.verify_key).hex()} from now on")
    with pytest.raises(ConfigError):
        CliRunner().invoke(cli, ["rotate", "--home", str(home.path)], catch_exceptions=False)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[World]:
    with grouped_world(tmp_path) as world:
        yield world


def test_peers_follow_a_new_key_in_the_middle_of_an_epoch_and_the_old_one_is_destroyed(fleet: World) -> None:
    fleet.open_round(1)
    fleet.close_round()
    old = fleet.home.key
    fleet.home = rotate(fleet.home.path)
    fleet.boot()
    fleet.settle()
    assert bytes(old) in everything_in(fleet.home.path)
    fleet.open_round(2)
    assert fleet.group is not None
    assert fleet.group.stage is GroupStage.SUMMING
    assert "pi-0" in fleet.group.survivors
    assert len(fleet.said(topics.JOIN)) == 2
    assert bytes(old) not in everything_in(fleet.home.path)
    assert open_home(fleet.home.path).key == fleet.home.key
    token = fleet.agent._trust.pins
    for peer in fleet.peers.values():
        [mine] = [keys for keys in peer.ledger.pins().values() if keys.startswith(fleet.home.keys[0])]
        assert mine == b"".join(fleet.home.keys)
    assert token.tokens_of(fleet.home.keys[0]) == token.tokens_of(fleet.home.keys[1]) != []
