"""The netvm's packet filter in a real kernel: hostile frames from one client, ears everywhere, honest traffic."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAB, NETVM = (Path(__file__).with_name(name) for name in ("lab.py", "netvm.py"))
AS_OWN_ROOT = ("unshare", "--user", "--map-root-user", "--net")


def way_in() -> tuple[str, ...]:
    """How to get network namespaces here: as an ordinary user, else as root, else not at all."""
    if subprocess.run([*AS_OWN_ROOT, "true"], capture_output=True).returncode == 0:
        return AS_OWN_ROOT
    if os.getuid() == 0:
        return ("unshare", "--net")
    pytest.skip("this kernel lets no ordinary user make namespaces")


def run_inside(way: tuple[str, ...], *program: str) -> dict[str, Any]:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    assert shutil.which("nft", path=path), "nftables is needed to test firewalls (./test installs it)"
    done = subprocess.run([*way, sys.executable, *program], text=True, capture_output=True, timeout=120,
                          env={**os.environ, "PATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def lab() -> dict[str, Any]:
    return run_inside(way_in(), str(LAB))


@pytest.fixture(scope="module")
def netvm() -> dict[str, Any]:
    """As root where we are root: an ordinary user's buffers towards the kernel are too small for 10 000 rules."""
    if os.getuid() == 0:
        return run_inside(("unshare", "--net"), str(NETVM), "10000")
    return run_inside(way_in(), str(NETVM), "200")


def test_nothing_hostile_arrives_anywhere(lab: dict[str, Any]) -> None:
    assert len(lab["attacks"]) >= 32
    nothing = {"arrived": [], "poisoned": [], "rerouted": False}
    assert {name: seen for name, seen in lab["attacks"].items() if seen != nothing} == {}


def test_without_the_filter_the_same_frames_do_harm(lab: dict[str, Any]) -> None:
    arrived = {name for name, seen in lab["without"].items() if seen["arrived"]}
    assert {
        "spoofed mac", "spoofed ipv4 of the other client", "spoofed ipv4 of the world", "spoofed ipv6",
        "to the other client", "to the netvm's port", "vlan tag", "fragments with another address", "a rule says drop",
    } <= arrived  # fmt: skip
    poisoned = {name for name, seen in lab["without"].items() if seen["poisoned"]}
    assert {"arp for another address", "neighbour solicitation of another address"} <= poisoned


def test_honest_traffic_goes_on(lab: dict[str, Any]) -> None:
    assert lab["honest"] == {
        "a frame made by hand": ["world"],
        "udp": "answered",
        "udp refused": "silence",
        "dns": "answered",
        "tcp": "hello from 192.0.2.1",  # the world sees the netvm's address only
        "tcp refused": "refused: No route to host",  # told at once, not after a time-out
        "tcp over ipv6": "hello from 2001:db8:1::1",
        "ping of the gateway": True,
        "ping of the world": True,
        "ping of the other client": False,
    }


def test_a_change_of_rules_reaches_open_connections(lab: dict[str, Any]) -> None:
    assert lab["changes"] == {
        "before": "answered",
        "another rule that accepts it": "answered",
        "an answer after a change": "late",
        "an answer after its rule went": "silence",
        "a question after its rule went": "silence",
        "a client that was taken away": "silence",
    }


def test_a_flood_fills_the_share_of_its_own_client_only(lab: dict[str, Any]) -> None:
    assert lab["flood"] == {"its own next": "silence", "the other client": "answered", "refused": "over"}


def test_the_users_own_chains_decide_first_and_outlive_a_reload(lab: dict[str, Any]) -> None:
    assert lab["hooks"] == {
        "input before": False,
        "input after": True,
        "forward before": False,
        "forward after": True,
        "forward after a reload": True,
        "a chain that drops": "silence",
    }


def test_rules_with_names_follow_their_addresses(lab: dict[str, Any]) -> None:
    assert lab["names"] == {
        "drop, known": "silence",
        "drop, elsewhere": "answered",
        "drop, unknown": "silence",  # nobody could say yet where it is: nothing may slip past
        "accept an inside address": "silence",
        "accept an address of the world": "answered",
        "accept another address": "silence",
        "after the name moved": "silence",
    }


def test_a_client_may_take_another_address_for_its_own(lab: dict[str, Any]) -> None:
    assert lab["translated"] == {"udp": "answered", "tcp": "hello from 192.0.2.1", "its true address": []}


def test_the_agent_says_when_rules_are_in_and_why_not(netvm: dict[str, Any]) -> None:
    assert netvm["rules of no link"] == "there is no link vif1"
    assert netvm["links"] == netvm["rules"] == netvm["of the second"] == ""
    assert not netvm["no rules yet"], "a client without rules has no way through at all"
    assert netvm["in the kernel"] == 2
    assert "action must be accept or drop" in netvm["nonsense"]
    assert netvm["after nonsense"].count("counter") == 1, "rules that cannot be read close the client"
    assert netvm["no nft"].startswith("nft: ")


def test_rules_that_come_together_are_loaded_together(netvm: dict[str, Any]) -> None:
    assert netvm["together"] == {
        "answers": ["", "", "", "", "there is no link vif9"],
        "runs": 2,  # the first alone, then all that came meanwhile
        "the last one holds": True,
        "one that fails": ["", "nft", "", "firewall rule 1 ('action=perhaps')"],
        "does not spoil the others": True,
    }


def test_the_users_scripts_run_before_the_first_client(netvm: dict[str, Any]) -> None:
    assert netvm["scripts"] == ["10-first", "user-script"]


def test_scripts_that_fail_or_do_not_end_keep_everybody_out(netvm: dict[str, Any]) -> None:
    assert netvm["after a restart"] == {
        "fails": "/qubes-firewall.d/10-first ended with 3: the tunnel has no key",
        "ran": ["10-first"],
        "loaded": False,
        "is known as a client's": True,
        "does not end": "/qubes-firewall.d/10-first did not end within 0.3 s",
        "mended": "",
        "ran again": ["10-first", "user-script"],
        "and once": "",
        "rules": "",
    }


def test_a_rule_ends_at_its_time(netvm: dict[str, Any]) -> None:
    assert netvm["until it ends"] and netvm["ended"]


def test_names_are_followed(netvm: dict[str, Any]) -> None:
    assert netvm["names"] == {
        "first": True,
        "moved": True,
        "by tcp": True,
        "silence": ["9.9.9.7"],
        "gone": True,
        "unknown, dropping": True,
        "known, dropping": True,
        "sets left": 0,
        "asks for nothing": True,
    }


def test_counters_are_read(netvm: dict[str, Any]) -> None:
    assert netvm["counters"] == {"text": "", "next": 0, "refused": 0, "spoofed": 0, "rules": 1}


def test_a_client_whose_card_is_gone_leaves_nothing(netvm: dict[str, Any]) -> None:
    assert netvm["without its card"] == "" and not netvm["left of it"]


def test_a_great_many_rules_are_loaded(netvm: dict[str, Any]) -> None:
    assert netvm["many rules"] == "" and netvm["all of them"]
