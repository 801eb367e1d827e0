"""covey_agent.home: enrolment that can be cut off anywhere, and homes that are checked before they are used."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import msgspec
import pytest
from nacl.signing import SigningKey
from tests.agent.cuts import Cut, PowerCut, steps
from tests.agent.enrolled import bundle_file, enrolled, provision
from tests.protocol.rig import FLEET, OPERATOR, SERVER, signing_key

from covey_agent.config import load_config
from covey_agent.home import enrol, open_home
from covey_protocol import identity
from covey_protocol.errors import ConfigError, MalformedError, RefusedError, SignatureError
from covey_protocol.identity import PinnedKeys
from covey_protocol.payload import write
from covey_protocol.provisioning import Provisioning

TOKEN_SECRET = bytes(signing_key("token pi-0"))


def everything_in(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_enrolment_gives_a_device_its_own_key_and_a_chain_that_every_peer_can_check(tmp_path: Path) -> None:
    home = enrolled(tmp_path, data="/srv/x.npz")
    assert (home.fleet, home.device, home.stored.profile) == (FLEET, "pi-0", "pi-4")
    assert home.data_path == Path("/srv/x.npz")
    assert home.delegation.aggregator_key == bytes(SERVER.verify_key)
    who = identity.verify_chain(home.stored.chain, operator_key=bytes(OPERATOR.verify_key), fleet=FLEET, device="pi-0")
    assert who.key == bytes(home.key.verify_key)
    again = open_home(tmp_path / "pi-0")
    assert (again.key, again.stored, again.config) == (home.key, home.stored, home.config)
    assert enrolled(tmp_path, "pi-1").key != home.key


def test_keys_are_private_and_so_is_the_home(tmp_path: Path) -> None:
    home = enrolled(tmp_path).path
    assert mode(home) == mode(home / "blobs") == 0o700
    assert mode(home / "device.key") == mode(home / "identity.cbor") == 0o600


def test_relative_data_lies_in_the_home(tmp_path: Path) -> None:
    assert enrolled(tmp_path).data_path == tmp_path / "pi-0" / "data"


def test_the_tokens_secret_is_gone_afterwards(tmp_path: Path) -> None:
    enrolled(tmp_path)
    left = everything_in(tmp_path)
    assert SigningKey(TOKEN_SECRET).verify_key.encode() in left  # the search finds what is there
    for form in (TOKEN_SECRET, TOKEN_SECRET.hex().encode(), base64.urlsafe_b64encode(TOKEN_SECRET)[:40]):
        assert form not in left
    assert not list(tmp_path.glob("*.bundle"))


def test_reprs_hold_no_secret(tmp_path: Path) -> None:
    home = enrolled(tmp_path)
    shown = repr(home) + repr(provision())
    assert repr(bytes(home.key))[2:-1] not in shown
    assert repr(TOKEN_SECRET)[2:-1] not in shown


@pytest.mark.parametrize("half", [False, True])
def test_enrolment_goes_on_wherever_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    first = bundle_file(tmp_path)
    text = first.read_text()
    count = steps(monkeypatch, lambda: enrol(first, tmp_path / "rehearsal"))
    assert count > 20
    for step in range(count):
        folder = tmp_path / str(step)
        folder.mkdir()
        bundle, home = folder / "device.bundle", folder / "home"
        bundle.write_text(text)
        with Cut(monkeypatch, step, half=half), pytest.raises(PowerCut):
            enrol(bundle, home, data="/srv/x.npz")
        key = (home / "device.key").read_bytes() if (home / "device.key").exists() else None
        published = (home / "identity.cbor").exists()
        left = bundle.read_text() if bundle.exists() else ""
        # Without a bundle, only its removal was left to be made durable.
        again = enrol(bundle, home, data="/srv/x.npz") if left else open_home(home)
        assert key in (None, bytes(again.key)), f"a second key after a cut at step {step}"
        assert key is not None or not published
        assert published or left == text, f"the token was destroyed before the identity stood, at step {step}"
        assert again.config.data == "/srv/x.npz"
        assert not bundle.exists()
        assert TOKEN_SECRET not in everything_in(folder)


def test_a_ruined_bundle_enrols_nobody(tmp_path: Path) -> None:
    bundle = tmp_path / "device.bundle"
    bundle.write_bytes(bytes(900))
    with pytest.raises(ConfigError, match="was destroyed, as its first use does"):
        enrol(bundle, tmp_path / "home")
    bundle.write_text("anything else")
    with pytest.raises(MalformedError, match="not a provisioning bundle"):
        enrol(bundle, tmp_path / "home")
    assert bundle.exists()
    assert not (tmp_path / "home").exists()


def test_enrolling_twice_changes_nothing(tmp_path: Path) -> None:
    first = enrolled(tmp_path)
    (first.path / "agent.yaml").write_text("data: /mine\n")
    second = enrolled(tmp_path)  # the same token in a second copy of the bundle
    assert second.key == first.key
    assert second.stored == first.stored
    assert second.config.data == "/mine"
    assert not (tmp_path / "pi-0.bundle").exists()


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"token": provision("pi-1").token}, "signature"),
        ({"token": provision(operator=signing_key("impostor")).token}, "signature"),
        ({"token_secret": bytes(signing_key("another"))}, "chain"),
        ({"operator_key": bytes(signing_key("impostor").verify_key)}, "signature"),
        ({"delegation": provision(operator=signing_key("impostor")).delegation}, "signature"),
        ({"policy": provision(operator=signing_key("impostor")).policy}, "signature"),
        ({"policy": provision().delegation}, "signature"),
        ({"fleet": "orchard"}, "signature"),
        ({"device": "pi-9"}, "signature"),
    ],
)
def test_a_tampered_bundle_is_refused_and_kept(tmp_path: Path, changes: dict[str, object], cause: str) -> None:
    tampered = msgspec.structs.replace(provision(), **changes)
    bundle = bundle_file(tmp_path, tampered)
    with pytest.raises(SignatureError) as caught:
        enrol(bundle, tmp_path / "home")
    assert caught.value.cause == cause
    assert bundle.exists()
    assert not (tmp_path / "home").exists()


def test_expiry_counts_only_where_the_time_is_known(tmp_path: Path) -> None:
    expiring = provision(not_after=1000)
    with pytest.raises(SignatureError, match="expired at Unix time 1000"):
        enrol(bundle_file(tmp_path, expiring), tmp_path / "home", now=1001)
    assert enrol(bundle_file(tmp_path, expiring), tmp_path / "on-time", now=1000).device == "pi-0"
    assert enrol(bundle_file(tmp_path, expiring), tmp_path / "no-clock").device == "pi-0"


def test_a_token_used_in_another_home_makes_a_second_key_that_peers_refuse(tmp_path: Path) -> None:
    first, copy = enrolled(tmp_path), bundle_file(tmp_path)
    second = enrol(copy, tmp_path / "elsewhere")
    ids = [
        identity.verify_chain(home.stored.chain, operator_key=home.stored.operator_key, fleet=FLEET, device="pi-0")
        for home in (first, second)
    ]
    assert ids[0].token == ids[1].token
    assert ids[0].key != ids[1].key
    pins = PinnedKeys()
    pins.pin(ids[0])
    with pytest.raises(RefusedError, match="bound to key"):
        pins.check(ids[1])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (provision("pi-1"), "belongs to 'pi-0' of fleet 'meadow' already"),
        (provision(fleet="orchard"), "belongs to 'pi-0' of fleet 'meadow' already"),
        (provision(secret=signing_key("second token")), "another token"),
    ],
)
def test_another_identity_does_not_move_into_a_home(tmp_path: Path, other: Provisioning, words: str) -> None:
    first = enrolled(tmp_path)
    before, bundle = everything_in(first.path), bundle_file(tmp_path, other)
    with pytest.raises(ConfigError, match=words):
        enrol(bundle, first.path)
    assert everything_in(first.path) == before
    assert bundle.exists()


def test_the_key_of_another_enrolment_is_not_taken_silently(tmp_path: Path) -> None:
    """A key that an interrupted enrolment left is used; one of the wrong size is not."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "device.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"device\.key"):
        enrol(bundle_file(tmp_path), home)


def test_a_missing_home_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="covey-agent enrol BUNDLE --home"):
        open_home(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["device.key", "identity.cbor"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped", "other"])
def test_a_damaged_home_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    home, other = enrolled(tmp_path).path, enrolled(tmp_path, "pi-1").path
    path = home / name
    data = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[:-1])
        case "flipped":
            path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
        case "other":
            path.write_bytes((other / name).read_bytes())
    with pytest.raises(ConfigError) as caught:
        open_home(home)
    assert str(home) in str(caught.value)
    # An identity and a key that are sound by themselves but do not belong together: either file may be the wrong one.
    assert any(part in str(caught.value) for part in (name, "device.key", "not enrolled"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["delegation", "policy"])
def test_what_the_operator_did_not_sign_is_refused_on_every_start(tmp_path: Path, field: str) -> None:
    home = enrolled(tmp_path)
    forged = getattr(provision(operator=signing_key("impostor")), field)
    stored = msgspec.structs.replace(home.stored, **{field: forged})
    (home.path / "identity.cbor").write_bytes(write(stored))
    with pytest.raises(ConfigError, match=r"identity\.cbor: damaged: .* does not verify"):
        open_home(home.path)


def test_every_byte_of_an_identity_counts(tmp_path: Path) -> None:
    path = enrolled(tmp_path).path / "identity.cbor"
    data, chain = path.read_bytes(), open_home(path.parent).stored.chain
    for at in range(0, len(data), 61):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        try:
            stored = open_home(path.parent).stored
        except ConfigError as error:
            assert "identity.cbor" in str(error) or "device.key" in str(error)
        else:  # host, port and the like, which nobody signs
            assert stored.chain == chain


def test_settings_are_read_with_the_home(tmp_path: Path) -> None:
    home = enrolled(tmp_path).path
    assert load_config(home / "agent.yaml") == open_home(home).config
    (home / "agent.yaml").write_text("threads: many")
    with pytest.raises(ConfigError, match=r"agent\.yaml"):
        open_home(home)
