"""The agent's end of the virtio-serial port.

While no host is connected the kernel reports a hang-up all the time, and only an edge tells that one came: then, and
while bytes wait for the host, the port is edge-triggered in epoll. Otherwise it is watched for input alone, which saves
the read that only says "nothing left": in Python an exception, dear where small messages come one by one. Frames of
one turn of the loop leave together, since each write costs an exit to the emulator.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from cloison.wire import Connection, Event, Restarted, Role
from cloison.wire.frames import FILLER, HEADER_BYTES
from cloison_agent.loop import EDGE, HANGUP, READ, WRITE, Loop

MAX_WRITE = 32 * 1024
"""Bytes that a virtio-serial port takes at once."""
PAGE_BYTES = 4096
PAGES_PER_READ = 64
"""The kernel returns at most one page per read, but fills page after page of one ``readv``. Handing 64 pages over costs
an emulated guest 0.1 ms, so only what fills a page is worth it."""
SLOT_BYTES = 2 * MAX_WRITE
SLOTS = 4
"""Frames that ``pump`` fills with one ``readv``: each is, header included, two full writes."""
FULL = 256 * 1024
"""Bytes waiting for the host above which producers are paused."""


class Port:
    def __init__(self, loop: Loop, fd: int, on_event: Callable[[Event], None], software: str) -> None:
        os.set_blocking(fd, False)
        self.connection = Connection(Role.AGENT, software=software)
        self._loop, self._fd, self._on_event = loop, fd, on_event
        self._new: list[bytes] = []
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._input = memoryview(bytearray(PAGES_PER_READ * PAGE_BYTES))
        self._pages = [self._input[at : at + PAGE_BYTES] for at in range(0, len(self._input), PAGE_BYTES)]
        self._slots = memoryview(bytearray(SLOTS * SLOT_BYTES))
        starts = range(0, len(self._slots), SLOT_BYTES)
        self._payloads = [self._slots[at + HEADER_BYTES : at + SLOT_BYTES] for at in starts]
        # Started anew under a living connection, we break it by what is no frame (and fills up one that our predecessor
        # left half written), and the host greets us again.
        self._new.append(FILLER)
        self._mask = READ | WRITE | EDGE
        loop.add(fd, self._mask, self._ready)
        loop.after_each = self.flush

    def send(self, event: Event) -> None:
        """Queue an event; it leaves at the end of this turn of the loop."""
        self._new.append(self.connection.send(event))

    def pump(self, session: int, stream: int, fd: int) -> int | None:
        """Read what ``fd`` has, as far as the window goes, right into frames and send them; returns how many bytes.

        None: the window is closed (or the session over), and nothing was read. Raises what reading raises. Bytes are
        not copied on their way, unless the port is full.
        """
        room, payloads = self.connection.window(session, stream), self._payloads
        if not room:
            return None
        if room < SLOTS * SLOT_BYTES:
            whole, part = divmod(room, SLOT_BYTES - HEADER_BYTES)
            payloads = payloads[:whole]
            if part and whole < SLOTS:
                payloads.append(self._payloads[whole][:part])
        size_bytes = os.readv(fd, payloads)
        end = self._write_headers(session, stream, size_bytes)
        if self._new:
            self.flush()
        done = 0 if self._waiting else self._write_slots(end)
        if done < end:
            self._wait_with(bytes(self._slots[done:end]))
        return size_bytes

    def _write_headers(self, session: int, stream: int, size_bytes: int) -> int:
        """Make frames of what was read into the slots; returns where the last one ends."""
        end = 0
        while size_bytes:
            length = min(size_bytes, SLOT_BYTES - HEADER_BYTES)
            header = self.connection.data_header(session, stream, length)
            if not header:
                return 0  # the session is over
            if len(header) > HEADER_BYTES:
                self._new.append(header[:-HEADER_BYTES])
            self._slots[end : end + HEADER_BYTES] = header[-HEADER_BYTES:]
            end += HEADER_BYTES + length
            size_bytes -= length
        return end

    def _write_slots(self, end: int) -> int:
        """Write the slots as far as the port takes them; returns how far. All of it, if the host is gone."""
        done = 0
        try:
            while done < end:
                done += os.write(self._fd, self._slots[done : min(end, done + MAX_WRITE)])
        except BlockingIOError:
            return done
        except OSError:
            self._drop_output()
            return end
        return done

    def _ready(self, mask: int) -> None:
        if mask & (READ | HANGUP) and not self._read_all() and self.connection.connected:
            self.connection.restart()
            self._drop_output()
            self._on_event(Restarted("the host hung up"))

    def _watch(self) -> None:
        """Have epoll tell what is of interest now (see above)."""
        mask = READ if self.connection.connected and not self._waiting else READ | WRITE | EDGE
        if mask != self._mask:
            self._mask = mask
            self._loop.change(self._fd, mask)

    def _read_all(self) -> bool:
        """Take what there is; whether a host is there, as far as is known. (Without one, a read returns nothing at once
        instead of "would block".) On edges only those two answers end it: what stays unread makes no edge."""
        pages = self._pages[:1]
        while True:
            try:
                size = os.readv(self._fd, pages)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not size:
                return False
            self._receive(self._input[:size])
            if size < PAGE_BYTES and not self._mask & EDGE:
                return True
            pages = self._pages if size >= PAGE_BYTES else self._pages[:1]

    def _receive(self, data: bytes | memoryview) -> None:
        connection = self.connection
        events = connection.receive_data(data)
        for event in events:
            if isinstance(event, Restarted):
                # Before the events, whose answers are for the new host. Its HELLO drops nothing: our answer to its
                # greeting may still wait here, if they came in two reads.
                self._drop_output()
                break
        for event in events:
            self._on_event(event)
        answer = connection.data_to_send()
        if answer:
            self._new.append(answer)

    def _drop_output(self) -> None:
        """What was meant for a host that is gone. (Part of a frame may be out already: the next host skips it.)"""
        self._new.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._watch()
        self._loop.pause_producers(False)

    def _wait_with(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data)

    def flush(self) -> None:
        """Write what can be written; pause producers while too much waits."""
        if self._new:
            data = self._new[0] if len(self._new) == 1 else b"".join(self._new)
            self._new.clear()
            if data:
                self._wait_with(data)
        elif not self._waiting:
            return
        waiting = self._waiting
        while waiting:
            piece = waiting[0]
            try:
                written = os.write(self._fd, piece[:MAX_WRITE])
            except BlockingIOError:
                break
            except OSError:
                self._drop_output()
                break
            self._waiting_bytes -= written
            if written == len(piece):
                waiting.popleft()
            else:
                waiting[0] = piece[written:]
        self._watch()
        self._loop.pause_producers(self._waiting_bytes >= FULL)
