"""qvm-copy, qvm-move and their twins that name the target: files of this qube as a call of qubes.Filecopy."""

import errno
import posix
from struct import Struct

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall, complain
from cloison_tools.packing import CannotSend, Packer, Survey
from cloison_tools.progress import open_progress

AGENT_ARCHIVE = "/usr/lib/cloison/agent.pyz"
RESULT = Struct("<IIQ")
TRUNCATED = 31415926
MAX_ANSWER_BYTES = 32768
OPTIONS = "[--without-progress]"

TYPE_CHECKING = False
"""Importing typing or collections.abc takes longer than most calls; the type checker knows this name."""
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloison_tools.progress import Progress


def copy(arguments: list[str]) -> int:
    return _send("@default", arguments, move=False, usage=f"qvm-copy {OPTIONS} FILE...")


def move(arguments: list[str]) -> int:
    return _send("@default", arguments, move=True, usage=f"qvm-move {OPTIONS} FILE...")


def copy_to(arguments: list[str]) -> int:
    return _send("", arguments, move=False, usage=f"qvm-copy-to-vm {OPTIONS} QUBE FILE...")


def move_to(arguments: list[str]) -> int:
    return _send("", arguments, move=True, usage=f"qvm-move-to-vm {OPTIONS} QUBE FILE...")


def _send(target: str, arguments: list[str], *, move: bool, usage: str) -> int:
    """``target`` empty: the first word names it."""
    options, words = _split(arguments)
    if not target and words:
        target = words.pop(0).replace("$", "@")
    if not words or not target or set(options) - {"--without-progress"}:
        complain(f"usage: {usage}")
        return 0 if set(options) & {"-h", "--help"} else 1
    paths = [(word.rstrip("/") or "/").encode("utf-8", "surrogateescape") for word in words]
    progress = open_progress("none" if "--without-progress" in options else "")
    try:
        survey = Survey(paths, sizes=progress is not None)
    except OSError as error:
        complain(f"{_shown(error.filename or b'')}: {error.strerror}")
        return 1
    if survey.odd and move:
        complain(f"{_shown(survey.odd[0])}: neither a file nor a directory, so that it cannot be moved")
        return 1
    safe = all(map(_is_display_safe, survey.names))
    code = _transfer(target, "qubes.Filecopy" if safe else "qubes.Filecopy+allow-all-names", paths, survey, progress)
    if code == 0 and move:
        return max(map(_remove, paths))
    return code


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options before and between the words, until ``--``."""
    options: list[str] = []
    words: list[str] = []
    for number, word in enumerate(arguments):
        if word == "--":
            return options, words + arguments[number + 1 :]
        (options if word.startswith("-") and word != "-" else words).append(word)
    return options, words


def _shown(path: bytes) -> str:
    return ascii(path.decode("utf-8", "surrogateescape"))[1:-1] if isinstance(path, bytes) else str(path)


def _is_display_safe(name: bytes) -> bool:
    """The table of other alphabets is loaded only for names that need it."""
    import sys

    if AGENT_ARCHIVE not in sys.path:
        sys.path.append(AGENT_ARCHIVE)
    from cloison.wire.display_ranges import is_display_safe

    return is_display_safe(name)


def _remove(path: bytes) -> int:
    """By rm, which has no fear of deep trees; ``.`` by its real name."""
    import os

    place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if os.path.basename(path) in (b".", b"..", b""):
        place = os.path.realpath(path)
    pid = posix.posix_spawn("/bin/rm", [b"rm", b"-rf", b"--", place], posix.environ)
    code = posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])
    if code:
        complain(f"{_shown(path)} was copied, but could not be removed here")
    return 1 if code else 0


def _transfer(target: str, service: str, paths: list[bytes], survey: Survey, progress: "Progress | None") -> int:
    packer = Packer()
    try:
        call = RemoteCall(target, service)
        call.connect()
        code, answer = call.feed(_watched(packer, paths, survey.total_bytes, progress), MAX_ANSWER_BYTES)
    except CallRefused:
        complain("Request refused")
        return REFUSED
    except CannotSend as error:
        complain(str(error))
        return 1
    except OSError as error:
        complain(f"cannot reach the agent: {error}")
        return TROUBLE
    finally:
        if progress is not None:
            progress.end()
    for path in packer.skipped:
        complain(f"{_shown(path)}: skipped, neither a file nor a directory")
    return _judge(answer, code, packer.crc32 if packer.is_complete else None)


def _watched(packer: Packer, paths: list[bytes], total_bytes: int, progress: "Progress | None") -> "Iterator[bytes]":
    for piece in packer.pieces(paths):
        yield piece
        if progress is not None:
            progress.show(packer.sent_bytes, total_bytes)


def _judge(untrusted_answer: bytes, exit_code: int, crc32: int | None) -> int:
    """What the receiver says: 0 = every byte arrived and was stored. ``crc32`` None: not all was sent."""
    if len(untrusted_answer) < RESULT.size:
        complain("the other qube gave no answer")
        return exit_code or 1
    code, _, stored_crc32 = RESULT.unpack_from(untrusted_answer)
    last = ascii(untrusted_answer[RESULT.size + 4 :][:200])[2:-1]
    if code == 0 and stored_crc32 == crc32:
        return 0
    if code == 0:
        complain("the data were damaged on the way")
    elif code == TRUNCATED:
        complain("the transfer broke off")
    elif code == errno.EEXIST:
        complain(f"the file is there already: {last}")
    elif code == errno.EDQUOT:
        complain(f"more than the other qube takes at once: {last}")
    else:
        complain(f"the other qube could not store {last}: {posix.strerror(code & 0xFFFF)}")
    return 1
