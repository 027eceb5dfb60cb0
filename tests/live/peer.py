"""The far side of a test's network: a machine of Python at the end of a ``join`` socket.

It answers ARP and pings for every address it is asked for, and remembers every packet it was sent.
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from types import TracebackType

MAC = bytes.fromhex("020000000001")
_ARP, _IP4 = b"\x08\x06", b"\x08\x00"
_ICMP, _ECHO = 1, 8


class Peer:
    """``with Peer(path) as peer``: a server for one netvm after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()

    def __enter__(self) -> Peer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def packets(self) -> list[tuple[str, str]]:
        """Source and destination of each IPv4 packet that came."""
        return [
            (socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34]))
            for frame in list(self.frames)
            if frame[12:14] == _IP4
        ]

    def _serve(self) -> None:
        while True:
            try:
                port, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(port,), daemon=True).start()

    def _talk(self, port: socket.socket) -> None:
        with port, port.makefile("rb") as stream:
            while len(head := stream.read(4)) == 4:
                frame = stream.read(struct.unpack("!I", head)[0])
                self.frames.append(frame)
                if (answer := answer_to(frame)) is not None:
                    port.sendall(struct.pack("!I", len(answer)) + answer)


def answer_to(frame: bytes) -> bytes | None:
    """An ARP reply or an echo reply, if that is what the frame asks for."""
    sender = frame[6:12]
    if frame[12:14] == _ARP and frame[20:22] == b"\0\1":
        return sender + MAC + frame[12:20] + b"\0\2" + MAC + frame[38:42] + frame[22:32]
    if frame[12:14] == _IP4 and frame[23] == _ICMP and frame[34] == _ECHO:
        echo = b"\0" + frame[35:36] + b"\0\0" + frame[38:]
        echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
        return sender + MAC + frame[12:26] + frame[30:34] + frame[26:30] + echo
    return None


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
