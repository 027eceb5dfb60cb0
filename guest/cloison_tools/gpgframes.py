"""The bytes of qubes.Gpg: a command line, then frames of the descriptors of a ``gpg`` that runs elsewhere. Without I/O.

In: untrusted bytes. Out: arguments and frames, or FramingError, the one error that can leave.
"""

from __future__ import annotations

from struct import Struct

COMMAND_BYTES = 1024
MAX_DATA = 4096
_LENGTH = Struct("=I")
_FRAME = Struct("=iI")
COMMAND_SIZE = _LENGTH.size + COMMAND_BYTES
"""Bytes of a whole command: its length, and an area that is always sent whole."""


class FramingError(Exception):
    """The other side does not speak this protocol."""


def encode_command(arguments: list[bytes]) -> bytes:
    """The arguments (without a program's name), separated by NUL."""
    area = b"\0".join(arguments)
    if len(area) > COMMAND_BYTES:
        raise FramingError(f"the command line is longer than {COMMAND_BYTES} bytes")
    return _LENGTH.pack(len(area)) + area.ljust(COMMAND_BYTES, b"\0")


def parse_command(untrusted: bytes) -> list[bytes]:
    """The arguments; a NUL behind the last one is fine, too."""
    if len(untrusted) != COMMAND_SIZE:
        raise FramingError("the command line is not there in full")
    (length,) = _LENGTH.unpack_from(untrusted)
    if length > COMMAND_BYTES:
        raise FramingError("the length of the command line is impossible")
    area = untrusted[_LENGTH.size : _LENGTH.size + length]
    return area.removesuffix(b"\0").split(b"\0") if area else []


def encode_data(fd: int, data: bytes) -> bytes:
    """What was read from a descriptor, cut into frames; nothing read = its end."""
    pieces = [data[start : start + MAX_DATA] for start in range(0, len(data), MAX_DATA)] or [b""]
    return b"".join(_FRAME.pack(fd, len(piece)) + piece for piece in pieces)


def encode_exit(status: int) -> bytes:
    return _FRAME.pack(-(status + 1), 0)


class FrameReader:
    """Cuts a stream into frames ``(descriptor, data)``; a negative descriptor is an ``exit_status``."""

    def __init__(self) -> None:
        self._held = b""

    def receive(self, untrusted: bytes) -> list[tuple[int, bytes]]:
        data, position, frames = self._held + untrusted, 0, []
        while len(data) - position >= _FRAME.size:
            fd, length = _FRAME.unpack_from(data, position)
            if length > MAX_DATA or (fd < 0 and (length or not 0 <= exit_status(fd) <= 255)):
                raise FramingError("a frame is impossible")
            end = position + _FRAME.size + length
            if end > len(data):
                break
            frames.append((fd, data[position + _FRAME.size : end]))
            position = end
        self._held = data[position:]
        return frames

    @property
    def is_between_frames(self) -> bool:
        return not self._held


def exit_status(fd: int) -> int:
    return -fd - 1
