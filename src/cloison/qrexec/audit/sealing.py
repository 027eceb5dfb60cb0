"""Records under the keys of the qubes they are about: without one of them they cannot be read any more.

In: bodies, record keys. Out: sealed text, or None where a key is gone. May import: `cryptography`. Pure.

The chain is over the sealed text, so destroying a key erases records and leaves the chain as it was.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_NONCE_BYTES = 12


class SealBroken(ValueError):
    """The keys are there, and the text is not what was sealed with them."""


@lru_cache(maxsize=512)
def _cipher(keys: tuple[bytes, ...]) -> AESGCM:
    derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"cloison audit record").derive(b"".join(keys))
    return AESGCM(derived)


def forget_ciphers() -> None:
    """After keys were destroyed: nothing made of them stays in memory."""
    _cipher.cache_clear()


def seal(number: int, body: Mapping[str, Any], keys: Sequence[bytes]) -> str:
    """``keys``: all of them are needed to read it again, in the same order."""
    text = json.dumps(body, separators=(",", ":")).encode()
    nonce = os.urandom(_NONCE_BYTES)
    return b64encode(nonce + _cipher(tuple(keys)).encrypt(nonce, text, str(number).encode())).decode()


def open_sealed(number: int, sealed: str, keys: Sequence[bytes]) -> dict[str, Any]:
    try:
        raw = b64decode(sealed, validate=True)
        text = _cipher(tuple(keys)).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], str(number).encode())
        body = json.loads(text)
    except (InvalidTag, ValueError) as error:
        raise SealBroken(f"record {number} was not sealed with these keys") from error
    if not isinstance(body, dict):
        raise SealBroken(f"record {number} is no record")
    return body
