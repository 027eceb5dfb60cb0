"""Finding records: what a person asks for, newest first on disk, oldest first in the answer.

In: a directory, a filter. Out: entries. May import: segments, recordkeys.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cloison.qrexec.audit.recordkeys import RecordKeys
from cloison.qrexec.audit.segments import Entry, list_segments, read_entry, read_lines

POLL_S = 0.2


@dataclass(frozen=True)
class Filter:
    """Everything must fit; of several words for one thing, one of them. Words may have * and ?."""

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    qubes: tuple[str, ...] = ()
    """As source, target or what it is about."""
    kinds: tuple[str, ...] = ()
    since_ns: int = 0
    until_ns: int = 0

    @property
    def is_about_content(self) -> bool:
        return bool(self.sources or self.targets or self.services or self.verdicts or self.qubes or self.kinds)

    def matches(self, entry: Entry) -> bool:
        if entry.time_ns < self.since_ns or (self.until_ns and entry.time_ns > self.until_ns):
            return False
        fields = entry.fields
        if fields is None:
            return not self.is_about_content
        names = {name: str(fields.get(name, "")).removeprefix("@dispvm:") for name in ("source", "target", "qube")}
        asked = str(fields.get("requested_target", "")).removeprefix("@dispvm:")
        verdict = "ask" if fields.get("kind") == "prompt" else str(fields.get("verdict", ""))
        return (
            _fits(self.sources, names["source"])
            and _fits(self.targets, names["target"], asked)
            and _fits(self.services, str(fields.get("service", "")))
            and _fits(self.verdicts, verdict, str(fields.get("verdict", "")))
            and _fits(self.qubes, *names.values(), asked)
            and _fits(self.kinds, str(fields.get("kind", "")))
        )


def _fits(patterns: tuple[str, ...], *values: str) -> bool:
    return not patterns or any(value and fnmatchcase(value, pattern) for pattern in patterns for value in values)


def find_entries(directory: Path, wanted: Filter, count: int = 0) -> list[Entry]:
    """The last ``count`` that match (0: all), oldest first."""
    keys = RecordKeys(directory)
    found: list[Entry] = []
    for segment in reversed(list_segments(directory)):
        try:
            entries = [entry for line in read_lines(segment.path) if (entry := read_entry(line, keys)) is not None]
        except FileNotFoundError:
            continue  # removed meanwhile, for want of room
        found = [entry for entry in entries if wanted.matches(entry)] + found
        if (count and len(found) >= count) or (entries and wanted.since_ns > entries[-1].time_ns):
            break
    return found[-count:] if count else found


def follow_entries(directory: Path, wanted: Filter, after: int) -> Iterator[Entry]:
    """Records with a number above ``after``, as they come; never ends."""
    position = 0
    current: Path | None = None
    while True:
        segments = list_segments(directory)
        paths = [segment.path for segment in segments]
        if current not in paths:
            current, position = _segment_after(paths, after), 0
        while current is not None:
            data, position = _read_from(current, position)
            keys = RecordKeys(directory) if data else None
            for entry in _entries(data, keys):
                if entry.number > after and wanted.matches(entry):
                    yield entry
                after = max(after, entry.number)
            later = paths[paths.index(current) + 1 :]
            if not later:
                break
            current, position = later[0], 0
        time.sleep(POLL_S)


def _segment_after(paths: Sequence[Path], number: int) -> Path | None:
    """The file in which the record after ``number`` stands, or will."""
    for path in reversed(paths):
        first = next(read_lines(path), None)
        if first is not None and first.number <= number + 1:
            return path
    return paths[0] if paths else None


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    """Whole lines only."""
    try:
        with path.open("rb") as opened:
            opened.seek(position)
            data = opened.read()
    except FileNotFoundError:
        return b"", position
    whole = data[: data.rfind(b"\n") + 1]
    return whole, position + len(whole)


def _entries(data: bytes, keys: RecordKeys | None) -> Iterator[Entry]:
    from cloison.qrexec.audit.chain import ChainError, parse_line

    for raw in data.split(b"\n")[:-1]:
        try:
            entry = read_entry(parse_line(raw), keys) if keys else None
        except ChainError:
            continue
        if entry is not None:
            yield entry
