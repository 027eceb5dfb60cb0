"""Who reaches the network through whom."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from cloison.daemon.updatechecks import DAY_S, STAMP, find_due
from cloison.errors import BadPropertyValue, BadRequest
from cloison.model import network, rules
from cloison.model.classes import Klass
from cloison.model.network import Exit, WayOut
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES

from .test_properties import picture, qube


@pytest.fixture
def chain():
    """work, personal -> fw -> net; vault alone; vpn -> fw, client of vpn."""
    return picture(
        qube("net", 1, properties={"provides_network": True, "netvm": None}),
        qube("fw", 2, properties={"provides_network": True, "netvm": "net"}),
        qube("vpn", 3, properties={"provides_network": True}),
        qube("work", 4, features={"net.fake-ip": "192.168.1.2", "net.fake-gateway": "192.168.1.1"}),
        qube("vault", 5, properties={"netvm": None}),
        qube("secret", 300, properties={"netvm": "vpn", "mac": "00:16:3e:00:00:01"}, features={"ipv6": "1"}),
        settings={"default_netvm": "fw"},
    )


def test_paths_end_where_there_is_no_netvm(chain):
    assert network.path_out(chain, "secret") == ("secret", "vpn", "fw", "net")
    assert network.path_out(chain, "vault") == ("vault",)


@pytest.mark.parametrize(
    ("name", "netvm", "loop"),
    [
        ("net", "fw", ("net", "fw", "net")),
        ("fw", "vpn", ("fw", "vpn", "fw")),
        ("net", "vpn", ("net", "vpn", "fw", "net")),
        ("fw", "fw", ("fw", "fw")),
        ("work", "net", ()),
        ("vault", "vpn", ()),
    ],
)
def test_loops_are_found_and_named(chain, name, netvm, loop):
    assert network.find_loop(chain, name, netvm) == loop
    prop = QUBE_PROPERTIES["netvm"]
    if loop:
        with pytest.raises(BadPropertyValue, match=" -> ".join(loop)):
            rules.check_qube_property(chain, chain.qube(name), prop, netvm, frozenset())
    else:
        rules.check_qube_property(chain, chain.qube(name), prop, netvm, frozenset())


def test_a_default_netvm_that_makes_a_loop_is_refused(chain):
    with pytest.raises(BadPropertyValue, match="vpn -> vpn"):
        rules.check_setting(chain, GLOBAL_PROPERTIES["default_netvm"], "vpn")


def test_what_a_qube_is_told_of_its_way_out(chain):
    uplink = network.uplink_of(chain, "secret")
    assert uplink == network.Uplink(
        "00:16:3e:00:00:01", "10.137.1.46", "fd09:24ef:4179::a89:12c", "10.137.0.3", "", "fe:ff:ff:00:01:2c",
        ("10.139.1.1", "10.139.1.2"), network.WIDE_MTU,
    )  # fmt: skip
    assert network.uplink_of(chain, "vault") is None
    assert network.uplink_of(chain, "net") is None


def test_what_a_netvm_is_told_of_its_clients(chain):
    everybody = frozenset(q.name for q in chain)
    told = network.downlinks_of(chain, "fw", everybody, network.inner_resolvers(chain, "fw"))
    assert (told.gateway, told.resolvers) == ("10.137.0.2", ("10.139.1.1", "10.139.1.2"))
    assert [(link.interface, link.client, link.ip) for link in told.links] == [
        ("vif3", "vpn", "10.137.0.3"),
        ("vif4", "work", "10.137.0.4"),
    ]
    assert (told.links[1].visible_ip, told.links[1].visible_gateway) == ("192.168.1.2", "192.168.1.1")
    assert network.downlinks_of(chain, "fw", frozenset({"vpn"}), ()).links == told.links[:1]


def test_interfaces_and_hardware_addresses_differ_for_each_client(chain):
    clients = [chain.qube(name) for name in ("work", "vpn", "secret")]
    assert len({network.interface_of(client) for client in clients}) == 3
    assert len({network.downlink_mac(client) for client in clients}) == 3


@pytest.mark.parametrize(
    ("uplink", "ports", "found"),
    [
        ("", "", Exit(WayOut.PASST)),
        ("passt", "8080 53", Exit(WayOut.PASST, host_ports=(8080, 53))),
        ("none", "", Exit(WayOut.NONE)),
        ("pci:0000:02:00.0", "", Exit(WayOut.PCI, device="0000:02:00.0")),
        ("pci:0A:1f.7", "", Exit(WayOut.PCI, device="0000:0a:1f.7")),
        ("join:/run/peer", "", Exit(WayOut.JOIN, socket=network.PurePosixPath("/run/peer"))),
    ],
)
def test_the_end_of_a_chain(uplink, ports, found):
    assert network.parse_way_out(uplink, ports) == found


@pytest.mark.parametrize(
    ("uplink", "ports"),
    [
        *[("tap0", ""), ("join:run", ""), ("passt:x", ""), ("", "0"), ("", "70000"), ("", "80,81")],
        *[("pci", ""), ("pci:", ""), ("pci:eth0", ""), ("pci:0000:02:20.0", ""), ("pci:0000:02:00.8", "")],
        *[("pci:0000:02:00.0,x-opt=on", ""), ("pci:0000:02:00.0\n", ""), ("pci:../0000:02:00.0", "")],
    ],
)
def test_an_end_that_is_none(uplink, ports):
    with pytest.raises(BadRequest):
        network.parse_way_out(uplink, ports)


def test_only_the_end_of_a_chain_has_a_way_out(chain):
    assert network.find_exit(chain, "net") == Exit(WayOut.PASST)
    assert network.find_exit(chain, "fw") is None
    assert network.find_exit(chain, "vault") is None


def test_templates_are_asked_for_news_once_a_day():
    now = 1_800_000_000.0
    stamp = time.strftime(STAMP, time.localtime(now - DAY_S + 60))
    old = time.strftime(STAMP, time.localtime(now - DAY_S - 60))
    qubes = (
        qube("never", 1, klass=Klass.TEMPLATE, features={"check-updates": "1"}),
        qube("today", 2, klass=Klass.TEMPLATE, features={"check-updates": "1", "last-updates-check": stamp}),
        qube("yesterday", 3, klass=Klass.STANDALONE, features={"check-updates": "1", "last-updates-check": old}),
        qube("broken", 4, klass=Klass.TEMPLATE, features={"check-updates": "1", "last-updates-check": "soon"}),
        qube("off", 5, klass=Klass.TEMPLATE, features={"check-updates": ""}),
        qube("skipped", 6, klass=Klass.TEMPLATE, features={"check-updates": "1", "skip-update": "1"}),
        qube("app", 7, features={"check-updates": "1"}),
    )
    way_out = qube("net", 8, properties={"provides_network": True, "netvm": None})
    assert list(find_due(picture(*qubes), now)) == []
    assert set(find_due(picture(*qubes, way_out), now)) == {"never", "yesterday", "broken"}
    assert list(find_due(picture(*qubes, way_out, settings={"check_updates_vm": False}), now)) == []


def test_a_handed_over_card_is_the_end_s_alone(chain):
    end = chain.qube("net")
    assert network.handed_devices(chain, "net") == ()
    given = replace(end, features={"uplink": "pci:0000:02:00.0"})
    changed = replace(chain, qubes={**chain.qubes, end.name: given}, _memo={})
    assert network.handed_devices(changed, "net") == ("0000:02:00.0",)
    assert network.handed_devices(changed, "work") == ()
    broken = replace(end, features={"uplink": "pci:pigeon"})
    assert network.handed_devices(replace(chain, qubes={**chain.qubes, end.name: broken}, _memo={}), "net") == ()
