"""qvm-copy and qvm-move: files of this qube as a qubes.Filecopy stream."""

from __future__ import annotations

import errno
import os
import select
import shutil
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence

from cloison.wire.display_ranges import is_display_safe
from cloison.wire.qfile import ALLOW_ALL_NAMES, END, TRUNCATED, Entry, Result, encode_entry, parse_result
from cloison_agent.client import LOST, REFUSED, TROUBLE, CallRefused, RemoteCall

PIECE_BYTES = 1 << 16


def copy(arguments: Sequence[str]) -> int:
    return _send("@default", arguments, move=False, usage="qvm-copy [--without-progress] FILE...")


def move(arguments: Sequence[str]) -> int:
    return _send("@default", arguments, move=True, usage="qvm-move [--without-progress] FILE...")


def copy_to(arguments: Sequence[str]) -> int:
    return _send_to(arguments, move=False, usage="qvm-copy-to-vm [--without-progress] QUBE FILE...")


def move_to(arguments: Sequence[str]) -> int:
    return _send_to(arguments, move=True, usage="qvm-move-to-vm [--without-progress] QUBE FILE...")


def _send_to(arguments: Sequence[str], *, move: bool, usage: str) -> int:
    rest = [word for word in arguments if word != "--without-progress"]
    if not rest:
        sys.stderr.write(f"usage: {usage}\n")
        return 1
    return _send(rest[0], rest[1:], move=move, usage=usage)


def _send(target: str, arguments: Sequence[str], *, move: bool, usage: str) -> int:
    paths = [word.rstrip("/") or "/" for word in arguments if word not in ("--without-progress", "--")]
    if not paths or paths[0] in ("-h", "--help"):
        sys.stderr.write(f"usage: {usage}\n")
        return 1
    for path in paths:
        if not os.path.lexists(path):
            sys.stderr.write(f"{path}: no such file or directory\n")
            return 1
    service = "qubes.Filecopy"
    if not all(is_display_safe(name) for path in paths for name in _names(path)):
        service += f"+{ALLOW_ALL_NAMES}"
    code = _transfer(target.replace("$", "@"), service, paths)
    if code == 0 and move:
        for path in paths:
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    return code


def _names(path: str) -> Iterator[bytes]:
    """Every name (and symlink target) that would be sent."""
    yield os.fsencode(os.path.basename(path))
    if os.path.islink(path):
        yield os.fsencode(os.readlink(path))
    elif os.path.isdir(path):
        for name in os.listdir(path):
            yield from _names(os.path.join(path, name))


def _transfer(target: str, service: str, paths: Sequence[str]) -> int:
    """Our own program of a call: a child packs into a pipe and judges the answer, this process pumps."""
    try:
        call = RemoteCall(target, service)
        call.connect()
    except CallRefused:
        sys.stderr.write("Request refused\n")
        return REFUSED
    except OSError as error:
        sys.stderr.write(f"cannot reach the agent: {error}\n")
        return TROUBLE
    stream_read, stream_write = os.pipe()
    answer_read, answer_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(stream_read)
            os.close(answer_write)
            code = _Packer(stream_write, answer_read).pack(paths)
        except BaseException as error:  # the border of a forked child
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
        os._exit(code)
    os.close(stream_write)
    os.close(answer_read)
    remote = call.pump(stream_read, answer_write, 2, filters=(False, os.isatty(2)))
    os.close(stream_read)
    try:
        os.close(answer_write)
    except OSError:
        pass
    local = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return local or (TROUBLE if remote == LOST else 0)


class _AnsweredEarly(Exception):
    pass


class _Packer:
    def __init__(self, stream: int, answer: int) -> None:
        self._stream, self._answer = stream, answer
        self._crc32 = 0

    def pack(self, paths: Sequence[str]) -> int:
        try:
            for path in paths:
                self._pack(path, os.path.basename(path) or "root")
            self._write(END)
        except (_AnsweredEarly, BrokenPipeError):
            pass
        os.close(self._stream)
        return self._judge()

    def _pack(self, path: str, name: str) -> None:
        status = os.lstat(path)
        entry = Entry(os.fsencode(name), status.st_mode, 0, status.st_atime_ns, status.st_mtime_ns)
        if stat.S_ISDIR(status.st_mode):
            self._write(encode_entry(entry))
            for inner in os.listdir(path):
                self._pack(os.path.join(path, inner), f"{name}/{inner}")
            self._write(encode_entry(entry))
        elif stat.S_ISLNK(status.st_mode):
            self._write(encode_entry(entry._replace(target=os.fsencode(os.readlink(path)))))
        elif stat.S_ISREG(status.st_mode):
            self._pack_file(path, entry._replace(size_bytes=status.st_size))
        else:
            sys.stderr.write(f"{path}: skipped, neither a file nor a directory\n")
        if select.select([self._answer], [], [], 0)[0]:
            raise _AnsweredEarly

    def _pack_file(self, path: str, entry: Entry) -> None:
        with open(path, "rb", buffering=0) as file:
            self._write(encode_entry(entry))
            left = entry.size_bytes
            while left:
                data = file.read(min(left, PIECE_BYTES))
                if not data:
                    raise OSError(errno.EIO, f"{path} became shorter while it was read")
                self._write(data)
                left -= len(data)

    def _write(self, data: bytes) -> None:
        self._crc32 = zlib.crc32(data, self._crc32)
        view = memoryview(data)
        while view:
            view = view[os.write(self._stream, view) :]

    def _judge(self) -> int:
        """What the receiver says: 0 = every byte arrived and was stored."""
        untrusted_answer = b""
        while len(untrusted_answer) < 32768 and (piece := os.read(self._answer, 32768)):
            untrusted_answer += piece
        result = parse_result(untrusted_answer)
        if result is None:
            sys.stderr.write("the other qube gave no answer\n")
            return 1
        return _explain(result, self._crc32)


def _explain(result: Result, crc32: int) -> int:
    last = ascii(result.last_name.decode("utf-8", "replace"))[1:-1][:200]
    if result.code == 0 and result.crc32 == crc32:
        return 0
    if result.code == 0:
        sys.stderr.write("the data were damaged on the way\n")
    elif result.code == TRUNCATED:
        sys.stderr.write("the transfer broke off\n")
    elif result.code == errno.EEXIST:
        sys.stderr.write(f"the file is there already: {last}\n")
    else:
        sys.stderr.write(f"the other qube could not store {last}: {os.strerror(result.code & 0xFFFF)}\n")
    return 1
