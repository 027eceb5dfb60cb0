"""The writer: one daemon's open record.

In: records. Out: lines on disk before ``write`` returns; OSError where there can be none. May import: this package.

What a line survives: the end of the daemon as soon as ``write`` returns (the kernel has it); a loss of power once it
was *settled*: every ``SETTLE_DELAY_S`` while there is something to settle, a thread syncs what was written and replaces
the signing key; then the checkpoint's line is written. Calls do not wait for that.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloison.qrexec.audit.chain import GENESIS, ChainError, Tip, link
from cloison.qrexec.audit.disk import Disk
from cloison.qrexec.audit.record import Fields, Kind, Subject, keep, least, names_of, shape
from cloison.qrexec.audit.recordkeys import RecordKeys
from cloison.qrexec.audit.sealing import seal
from cloison.qrexec.audit.segments import (
    CHECKPOINTS_FILE,
    Segment,
    Tail,
    inspect,
    list_segments,
    read_lines,
    segment_path,
)
from cloison.qrexec.audit.signing import Signing, begin_signing, find_signing, store_signing
from cloison.qrexec.ports import AuditValue

log = logging.getLogger(__name__)

SETTLE_DELAY_S = 2.0
"""Records of this long are not yet signed: what a break-in can rewrite, and a power cut lose."""
RETRY_S = 10.0
SEGMENT_BYTES = 4 << 20
MAX_WAITING = 1000
"""Changes that were made while nothing could be written; further ones are only counted."""


@dataclass(frozen=True)
class Clocks:
    """``boot``: beginning of the id of the start of the machine that ``monotonic_ns`` counts from."""

    wall_ns: Callable[[], int] = time.time_ns
    monotonic_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    boot: str = field(default_factory=lambda: _boot_id())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return ""


@dataclass
class _Settlement:
    """Work for the thread: sync these, then let the next key take the present one's place."""

    signing: Signing
    descriptors: list[int]
    has_new_segment: bool


class AuditLog:
    """An AuditSink. Opening it never fails: where nothing can be written, ``write`` says so each time.

    ``find_subject``: the qube of a name, None if there is none. ``tell``: called with the trouble when nothing can be
    written any more, with "" when it can again.
    """

    def __init__(self, directory: Path, find_subject: Callable[[str], Subject | None], *,
                 limit_bytes: Callable[[], int] = lambda: 0, segment_bytes: int = SEGMENT_BYTES,
                 tell: Callable[[str], None] = lambda trouble: None,
                 disk: Disk | None = None, clocks: Clocks | None = None) -> None:  # fmt: skip
        self.directory = directory
        self.trouble = ""
        self._unsigned_trouble = ""
        self._find_subject = find_subject
        self._limit_bytes = limit_bytes
        self._segment_bytes = segment_bytes
        self._tell = tell
        self._disk = disk or Disk()
        self._clocks = clocks or Clocks()
        self._subjects: dict[str, Subject] = {}
        self._waiting: deque[dict[str, AuditValue]] = deque()
        self._refused = self._lost = 0
        self._fd = -1
        self._number = self._size = 0
        self._is_torn = False
        self._tip = Tip()
        self._unsynced: list[int] = []
        self._has_new_segment = False
        self._unsettled = False
        self._owes_checkpoint = False
        self._removable: list[tuple[int, Path]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.Task[None] | None = None
        self._signing: Signing | None = None
        self._keys: RecordKeys | None = None

    @property
    def descriptor(self) -> int:
        """Of the file that is written now; -1 before the first record."""
        return self._fd

    # -- writing

    def write(self, record: Mapping[str, AuditValue]) -> None:
        """Keep a record before what it tells of is done. OSError: it is not kept, so nothing may be done."""
        prepared = self._prepare(record)
        if prepared is None:
            return
        try:
            self._write_now(*prepared)
        except OSError as error:
            self._refused += 1
            self._know_trouble(error)
            raise

    def note(self, record: Mapping[str, AuditValue]) -> None:
        """Keep a record of what no full disk may prevent, as what the person here does: now, or when it can."""
        stamped = {**record, "at_ns": self._clocks.wall_ns()} if self.trouble else dict(record)
        try:
            self.write(stamped)
        except OSError:
            self._refused -= 1
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append({**record, "at_ns": self._clocks.wall_ns()})
            else:
                self._lost += 1

    def _prepare(self, record: Mapping[str, AuditValue]) -> tuple[dict[str, AuditValue], tuple[Subject, ...]] | None:
        shaped = shape(record)
        subjects: dict[str, Subject] = {}
        for name in names_of(shaped):
            if (subject := self._subject(name)) is not None:
                subjects[subject.uuid] = subject
        found = tuple(subjects.values())
        kept = keep(shaped, least(found))
        return None if kept is None else (kept, found)

    def _subject(self, name: str) -> Subject | None:
        """Also of a qube that is gone by now: the last words about it are under its own key."""
        found = self._find_subject(name)
        if found is None:
            return self._subjects.get(name)
        if len(self._subjects) > 4096:
            self._subjects.clear()
        self._subjects[name] = found
        return found

    def _write_now(self, kept: Fields, subjects: Sequence[Subject]) -> None:
        self._make_ready()
        if self._owes_checkpoint:
            self._write_checkpoint()
        if self._size >= self._segment_bytes:
            self._begin_segment()
            self._shorten()
        self._append(self._stamped(kept, subjects))
        self._unsettled = True
        if self.trouble:
            self._know_recovery()
        self._plan_settle(SETTLE_DELAY_S)

    def _stamped(self, body: Fields, subjects: Sequence[Subject]) -> dict[str, Any]:
        clocks = self._clocks
        stamp: dict[str, Any] = {"t": clocks.wall_ns(), "m": clocks.monotonic_ns(), "b": clocks.boot}
        if not subjects:
            return {**stamp, "r": dict(body)}
        assert self._keys is not None
        keys = [self._keys.of(subject) for subject in subjects]
        sealed = seal(self._tip.number + 1, body, [key.key for key in keys])
        return {**stamp, "k": [key.id for key in keys], "x": sealed}

    def _append(self, fields: Mapping[str, Any]) -> None:
        """One line, whole or not at all."""
        line, tip = link(self._tip, fields)
        if self._is_torn:
            self._disk.truncate(self._fd, self._size)
            self._is_torn = False
        try:
            written = self._disk.write(self._fd, line)
        except OSError:
            self._take_back()
            raise
        if written != len(line):
            self._take_back()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
        self._tip = tip
        self._size += len(line)

    def _take_back(self) -> None:
        """A piece of a line may be there: cut it off, now or before the next line."""
        self._is_torn = True
        try:
            self._disk.truncate(self._fd, self._size)
            self._is_torn = False
        except OSError as error:
            log.error("a torn line could not be cut off yet: %s", error)

    # -- places

    def _make_ready(self) -> None:
        """Open, and still the same file that was written last. OSError otherwise."""
        if self._fd < 0:
            self._open()
            return
        path = segment_path(self.directory, self._number)
        here = os.fstat(self._fd)
        try:
            there = path.stat()
            same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
        except FileNotFoundError:
            same = False
        size_is_ours = self._is_torn or here.st_size == self._size
        if same and size_is_ours:
            return
        # Somebody took the file away or wrote in it. What is said from now on stands in a new one that goes on from
        # what we know was written, so that `verify` names what is missing.
        self.directory.stat()  # it must be there: a disk that was unmounted is not replaced by a directory
        self._unsynced.append(self._fd)
        self._fd = -1
        self._begin_segment()
        self._append(self._stamped({"kind": Kind.AUDIT.value, "event": "changed", "reason": _changed(path, same)}, ()))

    def _open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keys = RecordKeys(self.directory, self._disk)
        try:
            signing = find_signing(self.directory)
        except ChainError as error:
            log.error("%s: a new chain of keys begins, which `cloison audit verify` will tell", error)
            signing = None
        self._signing = signing or begin_signing(self.directory, self._disk)
        repaired = self._find_end()
        if repaired:
            log.warning("the audit log was repaired: %s", repaired)
            self._append(self._stamped({"kind": Kind.AUDIT.value, "event": "repaired", "reason": repaired}, ()))
            self._unsettled = True

    def _find_end(self) -> str:
        """Open the last segment where it ends, or the next; says what was wrong with it."""
        assert self._signing is not None
        last = self._signing.last
        signed = Tip(last.at, last.hash) if last else Tip()
        self._owes_checkpoint = last is not None
        segments = list_segments(self.directory)
        self._number = segments[-1].number if segments else 0
        cut = 0
        while segments:
            segment = segments.pop()
            tail = inspect(segment.path)
            if tail.tip is None and (tail.is_torn or not tail.size_bytes):
                cut += tail.size_bytes
                self._disk.unlink(segment.path)  # begun, and not one line came whole to the disk
                continue
            is_damaged = tail.size_bytes > tail.good_bytes and not tail.is_torn
            if tail.tip is None or tail.tip.number < signed.number or is_damaged:
                self._tip = max(tail.stated or Tip(), signed, key=lambda tip: tip.number)
                self._begin_segment()
                return f"{segment.path.name} is damaged or too short; it goes on after record {self._tip.number}"
            cut += tail.size_bytes - tail.good_bytes
            self._go_on_in(segment, tail.tip, tail)
            return f"an unfinished line of {cut} bytes was cut off" if cut else ""
        self._tip = signed
        self._begin_segment()
        return "the log was gone" if signed.number else ""

    def _go_on_in(self, segment: Segment, tip: Tip, tail: Tail) -> None:
        fd = self._disk.open_to_append(segment.path)
        try:
            if tail.size_bytes != tail.good_bytes:
                self._disk.truncate(fd, tail.good_bytes)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size, self._number, self._tip = fd, tail.good_bytes, segment.number, tip
        last = self._signing.last if self._signing else None
        self._owes_checkpoint = last is not None and tail.checkpoint != last

    def _begin_segment(self) -> None:
        """The next file, whose first line goes on from the last line of the one before."""
        number = max([self._number, *(segment.number for segment in list_segments(self.directory))]) + 1
        path = segment_path(self.directory, number)
        fd = self._disk.open_to_append(path)
        before = self._fd, self._size, self._number
        self._fd, self._size, self._number = fd, 0, number
        try:
            self._append({"segment": number, "b": self._clocks.boot})
        except BaseException:
            self._fd, self._size, self._number = before
            os.close(fd)
            raise
        if before[0] >= 0:
            self._unsynced.append(before[0])
        self._has_new_segment = True

    def _shorten(self) -> None:
        """Above the limit, plan to remove the oldest segments: recorded first, done once that record is settled."""
        limit = self._limit_bytes()
        planned = {path for _, path in self._removable}
        segments = [segment for segment in list_segments(self.directory) if segment.path not in planned]
        total = sum(segment.path.stat().st_size for segment in segments)
        doomed: list[Segment] = []
        while limit and total > limit and len(segments) > 1:
            doomed.append(segments.pop(0))
            total -= doomed[-1].path.stat().st_size
        if not doomed:
            return
        kept_from = next(read_lines(segments[0].path)).number
        self._append(self._stamped({"kind": Kind.AUDIT.value, "event": "shortened", "until": kept_from - 1,
                                    "reason": f"older than fits into {limit >> 20} MiB"}, ()))  # fmt: skip
        self._removable += [(self._tip.number, segment.path) for segment in doomed]

    def _remove_old(self) -> None:
        assert self._signing is not None and self._signing.last is not None
        signed = self._signing.last.at
        for number, path in list(self._removable):
            if number <= signed:
                self._keep_checkpoints(path)
                self._disk.unlink(path)
                self._removable.remove((number, path))

    def _keep_checkpoints(self, path: Path) -> None:
        lines = [line for line in read_lines(path) if "checkpoint" in line.fields]
        data = b"".join(
            b"\n" + link(Tip(line.number - 1, GENESIS), {"checkpoint": line.fields["checkpoint"]})[0] for line in lines
        )
        fd = self._disk.open_to_append(self.directory / CHECKPOINTS_FILE)
        try:
            size = os.fstat(fd).st_size
            if self._disk.write(fd, data) != len(data):
                self._disk.truncate(fd, size)
                raise OSError(28, "no space left for checkpoints")
            self._disk.sync(fd)
            self._disk.sync_directory(self.directory)
        finally:
            os.close(fd)

    # -- settling: sync, change the key, write the checkpoint

    def _plan_settle(self, delay_s: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # without a loop, whoever writes settles
        if self._timer is None and self._settling is None:
            self._timer = loop.call_later(delay_s, self._start_settling)

    def _start_settling(self) -> None:
        self._timer = None
        self._settling = asyncio.create_task(self._settle_in_thread(), name="audit checkpoint")

    async def _settle_in_thread(self) -> None:
        delay = SETTLE_DELAY_S
        try:
            work = self._begin_settlement()
            if work is not None:
                try:
                    await asyncio.to_thread(self._carry_out, work)
                except OSError:
                    self._give_up_settlement(work)
                    raise
                self._end_settlement(work)
        except OSError as error:
            self._know_unsigned(error)
            delay = RETRY_S
        finally:
            self._settling = None
        if self._unsettled:
            self._plan_settle(delay)

    def settle(self) -> None:
        """The same, now and here: afterwards everything written so far is on the disk and signed. OSError. Not while
        the thread does it."""
        work = self._begin_settlement()
        if work is not None:
            try:
                self._carry_out(work)
            except OSError:
                self._give_up_settlement(work)
                raise
            self._end_settlement(work)

    def _begin_settlement(self) -> _Settlement | None:
        if not self._unsettled or self._signing is None:
            return None
        work = _Settlement(self._signing.succeed(self._tip), [*self._unsynced, os.dup(self._fd)], self._has_new_segment)
        self._unsettled, self._unsynced, self._has_new_segment = False, [], False
        return work

    def _carry_out(self, work: _Settlement) -> None:
        """In a thread. The old key is gone from the disk before its checkpoint is written anywhere else."""
        try:
            for descriptor in work.descriptors:
                self._disk.sync(descriptor)
            if work.has_new_segment:
                self._disk.sync_directory(self.directory)
            store_signing(self.directory, work.signing, self._disk)
        finally:
            for descriptor in work.descriptors:
                os.close(descriptor)

    def _give_up_settlement(self, work: _Settlement) -> None:
        self._unsettled = True
        self._has_new_segment = self._has_new_segment or work.has_new_segment
        self._find_signing_again()

    def _find_signing_again(self) -> None:
        """A replacement that failed may have come to pass all the same: what is on the disk counts."""
        try:
            found = find_signing(self.directory)
        except (OSError, ChainError):
            return
        if found is not None and self._signing is not None and found.public_key != self._signing.public_key:
            self._signing, self._owes_checkpoint = found, True

    def _end_settlement(self, work: _Settlement) -> None:
        self._signing, self._owes_checkpoint = work.signing, True
        self._unsigned_trouble = ""
        self._make_ready()
        self._write_checkpoint()
        self._remove_old()

    def _write_checkpoint(self) -> None:
        assert self._signing is not None and self._signing.last is not None
        self._append({"checkpoint": self._signing.last.to_json()})
        self._owes_checkpoint = False

    # -- erasing

    async def erase(self, name: str, *, who: str) -> int:
        """Destroy the keys of every qube of that name; how many there were. OSError if that cannot be recorded."""
        await self._settled()
        self._make_ready()
        assert self._keys is not None
        ids = self._keys.find_ids(name)
        if ids:
            self.write({"kind": Kind.AUDIT.value, "event": "erased", "keys": " ".join(ids), "who": who})
            self.settle()
            self._keys.destroy(ids)
            self._subjects.pop(name, None)
        return len(ids)

    async def _settled(self) -> None:
        """No thread is at work, and none will be before the next pause."""
        while self._settling is not None:
            await asyncio.wait({self._settling})
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- trouble

    def _know_trouble(self, error: OSError) -> None:
        trouble = error.strerror or str(error)
        if trouble != self.trouble:
            self.trouble = trouble
            log.critical("the audit log in %s cannot be written: %s", self.directory, trouble)
            self._tell(trouble)

    def _know_unsigned(self, error: OSError) -> None:
        if str(error) != self._unsigned_trouble:
            self._unsigned_trouble = str(error)
            log.error("the audit log could not be signed, which will be tried again: %s", error)

    def _know_recovery(self) -> None:
        """Called after a line was written: say so, and write what could not be written before."""
        refused, lost, late = self._refused, self._lost, list(self._waiting)
        reason, self.trouble = self.trouble, ""
        self._refused = self._lost = 0
        self._waiting.clear()
        log.warning("the audit log can be written again")
        self._tell("")
        self.note({"kind": Kind.AUDIT.value, "event": "resumed", "reason": reason, "refused": refused, "lost": lost})
        for record in late:
            self.note(record)

    async def close(self) -> None:
        """Settle and end. Trouble is logged: there is nobody left to refuse anything to."""
        await self._settled()
        try:
            self.settle()
        except OSError as error:
            log.error("the audit log could not be settled at the end: %s", error)
        for descriptor in (self._fd, *self._unsynced):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd, self._unsynced = -1, []


def _changed(path: Path, same: bool) -> str:
    return f"{path.name} was {'changed' if same else 'taken away'} by somebody else"
