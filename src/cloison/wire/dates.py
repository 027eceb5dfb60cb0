"""The time as qubes.GetDate tells it and qubes.SetDateTime takes it: UTC, in exactly two forms.

In: nanoseconds, or an untrusted line. Out: the line ``date -u -Iseconds`` (or ``-Ins``) prints, or nanoseconds. May
import: the standard library, this package.
"""

from __future__ import annotations

import calendar
import re
import time
from typing import Final

from cloison.wire.errors import RemoteProtocolError

EARLIEST_S: Final = 1_700_000_000
"""A clock before this is wrong, whoever says so (November 2023)."""
LATEST_S: Final = 2**33
MAX_LINE: Final = 64
_DATE = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:,(\d{9}))?\+00:00\n?", re.ASCII)


def format_date(now_ns: int, *, exact: bool = False) -> bytes:
    fraction = f",{now_ns % 10**9:09d}" if exact else ""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 10**9))
    return f"{text}{fraction}+00:00\n".encode()


def parse_date(untrusted_line: bytes) -> int:
    """Nanoseconds since 1970. RemoteProtocolError for any other form, and for times that cannot be now."""
    match = _DATE.fullmatch(untrusted_line)
    if match is None:
        raise RemoteProtocolError("not a date in UTC as `date -u -Iseconds` prints it")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        seconds = calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0))
    except ValueError:
        raise RemoteProtocolError("there is no such day") from None
    if time.gmtime(seconds)[:6] != (year, month, day, hour, minute, second):
        raise RemoteProtocolError("there is no such day or time")
    if not EARLIEST_S <= seconds <= LATEST_S:
        raise RemoteProtocolError("a time that cannot be now")
    return seconds * 10**9 + int(match[7] or 0)
