"""A call of another qube whose answer is read here while a child sends: for tools that take the answer apart.

In: a target, a service, an open file. Out: an untrusted ``Answer``; exit codes; what the service complained of.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall
from cloison_tools.pixels import Answer, BadAnswer, EarlyEnd

MAX_COMPLAINT_LINES = 6
NOT_FOUND = 127


class CallFailed(Exception):
    """The call ended badly; ``exit_code`` is what our own caller should see."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def open_call(target: str, service: str, stdin: int, *, prefix: bytes = b"") -> Iterator[Answer]:
    """The answer of a service that is sent ``prefix`` and a file. Whatever happens, the call is over at the end.

    Raises CallFailed when it was refused, could not be made, ended with an error, or when what was read here was a
    BadAnswer; the message then has what the service itself complained of, in plain characters.
    """
    answer_read, answer_write = os.pipe()
    words_read, words_write = os.pipe()
    for fd in (words_read, words_write):
        os.set_blocking(fd, False)  # a service that talks without end is cut short, not waited for
    pid = os.fork()
    if pid == 0:
        os.close(answer_read)
        os._exit(_carry(target, service, stdin, answer_write, words_write, prefix))
    os.close(answer_write)
    os.close(words_write)
    status: int | None = None
    try:
        try:
            yield Answer(answer_read)
        except BadAnswer as error:
            os.close(answer_read)
            answer_read = -1
            status = _wait(pid, kill=not isinstance(error, EarlyEnd))
            raise _failure(status, str(error), _complaint(words_read)) from None
        status = _wait(pid)
        if status:
            raise _failure(status, f"it ended with code {status}", _complaint(words_read))
    finally:
        if status is None:
            _wait(pid, kill=True)
        for fd in (answer_read, words_read):
            if fd >= 0:
                os.close(fd)


def _carry(target: str, service: str, stdin: int, stdout: int, stderr: int, prefix: bytes) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        call = RemoteCall(target, service)
        call.connect()
        return call.pump(stdin, stdout, stderr, prefix=prefix, filters=(False, True))
    except CallRefused:
        return REFUSED
    except OSError as error:
        os.write(stderr, f"the agent of this qube: {error.strerror}\n".encode())
        return TROUBLE


def _wait(pid: int, *, kill: bool = False) -> int:
    if kill:
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _complaint(fd: int) -> str:
    try:
        lines = os.read(fd, 4096).decode("ascii", "replace").splitlines()
    except BlockingIOError:
        return ""
    return "".join(f"\n  it says: {plain(line[:200])}" for line in lines[:MAX_COMPLAINT_LINES])


def plain(untrusted_text: str) -> str:
    """Without anything that a terminal could obey: names of files come from elsewhere, too."""
    return "".join(char if char.isprintable() else "?" for char in untrusted_text)


def _failure(status: int, what: str, complaint: str) -> CallFailed:
    if status == REFUSED:
        return CallFailed("request refused", REFUSED)
    if status == NOT_FOUND:
        return CallFailed("the other qube has no such service", NOT_FOUND)
    if status == TROUBLE:
        return CallFailed(f"the call could not be made{complaint}", TROUBLE)
    return CallFailed(f"the other qube did not do it: {what}{complaint}")
