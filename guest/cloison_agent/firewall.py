"""The netvm's packet filter: what its clients may send, and nothing before their rules are in.

In: links and rules of clients (``wire.network``). Out: nftables of this machine, each change in one step
(``wire.nftables`` says what it is), and then an answer: none, or why not. A client whose rules could not be loaded is
closed.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from cloison.wire.firewall import Rule, RuleError, parse_rules
from cloison.wire.network import Downlink, Downlinks
from cloison.wire.nftables import (
    base_text,
    known_text,
    link_text,
    names_text,
    removal_text,
    set_names,
    whole_text,
)
from cloison_agent.loop import Loop
from cloison_agent.resolver import Resolver

NFT = "/usr/sbin/nft"
SCRIPTS = "/rw/config/qubes-firewall.d"
USER_SCRIPT = "/rw/config/qubes-firewall-user-script"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
SCRIPT_DEADLINE_S = 30.0
"""Longest wait of the first client for one of the user's own scripts (a VPN's are there to shut doors)."""
CLOCK_CHECK_S = 300.0
"""The clock may be set while a rule waits for its end."""
MAX_COUNTED = 6000
"""Characters of counters in one answer."""
_COUNTER = re.compile(r"counter packets (\d+) bytes (\d+)(?:.* comment \"r(\d+)\")?")

Then = Callable[[str], None]
"""Told why it failed; empty text: it is done."""


@dataclass
class _Client:
    link: Downlink
    rules: tuple[Rule, ...] = ()
    is_loaded: bool = False
    sets: tuple[str, ...] = ()
    """Sets of addresses that are in the kernel for it."""


class _Wish(NamedTuple):
    """Rules that dom0 wants for one link."""

    interface: str
    text: str
    then: Then


class Firewall:
    """What is in the kernel, and what waits to be."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._downlinks = Downlinks("", "", (), ())
        self._clients: dict[str, _Client] = {}
        self._has_base = False
        self._has_run_scripts = False
        self._mark = int.from_bytes(os.urandom(3), "big") << 6
        self._resolver = Resolver(loop, self._name_changed)
        self._waiting: deque[Callable[[], None]] = deque()
        self._wishes: list[_Wish] = []
        self._is_busy = False

    # -- what dom0 asks

    def closed(self) -> list[str]:
        """Links whose rules are not in force."""
        return [name for name, client in self._clients.items() if not client.is_loaded]

    def apply_links(self, downlinks: Downlinks, then: Then) -> None:
        """These links and no others; those that are new stay closed until their rules come."""
        self._queue(lambda: self._apply_links(downlinks, then))

    def load_rules(self, interface: str, text: str, then: Then) -> None:
        """The rules of one link, in force once ``then`` is told so. Those of others that wait, too, come in with it:
        each run of nft costs more than what it loads."""
        wish = _Wish(interface, text, then)
        self._wishes.append(wish)
        self._queue(lambda: self._load_rules(wish))

    def read_counters(self, interface: str, first: int, answer: Callable[..., None]) -> None:
        """What each rule has decided: ``text`` is ``index:packets:bytes`` of rules from ``first`` on that were used,
        ``next`` where to go on (0: that was all), ``refused`` and ``spoofed`` packets that no rule and no link let
        through."""
        self._queue(lambda: self._read_counters(interface, first, answer))

    # -- one thing at a time

    def _queue(self, job: Callable[[], None]) -> None:
        self._waiting.append(job)
        self._next()

    def _next(self) -> None:
        if not self._is_busy and self._waiting:
            self._is_busy = True
            self._waiting.popleft()()

    def _done(self) -> None:
        self._is_busy = False
        self._next()

    def _finish(self, then: Then, error: str) -> None:
        then(error)
        self._done()

    # -- links

    def _apply_links(self, downlinks: Downlinks, then: Then) -> None:
        wanted = {link.interface: link for link in downlinks.links}
        gone = [client for name, client in self._clients.items() if name not in wanted]
        text = "".join(removal_text(client.link, client.sets) for client in gone if client.is_loaded)
        before, self._downlinks = self._downlinks, downlinks
        for client in gone:
            del self._clients[client.link.interface]
        changed = []
        for name, link in wanted.items():
            client = self._clients.setdefault(name, _Client(link))
            if client.link != link or before[:2] != downlinks[:2]:
                changed += [client] * client.is_loaded
                client.link = link
        self._follow_names()
        if not self._has_base:
            text = whole_text(downlinks, ())
        elif before.resolvers != downlinks.resolvers:
            text += base_text(downlinks)
        elif {link.interface for link in before.links} != wanted.keys():
            text += known_text(downlinks)
        if before.resolvers != downlinks.resolvers:
            self._resolver.ask_again()
        self._load(changed, text, lambda error: self._links_applied(then, error))

    def _links_applied(self, then: Then, error: str) -> None:
        if error:
            self._close_all(lambda: self._finish(then, error))
        else:
            self._has_base = True
            self._run_scripts(lambda error: self._finish(then, error))

    def _close_all(self, then: Callable[[], None]) -> None:
        """Nobody knows any more what is in the kernel: begin anew, with every client closed."""
        for client in self._clients.values():
            client.is_loaded, client.sets = False, ()
        self._nft(whole_text(self._downlinks, ()), lambda error: then())

    # -- rules

    def _load_rules(self, turn: _Wish) -> None:
        if turn not in self._wishes:  # it came in with another
            self._done()
            return
        known = [wish for wish in self._wishes if wish is turn or wish.interface in self._clients]
        self._wishes = [wish for wish in self._wishes if wish not in known]
        loads = [load for wish in known if (load := self._prepare(wish)) is not None]
        self._follow_names()
        together = {id(client): client for client, _ in loads}

        def ended(error: str) -> None:
            if error:  # one's trouble shall not be the others'
                self._load_one_by_one(loads)
            else:
                for _, tell in loads:
                    tell("")
                self._watch_clock()
                self._done()

        self._load(list(together.values()), "", ended)

    def _prepare(self, wish: _Wish) -> tuple[_Client, Then] | None:
        """The client with its new rules, and whom to tell how their loading ended (rules that cannot be read are none
        at all, and told as a failure whatever comes)."""
        client = self._clients.get(wish.interface)
        if client is None:
            wish.then(f"there is no link {wish.interface}")
            return None
        why = ""
        try:
            client.rules = tuple(rule for rule in parse_rules(wish.text) if not rule.has_expired(time.time()))
        except RuleError as error:
            client.rules, why = (), str(error)
        return client, lambda error: wish.then(error or why)

    def _load_one_by_one(self, loads: list[tuple[_Client, Then]]) -> None:
        if not loads:
            self._watch_clock()
            self._done()
            return
        (client, tell), *others = loads

        def ended(error: str) -> None:
            if error and client.rules:
                # What was in force before is not what dom0 wants any more: the client is closed.
                client.rules = ()
                self._load([client], "", lambda _: told(error))
            else:
                told(error)

        def told(error: str) -> None:
            tell(error)
            self._load_one_by_one(others)

        self._load([client], "", ended)

    def _load(self, clients: Sequence[_Client], text: str, then: Then) -> None:
        """Bring these clients' parts into the kernel after ``text``, all in one step."""
        sets = []
        for client in clients:
            self._mark += 1
            sets.append(set_names(client.link.interface, client.rules))
            text += link_text(client.link, self._downlinks.gateway, self._downlinks.gateway6, client.rules,
                              self._resolver.known, self._mark & 0xFFFFFFFF or 1, client.sets)  # fmt: skip

        def ended(error: str) -> None:
            for client, own in zip(clients, sets, strict=True) if not error else ():
                client.is_loaded, client.sets = True, own
            then(error)

        self._nft(text, ended)

    def _follow_names(self) -> None:
        self._resolver.want({r.dsthost for client in self._clients.values() for r in client.rules if r.dsthost})

    def _name_changed(self, name: str) -> None:
        self._queue(lambda: self._load_name(name))

    def _load_name(self, name: str) -> None:
        """Rules that drop by a name that was unknown, or is again, are other rules now; else its sets change."""
        anew, text = [], ""
        for client in self._clients.values():
            rules = [rule for rule in client.rules if rule.dsthost == name] if client.is_loaded else []
            if any(rule.action == "drop" for rule in rules):
                anew.append(client)
            elif rules:
                text += names_text(client.link.interface, client.rules, self._resolver.known, name)
        self._load(anew, text, lambda error: self._done())

    # -- rules that end

    def _watch_clock(self) -> None:
        ends = [r.expire for client in self._clients.values() for r in client.rules if r.expire is not None]
        if ends:
            wait_s = max(0.0, min(ends) - time.time()) + 0.05
            self._loop.later(min(wait_s, CLOCK_CHECK_S), lambda: self._queue(self._drop_expired))

    def _drop_expired(self) -> None:
        now, shorter = time.time(), []
        for client in self._clients.values():
            left = tuple(rule for rule in client.rules if not rule.has_expired(now))
            if left != client.rules:
                client.rules = left
                shorter += [client] * client.is_loaded
        self._follow_names()
        self._load(shorter, "", lambda error: self._expired())

    def _expired(self) -> None:
        self._watch_clock()
        self._done()

    # -- counters

    def _read_counters(self, interface: str, first: int, answer: Callable[..., None]) -> None:
        client = self._clients.get(interface)
        if client is None or not client.is_loaded:
            answer(error=f"no rules of {interface} are in force")
            self._done()
            return

        name = client.link.interface

        def rules_listed(code: int, chain: str, _: str) -> None:
            if code:
                answer(error="nft could not list the rules")
                self._done()
                return
            self._start([NFT, "-n", "list", "chain", "netdev", "cloison", f"in-{name}"], "",
                        lambda code, ingress, _: card_listed(_sum_up(chain, first), ingress))  # fmt: skip

        def card_listed(fields: dict[str, Any], ingress: str) -> None:
            spoofed = sum(int(packets) for packets, _, _ in _COUNTER.findall(ingress))
            answer(**fields, spoofed=spoofed, rules=len(client.rules))
            self._done()

        self._start([NFT, "-n", "list", "chain", "inet", "cloison", f"rules-{name}"], "", rules_listed)

    # -- programs

    def _nft(self, text: str, then: Then) -> None:
        if not text:
            then("")
            return

        def ended(code: int, _: str, errors: str) -> None:
            then("" if code == 0 else f"nft: {_first_line(errors) or f'ended with {code}'}")

        self._start([NFT, "-f", "-"], text, ended)

    def _run_scripts(self, then: Then) -> None:
        """The user's own, in order, until all have ended well once. They may be there to shut doors: while one of them
        fails or does not end no client is let in, and the next who asks has them run again."""
        if self._has_run_scripts:
            then("")
            return
        scripts = [path for path in (*_directory(SCRIPTS), USER_SCRIPT) if os.access(path, os.X_OK)]

        def step() -> None:
            if scripts:
                self._run_script(scripts.pop(0), lambda error: then(error) if error else step())
            else:
                self._has_run_scripts = True
                then("")

        step()

    def _run_script(self, path: str, then: Then) -> None:
        has_ended = is_late = False

        def ended(code: int, _: str, errors: str) -> None:
            nonlocal has_ended
            has_ended = True
            if is_late:
                then(f"{path} did not end within {SCRIPT_DEADLINE_S:g} s")
            else:
                then("" if code == 0 else f"{path} ended with {code}: {_first_line(errors) or 'it said nothing'}")

        def end_late() -> None:
            nonlocal is_late
            if not has_ended:
                is_late = True
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

        pid = self._start([path], "", ended)
        self._loop.later(SCRIPT_DEADLINE_S, end_late)

    def _start(self, argv: Sequence[str], stdin: str, ended: Callable[[int, str, str], None]) -> int:
        """Run a program as root; ``ended`` gets its exit code, its output and its complaints. Its number, or 0."""
        files = [os.memfd_create("nft") for _ in range(3)]
        os.write(files[0], stdin.encode())
        os.lseek(files[0], 0, os.SEEK_SET)

        def reaped(code: int) -> None:
            texts = [os.pread(fd, 1 << 24, 0).decode(errors="replace") for fd in files[1:]]
            for fd in files:
                os.close(fd)
            ended(code, *texts)

        actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(files)]
        try:
            pid = os.posix_spawn(argv[0], list(argv), ENVIRONMENT, file_actions=actions, setsid=True)
        except OSError as error:
            for fd in files:
                os.close(fd)
            ended(127, "", f"{argv[0]}: {error.strerror}")
            return 0
        self._loop.watch_exit(pid, reaped)
        return pid


def _directory(path: str) -> list[str]:
    return [f"{path}/{name}" for name in sorted(os.listdir(path))] if os.path.isdir(path) else []


def _first_line(errors: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in errors.partition("\n")[0])[:300]


def _sum_up(chain: str, first: int) -> dict[str, Any]:
    counted: dict[int, list[int]] = {}
    refused = 0
    for packets, size, number in _COUNTER.findall(chain):
        if not number:
            refused += int(packets)
        elif int(packets):
            row = counted.setdefault(int(number), [0, 0])
            row[0] += int(packets)
            row[1] += int(size)
    text, following = "", 0
    for number in sorted(number for number in counted if number >= first):
        if len(text) > MAX_COUNTED // 4:
            following = number
            break
        text += f"{number}:{counted[number][0]}:{counted[number][1]} "
    return {"text": text, "next": following, "refused": refused}
