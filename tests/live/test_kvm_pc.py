"""The KVM path for real, on any machine: boot, fork, call and disposable inside a software-emulated PC.

The PC's processor has virtualisation (emulated), so the daemon there finds that KVM works, and uses it. Guests are slow
there, not different. What a guest says of itself is asked of the guest: a vanished guest is no success.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator

import pytest
from tests.live.conftest import wait_until
from tests.live.pc.machine import CARD_GATEWAY, Done, VirtualPC, build_system, build_template, open_scratch, run_pc

from cloison.layout import Layout

TEMPLATE = "debian-13"
DISPOSABLE_TEMPLATE = "default-dvm"
FORK_POINT_LIMIT_S = 480
BOOT_LIMIT_S = 300
GUEST_LIMIT_S = 120
"""For anything with a guest in it: seconds on a quiet machine."""
HAS_CARD = bool(os.environ.get("CLOISON_TEST_CARD"))
needs_card = pytest.mark.skipif(
    not HAS_CARD, reason="with an IOMMU the emulated PC is not steady: CLOISON_TEST_CARD=1 asks for it"
)
MARK = "echo $(hostname) runs on $(systemd-detect-virt) for $(id -un)"


@pytest.fixture(scope="module")
def bare_pc(pytestconfig: pytest.Config) -> Iterator[VirtualPC]:
    """The PC with Cloison in it, nothing done yet. Its times are printed when it is gone."""
    cache = Layout.from_environment().cache
    system = asyncio.run(build_system(cache, lambda what, part: None))
    template = asyncio.run(build_template(cache, lambda what, part: None))
    with open_scratch(cache) as scratch, run_pc(system, template, cache, scratch, card=HAS_CARD) as pc:
        yield pc
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        times = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in pc.timings.items())
        reporter.write_line(f"\nKVM in an emulated PC: {times}")


@pytest.fixture(scope="module")
def pc(bare_pc: VirtualPC) -> VirtualPC:
    """The PC with a template whose fork point was made under KVM, a disposable template, and the qube ``work``."""
    bare_pc.cloison("template", "build", TEMPLATE, timing="template and fork point", timeout_s=FORK_POINT_LIMIT_S)
    bare_pc.may_keep_fork_points = len(bare_pc.json("forkpoint", "list")) == 1
    bare_pc.cloison("create", "--disposable-template", DISPOSABLE_TEMPLATE)
    bare_pc.cloison("system-prefs", "default_dispvm", DISPOSABLE_TEMPLATE)
    bare_pc.cloison("create", "--label", "blue", "work")
    bare_pc.cloison("start", "work", timing="start of a qube", timeout_s=GUEST_LIMIT_S)
    return bare_pc


def run_in_guest(pc: VirtualPC, qube: str, script: str, timing: str = "") -> Done:
    return pc.cloison("run", qube, "--", "sh", "-c", script, timing=timing, timeout_s=GUEST_LIMIT_S)


def state_of(pc: VirtualPC, qube: str) -> str:
    (row,) = pc.json("list", qube)
    return str(row["state"])


def test_the_doctor_finds_that_kvm_works(bare_pc: VirtualPC) -> None:
    done = bare_pc.cloison("doctor", "--json", expect=None, timing="doctor")
    found = {check["name"]: check for check in json.loads(done.out)}
    assert found["virtualisation"]["status"] == "ok", found["virtualisation"]
    assert "KVM works" in found["virtualisation"]["found"]
    assert found["jail"]["status"] == "ok", found["jail"]


def test_a_fork_point_is_made_under_kvm(pc: VirtualPC) -> None:
    (point,) = pc.json("forkpoint", "list")
    assert point["template"] == TEMPLATE
    assert point["disk_bytes"] > 0
    pc.timings["making the fork point, in an earlier run" if pc.has_fork_points else "of it the fork point"] = point[
        "boot_s"
    ]


def test_a_qube_is_forked_from_it_and_runs_under_kvm(pc: VirtualPC) -> None:
    machines = pc.run("pgrep", "-af", "^/usr/bin/qemu-system").out.splitlines()
    assert len(machines) == 1
    assert "guest=work" in machines[0]
    assert "-accel kvm " in machines[0]
    assert "-incoming" in machines[0]


def test_a_call_gets_an_answer_of_the_guest_itself(pc: VirtualPC) -> None:
    assert run_in_guest(pc, "work", MARK, "first call").out == "work runs on kvm for user\n"
    done = pc.cloison("run", "work", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin="through", expect=7)
    assert (done.out, done.err) == ("through", "err\n")
    pc.cloison("run", "work", "--", "true", timing="call")


def test_a_disposable_is_forked_used_and_gone(pc: VirtualPC) -> None:
    done = run_in_guest(pc, "--dispvm", MARK, "disposable")
    name, _, rest = done.out.partition(" ")
    assert (name[:4], rest) == ("disp", "runs on kvm for user\n")
    run_in_guest(pc, "--dispvm", "true", "second disposable")
    wait_until(lambda: pc.run("pgrep", "-f", "guest=disp").code == 1, 30, "the disposables' machines to be gone")
    wait_until(lambda: "disp" not in {row["name"][:4] for row in pc.json("list")}, 30, "the disposables to be removed")


def test_a_restart_keeps_home_and_throws_the_rest_away(pc: VirtualPC) -> None:
    script = "echo mine > ~/kept; echo gone > /etc/gone; sync"
    pc.cloison("run", "--user", "root", "work", "--", "sh", "-c", script.replace("~", "/home/user"))
    pc.cloison("restart", "work", timing="restart", timeout_s=GUEST_LIMIT_S)
    assert run_in_guest(pc, "work", "cat ~/kept; test -e /etc/gone; echo $?").out == "mine\n1\n"


def test_a_qube_outlives_a_killed_daemon(pc: VirtualPC) -> None:
    pid = pc.run("cat", "/pc/system/run/cloisond.lock").out.strip()
    run_in_guest(pc, "work", "echo here > /tmp/still")
    pc.run("kill", "-9", pid)
    assert run_in_guest(pc, "work", "cat /tmp/still", "call after the daemon's kill -9").out == "here\n"


def test_a_kill_ends_the_machine(pc: VirtualPC) -> None:
    pc.cloison("kill", "work", timing="kill")
    assert state_of(pc, "work") == "Halted"
    assert pc.run("pgrep", "-f", "^/usr/bin/qemu-system").out == ""


@pytest.fixture(scope="module")
def card(pc: VirtualPC) -> str:
    """The PC's network card, which its root gave to the user's qubes, and the booted qube ``sys-net`` that has it."""
    (found,) = pc.json("pci", "list")
    address = str(found["address"])
    make_network_qube(pc, "sys-net", address)
    pc.cloison("start", "sys-net", timing="boot with a network card", timeout_s=BOOT_LIMIT_S)
    return address


def make_network_qube(pc: VirtualPC, name: str, address: str) -> None:
    pc.cloison("create", "--label", "red", name)
    for setting, value in (("netvm", ""), ("provides_network", "True"), ("memory", "256")):
        pc.cloison("prefs", name, setting, value)
    pc.cloison("features", name, "uplink", f"pci:{address}")


@needs_card
def test_the_pc_has_no_network_card_any_more(pc: VirtualPC, card: str) -> None:
    assert pc.run("cat", "/run/cards-before").out.split() == ["eth0", "lo"]
    assert pc.run("ls", "/sys/class/net").out.split() == ["lo"]
    (found,) = pc.json("pci", "list")
    assert (found["driver"], found["interfaces"], found["obstacle"]) == ("vfio-pci", [], "")


@needs_card
def test_a_ping_is_answered_through_the_card_that_was_handed_over(pc: VirtualPC, card: str) -> None:
    wait_until(lambda: ping(pc, "sys-net"), GUEST_LIMIT_S, "an answered ping of sys-net")
    said = run_in_guest(pc, "sys-net", "ip -o -4 address show eth0; ip route; cat /etc/resolv.conf").out
    assert "inet 192.0.2.15/24" in said
    assert f"default via {CARD_GATEWAY} dev eth0" in said
    assert "nameserver 192.0.2.3\n" in said
    assert "0000:00:10.3" in run_in_guest(pc, "sys-net", "readlink -f /sys/class/net/eth0/device").out


@needs_card
def test_a_client_of_the_qube_with_the_card_reaches_what_is_beyond(pc: VirtualPC, card: str) -> None:
    pc.cloison("prefs", "work", "netvm", "sys-net")
    pc.cloison("start", "work", timeout_s=GUEST_LIMIT_S)
    wait_until(lambda: ping(pc, "work"), GUEST_LIMIT_S, "an answered ping of work through sys-net")
    said = run_as_root(pc, "sys-net", "nft list table inet cloison")
    assert "192.0.2.3" in said, "the clients' questions go where the card's network said"


@needs_card
def test_no_second_qube_gets_the_card(pc: VirtualPC, card: str) -> None:
    make_network_qube(pc, "sys-other", card)
    done = pc.cloison("start", "sys-other", expect=None, timeout_s=GUEST_LIMIT_S)
    assert done.code not in (0, None)
    assert f"PCI device {card}: another qube has it" in done.err, done.err
    assert state_of(pc, "sys-other") == "Halted"


def ping(pc: VirtualPC, qube: str) -> bool:
    return "1 received" in run_as_root(pc, qube, f"ping -c 1 -W 5 {CARD_GATEWAY}; true")


def run_as_root(pc: VirtualPC, qube: str, script: str) -> str:
    return str(pc.cloison("run", "--user", "root", qube, "--", "sh", "-c", script, timeout_s=GUEST_LIMIT_S).out)
