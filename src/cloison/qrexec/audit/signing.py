"""The signing key on disk: always the next checkpoint's, never that of one already made.

In: a directory. Out: the key with the last checkpoint, replaced in one step. May import: chain, disk.

The file holds the private key of the *next* checkpoint together with the *last* checkpoint. So one rename erases the
old key and keeps what it signed: a crash before the checkpoint's line is written loses nothing, because the line is
written from here by the next daemon; and a log that was cut short no longer reaches what is said here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloison.qrexec.audit.chain import (
    ChainError,
    Checkpoint,
    Tip,
    parse_checkpoint,
    public_text,
    sign_checkpoint,
)
from cloison.qrexec.audit.disk import Disk

KEY_FILE, ROOT_FILE = "signing-key", "root-key"


@dataclass(frozen=True)
class Signing:
    """``last`` is None before the first checkpoint."""

    key: Ed25519PrivateKey
    last: Checkpoint | None

    @property
    def public_key(self) -> str:
        return public_text(self.key)

    def succeed(self, tip: Tip) -> Signing:
        """The state after a checkpoint at ``tip``; nothing is written."""
        after = Ed25519PrivateKey.generate()
        serial = self.last.serial + 1 if self.last else 1
        return Signing(after, sign_checkpoint(self.key, serial, tip, after))

    def to_bytes(self) -> bytes:
        last = self.last.to_json() if self.last else None
        return json.dumps({"key": self.key.private_bytes_raw().hex(), "last": last}).encode()

    @classmethod
    def from_bytes(cls, untrusted: bytes) -> Signing:
        try:
            found = json.loads(untrusted)
            key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(found["key"]))
            last = None if found["last"] is None else parse_checkpoint(found["last"])
        except (ValueError, LookupError, TypeError) as error:
            raise ChainError(f"the signing key cannot be read: {error}") from None
        return cls(key, last)


def find_signing(directory: Path) -> Signing | None:
    """None if there is no file; ChainError if it is damaged."""
    try:
        return Signing.from_bytes((directory / KEY_FILE).read_bytes())
    except FileNotFoundError:
        return None


def begin_signing(directory: Path, disk: Disk) -> Signing:
    """A new chain's first key. Its public half, the root of trust, is written before the key may be used."""
    made = Signing(Ed25519PrivateKey.generate(), None)
    disk.replace_secret(directory / ROOT_FILE, made.public_key.encode() + b"\n")
    disk.replace_secret(directory / KEY_FILE, made.to_bytes())
    return made


def store_signing(directory: Path, signing: Signing, disk: Disk) -> None:
    """After this the key that made ``signing.last`` is nowhere."""
    disk.replace_secret(directory / KEY_FILE, signing.to_bytes())


def read_root(directory: Path) -> str:
    """The first public key as it stands beside the log; empty if there is none."""
    try:
        return (directory / ROOT_FILE).read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return ""
