"""Devices that show an identity, and those that show a wrong one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.aggregator.fleet import Device, make_homes, signed_state

from covey_aggregator.home import ServerHome
from covey_aggregator.operator import OperatorHome
from covey_aggregator.registry import Registry
from covey_aggregator.store import Store
from covey_protocol import identity
from covey_protocol.digest import short
from covey_protocol.errors import MalformedError, RefusedError, SignatureError, StaleError
from covey_protocol.identity import Chain
from covey_protocol.provisioning import Broker

NOW = 1e9


@pytest.fixture
def homes(tmp_path: Path) -> tuple[OperatorHome, ServerHome]:
    return make_homes(tmp_path)


@pytest.fixture
def store() -> Store:
    return Store(":memory:")


@pytest.fixture
def registry(homes: tuple[OperatorHome, ServerHome], store: Store) -> Registry:
    return Registry(homes[1].trust(store.pins()), store)


@pytest.fixture
def device(homes: tuple[OperatorHome, ServerHome]) -> Device:
    return Device("pi", *homes)


def test_a_device_is_new_once_and_its_status_is_followed(registry: Registry, device: Device, store: Store) -> None:
    assert not registry.knows("pi")
    assert registry.state("pi", device.state(), NOW).new
    assert (registry.knows("pi"), registry.key("pi")) == (True, bytes(device.key.verify_key))
    assert registry.online() == {"pi": bytes(device.key.verify_key)}
    seen = registry.state("pi", device.state("lost"), NOW + 5)
    assert (seen.status, seen.new, registry.online()) == ("lost", False, {})
    (row,) = store.devices()
    assert (row.status, row.seen, row.profile, row.software, row.counter) == ("lost", NOW + 5, "pi-4", "test", 1)
    assert list(store.pins().values()) == [bytes(device.key.verify_key)]


def test_a_restart_knows_devices_pins_and_sequences(
    registry: Registry, device: Device, store: Store, homes: tuple[OperatorHome, ServerHome]
) -> None:
    registry.state("pi", device.state(), NOW)
    registry.sequences["pi"] = 9
    registry.save_sequences(["pi", "stranger"])
    again = Registry(homes[1].trust(store.pins()), store)
    assert (again.online(), again.sequences) == (registry.online(), {"pi": 9})
    other = SigningKey.generate()
    with pytest.raises(RefusedError):
        again.state("pi", signed_state("pi", other, endorsed_again(device, other), 5), NOW)


def endorsed_again(device: Device, key: SigningKey) -> Chain:
    """Return what a dishonest device makes that has kept its token's secret: a second key under one token."""
    endorsement = identity.endorse(device.secret, device.trust.fleet, device.name, bytes(key.verify_key))
    return Chain(token=device.chain.token, endorsement=endorsement)


def test_a_second_key_under_one_token_is_refused_with_both_keys_named(
    registry: Registry, device: Device, store: Store
) -> None:
    registry.state("pi", device.state(), NOW)
    before, other = store.devices(), SigningKey.generate()
    with pytest.raises(RefusedError) as caught:
        registry.state("pi", signed_state("pi", other, endorsed_again(device, other), 5), NOW)
    assert caught.value.cause == "second-key"
    assert short(bytes(device.key.verify_key)) in str(caught.value)
    assert short(bytes(other.verify_key)) in str(caught.value)
    assert store.devices() == before


def test_a_pinned_token_admits_no_other_key_even_when_its_device_was_forgotten(
    homes: tuple[OperatorHome, ServerHome], device: Device, store: Store
) -> None:
    first = Registry(homes[1].trust({}), store)
    first.state("pi", device.state(), NOW)
    forgetful = Store(":memory:")
    registry, other = Registry(homes[1].trust(store.pins()), forgetful), SigningKey.generate()
    with pytest.raises(RefusedError, match="is bound to key"):
        registry.state("pi", signed_state("pi", other, endorsed_again(device, other), 5), NOW)
    assert (registry.knows("pi"), forgetful.pins()) == (False, {})
    assert registry.state("pi", device.state(), NOW).new


def test_a_second_token_for_a_known_name_is_refused_with_both_keys_named(
    registry: Registry, device: Device, homes: tuple[OperatorHome, ServerHome], store: Store
) -> None:
    registry.state("pi", device.state(), NOW)
    before, other = (store.devices(), store.pins()), Device("pi", *homes)
    with pytest.raises(RefusedError) as caught:
        registry.state("pi", other.state(), NOW)
    assert caught.value.cause == "second-key"
    assert short(bytes(device.key.verify_key)) in str(caught.value)
    assert short(bytes(other.key.verify_key)) in str(caught.value)
    assert (store.devices(), store.pins()) == before


def test_an_old_state_that_is_played_back_is_stale(registry: Registry, device: Device) -> None:
    first = device.state("lost")
    registry.state("pi", device.state(again=True), NOW)
    with pytest.raises(StaleError) as caught:
        registry.state("pi", first, NOW)
    assert caught.value.cause == "replayed"
    assert "pi" in registry.online()


def test_nobody_speaks_under_another_name(registry: Registry, device: Device) -> None:
    with pytest.raises(SignatureError):
        registry.state("other", device.state(), NOW)
    relabelled = signed_state("other", device.key, device.chain, 1)
    with pytest.raises(SignatureError):
        registry.state("other", relabelled, NOW)
    assert not registry.knows("other")


def test_every_link_of_the_chain_has_to_hold(
    registry: Registry, device: Device, tmp_path: Path, homes: tuple[OperatorHome, ServerHome]
) -> None:
    stranger = Device("pi", *make_homes(tmp_path / "forged"))  # same fleet name, another operator
    stolen = Chain(token=device.chain.token, endorsement=stranger.chain.endorsement)
    elsewhere = signed_state("pi", device.key, device.chain, 1, fleet="forest")
    for data in (
        stranger.state(),
        signed_state("pi", stranger.key, stolen, 1),
        signed_state("pi", stranger.key, device.chain, 1),
        elsewhere,
    ):
        with pytest.raises(SignatureError):
            registry.state("pi", data, NOW)
    for data in (b"", b"\xd2", device.state()[:-1], device.state() + b"x"):
        with pytest.raises(MalformedError):
            registry.state("pi", data, NOW)
    assert not registry.knows("pi")


def test_a_token_that_has_expired_admits_nobody_new_and_keeps_whom_it_admitted(
    registry: Registry, homes: tuple[OperatorHome, ServerHome]
) -> None:
    operator, home = homes
    in_time, late = Device("in-time", *homes), Device("late", *homes)
    for device in (in_time, late):
        token = operator.provision(
            device.name, profile="pi-4", seconds=60, delegation=home.delegation, broker=Broker(host="b", port=1)
        )
        device.secret = SigningKey(token.token_secret)
        device.chain = Chain(token=token.token, endorsement=b"")
        device.chain = endorsed_again(device, device.key)
    now = time.time()
    registry.state("in-time", in_time.state(), now)
    registry.state("in-time", in_time.state(again=True), now + 1000)
    with pytest.raises(SignatureError) as caught:
        registry.state("late", late.state(), now + 1000)
    assert caught.value.cause == "expired"
