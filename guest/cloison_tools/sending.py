"""qvm-copy and qvm-move: files of this qube as a qubes.Filecopy stream."""

import errno
import posix
import select
import zlib
from _stat import S_ISDIR, S_ISLNK, S_ISREG
from struct import Struct

from cloison_tools.client import LOST, REFUSED, TROUBLE, CallRefused, RemoteCall, complain, write_all

PIECE_BYTES = 1 << 16
AGENT_ARCHIVE = "/usr/lib/cloison/agent.pyz"
HEADER = Struct("<IIQIIII")
END = bytes(HEADER.size)
RESULT = Struct("<IIQ")
TRUNCATED = 31415926
_NS = 10**9


def copy(arguments: list[str]) -> int:
    return _send("@default", arguments, move=False, usage="qvm-copy [--without-progress] FILE...")


def move(arguments: list[str]) -> int:
    return _send("@default", arguments, move=True, usage="qvm-move [--without-progress] FILE...")


def copy_to(arguments: list[str]) -> int:
    return _send_to(arguments, move=False, usage="qvm-copy-to-vm [--without-progress] QUBE FILE...")


def move_to(arguments: list[str]) -> int:
    return _send_to(arguments, move=True, usage="qvm-move-to-vm [--without-progress] QUBE FILE...")


def _send_to(arguments: list[str], *, move: bool, usage: str) -> int:
    rest = [word for word in arguments if word != "--without-progress"]
    if not rest:
        complain(f"usage: {usage}")
        return 1
    return _send(rest[0], rest[1:], move=move, usage=usage)


def _send(target: str, arguments: list[str], *, move: bool, usage: str) -> int:
    paths = [word.rstrip("/") or "/" for word in arguments if word not in ("--without-progress", "--")]
    if not paths or paths[0] in ("-h", "--help"):
        complain(f"usage: {usage}")
        return 1
    names = []
    for path in paths:
        try:
            names += _names(_encode(path))
        except OSError as error:
            complain(f"{path}: {error.strerror}")
            return 1
    service = "qubes.Filecopy" if all(map(_is_display_safe, names)) else "qubes.Filecopy+allow-all-names"
    code = _transfer(target.replace("$", "@"), service, [_encode(path) for path in paths])
    if code == 0 and move:
        for path in paths:
            _remove(path)
    return code


def _encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _names(path: bytes) -> list[bytes]:
    """Every name (and symlink target) that would be sent."""
    names = [path.rpartition(b"/")[2]]
    mode = posix.lstat(path).st_mode
    if S_ISLNK(mode):
        names.append(posix.readlink(path))
    elif S_ISDIR(mode):
        for name in posix.listdir(path):
            names += _names(path + b"/" + name)
    return names


def _is_display_safe(name: bytes) -> bool:
    """The table of other alphabets is loaded only for names that need it."""
    if all(0x20 <= b <= 0x7E for b in name):
        return True
    import sys

    sys.path.append(AGENT_ARCHIVE)
    from cloison.wire.display_ranges import is_display_safe

    return is_display_safe(name)


def _remove(path: str) -> None:
    if not S_ISDIR(posix.lstat(path).st_mode):
        posix.unlink(path)
        return
    import shutil

    shutil.rmtree(path)


def _transfer(target: str, service: str, paths: list[bytes]) -> int:
    """A child packs into a pipe and judges the answer, this process pumps."""
    try:
        call = RemoteCall(target, service)
        call.connect()
    except CallRefused:
        complain("Request refused")
        return REFUSED
    except OSError as error:
        complain(f"cannot reach the agent: {error}")
        return TROUBLE
    stream_read, stream_write = posix.pipe()
    answer_read, answer_write = posix.pipe()
    pid = posix.fork()
    if pid == 0:
        code = 1
        try:
            posix.close(stream_read)
            posix.close(answer_write)
            code = Packer(stream_write, answer_read).pack(paths)
        except BaseException as error:  # the border of a forked child
            complain(str(error))
        posix._exit(code)
    posix.close(stream_write)
    posix.close(answer_read)
    remote = call.pump(stream_read, answer_write, 2, filters=(False, posix.isatty(2)))
    posix.close(stream_read)
    posix.close(answer_write)
    local = posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])
    return local or (TROUBLE if remote == LOST else 0)


class _AnsweredEarly(Exception):
    pass


class Packer:
    """Writes the stream to one descriptor and reads the receiver's answer from the other."""

    def __init__(self, stream: int, answer: int) -> None:
        self._stream, self._answer = stream, answer
        self._crc32 = 0

    def pack(self, paths: list[bytes]) -> int:
        try:
            for path in paths:
                self._pack(path, path.rpartition(b"/")[2] or b"root")
            self._write(END)
        except (_AnsweredEarly, BrokenPipeError):
            pass
        posix.close(self._stream)
        return self._judge()

    def _pack(self, path: bytes, name: bytes) -> None:
        status = posix.lstat(path)
        times = (*divmod(status.st_atime_ns, _NS), *divmod(status.st_mtime_ns, _NS))
        if S_ISDIR(status.st_mode):
            self._write_header(name, status.st_mode, 0, times)
            for inner in posix.listdir(path):
                self._pack(path + b"/" + inner, name + b"/" + inner)
            self._write_header(name, status.st_mode, 0, times)
        elif S_ISLNK(status.st_mode):
            target = posix.readlink(path)
            self._write_header(name, status.st_mode, len(target), times)
            self._write(target)
        elif S_ISREG(status.st_mode):
            self._pack_file(path, name, status, times)
        else:
            complain(f"{path!r}: skipped, neither a file nor a directory")
        if select.select([self._answer], [], [], 0)[0]:
            raise _AnsweredEarly

    def _write_header(self, name: bytes, mode: int, size_bytes: int, times: tuple[int, ...]) -> None:
        bounded = [min(max(value, 0), 2**32 - 1) for value in times]
        self._write(HEADER.pack(len(name) + 1, mode, size_bytes, *bounded) + name + b"\0")

    def _pack_file(self, path: bytes, name: bytes, status: posix.stat_result, times: tuple[int, ...]) -> None:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            self._write_header(name, status.st_mode, status.st_size, times)
            left = status.st_size
            while left:
                data = posix.read(fd, min(left, PIECE_BYTES))
                if not data:
                    raise OSError(errno.EIO, f"{path!r} became shorter while it was read")
                self._write(data)
                left -= len(data)
        finally:
            posix.close(fd)

    def _write(self, data: bytes) -> None:
        self._crc32 = zlib.crc32(data, self._crc32)
        write_all(self._stream, data)

    def _judge(self) -> int:
        """What the receiver says: 0 = every byte arrived and was stored."""
        untrusted_answer = b""
        while len(untrusted_answer) < 32768 and (piece := posix.read(self._answer, 32768)):
            untrusted_answer += piece
        if len(untrusted_answer) < RESULT.size:
            complain("the other qube gave no answer")
            return 1
        code, _, crc32 = RESULT.unpack_from(untrusted_answer)
        last = ascii(untrusted_answer[RESULT.size + 4 :][:200])[2:-1]
        return _explain(code, last, crc32 == self._crc32)


def _explain(code: int, last: str, whole: bool) -> int:
    if code == 0 and whole:
        return 0
    if code == 0:
        complain("the data were damaged on the way")
    elif code == TRUNCATED:
        complain("the transfer broke off")
    elif code == errno.EEXIST:
        complain(f"the file is there already: {last}")
    else:
        complain(f"the other qube could not store {last}: {posix.strerror(code & 0xFFFF)}")
    return 1
