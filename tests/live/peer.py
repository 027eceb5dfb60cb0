"""The far side of a test's network: a machine of Python at the end of a ``join`` socket.

It answers ARP, neighbour solicitations, pings, TCP and questions for names at every address it is asked for, and
remembers every packet it was sent.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

MAC = bytes.fromhex("020000000001")
HELLO = b"hello from the world"
"""What its TCP servers say to whoever said anything; then they close."""
_ARP, _IP4, _IP6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_ICMP, _TCP, UDP, _ICMP6 = 1, 6, 17, 58
_ECHO, _ECHO6, _SOLICIT, _ADVERTISE = 8, 128, 135, 136
_DNS = 53
_FIN, _SYN, _RST, _PSH, _ACK = 1, 2, 4, 8, 16


class Peer:
    """``with Peer(path) as peer``: a server for one netvm after the other. ``take`` is told of each frame."""

    def __init__(self, path: Path, take: Callable[[bytes], None] | None = None) -> None:
        self.path = path
        self.frames: list[bytes] = []
        self.names: dict[str, tuple[str, ...]] = {}
        """IPv4 addresses by name, for a second; other names have none."""
        self._take = take or self.answer
        self._port: socket.socket | None = None
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
        return [ends(frame) for frame in list(self.frames) if frame[12:14] == _IP4]

    def packets6(self) -> list[tuple[str, str]]:
        """The same of IPv6."""
        return [ends(frame) for frame in list(self.frames) if frame[12:14] == _IP6]

    def answer(self, frame: bytes) -> None:
        if (answer := answer_to(frame, self.names)) is not None:
            self.send(answer)

    def send(self, frame: bytes) -> None:
        """To the netvm that is joined now; nobody, nothing."""
        with suppress(OSError):
            if self._port is not None:
                self._port.sendall(struct.pack("!I", len(frame)) + frame)

    def _serve(self) -> None:
        while True:
            try:
                port, _ = self._listener.accept()
            except OSError:
                return
            self._port = port
            threading.Thread(target=self._talk, args=(port,), daemon=True).start()

    def _talk(self, port: socket.socket) -> None:
        with port, port.makefile("rb") as stream:
            while len(head := stream.read(4)) == 4:
                frame = stream.read(struct.unpack("!I", head)[0])
                self.frames.append(frame)
                self._take(frame)


def ends(frame: bytes) -> tuple[str, str]:
    """Source and destination of an IP packet."""
    if frame[12:14] == _IP4:
        return socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
    return socket.inet_ntop(socket.AF_INET6, frame[22:38]), socket.inet_ntop(socket.AF_INET6, frame[38:54])


def answer_to(frame: bytes, names: Mapping[str, tuple[str, ...]]) -> bytes | None:
    """A reply to an ARP request, a neighbour solicitation, an echo request, a TCP segment or a question for a name, if
    the frame is one."""
    sender = frame[6:12]
    if frame[12:14] == _ARP and frame[20:22] == b"\0\1":
        return sender + MAC + frame[12:20] + b"\0\2" + MAC + frame[38:42] + frame[22:32]
    if frame[12:14] == _IP4 and frame[14] == 0x45:
        source, target, proto = frame[26:30], frame[30:34], frame[23]
        body = frame[34 : 14 + int.from_bytes(frame[16:18], "big")]
        if proto == UDP and (said := _answer_name(body, names)) is not None:
            return sender + MAC + _IP4 + ip4(target, source, proto, said)
        if (said := _answer_within(proto, body, target, source)) is not None:
            return sender + MAC + _IP4 + ip4(target, source, proto, said)
    if frame[12:14] == _IP6:
        source, target, proto = frame[22:38], frame[38:54], frame[20]
        body = frame[54 : 54 + int.from_bytes(frame[18:20], "big")]
        if proto == _ICMP6 and body[0] == _SOLICIT:
            target = body[8:24]
            found = struct.pack("!BBHI", _ADVERTISE, 0, 0, 0x60000000) + target + b"\2\1" + MAC
            return sender + MAC + _IP6 + _ip6(target, source, proto, _summed(found, 2, target, source, proto))
        if (said := _answer_within(proto, body, target, source)) is not None:
            return sender + MAC + _IP6 + _ip6(target, source, proto, said)
    return None


def _answer_within(proto: int, body: bytes, own: bytes, other: bytes) -> bytes | None:
    if proto == _ICMP and body[0] == _ECHO:
        reply = b"\0" + body[1:2] + b"\0\0" + body[4:]
        return reply[:2] + struct.pack("!H", checksum(reply)) + reply[4:]
    if proto == _ICMP6 and body[0] == _ECHO6:
        return _summed(b"\x81" + body[1:2] + b"\0\0" + body[4:], 2, own, other, proto)
    if proto == _TCP and (said := _answer_tcp(body)) is not None:
        return _summed(said, 16, own, other, proto)
    return None


def _answer_name(datagram: bytes, names: Mapping[str, tuple[str, ...]]) -> bytes | None:
    source, target = struct.unpack_from("!HH", datagram)
    if target != _DNS or len(datagram) < 8 + 17:
        return None
    question, at, labels = datagram[8:], 12, []
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    is_for_ip4 = question[at + 1 : at + 3] == b"\0\1"
    records = [
        struct.pack("!HHHIH4s", 0xC00C, 1, 1, 1, 4, socket.inet_aton(address))
        for address in (names.get(".".join(labels), ()) if is_for_ip4 else ())
    ]
    said = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0) + question[12 : at + 5]
    said += b"".join(records)
    return struct.pack("!HHHH", target, source, 8 + len(said), 0) + said


def _answer_tcp(segment: bytes) -> bytes | None:
    """A server that never loses anything and needs no memory: its numbers begin at 0."""
    source, target, number, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", segment)
    said = segment[(offset >> 4) * 4 :]

    def segment_of(kind: int, own: int, other: int, data: bytes = b"") -> bytes:
        return struct.pack("!HHIIBBHHH", target, source, own, other & 0xFFFFFFFF, 5 << 4, kind, 65000, 0, 0) + data

    if flags & _RST:
        return None
    if flags & _SYN:
        return segment_of(_SYN | _ACK, 0, number + 1)
    if said and acknowledged == 1:
        return segment_of(_PSH | _ACK | _FIN, acknowledged, number + len(said), HELLO)
    return segment_of(_ACK, acknowledged, number + 1) if flags & _FIN else None


def _summed(body: bytes, at: int, source: bytes, target: bytes, proto: int) -> bytes:
    """The body with its checksum, which covers the addresses, put in at ``at``."""
    about = struct.pack("!BBH", 0, proto, len(body)) if len(source) == 4 else struct.pack("!II", len(body), proto)
    return body[:at] + struct.pack("!H", checksum(source + target + about + body)) + body[at + 2 :]


def ip4(source: bytes, target: bytes, proto: int, body: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, proto, 0, source, target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def _ip6(source: bytes, target: bytes, proto: int, body: bytes) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), proto, 255, source, target) + body


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
