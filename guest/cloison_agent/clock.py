"""qubes.GetDate and qubes.SetDateTime: the time told and taken, in exactly the forms that Qubes knows."""

from __future__ import annotations

import os
import re
import sys
import time

EARLIEST = 1_700_000_000
"""A clock before this is wrong, whoever says so (November 2023)."""
LATEST = 2**33
CLOSE_ENOUGH_S = 2.0
_DATE = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:,(\d{9}))?\+00:00\n?", re.ASCII)
MAX_LINE = 64


def print_date(argument: str) -> int:
    """qubes.GetDate[+nanoseconds]."""
    if argument not in ("", "nanoseconds"):
        print(f"unknown argument {argument!a}", file=sys.stderr)
        return 1
    os.write(1, format_date(time.time_ns(), exact=bool(argument)))
    return 0


def format_date(now_ns: int, *, exact: bool) -> bytes:
    """As ``date -u -Iseconds`` or ``date -u -Ins`` prints it."""
    fraction = f",{now_ns % 10**9:09d}" if exact else ""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 10**9))
    return f"{text}{fraction}+00:00\n".encode()


def parse_date(untrusted_line: bytes) -> int:
    """Nanoseconds since 1970; ValueError for anything but these two forms, and for times that cannot be."""
    import calendar

    match = _DATE.fullmatch(untrusted_line)
    if match is None:
        raise ValueError("not a date in UTC as `date -u -Iseconds` prints it")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    seconds = calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0))
    if time.gmtime(seconds)[:6] != (year, month, day, hour, minute, second):
        raise ValueError("there is no such day or time")
    if not EARLIEST <= seconds <= LATEST:
        raise ValueError("a time that cannot be now")
    return seconds * 10**9 + int(match[7] or 0)


def set_date(_: str) -> int:
    """qubes.SetDateTime: one line on stdin; ignored if our clock is close enough. Runs as root."""
    line = b""
    while len(line) <= MAX_LINE and not line.endswith(b"\n") and (data := os.read(0, MAX_LINE + 1 - len(line))):
        line += data
    return set_clock(line)


def set_clock(untrusted_line: bytes) -> int:
    try:
        wanted_ns = parse_date(untrusted_line)
    except ValueError as error:
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
