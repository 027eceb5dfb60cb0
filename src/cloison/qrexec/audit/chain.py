"""The chain: lines that each name the hash of the one before, and checkpoints that sign where it stands.

In: fields, keys. Out: lines, checkpoints, or ChainError. May import: `cryptography`. Pure.

A line is ``HASH PAYLOAD``: PAYLOAD is a JSON object whose ``n`` is the line's number and whose ``p`` is the HASH of the
line before; HASH is the SHA-256 of PAYLOAD. So each line can be checked by itself and against its neighbour.

A checkpoint signs number and hash of one line, and names the public key of the *next* checkpoint; its own private key
is erased before it is written. Whoever takes the machine over later finds only the next key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

GENESIS = "0" * 64
"""What the first line names as the one before."""
_HASH_LENGTH = 64
_HEX = frozenset("0123456789abcdef")


class ChainError(ValueError):
    """A line or checkpoint that is none; the text says why."""


@dataclass(frozen=True)
class Tip:
    """The last line: the place where the chain goes on."""

    number: int = 0
    hash: str = GENESIS


@dataclass(frozen=True)
class Line:
    """``is_sound``: its hash is that of its payload."""

    number: int
    previous: str
    hash: str
    fields: Mapping[str, Any]
    is_sound: bool

    @property
    def tip(self) -> Tip:
        return Tip(self.number, self.hash)


def link(tip: Tip, fields: Mapping[str, Any]) -> tuple[bytes, Tip]:
    """The line that comes after ``tip`` (with its newline), and the tip that it makes."""
    payload = json.dumps({"n": tip.number + 1, "p": tip.hash, **fields}, separators=(",", ":")).encode()
    digest = sha256(payload).hexdigest()
    return digest.encode() + b" " + payload + b"\n", Tip(tip.number + 1, digest)


def parse_line(untrusted_line: bytes) -> Line:
    """A line without its newline. ChainError if it has not even the form of one."""
    head, blank, payload = untrusted_line.partition(b" ")
    text = head.decode("ascii", "replace")
    if not blank or not _is_hash(text):
        raise ChainError("it is no line of the record")
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError):
        raise ChainError("it is not JSON") from None
    if not isinstance(fields, dict) or not _is_number(fields.get("n")) or not _is_hash(fields.get("p")):
        raise ChainError("it lacks its number or the hash of the line before")
    for name, is_right in _FORMS.items():
        if name in fields and not is_right(fields[name]):
            raise ChainError(f"its {name!r} is of the wrong kind")
    return Line(fields["n"], fields["p"], text, fields, sha256(payload).hexdigest() == text)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == _HASH_LENGTH and _HEX.issuperset(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


_FORMS: Mapping[str, Callable[[object], bool]] = {
    "t": _is_number,
    "m": _is_number,
    "b": lambda value: isinstance(value, str),
    "r": lambda value: isinstance(value, dict),
    "k": lambda value: isinstance(value, list) and all(isinstance(key, str) for key in value),
    "x": lambda value: isinstance(value, str),
}
"""What else a line may hold, checked here so that nobody after this has to."""


@dataclass(frozen=True)
class Checkpoint:
    """``serial`` counts checkpoints from 1; ``next_key`` in hex is the public key of the one after."""

    serial: int
    at: int
    hash: str
    next_key: str
    signature: str = ""

    @property
    def message(self) -> bytes:
        return f"cloison audit checkpoint\n{self.serial}\n{self.at}\n{self.hash}\n{self.next_key}\n".encode()

    def is_signed_by(self, public_key: str) -> bool:
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
            key.verify(bytes.fromhex(self.signature), self.message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_json(self) -> dict[str, Any]:
        return {"serial": self.serial, "at": self.at, "hash": self.hash, "next": self.next_key, "sig": self.signature}


def sign_checkpoint(key: Ed25519PrivateKey, serial: int, tip: Tip, next_key: Ed25519PrivateKey) -> Checkpoint:
    bare = Checkpoint(serial, tip.number, tip.hash, public_text(next_key))
    return Checkpoint(bare.serial, bare.at, bare.hash, bare.next_key, key.sign(bare.message).hex())


def parse_checkpoint(untrusted: object) -> Checkpoint:
    if not isinstance(untrusted, dict):
        raise ChainError("a checkpoint is a JSON object")
    serial, at = untrusted.get("serial"), untrusted.get("at")
    texts = [untrusted.get(name) for name in ("hash", "next", "sig")]
    if not (_is_number(serial) and _is_number(at) and _is_hash(texts[0]) and _is_hash(texts[1])):
        raise ChainError("the checkpoint lacks something")
    if not isinstance(texts[2], str) or len(texts[2]) != 2 * _HASH_LENGTH or not _HEX.issuperset(texts[2]):
        raise ChainError("the checkpoint's signature is none")
    return Checkpoint(serial, at, *texts)  # type: ignore[arg-type]


def public_text(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()
