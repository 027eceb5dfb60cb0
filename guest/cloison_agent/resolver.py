"""Addresses of names, followed for as long as somebody wants them: asked again when the answer's time is over.

In: names of hosts. Out: their addresses whenever they change. Asks whom this machine itself asks (``resolv.conf``),
by UDP, and by TCP when an answer does not fit; never waits for an answer but in the loop.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

from cloison.wire import dns
from cloison_agent.loop import READ, WRITE, Loop

RESOLV_CONF = "/etc/resolv.conf"
LEAST_TTL_S = 5.0
"""A name whose answers hold for less is asked for this often: more would wake an idle netvm for nothing."""
ANSWER_TIMEOUT_S = 3.0
RETRY_S, MAX_RETRY_S = 5.0, 60.0
FORGET_S = 3600.0
"""How long the last answer is believed when no server answers any more."""
PORT = 53

Changed = Callable[[str], None]


class Resolver:
    """``known[name]``: its addresses; None: nobody could say yet. ``changed(name)`` is called after each change."""

    def __init__(self, loop: Loop, changed: Changed) -> None:
        self.known: dict[str, tuple[str, ...] | None] = {}
        self.loop = loop
        self._changed = changed
        self._names: dict[str, _Name] = {}

    def want(self, names: set[str]) -> None:
        """Follow these names and no others."""
        for name in self._names.keys() - names:
            self._names.pop(name).stop()
            del self.known[name]
        for name in sorted(names - self._names.keys()):
            self.known[name] = None
            self._names[name] = _Name(name, self.loop, self._learned)

    def ask_again(self) -> None:
        """The way out is another: what was heard there may not hold here."""
        for name in self._names.values():
            name.ask()

    def _learned(self, name: str, addresses: tuple[str, ...] | None) -> None:
        if name in self.known and self.known[name] != addresses:
            self.known[name] = addresses
            self._changed(name)


class _Name:
    """One name: a round of questions at a time, both kinds of addresses in each."""

    def __init__(self, name: str, loop: Loop, learned: Callable[[str, tuple[str, ...] | None], None]) -> None:
        self._name, self._loop, self._learned = name, loop, learned
        self._found: dict[int, tuple[str, ...]] = {}
        self._asking: dict[int, _Question] = {}
        self._ttl_s: list[int] = []
        self._round = 0
        self._silent_s = 0.0
        self._stopped = False
        self.ask()

    def stop(self) -> None:
        self._stopped = True
        for asked in self._asking.values():
            asked.close()

    def ask(self) -> None:
        if self._stopped:
            return
        self._round += 1
        for asked in self._asking.values():
            asked.close()
        self._asking, self._ttl_s = {}, []
        servers = read_servers()
        server = servers[self._round % len(servers)] if servers else ""
        for kind in (dns.A, dns.AAAA) if server else ():
            with suppress(OSError, dns.DnsError):
                self._asking[kind] = _Question(self._loop, server, self._name, kind, self._answered)
        number = self._round
        self._loop.later(ANSWER_TIMEOUT_S, lambda: self._end(number))

    def _answered(self, kind: int, answer: dns.Answer) -> None:
        del self._asking[kind]
        if not answer.failed:
            self._found[kind] = answer.addresses
            self._ttl_s.append(answer.ttl_s)
        if not self._asking:
            self._end(self._round)

    def _end(self, number: int) -> None:
        """The round is over, by both answers or by time."""
        if number != self._round or self._stopped:
            return
        self._round += 1
        for asked in self._asking.values():
            asked.close()
        self._asking = {}
        if self._ttl_s:
            self._learned(self._name, tuple(sorted({a for found in self._found.values() for a in found})))
        if len(self._ttl_s) == 2:
            self._silent_s = 0.0
            wait_s = max(LEAST_TTL_S, float(min(self._ttl_s)))
        else:  # one kind or both were not answered
            wait_s = min(MAX_RETRY_S, max(RETRY_S, self._silent_s))
            self._silent_s += wait_s
            if self._silent_s > FORGET_S:
                self._found = {}
                self._learned(self._name, None)
        number = self._round
        self._loop.later(wait_s, lambda: self.ask() if number == self._round else None)


class _Question:
    """One question to one server; answers that are none are not heard."""

    def __init__(
        self, loop: Loop, server: str, name: str, kind: int, answered: Callable[[int, dns.Answer], None]
    ) -> None:
        self._loop, self._server, self._kind, self._answered = loop, server, kind, answered
        self._asked = dns.question(int.from_bytes(os.urandom(2), "big"), dns.spell(name), kind)
        self._heard = bytearray()
        self._socket = self._open(socket.SOCK_DGRAM)
        try:
            self._socket.send(self._asked)
        except OSError:
            self._socket.close()
            raise
        loop.add(self._socket.fileno(), READ, self._hear)

    def _open(self, kind: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in self._server else socket.AF_INET, kind)
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect((self._server, PORT))
        return sock

    def close(self) -> None:
        self._loop.remove(self._socket.fileno())
        self._socket.close()

    def _hear(self, _: int) -> None:
        try:
            answer = dns.parse_answer(self._socket.recv(65536), self._asked)
        except BlockingIOError:
            return
        except dns.DnsError:
            return  # a forger, or noise; the true answer may follow
        except OSError:
            answer = dns.Answer((), 0, failed=True)
        self.close()
        if answer.truncated:
            try:
                self._socket = self._open(socket.SOCK_STREAM)
                self._loop.add(self._socket.fileno(), WRITE, self._say)
                return
            except OSError:
                answer = answer._replace(failed=True)
        self._answered(self._kind, answer)

    def _say(self, _: int) -> None:
        """TCP is connected, or it is not."""
        try:
            self._socket.send(len(self._asked).to_bytes(2, "big") + self._asked)
            self._loop.remove(self._socket.fileno())
            self._loop.add(self._socket.fileno(), READ, self._hear_stream)
        except OSError:
            self._fail()

    def _hear_stream(self, _: int) -> None:
        try:
            piece = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._heard += piece
        length = int.from_bytes(self._heard[:2], "big")
        if len(self._heard) >= 2 + length and len(self._heard) > 2:
            try:
                answer = dns.parse_answer(bytes(self._heard[2 : 2 + length]), self._asked)
            except dns.DnsError:
                self._fail()
                return
            self.close()
            self._answered(self._kind, answer._replace(failed=answer.failed or answer.truncated))
        elif not piece:
            self._fail()

    def _fail(self) -> None:
        self.close()
        self._answered(self._kind, dns.Answer((), 0, failed=True))


def read_servers() -> list[str]:
    """Whom this machine asks."""
    try:
        with open(RESOLV_CONF) as file:
            rows = [line.split() for line in file]
    except OSError:
        return []
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"][:4]
