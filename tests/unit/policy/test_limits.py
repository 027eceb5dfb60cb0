"""Limit rules: text to rules, and which limits hold for a call."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.policy import PolicyError, SystemInfo
from cloison.policy.limits import BUILT_IN, Kind, LimitedCall, LimitSet, LimitSource, parse_limits

SYSTEM = SystemInfo.parse({
    "domains": {
        "work": {"type": "AppVM", "tags": ["office"], "default_dispvm": "dvm"},
        "vault": {"type": "AppVM"},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
})  # fmt: skip


def limits(text: str, source: str, target: str, service: str) -> dict[str, str]:
    found = LimitSet((*parse_limits(text, "f"), *BUILT_IN)).find(
        LimitedCall.of(SYSTEM, source, target, service), SYSTEM
    )
    return {kind.value: held.limit.text for kind, held in found.items()}


TABLE = """
# comments and empty lines are passed over

qubes.Filecopy  *       work         vault     bytes=1G time=10m
qubes.Filecopy  +x      @anyvm       @anyvm    calls=1
qubes.Filecopy  *       @tag:office  @anyvm    bytes=none calls=4
*               *       vault        @anyvm    rate=30/m
qubes.OpenURL   *       @anyvm       @dispvm   calls=2
"""


@pytest.mark.parametrize(
    ("source", "target", "service", "expected"),
    [
        ("work", "vault", "qubes.Filecopy", {"bytes": "1G", "time": "10m", "calls": "4", "rate": "500/s"}),
        ("work", "vault", "qubes.Filecopy+x", {"bytes": "1G", "time": "10m", "calls": "1", "rate": "500/s"}),
        ("work", "@default", "qubes.Filecopy+", {"calls": "4", "rate": "500/s"}),
        ("vault", "work", "test.Any", {"calls": "128", "rate": "30/m"}),
        ("work", "@dispvm", "qubes.OpenURL", {"calls": "2", "rate": "500/s"}),
        ("work", "@dispvm:dvm", "qubes.OpenURL", {"calls": "128", "rate": "500/s"}),
        ("work", "no-such-qube", "qubes.OpenURL", {"calls": "128", "rate": "500/s"}),
        ("work", "dom0", "qubes.GetDate", {"calls": "128", "rate": "500/s"}),
    ],
)
def test_the_first_line_that_speaks_of_a_kind_of_limit_wins(source, target, service, expected):
    assert limits(TABLE, source, target, service) == expected


def test_units():
    (rule,) = parse_limits("* * * * calls=0 rate=2/h bytes=3K time=2d", "f")
    values = {limit.kind: limit.rate or limit.value for limit in rule.limits}
    assert values == {Kind.CALLS: 0, Kind.RATE: (2, 3600.0), Kind.BYTES: 3072, Kind.TIME: 172800.0}
    assert str(rule) == "* * * * calls=0 rate=2/h bytes=3K time=2d"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a * * *", "at least 5 words"),
        ("a b * * calls=1", "argument 'b' must be"),
        ("a * @default * calls=1", "may not stand in the source column"),
        ("a * * * calls=1 calls=2", "given twice"),
        ("a * * * calls=-1", "calls=8"),
        ("a * * * calls=1.5", "calls=8"),
        ("a * * * calls=\u0661", "calls=8"),
        ("a * * * rate=5", "rate=5/s"),
        ("a * * * rate=0/s", "rate=5/s"),
        ("a * * * bytes=1Q", "bytes=2G"),
        ("a * * * time=5", "time=10m"),
        ("a * * * size=5", "no limit"),
        ("a * * * allow", "no limit"),
    ],
)
def test_a_bad_line_is_named(line, message):
    with pytest.raises(PolicyError, match=message) as caught:
        list(parse_limits("# first\n" + line, "/etc/x.limits"))
    assert str(caught.value).startswith("/etc/x.limits:2: ")


@given(st.text(alphabet="ab*+@:= \t\n#0159/sKM.callsrtebyim", max_size=60))
def test_whatever_is_written_only_the_declared_error_leaves(text):
    try:
        for rule in parse_limits(text, "f"):
            assert next(iter(parse_limits(str(rule), "f"))).limits == rule.limits
    except PolicyError:
        pass


def test_files_are_read_again_when_they_change_and_a_broken_one_is_said(tmp_path: Path):
    source = LimitSource(tmp_path / "limits.d")
    assert source.current().rules == BUILT_IN
    (tmp_path / "limits.d").mkdir()
    (tmp_path / "limits.d" / "30-user.limits").write_text("* * work * calls=2\n")
    (tmp_path / "limits.d" / "20-first.limits").write_text("* * vault * calls=1\n")
    (tmp_path / "limits.d" / "ignored.txt").write_text("nonsense\n")
    assert [rule.source.text for rule in source.current().rules] == ["vault", "work", "@anyvm"]
    (tmp_path / "limits.d" / "30-user.limits").write_text("* * work * calls=two\n")
    with pytest.raises(PolicyError, match=r"30-user.limits:1: 'calls=two' is not understood"):
        source.current()
    (tmp_path / "limits.d" / "30-user.limits").write_text("")
    mended = source.current()
    assert len(mended.rules) == 2 and source.current() is mended
    (tmp_path / "limits.d" / "Upper.limits").write_text("")
    with pytest.raises(PolicyError, match="file name"):
        source.current()
