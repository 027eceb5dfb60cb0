"""The time, told and read."""

from __future__ import annotations

import time

import pytest

from cloison.wire.dates import format_date, parse_date
from cloison.wire.errors import RemoteProtocolError


@pytest.mark.parametrize("exact", [False, True])
def test_a_date_that_is_told_can_be_read(exact: bool) -> None:
    now = time.time_ns()
    line = format_date(now, exact=exact)
    assert len(line) == (36 if exact else 26)
    assert parse_date(line) == (now if exact else now // 10**9 * 10**9)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"2026-01-01T00:00:00Z\n",
        b"2026-01-01T00:00:00+01:00\n",
        b"2026-01-01 00:00:00+00:00\n",
        b"2026-13-01T00:00:00+00:00\n",
        b"2026-02-30T00:00:00+00:00\n",
        b"2026-01-01T24:00:00+00:00\n",
        b"2026-01-01T00:00:00,123+00:00\n",
        b"2026-01-01T00:00:00+00:00\n\n",
        b"2026-01-01T00:00:00+00:00; reboot\n",
        b"1999-01-01T00:00:00+00:00\n",
        b"9999-01-01T00:00:00+00:00\n",
        b"0000-00-00T00:00:00+00:00\n",
        "２026-01-01T00:00:00+00:00\n".encode(),
        b"x" * 10_000,
    ],
)
def test_anything_else_is_no_date(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_date(line)
