"""What text is accepted as a name, a value, a rule: tables with hostile rows."""

from __future__ import annotations

import pytest

from cloison.errors import BadRequest
from cloison.model import values
from cloison.model.addresses import disposable_ip, disposable_ip6, parse_ip4, qube_ip, qube_ip6
from cloison.model.firewall import parse_rules, unexpired
from cloison.model.labels import parse_colour, parse_label_name
from cloison.model.names import parse_qube_name

GOOD_NAMES = ["a", "Z9", "work-2.old_x", "x" * 31, "dom0", "None", "NONE", "Default", "a-dm-b", "sys-net"]
BAD_NAMES = [
    "", "x" * 32, "1work", "-work", "_work", ".work", "wörk", "wоrk", "a b", "a\n", "a\0b", "a/b", "../x", "a+b",
    "@dispvm", "$x", "none", "default", "Domain-0", "work-dm", "a'b", 'a"', "%s", "{}", "\x1b[31m", "uuid:1",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names(name):
    assert parse_qube_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_and_shown_harmlessly(name):
    with pytest.raises(BadRequest) as caught:
        parse_qube_name(name)
    assert str(caught.value).isprintable() and str(caught.value).isascii()


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (values.parse_bool, "YES", True),
        (values.parse_bool, "off", False),
        (values.parse_bool, "1", True),
        (values.parse_bool, "False", False),
        (values.parse_int, "-5", -5),
        (values.parse_positive, "400", 400),
        (values.parse_natural, "0", 0),
        (values.parse_vm, "", None),
        (values.parse_vm, "None", None),
        (values.parse_vm, "work", "work"),
        (values.parse_mac, "00:16:3E:5E:6C:00", "00:16:3e:5e:6c:00"),
        (values.parse_interfaces, "u03****b******", "b******u03****"),
        (values.parse_interfaces, "b******b******", "b******"),
        (values.parse_interfaces, "", ""),
        (values.parse_keyboard, "us++", "us++"),
        (values.parse_keyboard, "pl+dvorak+compose:ralt", "pl+dvorak+compose:ralt"),
        (values.one_of("pvh", "hvm"), "PVH", "pvh"),
        (values.optional(values.parse_positive), "", None),
        (parse_ip4, "10.137.0.9", "10.137.0.9"),
        (parse_colour, "0xFF00aa", "0xFF00aa"),
        (parse_label_name, "dark.red_2-x", "dark.red_2-x"),
    ],
)
def test_good_values(parse, text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (values.parse_bool, ""),
        (values.parse_bool, "2"),
        (values.parse_bool, "truely"),
        (values.parse_int, "4e2"),
        (values.parse_int, "0x10"),
        (values.parse_int, "1_000"),
        (values.parse_int, "9" * 30),
        (values.parse_int, "٣"),
        (values.parse_positive, "0"),
        (values.parse_positive, "-1"),
        (values.parse_natural, "-1"),
        (values.parse_text, "a\x1b[0m"),
        (values.parse_text, "ü"),
        (values.parse_text, "x" * 5000),
        (values.parse_vm, "no such thing!"),
        (values.parse_mac, "00:16:3e:5e:6c"),
        (values.parse_mac, "00-16-3e-5e-6c-00"),
        (values.parse_interfaces, "b*****"),
        (values.parse_interfaces, "B******"),
        (values.parse_keyboard, "us"),
        (values.parse_user, "root; rm"),
        (values.parse_user, ""),
        (values.parse_kernel, "../../boot/vmlinuz"),
        (values.parse_kernel_options, "x" * 513),
        (values.parse_pool_name, "a b"),
        (parse_ip4, "10.137.0"),
        (parse_ip4, "010.1.1.1"),
        (parse_colour, "red"),
        (parse_colour, "0xff00f"),
        (parse_label_name, "123"),
        (parse_label_name, "dark red"),
    ],
)
def test_bad_values(parse, text):
    with pytest.raises(BadRequest):
        parse(text)


def test_addresses_follow_from_numbers():
    assert [qube_ip(n) for n in (1, 9, 254, 255, 256, 508, 509, 10000)] == [
        "10.137.0.1", "10.137.0.9", "10.137.0.254", "10.137.1.1", "10.137.1.2", "10.137.1.254", "10.137.2.1",
        "10.137.39.94",
    ]  # fmt: skip
    assert disposable_ip(0) == "10.138.0.0"
    assert disposable_ip(9999) == "10.138.39.93"
    assert (qube_ip6(26), disposable_ip6(9999)) == ("fd09:24ef:4179::a89:1a", "fd09:24ef:4179::a8a:270f")
    every = [qube_ip(n) for n in range(1, 10001)]
    assert len(set(every)) == len(every)
    assert not any(ip.endswith((".0", ".255")) for ip in every)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("action=accept", "action=accept\n"),
        ("action=drop\n\naction=accept\n", "action=drop\naction=accept\n"),
        ("proto=tcp dstports=80 action=accept", "action=accept proto=tcp dstports=80-80\n"),
        ("action=accept dst4=10.0.0.5", "action=accept dst4=10.0.0.5/32\n"),
        ("action=accept dst4=10.0.0.5/8", "action=accept dst4=10.0.0.0/8\n"),
        ("action=accept dsthost=10.0.0.5", "action=accept dst4=10.0.0.5/32\n"),
        ("action=accept dsthost=fd00::1", "action=accept dst6=fd00::1/128\n"),
        ("action=accept dstname=example.com", "action=accept dsthost=example.com\n"),
        ("action=drop comment=no way out, ever", "action=drop comment=no way out, ever\n"),
        ("comment=a proto=b action=drop", None),
        ("action=accept proto=icmp icmptype=8 expire=99", "action=accept expire=99 proto=icmp icmptype=8\n"),
        ("action=accept specialtarget=dns", "action=accept specialtarget=dns\n"),
        ("", None),
        ("action=maybe", None),
        ("proto=tcp", None),
        ("action=accept action=drop", None),
        ("action=accept dst4=10.0.0.5 dsthost=x", None),
        ("action=accept dst4=fd00::1", None),
        ("action=accept dst4=example.com", None),
        ("action=accept dsthost=EXAMPLE.com", None),
        ("action=accept dsthost=x;reboot", None),
        ("action=accept dstports=80", None),
        ("action=accept proto=icmp dstports=80", None),
        ("action=accept proto=tcp dstports=90-80", None),
        ("action=accept proto=tcp dstports=0-65536", None),
        ("action=accept proto=tcp icmptype=1", None),
        ("action=accept proto=icmp icmptype=256", None),
        ("action=accept expire=-1", None),
        ("action=accept comment=$(reboot)", None),
        ("action=accept nonsense", None),
        ("action=accept colour=red", None),
    ],
)
def test_firewall_rules(text, canonical):
    if canonical is None:
        with pytest.raises(BadRequest):
            parse_rules(text)
    else:
        assert parse_rules(text) == canonical
        assert parse_rules(canonical) == canonical, "what Get returned must be accepted by Set"


def test_expired_rules_vanish():
    rules = parse_rules("action=accept expire=100\naction=drop comment=expire 1")
    assert unexpired(rules, 100) == "action=drop comment=expire 1\n"
    assert unexpired(rules, 99) == rules
