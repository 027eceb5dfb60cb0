"""Services of dom0: handlers in the daemon, and executables of the services directory.

In: an admitted call and its leg. Out: how it ended. May import: legs, ports, wire, errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from cloison.errors import BackendFailed, BadRequest
from cloison.model.names import DOM0
from cloison.qrexec.legs import Leg, LegLost
from cloison.qrexec.packets import Closing
from cloison.qrexec.ports import Fed, Handler, ServiceCall, ServiceFailed
from cloison.wire import LEG_SESSION, Data, Exit, Role, Stream

_T = TypeVar("_T")
log = logging.getLogger(__name__)

NOT_FOUND, BROKEN = 127, 125
"""Exit codes of qrexec: no such service; anything wrong in qrexec itself."""
PIPE_BYTES = 64 * 1024


class Dom0Services:
    """``builtins``: by service name without argument; they go before files of the same name."""

    def __init__(self, directory: Path, builtins: Mapping[str, Handler | Fed], *, stdin_bytes: int) -> None:
        self._directory = directory
        self._builtins = builtins
        self._stdin_bytes = stdin_bytes

    async def serve(self, call: ServiceCall, sock: socket.socket) -> Closing:
        """Answer the call on this leg (closed here), to the end. Raises nothing but cancellation."""
        async with contextlib.aclosing(_CountingLeg(sock)) as leg:
            reason = ""
            code: int | None = None
            try:
                if handler := self._builtins.get(call.service):
                    code = await self._run_handler(handler, call, leg)
                elif program := self._find_program(call):
                    code = await _run_program(program, call, leg)
                else:
                    code = await _say_not_found(call, leg)
                await leg.send(Exit(LEG_SESSION, code))
            except LegLost as error:
                code, reason = None, error.message
            except (BackendFailed, OSError) as error:
                code, reason = BROKEN, str(error)
                log.error("service %s for %s failed: %s", call.full_name, call.source, error)
                with contextlib.suppress(BackendFailed):
                    await leg.send(Exit(LEG_SESSION, code))
            return Closing(leg.counts[0], leg.counts[1], leg.counts[2], code, reason)

    async def _run_handler(self, handler: Handler | Fed, call: ServiceCall, leg: _CountingLeg) -> int:
        try:
            if isinstance(handler, Fed):
                await leg.send_stream(Stream.STDOUT, await leg.while_there(handler.serve(call, leg.next_stdin)))
                return 0
            stdin = await leg.read_all_stdin(self._stdin_bytes)
            await leg.while_there(_answer(handler, call, stdin, leg))
        except ServiceFailed as failed:
            await leg.send_stream(Stream.STDERR, failed.said.encode() + b"\n")
            return failed.exit_code
        except BadRequest as error:
            log.warning("service %s refused what %s sent: %s", call.full_name, call.source, error)
            return BROKEN
        except (BackendFailed, OSError):
            raise
        except Exception:
            # The named border of handlers: a bug in one is a failed call, not a failed daemon.
            log.exception("service %s for %s failed", call.full_name, call.source)
            return BROKEN
        return 0

    def _find_program(self, call: ServiceCall) -> Path | None:
        for name in (call.full_name, call.service):
            path = self._directory / name
            try:
                found = path.stat() if len(name) <= 255 else None
            except OSError:
                found = None
            if found is not None and stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK):
                return path
        return None


class _CountingLeg(Leg):
    """The serving end of a leg, which counts what passes."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, Role.LEG_SERVICE)
        self.counts = [0, 0, 0]

    async def next_stdin(self) -> bytes:
        """The next bytes of the caller's stdin; b'' at its end."""
        while True:
            event = await self.next_event()
            if isinstance(event, Data) and event.stream == Stream.STDIN:
                self.counts[Stream.STDIN] += len(event.payload)
                await self.consumed(Stream.STDIN, len(event.payload))
                return bytes(event.payload)

    async def read_all_stdin(self, limit_bytes: int) -> bytes:
        whole = bytearray()
        while part := await self.next_stdin():
            whole += part
            if len(whole) > limit_bytes:
                raise BadRequest(f"more than {limit_bytes} bytes of input")
        return bytes(whole)

    async def send_stream(self, stream: int, data: bytes | memoryview, *, end: bool = False) -> None:
        self.counts[stream] += len(data)
        await super().send_stream(stream, data, end=end)

    async def while_there(self, work: Awaitable[_T]) -> _T:
        """The work's result; it is cancelled, and LegLost raised, when the caller goes away first."""
        task = asyncio.ensure_future(work)
        try:
            watched: set[asyncio.Future[Any]] = {task, self.lost}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise LegLost(self.lost.result())
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _say_not_found(call: ServiceCall, leg: _CountingLeg) -> int:
    """The person at this machine is told; a guest sees the exit code only."""
    if call.source == DOM0:
        await leg.send_stream(Stream.STDERR, f"{call.service}: no such service in dom0\n".encode())
    return NOT_FOUND


async def _answer(handler: Handler, call: ServiceCall, stdin: bytes, leg: _CountingLeg) -> None:
    answer = await handler(call, stdin)
    if isinstance(answer, bytes):
        await leg.send_stream(Stream.STDOUT, answer)
    else:
        async for part in answer:
            await leg.send_stream(Stream.STDOUT, part)


async def _run_program(program: Path, call: ServiceCall, leg: _CountingLeg) -> int:
    """Run an executable service: its stdin and stdout are the caller's; its stderr is the daemon's."""
    theirs, ours_fd = os.pipe()
    ours = os.fdopen(ours_fd, "wb", buffering=0)
    feeding: asyncio.Task[None] | None = None
    process: asyncio.subprocess.Process | None = None
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *([call.argument] if call.argument else []),
                stdin=theirs,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(call),
                start_new_session=True,
                limit=PIPE_BYTES,
            )
        finally:
            os.close(theirs)
        feeding = asyncio.create_task(_feed(leg, ours))
        return_code = await leg.while_there(_forward_output(leg, process))
        return 128 - return_code if return_code < 0 else return_code
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        ours.close()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _feed(leg: _CountingLeg, pipe: FileIO) -> None:
    """The caller's stdin into the pipe, which is closed at its end. A program need not read all that it is sent."""
    os.set_blocking(pipe.fileno(), False)
    try:
        while part := await leg.next_stdin():
            view = memoryview(part)
            while view:
                try:
                    view = view[os.write(pipe.fileno(), view) :]
                except BlockingIOError:
                    await _until_writable(pipe.fileno())
    except BrokenPipeError:
        pass
    finally:
        pipe.close()


async def _until_writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(fd, wake)
    try:
        await writable
    finally:
        loop.remove_writer(fd)


async def _forward_output(leg: _CountingLeg, process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    while part := await process.stdout.read(PIPE_BYTES):
        await leg.send_stream(Stream.STDOUT, part)
    return await process.wait()


def _environment(call: ServiceCall) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QREXEC")}
    environment.update(
        QREXEC_REMOTE_DOMAIN=call.source,
        QREXEC_SERVICE_FULL_NAME=call.full_name,
        QREXEC_SERVICE_ARGUMENT=call.argument,
    )
    if call.requested_target.startswith("@"):
        environment["QREXEC_REQUESTED_TARGET_TYPE"] = "keyword"
        environment["QREXEC_REQUESTED_TARGET_KEYWORD"] = call.requested_target[1:]
    else:
        environment["QREXEC_REQUESTED_TARGET_TYPE"] = "name"
        environment["QREXEC_REQUESTED_TARGET"] = call.requested_target
    return environment
