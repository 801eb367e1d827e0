"""Makes the vectors that lie beside this script: ``python tests/protocol/vectors/make.py``.

A second, small implementation of what every member has to compute alike. It uses nothing of ``covey_protocol``, and
other libraries than it: OpenSSL's ChaCha20, X25519 and Ed25519 through ``cryptography``, BLAKE2b from ``hashlib``.
Whoever ports Covey to another language starts from here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
BLOCK = 1 << 16


def digest(data: bytes, person: bytes, key: bytes = b"") -> bytes:
    return hashlib.blake2b(data, digest_size=32, person=person, key=key).digest()


def encode(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


def chacha20(seed: bytes, size: int) -> bytes:
    """ChaCha20 (RFC 8439) from counter 0 under libsodium's fixed nonce for ``randombytes_buf_deterministic``."""
    nonce = bytes(4) + b"LibsodiumDRG"
    return Cipher(algorithms.ChaCha20(seed, nonce), mode=None).encryptor().update(bytes(size))


def mask(seed: bytes, length: int) -> NDArray[np.uint16]:
    count = -(-length // BLOCK)
    seeds = chacha20(seed, 32 * count)
    blocks = [
        chacha20(seeds[32 * index : 32 * index + 32], 2 * min(BLOCK, length - index * BLOCK)) for index in range(count)
    ]
    return np.frombuffer(b"".join(blocks), "<u2")


def x25519_public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def prg() -> list[dict[str, Any]]:
    result = []
    for length in (0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3):
        seed = hashlib.sha256(f"prg {length}".encode()).digest()
        vector = mask(seed, length)
        result.append(
            {
                "seed": seed.hex(),
                "length": length,
                "first": vector[:8].tolist(),
                "last": vector[-8:].tolist(),
                "blake2b": hashlib.blake2b(vector.tobytes(), digest_size=32).hexdigest(),
            }
        )
    return result


def masking() -> dict[str, Any]:
    """Keys from scalars, and the seed of a pair from both ends."""
    ends = []
    for place, name in ((1, "pi-b"), (4, "pi-a")):  # the order is that of places, not of names
        scalar = hashlib.sha256(name.encode()).digest()[:31] + b"\0"  # below the group's order
        secret = digest(scalar, b"covey-mask-key")
        self_seed = digest(scalar, b"covey-self-mask")
        ends.append(
            {
                "place": place,
                "name": name,
                "scalar": scalar.hex(),
                "masking_key": secret.hex(),
                "public_key": x25519_public(secret).hex(),
                "self_mask_seed": self_seed.hex(),
                "self_mask_commitment": digest(self_seed, b"covey-self-comm").hex(),
            }
        )
    context = encode(["covey/1", "meadow", "digits", 3, 1, bytes(range(32)), "pair", "", ""])
    first, second = ends
    shared = X25519PrivateKey.from_private_bytes(bytes.fromhex(str(first["masking_key"]))).exchange(
        X25519PublicKey.from_public_bytes(bytes.fromhex(str(second["public_key"])))
    )
    pair = [context, *([end["name"], bytes.fromhex(str(end["public_key"]))] for end in ends)]
    return {"ends": ends, "context": context.hex(), "pair_seed": digest(encode(pair), b"covey-pair-seed", shared).hex()}


def envelopes() -> list[dict[str, Any]]:
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"envelope").digest())
    protected = encode({1: -8})
    result = []
    for kind, recipient, task, round_, attempt, roster, payload in (
        ("join", "", "digits", 3, 1, bytes(range(32)), {"sequence": 4}),
        ("token", "pi-0", "", 0, 0, b"", {}),
        ("dealt", "pi-0", "digits", 2**40, 70000, b"\xff" * 32, {"entries": [], "dealt": [["pi-0", b"x" * 300]]}),
    ):
        body = encode(payload)
        aad = encode(["covey/1", "meadow", task, round_, attempt, roster, kind, "pi-9", recipient])
        signature = key.sign(encode(["Signature1", protected, aad, body]))
        message = cbor2.CBORTag(18, [protected, {"at": [task, round_, attempt]}, body, signature])
        context = {"fleet": "meadow", "kind": kind, "sender": "pi-9", "recipient": recipient}
        context |= {"task": task, "round": round_, "attempt": attempt, "roster": roster.hex()}  # type: ignore[dict-item]
        result.append(
            {
                "context": context,
                "public_key": key.public_key().public_bytes_raw().hex(),
                "payload": body.hex(),
                "external_aad": aad.hex(),
                "message": encode(message).hex(),
            }
        )
    return result


def groups() -> dict[str, Any]:
    """The order that a list and its openings give, and equal cuts of it."""
    names = [f"pi-{index}" for index in range(23)]
    list_digest = hashlib.sha256(b"list").digest()
    openings = {name: hashlib.sha256(name.encode()).digest() for name in names}
    commitments = {name: digest(encode([name, value]), b"covey-epoch-e") for name, value in openings.items()}
    seed = digest(encode([list_digest, [[name, openings[name]] for name in sorted(names)]]), b"covey-epoch-seed")
    order = sorted(names, key=lambda name: digest(encode([seed, name]), b"covey-epoch-ord"))
    sizes = [8, 8, 7]
    cuts = [order[sum(sizes[:index]) : sum(sizes[: index + 1])] for index in range(len(sizes))]
    shards = {name: int.from_bytes(digest(name.encode(), b"covey-shard")[:4], "big") >> 29 for name in names}
    return {
        "list_digest": list_digest.hex(),
        "openings": {name: value.hex() for name, value in openings.items()},
        "commitments": {name: value.hex() for name, value in commitments.items()},
        "seed": seed.hex(),
        "order": order,
        "group_size": 8,
        "groups": cuts,
        "shards_of_3_bits": shards,
    }


def build() -> dict[str, str]:
    """Return the content of all vector files by name."""
    vectors = {"prg": prg(), "masking": masking(), "envelope": envelopes(), "groups": groups()}
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in vectors.items()}


if __name__ == "__main__":
    for file, text in build().items():
        (FOLDER / file).write_text(text)
