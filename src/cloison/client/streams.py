"""The local ends of a call's streams.

In: descriptors or memory. Out: bytes read, bytes written without ever blocking on a pipe. May import: nothing of ours.

A pipe's other end may be slow, and while we wait for it the other direction must go on. The descriptor's own flags are
shared with other processes and are left alone: pipes are opened anew through /proc, sockets are told per call.
"""

from __future__ import annotations

import codecs
import os
import re
import socket
import stat
from collections.abc import Callable
from types import TracebackType
from typing import Protocol


class Sink(Protocol):
    """Where output goes."""

    def fileno(self) -> int:
        """To be polled for POLLOUT while something waits; -1: never waits."""
        ...

    def put(self, data: bytes | memoryview) -> None: ...

    def flush(self) -> int:
        """Write what can be written now; how many of the bytes that were ``put`` are done. Raises BrokenPipeError."""
        ...

    def discard(self) -> int:
        """Throw away what waits and all that comes; how many bytes that were."""
        ...

    def waiting(self) -> int: ...

    def end(self) -> None:
        """Nothing more comes, and nothing waits: whoever reads may know."""
        ...


def is_drained(sink: Sink) -> bool:
    return sink.waiting() == 0


class WindowSource(Protocol):
    """Where input comes from."""

    def fileno(self) -> int: ...
    def read(self, limit: int) -> bytes:
        """At least one byte, at most ``limit``; b"" at the end. Called when readable."""
        ...


class DescriptorSource:
    """A descriptor that is read when it is readable."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def read(self, limit: int) -> bytes:
        try:
            return os.read(self._descriptor, limit)
        except OSError:
            return b""  # a terminal that is gone


class MemorySource:
    """Bytes that are there already; a closed pipe makes it always readable."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._descriptor, writing = os.pipe()
        os.close(writing)

    def __enter__(self) -> MemorySource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def read(self, limit: int) -> bytes:
        data, self._data = bytes(self._data[:limit]), self._data[limit:]
        return data


class MemorySink:
    """Collects everything."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._fresh = 0

    def fileno(self) -> int:
        return -1

    def put(self, data: bytes | memoryview) -> None:
        self.data += data
        self._fresh += len(data)

    def flush(self) -> int:
        done, self._fresh = self._fresh, 0
        return done

    def discard(self) -> int:
        return self.flush()

    def waiting(self) -> int:
        return 0

    def end(self) -> None:
        return


class NullSink(MemorySink):
    """Throws everything away."""

    def put(self, data: bytes | memoryview) -> None:
        self._fresh += len(data)


class DescriptorSink:
    """A descriptor that is written as far as it takes data. ``closing``: its reader is told when the output ends."""

    def __init__(self, descriptor: int, *, closing: bool = False) -> None:
        self._descriptor = descriptor
        self._shared = descriptor if closing else -1
        self._waiting = bytearray()
        self._gone = False
        self._socket: socket.socket | None = None
        self._limit = 0
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            try:
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                self._limit = 4096  # PIPE_BUF: what a pipe that polls writable takes without blocking
        elif stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))

    def fileno(self) -> int:
        return self._descriptor

    def put(self, data: bytes | memoryview) -> None:
        if not self._gone:
            self._waiting += data

    def waiting(self) -> int:
        return len(self._waiting)

    def discard(self) -> int:
        self._gone = True
        dropped = len(self._waiting)
        self._waiting.clear()
        return dropped

    def flush(self) -> int:
        done = 0
        while self._waiting:
            try:
                written = self._write_some()
            except BlockingIOError:
                break
            del self._waiting[:written]
            done += written
            if self._limit:
                break
        return done

    def end(self) -> None:
        if self._shared < 0 or os.isatty(self._shared):
            return
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, self._shared)
        os.close(nothing)
        if self._socket is not None:
            self._socket.close()
        elif self._descriptor != self._shared:
            os.close(self._descriptor)
        self._descriptor, self._shared, self._socket, self._gone = -1, -1, None, True

    def _write_some(self) -> int:
        if self._socket is not None:
            return self._socket.send(self._waiting, socket.MSG_DONTWAIT)
        return os.write(self._descriptor, self._waiting[: self._limit] if self._limit else self._waiting)


SAFE_CONTROLS = "\t\n\r\b\a"
_UNSAFE = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_MASK = {code: "_" for code in _UNSAFE if chr(code) not in SAFE_CONTROLS}
_STRING_BEGINS = re.compile("\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f]")
"""OSC, DCS, SOS, PM, APC: titles, the clipboard, links, reports of settings: nothing that draws."""
_STRING_ENDS = re.compile("\x1b\\\\|[\x07\x9c\x18\x1a]|(?=\x1b[^\\\\])")


def mask_controls(text: str) -> str:
    """Text for a terminal: escape sequences and direction marks become ``_``."""
    return text.translate(_MASK)


class StringDropper:
    """What a full-screen program may send: everything but control strings, which set titles and the clipboard, or make
    the terminal answer with text of the sender's choice."""

    def __init__(self) -> None:
        self._in_string = False
        self._held = ""

    def clean(self, text: str) -> str:
        """The next piece of output without them; sequences may be cut anywhere."""
        text = self._held + text
        self._held = "\x1b" if text.endswith("\x1b") else ""
        text = text.removesuffix("\x1b")
        kept, position = [], 0
        while True:
            if self._in_string:
                if (end := _STRING_ENDS.search(text, position)) is None:
                    break
                self._in_string, position = False, end.end()
            if (begin := _STRING_BEGINS.search(text, position)) is None:
                kept.append(text[position:])
                break
            kept.append(text[position : begin.start()])
            self._in_string, position = True, begin.end()
        return "".join(kept)


class TerminalSink(DescriptorSink):
    """A terminal, protected from what a qube says by ``clean``: text in, harmless text out."""

    def __init__(self, descriptor: int, clean: Callable[[str], str] = mask_controls) -> None:
        super().__init__(descriptor)
        self._clean = clean
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._taken = 0

    def put(self, data: bytes | memoryview) -> None:
        self._taken += len(data)
        super().put(self._clean(self._decoder.decode(bytes(data))).encode())

    def flush(self) -> int:
        super().flush()
        if self.waiting():
            return 0
        done, self._taken = self._taken, 0
        return done

    def discard(self) -> int:
        super().discard()
        done, self._taken = self._taken, 0
        return done
