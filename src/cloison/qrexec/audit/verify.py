"""Is the record whole? Names the first line that was altered, removed or moved.

In: lines, checkpoints, the first public key. Out: a report. May import: chain, segments, signing, recordkeys.
``Verifier`` is pure; ``verify_directory`` feeds it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloison.qrexec.audit.chain import GENESIS, ChainError, Checkpoint, Line, Tip, parse_checkpoint, parse_line
from cloison.qrexec.audit.recordkeys import RecordKeys
from cloison.qrexec.audit.segments import list_segments, read_removed
from cloison.qrexec.audit.signing import Signing, find_signing, read_root

ATTEMPTS = 5


@dataclass(frozen=True)
class Fault:
    """``number``: the first line that is not as it was written."""

    number: int
    why: str


@dataclass
class Report:
    lines: int = 0
    first: int = 0
    tip: Tip = field(default_factory=Tip)
    checkpoints: int = 0
    signed_until: int = 0
    erased: int = 0
    """Records whose keys were destroyed, by a recorded erasure."""
    fault: Fault | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return self.fault is None


class _Broken(Exception):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.fault = Fault(number, why)


class Verifier:
    """Feed it removed segments' checkpoints, then every segment in order, then ``finish``."""

    def __init__(self, root_key: str, includes: Tip | None = None, *, is_noted: bool = False) -> None:
        """``is_noted``: a person had written ``root_key`` down, so there must be something."""
        self.report = Report()
        self._includes = includes
        self._is_noted = is_noted
        self._key = root_key
        self._serial = 0
        self._known: dict[int, Checkpoint] = {}
        self._hashes: dict[int, str] = {}
        self._tip: Tip | None = None
        self._removed_until = 0
        """Up to where lines are said to have been removed for want of room."""
        self._sealed: dict[str, tuple[int, int]] = {}
        """Key id -> first record under it, how many."""
        self._erased: set[str] = set()

    def feed_removed(self, checkpoints: Sequence[Checkpoint]) -> None:
        for checkpoint in checkpoints:
            self._follow(checkpoint, checkpoint.at)

    def feed_segment(self, raw_lines: Sequence[bytes], *, is_last: bool) -> None:
        """``raw_lines``: the file split at newlines; the last one is empty unless the file ends in a torn line."""
        *whole, rest = raw_lines
        for index, raw in enumerate(whole):
            try:
                line = self._check(raw, whole[index + 1 :])
            except _Broken:
                if is_last and not b"".join([*whole[index + 1 :], rest]).strip(b"\0") and self._may_be_torn(raw):
                    self._note_torn(len(raw))
                    return
                raise
            self._take(line)
        if rest:
            if not is_last:
                raise _Broken(self._expected, f"record {self._expected} is cut in two")
            self._note_torn(len(rest))

    @staticmethod
    def _may_be_torn(raw: bytes) -> bool:
        """Blocks that never reached the disk read as zeros."""
        return b"\0" in raw

    def _note_torn(self, size_bytes: int) -> None:
        what = f"the last line is unfinished ({size_bytes} bytes), by a crash or a power cut"
        self.report.notes.append(f"{what}: the daemon's next start cuts it off")

    @property
    def _expected(self) -> int:
        return self._tip.number + 1 if self._tip else 1

    def _check(self, raw: bytes, following: Sequence[bytes]) -> Line:
        try:
            line = parse_line(raw)
        except ChainError as error:
            raise _Broken(self._expected, f"record {self._expected} was altered: {error}") from None
        if not line.is_sound:
            number = line.number if self._tip is None and self._known else self._expected
            raise _Broken(number, f"record {number} was altered")
        if self._tip is None:
            if line.number == 1 and line.previous != GENESIS:
                raise _Broken(1, "record 1 was altered")
            if line.number > 1 and any(_number_of(other) == 1 for other in following):
                raise _Broken(1, f"record 1 was moved: record {line.number} stands in its place")
            return line
        expected = self._expected
        if line.number != expected:
            if any(_number_of(other) == expected for other in following):
                raise _Broken(expected, f"record {expected} was moved: record {line.number} stands in its place")
            if line.number > expected:
                until = f" to {line.number - 1}" if line.number - 1 > expected else ""
                raise _Broken(expected, f"record {expected}{until} is missing")
            raise _Broken(expected, f"record {line.number} stands in the place of record {expected}")
        if line.previous != self._tip.hash:
            raise _Broken(
                self._tip.number, f"record {self._tip.number} was replaced: record {expected} follows another"
            )
        return line

    def _take(self, line: Line) -> None:
        report = self.report
        if self._tip is None:
            report.first = line.number
        self._tip = report.tip = line.tip
        report.lines += 1
        self._hashes[line.number] = line.hash
        if self._includes is not None and line.number == self._includes.number and line.hash != self._includes.hash:
            raise _Broken(line.number, f"record {line.number} is not the one that was noted down")
        fields = line.fields
        for key in fields.get("k", ()):
            first, count = self._sealed.get(key, (line.number, 0))
            self._sealed[key] = (first, count + 1)
        if "checkpoint" in fields:
            try:
                checkpoint = parse_checkpoint(fields["checkpoint"])
            except ChainError as error:
                raise _Broken(line.number, f"record {line.number}: {error}") from None
            self._follow(checkpoint, line.number)
        body = fields.get("r")
        if isinstance(body, dict) and body.get("kind") == "audit":
            if body.get("event") == "shortened" and isinstance(body.get("until"), int):
                self._removed_until = max(self._removed_until, body["until"])
            if body.get("event") == "erased":
                self._erased.update(str(body.get("keys", "")).split())

    def _follow(self, checkpoint: Checkpoint, number: int) -> None:
        """A checkpoint in its place (line ``number``): the right signature, and on what we saw."""
        if checkpoint.serial <= self._serial:
            if self._known.get(checkpoint.serial, checkpoint) != checkpoint:
                raise _Broken(number, f"record {number} is a second checkpoint {checkpoint.serial}")
            return
        if checkpoint.serial != self._serial + 1:
            if not self._serial and self.report.first > 1:
                raise _Broken(1, f"records 1 to {self.report.first - 1} are missing")
            raise _Broken(number, f"checkpoint {self._serial + 1} is missing before record {number}")
        if not checkpoint.is_signed_by(self._key):
            whose = "the given key" if self._serial == 0 else f"the key that checkpoint {self._serial} names"
            raise _Broken(number, f"checkpoint {checkpoint.serial} (record {number}) is not signed by {whose}")
        seen = self._hashes.get(checkpoint.at)
        if seen is not None and seen != checkpoint.hash:
            begin = self.report.signed_until + 1
            raise _Broken(begin, f"one of the records {begin} to {checkpoint.at} was rewritten: they are not "
                                 f"what checkpoint {checkpoint.serial} signed")  # fmt: skip
        if self._tip is not None and checkpoint.at > self._tip.number:
            missing = self._tip.number + 1
            raise _Broken(missing, f"record {missing} is missing: checkpoint {checkpoint.serial} signed more")
        self._serial, self._key = checkpoint.serial, checkpoint.next_key
        self._known[checkpoint.serial] = checkpoint
        self.report.checkpoints = checkpoint.serial
        self.report.signed_until = checkpoint.at
        for old in [known for known in self._hashes if known < checkpoint.at]:
            del self._hashes[old]

    def finish(self, signing: Signing | None, keys: RecordKeys | None) -> Report:
        report = self.report
        if report.first > 1 and self._removed_until < report.first - 1:
            missing = self._removed_until + 1
            raise _Broken(
                missing, f"records {missing} to {report.first - 1} are missing, and nobody recorded removing them"
            )
        if report.first > 1:
            report.notes.append(f"records 1 to {report.first - 1} were removed for want of room, as recorded")
        if self._includes is not None:
            self._check_noted(self._includes.number)
        if signing is None:
            if report.lines or self._is_noted:
                raise _Broken(self._expected, "the signing key is missing: whether the end was cut off cannot be told")
            return report
        self._check_end(signing)
        if keys is not None:
            self._check_keys(keys)
        return report

    def _check_noted(self, number: int) -> None:
        report = self.report
        if not report.lines or number > report.tip.number:
            raise _Broken(self._expected, f"record {self._expected} is missing: record {number} was noted down")
        if number < report.first:
            report.notes.append(f"record {number}, which was noted down, is among the removed ones: not compared")

    def _check_end(self, signing: Signing) -> None:
        """The key for the next checkpoint says how far the log went."""
        last, expected = signing.last, self._expected
        if last is not None:
            if last.at >= expected:
                raise _Broken(expected, f"record {expected} is missing: the end was cut off, {last.at} were signed")
            if last.serial < self._serial:
                raise _Broken(expected, "the signing key is older than the log: somebody put an old one back")
            if last.serial > self._serial + 1:
                raise _Broken(expected, f"record {expected} is missing: the end was cut off, checkpoints and all")
            if last.serial == self._serial + 1:
                what = "the last checkpoint's line is not written yet, or was lost by a crash"
                self.report.notes.append(f"{what}: the daemon writes it again")
            self._follow(last, expected)
        elif self._serial:
            raise _Broken(expected, "the signing key is a new one: somebody replaced it")
        if signing.public_key != self._key:
            raise _Broken(expected, "the signing key is not the one that the last checkpoint names: the end was cut "
                                    "off, or the key was replaced")  # fmt: skip

    def _check_keys(self, keys: RecordKeys) -> None:
        for key_id, (first, count) in self._sealed.items():
            if keys.find(key_id) is not None:
                continue
            if key_id not in self._erased:
                raise _Broken(
                    first, f"record {first} cannot be read: its key {key_id} is gone, and nobody recorded erasing it"
                )
            self.report.erased += count


def _number_of(raw: bytes) -> int:
    try:
        return parse_line(raw).number
    except ChainError:
        return -1


def verify_directory(directory: Path, root_key: str = "", includes: Tip | None = None) -> Report:
    """Check the whole record; tried again where a running daemon changed it meanwhile. ``root_key`` empty: the one that
    lies beside the log."""
    for attempt in range(ATTEMPTS):
        before = _find_signing(directory)
        try:
            report = _verify_once(directory, root_key, includes, before)
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1:
                raise
            continue  # a segment was just removed, for want of room
        after = _find_signing(directory)
        if report.fault is None or _same(before, after) or attempt == ATTEMPTS - 1:
            return report
        time.sleep(0.1 * (attempt + 1))
    raise AssertionError("unreachable")


def _find_signing(directory: Path) -> Signing | None:
    try:
        return find_signing(directory)
    except ChainError:
        return None


def _same(before: Signing | None, after: Signing | None) -> bool:
    return (before.public_key if before else "") == (after.public_key if after else "")


def _verify_once(directory: Path, root_key: str, includes: Tip | None, signing: Signing | None) -> Report:
    verifier = Verifier(root_key or read_root(directory), includes, is_noted=bool(root_key))
    try:
        verifier.feed_removed(read_removed(directory))
        segments = list_segments(directory)
        for segment in segments:
            verifier.feed_segment(segment.path.read_bytes().split(b"\n"), is_last=segment is segments[-1])
        verifier.finish(signing, RecordKeys(directory))
    except _Broken as broken:
        verifier.report.fault = broken.fault
    return verifier.report
