"""The operator's key under a passphrase."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import msgspec
import pytest
from nacl.pwhash import argon2id
from nacl.signing import SigningKey

from covey_aggregator import passphrase
from covey_aggregator.operator import KEY_FILE, init_operator, open_operator
from covey_aggregator.passphrase import MODERATE, Cost, KeyFile, SealedKey, make_key, normal, read_passphrase
from covey_protocol import cbor
from covey_protocol.errors import ConfigError, LocalError
from covey_protocol.payload import read

CHEAP = Cost(argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)
SECRET = b"correct horse"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrase, "MODERATE", CHEAP)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_key(tmp_path / KEY_FILE, SECRET)
    return tmp_path / KEY_FILE


def sealed(path: Path) -> SealedKey:
    return read(SealedKey, path.read_bytes())


def test_the_file_is_private_and_holds_no_seed(path: Path) -> None:
    key = KeyFile(path, lambda: SECRET)
    assert path.stat().st_mode & 0o777 == 0o600
    assert bytes(key.key) not in path.read_bytes()
    assert (key.has_passphrase, bytes(key.key.verify_key)) == (True, key.public_key)


def test_the_passphrase_is_asked_for_when_something_is_signed_and_once(path: Path) -> None:
    asked = []

    def ask() -> bytes:
        asked.append(1)
        return SECRET

    key = KeyFile(path, ask)
    assert (key.public_key, asked) == (sealed(path).public_key, [])
    assert (key.key, key.key, asked) == (key.key, key.key, [1])


@pytest.mark.parametrize("wrong", [b"", b"Correct horse", b"correct horse ", b"x" * 1024])
def test_a_wrong_passphrase_says_so_and_nothing_else(path: Path, wrong: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = KeyFile(path, lambda: wrong).key
    assert str(caught.value) == f"{path}: the passphrase is wrong, or the file is damaged"
    assert caught.value.__cause__ is None


def test_without_anybody_to_ask_it_is_said_that_there_is_a_passphrase(path: Path) -> None:
    with pytest.raises(ConfigError, match="has a passphrase, and none was given"):
        _ = KeyFile(path).key


def test_two_files_of_one_passphrase_share_nothing(tmp_path: Path) -> None:
    for name in "ab":
        make_key(tmp_path / name, SECRET)
    one, other = sealed(tmp_path / "a"), sealed(tmp_path / "b")
    assert one.salt != other.salt
    assert one.box[:24] != other.box[:24]
    assert (one.passes, one.memory) == CHEAP


def test_the_usual_cost_is_libsodiums_moderate() -> None:
    assert MODERATE == (3, 256 << 20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"passes": 17}, "neither a key nor a sealed one"),
        ({"passes": 0}, "neither a key nor a sealed one"),
        ({"memory": (1 << 30) + 1}, "neither a key nor a sealed one"),
        ({"memory": 100 << 30}, "neither a key nor a sealed one"),
        ({"memory": 4096}, "neither a key nor a sealed one"),
        ({"passes": 5, "memory": 1 << 30}, "asks for 5 passes over 1024 MiB; refused"),
        ({"version": 2}, "neither a key nor a sealed one"),
        ({"kdf": "scrypt"}, "neither a key nor a sealed one"),
        ({"kind": "other"}, "neither a key nor a sealed one"),
        ({"salt": b"short"}, "neither a key nor a sealed one"),
        ({"box": bytes(71)}, "neither a key nor a sealed one"),
        ({"box": bytes(72)}, "the passphrase is wrong, or the file is damaged"),
        ({"public_key": bytes(32)}, "the public key in it belongs to another key"),
    ],
)
def test_a_hostile_file_is_refused_before_it_costs_anything(
    path: Path, change: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []
    real = argon2id.kdf

    def kdf(size: int, secret: bytes, salt: bytes, *, opslimit: int, memlimit: int) -> bytes:
        spent.append(opslimit * memlimit)
        return real(size, secret, salt, opslimit=opslimit, memlimit=memlimit) if memlimit < 1 << 20 else bytes(size)

    fields = {**msgspec.structs.asdict(sealed(path)), **change}
    path.write_bytes(cbor.encode(fields))
    monkeypatch.setattr(argon2id, "kdf", kdf)
    with pytest.raises(ConfigError, match=said):
        _ = KeyFile(path, lambda: SECRET).key
    assert all(each < 1 << 20 for each in spent)


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64, 5000])
def test_a_file_of_another_size_is_no_key(tmp_path: Path, size: int) -> None:
    path = tmp_path / KEY_FILE
    path.touch(0o600)
    path.write_bytes(b"k" * size)
    with pytest.raises(ConfigError, match="neither a key nor a sealed one"):
        KeyFile(path)


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in [size for size in range(len(whole)) if size != 32]:
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=KEY_FILE):
            KeyFile(path)


def test_a_key_that_others_can_read_is_refused(path: Path) -> None:
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"operator\.key: readable by others"):
        KeyFile(path)


def test_too_little_memory_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kdf(*_: object, **__: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(argon2id, "kdf", kdf)
    with pytest.raises(LocalError, match="MiB of memory, and they are not free"):
        _ = KeyFile(path, lambda: SECRET).key


def test_a_passphrase_is_set_changed_and_taken_away_and_the_key_stays(tmp_path: Path) -> None:
    home = init_operator(tmp_path, "meadow")
    public = home.public_key
    assert not home.key_file.has_passphrase
    home.key_file.protect(SECRET, CHEAP)
    home = open_operator(tmp_path, lambda: SECRET)
    assert (bytes(home.key.verify_key), home.public_key) == (public, public)
    home.key_file.protect(b"another", CHEAP)
    with pytest.raises(ConfigError, match="wrong"):
        _ = open_operator(tmp_path, lambda: SECRET).key
    home = open_operator(tmp_path, lambda: b"another")
    home.key_file.protect(b"")
    assert bytes(open_operator(tmp_path).key.verify_key) == public
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_secrets_are_in_no_repr(path: Path) -> None:
    key = KeyFile(path, lambda: SECRET)
    seed = bytes(key.key)
    for shown in (repr(key), repr(sealed(path)), repr(key.__class__)):
        assert seed.hex() not in shown
        assert repr(seed) not in shown
        assert "box" not in shown


def test_letters_count_and_not_how_they_are_typed() -> None:
    text = "Schlüssel"
    assert normal(unicodedata.normalize("NFD", text), "x") == normal(text, "x")
    with pytest.raises(ConfigError, match="longer than 1024 bytes"):
        normal("x" * 1025, "x")


def test_a_passphrase_file_gives_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text("correct horse\r\nmore\n")
    assert read_passphrase(path) == SECRET
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="secret: readable by others"):
        read_passphrase(path)
    path.chmod(0o600)
    for content in (b"", b"\n", b"\xff\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="secret: "):
            read_passphrase(path)
    with pytest.raises(ConfigError, match="gone: "):
        read_passphrase(tmp_path / "gone")


def test_a_passphrase_may_come_through_a_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o644)
    writer = threading.Thread(target=lambda: fifo.write_text("correct horse\n"))
    writer.start()
    assert read_passphrase(fifo) == SECRET
    writer.join()


def on_terminal(arguments: list[str], answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Run ``covey`` on a terminal of its own and answer what it asks, by what it asks with."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("COVEY_PASSPHRASE_FILE", None)
        os.execv(sys.executable, [sys.executable, "-m", "covey_aggregator.cli", *arguments])
    said = ""
    try:
        while True:
            ready, _, _ = select.select([terminal], [], [], 60)
            assert ready, f"it says nothing more after {said!r}"
            try:
                more = os.read(terminal, 4096)
            except OSError:  # Linux's way to say that the other side has ended
                more = b""
            if not more:
                break
            said += more.decode()
            if answers and answers[0][0] in said:
                said = said.replace(answers[0][0], "…")
                os.write(terminal, answers.pop(0)[1].encode() + b"\n")
    finally:
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    assert not answers, f"it did not ask {answers[0][0]!r}: {said}"
    return os.waitstatus_to_exitcode(status), said


def test_on_a_terminal_it_is_asked_twice_and_not_shown(tmp_path: Path) -> None:
    home = str(tmp_path / "op")
    code, said = on_terminal(
        ["operator", "init", home, "--fleet", "meadow"],
        [("(empty for none)", "correct horse"), ("The same again", "correct horse")],
    )
    assert (code, "correct horse" in said, "WARNING" in said) == (0, False, False)
    assert open_operator(tmp_path / "op", lambda: SECRET).key
    code, said = on_terminal(["operator", "passphrase", home], [("Passphrase of the", "wrong")])
    assert (code, "the passphrase is wrong" in said) == (2, True)
    code, said = on_terminal(
        ["operator", "passphrase", home],
        [("Passphrase of the", "correct horse"), ("(empty for none)", "a"), ("The same again", "a")],
    )
    assert (code, "under the new passphrase" in said) == (0, True)
    assert open_operator(tmp_path / "op", lambda: b"a").key


def test_none_at_all_is_said_loudly_on_a_terminal_and_in_a_line_elsewhere(tmp_path: Path) -> None:
    code, said = on_terminal(
        ["operator", "init", str(tmp_path / "op"), "--fleet", "meadow"],
        [("(empty for none)", ""), ("The same again", "")],
    )
    assert (code, "WARNING: no passphrase" in said) == (0, True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "covey_aggregator.cli",
            "operator",
            "init",
            str(tmp_path / "other"),
            "--fleet",
            "meadow",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "the operator's key has no passphrase; `covey operator passphrase` sets one\n"
    for name in ("op", "other"):
        assert SigningKey((tmp_path / name / KEY_FILE).read_bytes())
