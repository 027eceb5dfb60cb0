"""What agents are told of their network, and what they do not believe."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire import MAX_PAYLOAD, RemoteProtocolError
from cloison.wire import network as net

UPLINK = net.Uplink(
    "00:16:3e:5e:6c:00", "10.137.0.4", "fd09:24ef:4179::a89:4", "10.137.0.2", "", "fe:ff:ff:00:00:04",
    ("10.139.1.1", "10.139.1.2"), 65520,
)  # fmt: skip
LINK = net.Downlink(
    "vif4", "fe:ff:ff:00:00:04", "work", "10.137.0.4", "", "00:16:3e:5e:6c:00", "10.137.0.4", "10.137.0.2", 65520
)
DOWNLINKS = net.Downlinks("10.137.0.2", "", ("10.139.1.1", "fd00::1"), (LINK, LINK._replace(interface="vif5")))


def through_json(fields):
    return json.loads(json.dumps(fields))


def test_each_message_comes_back_whole():
    assert net.parse_uplink(through_json(net.uplink_fields(UPLINK))) == UPLINK
    assert net.parse_uplink(through_json(net.uplink_fields(None))) is None
    card = net.HandedCard("0000:00:10.3")
    assert net.parse_uplink(through_json(net.uplink_fields(card))) == card
    assert net.parse_downlinks(through_json(net.downlinks_fields(DOWNLINKS))) == DOWNLINKS


@pytest.mark.parametrize(
    "change",
    [{"mac": "00:16:3E:5e:6c:00"}, {"mac": ""}, {"ip": "10.137.0"}, {"ip6": "fe80::1%eth0"}, {"dns": ["a; rm"]},
     {"dns": "10.139.1.1"}, {"mtu": 100}, {"mtu": "1500"}, {"more": 1}],
)  # fmt: skip
def test_a_field_of_the_wrong_kind_is_refused(change):
    with pytest.raises(RemoteProtocolError):
        net.parse_uplink({"uplink": {**UPLINK._asdict(), **change}})


@pytest.mark.parametrize("port", ["", "eth0", "0000:00:10", "0000:00:20.0", "../0000:00:10.3", 3, None])
def test_a_handed_card_is_behind_a_port(port):
    with pytest.raises(RemoteProtocolError):
        net.parse_uplink({"uplink": {"port": port}})


@pytest.mark.parametrize("links", [[LINK, LINK], [LINK._replace(interface="eth0")], [LINK._replace(client="a b")]])
def test_links_are_whole_and_different(links):
    with pytest.raises(RemoteProtocolError):
        net.parse_downlinks({**net.downlinks_fields(DOWNLINKS), "links": [link._asdict() for link in links]})


@given(st.lists(st.text("abc= -", min_size=1, max_size=500), max_size=300))
def test_rules_arrive_in_order_and_whole(lines):
    parts = list(net.split_rules("vif4", "".join(f"{line}\n" for line in lines)))
    assert [part.first for part in parts] == [True, *[False] * (len(parts) - 1)]
    assert [part.last for part in parts] == [*[False] * (len(parts) - 1), True]
    assert "".join(part.text for part in parts).splitlines() == lines
    for part in parts:
        assert net.parse_rules(through_json(part._asdict())) == part
        assert len(json.dumps(part._asdict())) < MAX_PAYLOAD
