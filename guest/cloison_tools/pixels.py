"""Pixels from a qube that may be in somebody else's hands: read strictly, written as files of our own making.

In: the bytes of an answer (``W H\\n`` and rows of samples). Out: PNG bytes, or BadAnswer.
"""

from __future__ import annotations

import os
import re
import select
import struct
import time
import zlib
from collections.abc import Callable, Iterator

MAX_SIDE = 10_000
"""Pixels of a side; the protocol's own limit."""
MAX_HEADER_BYTES = 32
PIECE_BYTES = 1 << 18
_SIZE = re.compile(rb"([1-9][0-9]{0,4}) ([1-9][0-9]{0,4})", re.ASCII)

Write = Callable[[bytes], object]


class BadAnswer(Exception):
    """The other qube said something that no honest one says, or nothing for too long."""


class EarlyEnd(BadAnswer):
    """The other side is gone; how it ended may say more."""

    def __init__(self) -> None:
        super().__init__("its answer ends early")


class Answer:
    """The untrusted answer on a descriptor. Every method ends: by bytes, by the deadline, or by BadAnswer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""
        self._deadline = time.monotonic()

    def give_time(self, seconds: float) -> None:
        """What is read next must be there within so many seconds, however slowly it trickles."""
        self._deadline = time.monotonic() + seconds

    def read_line(self) -> bytes:
        """One short line without its newline."""
        while b"\n" not in self._held:
            if len(self._held) > MAX_HEADER_BYTES:
                raise BadAnswer("a line of its answer is too long")
            piece = self._read(MAX_HEADER_BYTES)
            if not piece:
                raise EarlyEnd
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        if len(line) > MAX_HEADER_BYTES:
            raise BadAnswer("a line of its answer is too long")
        return line

    def read_size(self) -> tuple[int, int]:
        """A line ``W H``, both 1 to 10000."""
        size = _SIZE.fullmatch(self.read_line())
        if size is None or max(int(size[1]), int(size[2])) > MAX_SIDE:
            raise BadAnswer(f"its answer is not a size of 1 to {MAX_SIDE} pixels a side")
        return int(size[1]), int(size[2])

    def pieces(self, count: int) -> Iterator[bytes]:
        """Exactly so many bytes, in pieces."""
        while count:
            piece, self._held = self._held[:count], self._held[count:]
            if not piece and not (piece := self._read(min(count, PIECE_BYTES))):
                raise EarlyEnd
            count -= len(piece)
            yield piece

    def expect_end(self) -> None:
        if self._held or self._read(1):
            raise BadAnswer("its answer goes on after the end")

    def _read(self, limit: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0 or not select.select([self._fd], [], [], left)[0]:
            raise BadAnswer("it took too long")
        return os.read(self._fd, limit)


def rows(pieces: Iterator[bytes], stride: int) -> Iterator[bytes]:
    """The same bytes cut into rows."""
    held = bytearray()
    for piece in pieces:
        held += piece
        whole = len(held) - len(held) % stride
        view = bytes(held[:whole])
        del held[:whole]
        for start in range(0, whole, stride):
            yield view[start : start + stride]


def write_png(write: Write, width: int, height: int, samples: Iterator[bytes]) -> None:
    """A picture of RGBA samples (8 bits each) as a PNG file."""
    write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)))
    packer = zlib.compressobj()
    for row in rows(samples, 4 * width):
        if packed := packer.compress(b"\0" + row):
            write(_chunk(b"IDAT", packed))
    write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
