"""Programs of a qube, as it names them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire.appmenus import MAX_APPS, MAX_BYTES, App, dump_apps, load_apps, parse_menu
from cloison.wire.errors import RemoteProtocolError


def test_what_a_menu_needs_is_taken_and_the_rest_left_out() -> None:
    lines = """org.x.Edit.desktop:Name=Éditeur \u202e\x1b[31m
org.x.Edit.desktop:Exec=qubes-desktop-run org.x.Edit.desktop
org.x.Edit.desktop:Icon=../../etc/passwd
org.x.Edit.desktop:Categories=Office;`id`
org.x.Edit.desktop:X-Other=a=b
z.desktop:Exec=x
z.desktop:Icon=pen
z.desktop:Categories=Office;Viewer;
none.desktop:Name=No command
hidden.desktop:Exec=x
hidden.desktop:NoDisplay=true
""".encode()
    apps = parse_menu(lines)
    assert apps == (App("z", "z", "", "Office;Viewer;", "pen"), App("org.x.Edit", "Éditeur [31m"))
    assert load_apps(dump_apps(apps)) == apps
    assert dump_apps(apps).isascii()


@pytest.mark.parametrize(
    "lines",
    [
        b"x",
        b"x.desktop",
        b"x.desktop:Name",
        b"../x.desktop:Name=y",
        b"-x.desktop:Name=y",
        b".desktop:Name=y",
        b"x y.desktop:Name=z",
        b"\xff.desktop:Name=y",
        b"x" * 129 + b".desktop:Name=y",
        b"x" * (MAX_BYTES + 1),
        b"".join(b"a%d.desktop:Name=x\n" % n for n in range(MAX_APPS + 1)),
    ],
    ids=lambda lines: repr(lines[:20]),
)
def test_what_no_honest_qube_sends_is_refused(lines: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_menu(lines)


@given(st.binary(max_size=400) | st.text(alphabet="a.desktop:Exc=N\n", max_size=200).map(str.encode))
def test_only_the_declared_error_leaves(data: bytes) -> None:
    try:
        apps = parse_menu(data)
    except RemoteProtocolError:
        return
    assert load_apps(dump_apps(apps)) == apps


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"id":"x"}]', "[" * 5000, "null"])
def test_a_feature_that_somebody_else_wrote_is_no_list(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        load_apps(text)
