"""What a netvm may send to passt: nothing that is meant for the host itself."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.drivers.network.guard import Gate, host_addresses, to_passt

HOST4, HOST6 = "192.0.2.2", "fd00::2"
OWN = frozenset({socket.inet_aton(HOST4), socket.inet_pton(socket.AF_INET6, HOST6)})
GATEWAY = "10.139.2.1"
TCP, UDP, ICMP = 6, 17, 1
FIB = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
           |-- 127.0.0.1
              /32 host LOCAL
"""


def gate(*ports: int) -> Gate:
    return Gate(GATEWAY, frozenset(ports), lambda: OWN)


def ip4(target: str, proto: int = TCP, port: int = 80, fragment: int = 0, options: bytes = b"") -> bytes:
    length = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | length // 4, 0, length + 4, 1, fragment, 64, proto, 0)
    packet = head + socket.inet_aton("10.139.2.2") + socket.inet_aton(target) + options
    return bytes(12) + b"\x08\x00" + packet + struct.pack("!HH", 4000, port)


def ip6(target: str) -> bytes:
    return bytes(12) + b"\x86\xdd" + bytes(24) + socket.inet_pton(socket.AF_INET6, target) + bytes(8)


@pytest.mark.parametrize("target", ["1.1.1.1", "192.0.2.1", "10.139.2.3", "224.0.0.251", "128.0.0.1"])
def test_the_world_is_reached(target: str) -> None:
    assert gate().admits(ip4(target))


@pytest.mark.parametrize("target", ["127.0.0.1", "127.3.2.1", "0.0.0.0", "0.1.2.3", HOST4])
def test_the_host_is_not(target: str) -> None:
    assert not gate(80).admits(ip4(target))


@pytest.mark.parametrize("target", ["::1", "::", "::ffff:127.0.0.1", "::ffff:1.1.1.1", "::7f00:1", HOST6])
def test_the_host_is_not_reached_by_ip6_either(target: str) -> None:
    assert not gate(80).admits(ip6(target))


def test_the_world_is_reached_by_ip6() -> None:
    assert gate().admits(ip6("2001:db8::1"))


@pytest.mark.parametrize(
    ("frame", "passes"),
    [
        (ip4(GATEWAY, port=8080), True),
        (ip4(GATEWAY, UDP, 8080), True),
        (ip4(GATEWAY, port=8080, options=bytes(4)), True),
        (ip4(GATEWAY, port=8081), False),
        (ip4(GATEWAY, ICMP, 8080), False),
        (ip4(GATEWAY, port=8080, fragment=0x2000), False),
        (ip4(GATEWAY, port=8080, fragment=7), False),
        (ip4(GATEWAY, port=8080)[:34], False),
    ],
)
def test_the_gateway_leads_to_the_named_ports_alone(frame: bytes, passes: bool) -> None:
    assert gate(8080).admits(frame) is passes
    assert not gate().admits(frame)


@pytest.mark.parametrize("kind", [b"\x81\x00", b"\x88\xa8", b"\x00\x26", b"\x88\x63"])
def test_frames_of_other_kinds_do_not_pass(kind: bytes) -> None:
    assert not gate().admits(ip4("1.1.1.1")[:12] + kind + ip4("1.1.1.1")[14:])


@given(st.binary(max_size=80))
def test_no_frame_is_too_strange_to_be_judged(frame: bytes) -> None:
    gate(1).admits(frame)


def test_the_hosts_addresses_are_read_from_the_kernel() -> None:
    inet6 = "fd000000000000000000000000000002 02 40 00 80     eth0\n"
    assert host_addresses(FIB, inet6) == {*OWN, socket.inet_aton("127.0.0.1")}


def test_the_list_of_own_addresses_grows_old() -> None:
    now, own = [0.0], [frozenset[bytes]()]
    it = Gate(GATEWAY, frozenset(), lambda: own[0], lambda: now[0])
    assert it.admits(ip4("198.51.100.7"))
    own[0] = frozenset({socket.inet_aton("198.51.100.7")})
    now[0] = 5.0
    assert not it.admits(ip4("198.51.100.7"))


def test_only_admitted_frames_arrive_and_in_order() -> None:
    machine, near = socket.socketpair()
    passt, far = socket.socketpair()
    worker = threading.Thread(target=to_passt, args=(near, passt, gate()))
    worker.start()
    frames = [ip4("1.1.1.1"), ip4("127.0.0.1"), ip4("2.2.2.2")]
    machine.sendall(b"".join(struct.pack("!I", len(frame)) + frame for frame in frames))
    machine.close()
    worker.join(5)
    passt.close()
    assert far.makefile("rb").read() == b"".join(struct.pack("!I", len(f)) + f for f in (frames[0], frames[2]))


def test_a_frame_that_is_too_long_ends_it() -> None:
    machine, near = socket.socketpair()
    passt, far = socket.socketpair()
    machine.sendall(struct.pack("!I", 1 << 20) + bytes(100))
    to_passt(near, passt, gate())
    passt.close()
    assert far.recv(1) == b""
