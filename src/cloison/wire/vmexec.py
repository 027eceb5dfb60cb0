"""A command line as the argument of qubes.VMExec: words joined by ``+``, odd bytes as ``-HH``.

In: words, or an untrusted argument. Out: the other of the two, or RemoteProtocolError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cloison.wire.errors import LocalProtocolError, RemoteProtocolError

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._")
_WORD = re.compile(rb"(?:[A-Za-z0-9._]|--|-[0-9A-F]{2})*")
_ESCAPE = re.compile(rb"-(-|[0-9A-F]{2})")


def encode_command(words: Sequence[str | bytes]) -> str:
    """The argument for ``qubes.VMExec+``; the first word is the program."""
    if not words:
        raise LocalProtocolError("a command needs at least one word")
    return "+".join(_encode_word(word) for word in words)


def _encode_word(word: str | bytes) -> str:
    raw = word.encode("utf-8", "surrogateescape") if isinstance(word, str) else word
    return "".join(chr(b) if b in _PLAIN else "--" if b == 0x2D else f"-{b:02X}" for b in raw)


def parse_command(untrusted_argument: str) -> list[bytes]:
    """The words of a qubes.VMExec argument."""
    words = []
    for encoded in untrusted_argument.encode("utf-8", "surrogateescape").split(b"+"):
        if not _WORD.fullmatch(encoded):
            raise RemoteProtocolError("illegal encoding of a command")
        word = _ESCAPE.sub(lambda m: b"-" if m[1] == b"-" else bytes([int(m[1], 16)]), encoded)
        if b"\0" in word:
            raise RemoteProtocolError("a command may not hold NUL")
        words.append(word)
    if not words[0]:
        raise RemoteProtocolError("a command needs a program")
    return words
