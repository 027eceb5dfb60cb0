"""The files of the record: segments of lines, and what is left of segments that were removed.

In: a directory. Out: lines, and where a file stops making sense. May import: chain, recordkeys, sealing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloison.qrexec.audit.chain import ChainError, Checkpoint, Line, Tip, parse_checkpoint, parse_line
from cloison.qrexec.audit.recordkeys import RecordKeys
from cloison.qrexec.audit.sealing import SealBroken, open_sealed

CHECKPOINTS_FILE = "checkpoints"
"""Checkpoints of segments that were removed, so that the keys can still be followed from the first one."""
_SEGMENT = re.compile(r"(\d{8,})\.log")


@dataclass(frozen=True)
class Segment:
    number: int
    path: Path


def list_segments(directory: Path) -> list[Segment]:
    """In the order of their numbers; none if there is no directory."""
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    found = [(int(match[1]), name) for name in names if (match := _SEGMENT.fullmatch(name))]
    return [Segment(number, directory / name) for number, name in sorted(found)]


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"{number:08}.log"


@dataclass(frozen=True)
class Tail:
    """How a segment ends. ``good_bytes``: up to the last line that follows from all before it in this file."""

    tip: Tip | None
    """Of the last good line; None if there is no good one."""
    good_bytes: int
    size_bytes: int
    is_torn: bool
    """What comes after the good lines is the unfinished end of one write, as a power cut leaves it."""
    stated: Tip | None
    """What the last line that can be read says of itself, good or not."""
    checkpoint: Checkpoint | None


def inspect(path: Path) -> Tail:
    data = path.read_bytes()
    tip: Tip | None = None
    stated: Tip | None = None
    checkpoint: Checkpoint | None = None
    good = start = 0
    for raw in data.split(b"\n")[:-1]:
        end = start + len(raw) + 1
        try:
            line = parse_line(raw)
        except ChainError:
            start = end
            continue
        stated = line.tip
        if (
            good == start
            and line.is_sound
            and (tip is None or (line.number, line.previous) == (tip.number + 1, tip.hash))
        ):
            tip, good = line.tip, end
            checkpoint = _checkpoint_of(line) or checkpoint
        start = end
    rest = data[good:]
    # One torn write: what follows has no second line in it. Blocks that never reached the disk read as zeros.
    is_torn = b"\n" not in rest.rstrip(b"\0\n")
    return Tail(tip, good, len(data), bool(rest) and is_torn, stated, checkpoint)


def _checkpoint_of(line: Line) -> Checkpoint | None:
    try:
        return parse_checkpoint(line.fields["checkpoint"]) if "checkpoint" in line.fields else None
    except ChainError:
        return None


def read_removed(directory: Path) -> list[Checkpoint]:
    """The checkpoints of removed segments, in order. What cannot be read is left out: its number is missing."""
    try:
        lines = (directory / CHECKPOINTS_FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found: list[Checkpoint] = []
    for raw in lines[:-1]:
        try:
            checkpoint = _checkpoint_of(parse_line(raw))
        except ChainError:
            continue
        if checkpoint is not None and not (found and checkpoint.serial <= found[-1].serial):  # kept twice, by a crash
            found.append(checkpoint)
    return found


@dataclass(frozen=True)
class Entry:
    """One record as people see it. ``fields`` None: its qube's key was destroyed."""

    number: int
    time_ns: int
    monotonic_ns: int
    boot: str
    fields: dict[str, Any] | None
    keys: tuple[str, ...]


def read_entry(line: Line, keys: RecordKeys) -> Entry | None:
    """None for lines that only hold the chain together."""
    fields = line.fields
    ids = tuple(fields.get("k", ()))
    if "r" in fields:
        body = fields["r"]
    elif "x" in fields:
        found = [keys.find(key) for key in ids]
        try:
            body = open_sealed(line.number, fields["x"], [k for k in found if k]) if all(found) else None
        except SealBroken:
            body = None
    else:
        return None
    return Entry(line.number, fields.get("t", 0), fields.get("m", 0), fields.get("b", ""), body, ids)


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that can be read; what cannot is for ``verify`` to judge."""
    with path.open("rb") as opened:
        for raw in opened:
            try:
                yield parse_line(raw.rstrip(b"\n"))
            except ChainError:
                continue
