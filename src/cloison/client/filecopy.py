"""Files of this host as a call of qubes.Filecopy: what a qube's ``qvm-copy`` sends, sent from here.

In: paths, a qube. Out: files in the qube's QubesIncoming/dom0, or CopyFailed. May import: wire, client.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloison.client.qrexec import HostCall, OutputClosed, connect
from cloison.client.streams import MemorySink, mask_controls
from cloison.errors import CloisonError
from cloison.layout import Layout
from cloison.wire import LEG_SESSION, Call
from cloison.wire.display_ranges import is_display_safe
from cloison.wire.qfile import ALLOW_ALL_NAMES, END, TRUNCATED, Entry, encode_entry, parse_result

SERVICE = "qubes.Filecopy"
READ_BYTES = 1 << 18
MAX_ANSWER_BYTES = 32768
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

OnSent = Callable[[int], None]
"""Called with the bytes of contents sent so far."""


class CopyFailed(CloisonError):
    """Some, or all, of it did not arrive; ``exit_code`` is the call's where the call itself failed."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


@dataclass
class Survey:
    """What would be sent: how much, whether its names need ``allow-all-names``, and what cannot be sent."""

    total_bytes: int = 0
    all_safe: bool = True
    odd: list[Path] = field(default_factory=list)


def survey(paths: Sequence[Path]) -> Survey:
    """Look at everything first. Raises CopyFailed for what cannot be read."""
    found = Survey()
    for path in paths:
        try:
            for each, _, status, is_end in _walk(path, top_name(path)):
                if is_end:
                    continue
                found.all_safe &= is_display_safe(os.fsencode(each.name) or b"/")
                if stat.S_ISREG(status.st_mode):
                    found.total_bytes += status.st_size
                elif stat.S_ISLNK(status.st_mode):
                    found.all_safe &= is_display_safe(os.fsencode(each.readlink()))
                elif not stat.S_ISDIR(status.st_mode):
                    found.odd.append(each)
        except OSError as error:
            raise CopyFailed(f"cannot read {str(error.filename or path)!a}: {error.strerror}") from None
    return found


def top_name(path: Path) -> str:
    """The name under which the receiver gets it; ``.`` and ``..`` get the one they really have."""
    return path.name if path.name not in ("", "..") else path.resolve().name or "root"


def _walk(top: Path, name: str) -> Iterator[tuple[Path, bytes, os.stat_result, bool]]:
    """Path, name in the stream, status, and whether this is a directory's second time. Without recursion."""
    waiting = [(top, os.fsencode(name), False)]
    while waiting:
        path, sent_as, is_end = waiting.pop()
        status = path.lstat()
        yield path, sent_as, status, is_end
        if stat.S_ISDIR(status.st_mode) and not is_end:
            waiting.append((path, sent_as, True))
            waiting += [(path / inner, sent_as + b"/" + os.fsencode(inner), False) for inner in _names_in(path)]


def _names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


class _BoundedSink(MemorySink):
    """An answer is short; a receiver that never stops talking is cut off (``is_fatal``), or not listened to."""

    def __init__(self, *, is_fatal: bool) -> None:
        super().__init__()
        self._is_fatal = is_fatal

    def put(self, data: bytes | memoryview) -> None:
        self.data += data[: MAX_ANSWER_BYTES - len(self.data)]
        self._fresh += len(data)

    def flush(self) -> int:
        if self._is_fatal and len(self.data) >= MAX_ANSWER_BYTES:
            raise BrokenPipeError
        return super().flush()


class StreamSource:
    """The stream as the standard input of a call (a ``WindowSource``); always readable, like a file.

    Once ``answer`` holds something, nothing more is sent: the receiver has decided.
    """

    def __init__(self, paths: Sequence[Path], answer: MemorySink, on_sent: OnSent) -> None:
        self.crc32 = 0
        self.sent_bytes = 0
        self.is_complete = False
        """Everything was taken, the end of the stream included."""
        self.failure: OSError | None = None
        self._answer, self._on_sent = answer, on_sent
        self._pieces = self._stream(paths)
        self._held = b""
        self._is_packed = False
        self._descriptor, writing = os.pipe()
        os.close(writing)

    def close(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def read(self, limit: int) -> bytes:
        """The next bytes; b"" at the end, early if a file cannot be read or an answer has come."""
        parts, size = ([self._held] if self._held else []), len(self._held)
        while size < limit and not self._answer.data:
            try:
                piece = next(self._pieces, b"")
            except OSError as error:
                self.failure = error
                piece = b""
            if not piece:
                break
            parts.append(piece)
            size += len(piece)
        whole = b"".join(parts) if not self._answer.data and self.failure is None else b""
        data, self._held = whole[:limit], whole[limit:]
        self.crc32 = zlib.crc32(data, self.crc32)
        self.is_complete = self._is_packed and not self._held
        self._on_sent(self.sent_bytes)
        return data

    def _stream(self, paths: Sequence[Path]) -> Iterator[bytes]:
        for top in paths:
            for path, name, status, _ in _walk(top, top_name(top)):
                if stat.S_ISREG(status.st_mode):
                    yield from self._file(path, name)
                elif stat.S_ISLNK(status.st_mode):
                    yield encode_entry(_entry(name, status)._replace(target=os.fsencode(path.readlink())))
                elif stat.S_ISDIR(status.st_mode):
                    yield encode_entry(_entry(name, status))
        self._is_packed = True
        yield END

    def _file(self, path: Path, name: bytes) -> Iterator[bytes]:
        """As long as it was when it was opened, whatever happens to it meanwhile."""
        descriptor = os.open(path, _OPEN)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "was replaced while it was read", str(path))
            yield encode_entry(_entry(name, status))
            left = status.st_size
            while left:
                data = os.read(descriptor, min(left, READ_BYTES))
                if not data:
                    raise OSError(errno.EIO, "became shorter while it was read", str(path))
                left -= len(data)
                self.sent_bytes += len(data)
                yield data
        finally:
            os.close(descriptor)


def _entry(name: bytes, status: os.stat_result) -> Entry:
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return Entry(name, status.st_mode, size, status.st_atime_ns, status.st_mtime_ns)


def copy_files(layout: Layout, target: str, paths: Sequence[Path], *, all_safe: bool, on_sent: OnSent) -> None:
    """Send them; returns when every byte is stored under its final name. Raises CopyFailed, DaemonUnreachable."""
    answer, said = _BoundedSink(is_fatal=True), _BoundedSink(is_fatal=False)
    source = StreamSource(paths, answer, on_sent)
    service = SERVICE if all_safe else f"{SERVICE}+{ALLOW_ALL_NAMES}"
    try:
        call = HostCall(connect(layout), Call(LEG_SESSION, target, service=service), source, (answer, said),
                        forward_signals=True)  # fmt: skip
        ending = call.run()
    except OutputClosed:
        raise CopyFailed(f"{target} says more than any receiver of files would") from None
    finally:
        source.close()
    if source.failure is not None:
        raise CopyFailed(f"cannot read {str(source.failure.filename)!a}: {source.failure.strerror}")
    result = parse_result(bytes(answer.data))
    if result is None:
        why = ending.note or mask_controls(said.data.decode("utf-8", "replace").strip()[-200:])
        raise CopyFailed(why or f"{target} gave no answer", exit_code=ending.code or 1)
    last = ascii(result.last_name[-200:])[2:-1]
    if result.code == 0 and result.crc32 == source.crc32 and source.is_complete:
        return
    if result.code == 0:
        raise CopyFailed("the data were damaged on the way")
    if result.code == TRUNCATED:
        raise CopyFailed("the transfer broke off")
    if result.code == errno.EEXIST:
        raise CopyFailed(f"{target} has it already: {last}", hint=f"it is in QubesIncoming/dom0 of {target}")
    raise CopyFailed(f"{target} could not store {last}: {os.strerror(result.code & 0xFFFF)}")
