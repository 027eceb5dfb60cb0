"""qubes.GetDate and qubes.SetDateTime: the time told and taken."""

from __future__ import annotations

import os
import sys
import time

from cloison.wire.dates import MAX_LINE, format_date, parse_date
from cloison.wire.errors import RemoteProtocolError

CLOSE_ENOUGH_S = 2.0


def print_date(argument: str) -> int:
    """qubes.GetDate[+nanoseconds]."""
    if argument not in ("", "nanoseconds"):
        print(f"unknown argument {argument!a}", file=sys.stderr)
        return 1
    os.write(1, format_date(time.time_ns(), exact=bool(argument)))
    return 0


def set_date(_: str) -> int:
    """qubes.SetDateTime: one line on stdin; ignored if our clock is close enough. Runs as root."""
    line = b""
    while len(line) <= MAX_LINE and not line.endswith(b"\n") and (data := os.read(0, MAX_LINE + 1 - len(line))):
        line += data
    return set_clock(line)


def set_clock(untrusted_line: bytes) -> int:
    try:
        wanted_ns = parse_date(untrusted_line)
    except RemoteProtocolError as error:
        print(error, file=sys.stderr)
        return 1
    if abs(time.time_ns() - wanted_ns) <= CLOSE_ENOUGH_S * 1e9:
        return 0
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, wanted_ns)
    except OSError as error:
        print(f"the clock cannot be set: {error.strerror}", file=sys.stderr)
        return 1
    return 0
