"""qubes-gpg-client, qubes-gpg-client-wrapper, qubes-gpg-import-key: use the keys of another qube as if gpg were here.

In: gpg's command line and standard streams. Out: what the gpg of the vault answers, and its exit code. May import: the
standard library.

The vault is ``$QUBES_GPG_DOMAIN``, or the first line of ``/rw/config/gpg-split-domain``, or what the policy chooses.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from collections.abc import Callable
from contextlib import ExitStack

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall, complain, write_all
from cloison_tools.gpgframes import MAX_DATA, FrameReader, FramingError, encode_command, encode_data, exit_status
from cloison_tools.gpgoptions import FD_VALUES, LocalFiles, NotAllowed, Plan, plan_command
from cloison_tools.placing import new_file

DOMAIN_FILE = "/rw/config/gpg-split-domain"
FAILED = 2
"""gpg's own exit code when it could not do what was asked."""
_MAX_UNSENT = 1 << 17
_READ_BYTES = 1 << 16
_EXTENSIONS = {"sign": "gpg", "encrypt": "gpg", "detach-sign": "sig", "clear-sign": "asc"}


def main(arguments: list[str]) -> int:
    """qubes-gpg-client: the command line goes to the vault as it is; data come and go by descriptors only."""
    return _guarded(lambda: _run(plan_command([os.fsencode(word) for word in arguments]), {}))


def wrapper(arguments: list[str]) -> int:
    """qubes-gpg-client-wrapper: the same for programs that call gpg with names of files (git, mail programs)."""
    return _guarded(lambda: _wrap([os.fsencode(word) for word in arguments]))


def import_key(arguments: list[str]) -> int:
    """qubes-gpg-import-key [FILE]: put a public key into the vault's key ring."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        complain("usage: qubes-gpg-import-key [FILE]   (a public key; without FILE: standard input)")
        return 1

    def run() -> int:
        stdin = os.open(arguments[0], os.O_RDONLY | os.O_CLOEXEC) if arguments and arguments[0] != "-" else 0
        call = RemoteCall(vault(), "qubes.GpgImportKey")
        call.connect()
        return call.pump(stdin, 1, 2, filters=(os.isatty(1), os.isatty(2)))

    return _guarded(run)


def vault() -> str:
    """The qube that has the keys; '' = let the policy choose."""
    if name := os.environ.get("QUBES_GPG_DOMAIN"):
        return name
    try:
        with open(DOMAIN_FILE, encoding="utf-8") as file:
            return file.readline(100).strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


class _Files(LocalFiles):
    def __init__(self) -> None:
        self.paths: list[bytes] = []

    def open_input(self, path: bytes) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.paths.append(path)
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
        finally:
            os.close(fd)


def _guarded(run: Callable[[], int]) -> int:
    try:
        return run()
    except _Unfinished as error:
        return error.code
    except NotAllowed as error:
        complain(f"gpg: {error}")
        return FAILED
    except CallRefused:
        complain("gpg: Request refused")
        return REFUSED
    except FramingError as error:
        complain(f"gpg: the vault: {error}")
        return FAILED
    except OSError as error:
        complain(f"gpg: {f'{os.fsdecode(error.filename)}: ' if error.filename else ''}{error.strerror or error}")
        return FAILED


def _wrap(arguments: list[bytes]) -> int:
    files = _Files()
    plan = plan_command(arguments, files)
    output = files.output
    if output is None and files.paths and (extension := _EXTENSIONS.get(plan.commands[0])):
        armored = b"--armor" in plan.options
        output = files.paths[0] + (b".asc" if armored else f".{extension}".encode())
    if output in (None, b"-"):
        return _run(plan, {})
    with ExitStack() as stack:
        file = stack.enter_context(new_file(os.fsdecode(output or b""), replace=b"--yes" in plan.options))
        code = _run(plan, {1: file.fileno(), _keep_apart(plan): 1})
        if code:
            raise _Unfinished(code)
        return code


def _keep_apart(plan: Plan) -> int:
    """Messages that are wanted on standard output must not get into the file that takes its place over there: they
    travel under another number, which is returned."""
    label = next(number for number in range(90, 200) if number not in plan.inputs | plan.outputs)
    spelled: list[bytes] = []
    for word in plan.spelled:
        name, sign, value = word.partition(b"=")
        if sign and value == b"1" and name[2:].decode("ascii", "replace") in FD_VALUES:
            word = b"%s=%d" % (name, label)
        elif word == b"1" and spelled and spelled[-1][2:].decode("ascii", "replace") in FD_VALUES:
            word = b"%d" % label
        spelled.append(word)
    if spelled != plan.spelled:
        plan.spelled = spelled
        plan.outputs.add(label)
    return label


class _Unfinished(Exception):
    """gpg has said what was wrong; its output is not to be kept."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _run(plan: Plan, instead: dict[int, int]) -> int:
    """Carry out the plan in the vault; ``instead``: descriptors of ours that take the place of others."""
    outputs = {fd: instead.get(fd, fd) for fd in plan.outputs}
    for fd in {*plan.inputs, *outputs.values()}:
        try:
            os.fstat(fd)
        except OSError:
            raise NotAllowed(f"descriptor {fd} is not open") from None
    request = encode_command(plan.request())
    inputs = sorted(plan.inputs, reverse=True) if plan.reads_data else []  # files before standard input
    if plan.reads_data and plan.words and b"-" not in plan.words:
        inputs.remove(0)  # gpg will not read it
    return _Talk(request, inputs, outputs).finish()


class _Talk:
    """One call of qubes.Gpg: a child carries the bytes, this process makes and reads the frames."""

    def __init__(self, request: bytes, inputs: list[int], outputs: dict[int, int]) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._unsent = request + b"".join(encode_data(fd, b"") for fd in (0,) if fd not in inputs)
        self._frames = FrameReader()
        self._masked = {fd for fd in outputs if os.isatty(outputs[fd])}
        call = RemoteCall(vault(), "qubes.Gpg")
        call.connect()
        theirs_in, self._to_vault = os.pipe()
        self._from_vault, theirs_out = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._to_vault)
            os.close(self._from_vault)
            try:
                os._exit(call.pump(theirs_in, theirs_out, 2, filters=(False, True)))
            finally:
                os._exit(TROUBLE)
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._to_vault, False)

    def finish(self) -> int:
        """Carry data until gpg has ended; its exit code."""
        sending = True
        while True:
            poll = select.poll()
            poll.register(self._from_vault, select.POLLIN)
            if sending and self._unsent:
                poll.register(self._to_vault, select.POLLOUT)
            elif sending and self._inputs and len(self._unsent) < _MAX_UNSENT:
                poll.register(self._inputs[0], select.POLLIN)
            for fd, _ in poll.poll():
                if fd == self._from_vault:
                    status = self._receive()
                    if status is not None:
                        return status
                elif fd == self._to_vault:
                    sending = self._send()
                else:
                    self._read_input(fd)

    def _receive(self) -> int | None:
        """What the vault says; gpg's exit code at the end."""
        untrusted = os.read(self._from_vault, _READ_BYTES)
        if not untrusted:
            status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
            if status in (REFUSED, TROUBLE, 127):
                raise OSError(errno.EIO, "the vault has no split GPG" if status == 127 else "the call failed")
            raise FramingError("the answer ended early")
        for fd, data in self._frames.receive(untrusted):
            if fd < 0:
                os.close(self._to_vault)
                os.close(self._from_vault)
                os.waitpid(self._child, 0)
                return exit_status(fd)
            if fd not in self._outputs:
                raise FramingError("the answer is for a descriptor that nobody asked for")
            if fd in self._masked:
                data = bytes(b if 0x20 <= b <= 0x7E or b in b"\t\n\r" else 0x5F for b in data)
            if data:
                write_all(self._outputs[fd], data)
        return None

    def _send(self) -> bool:
        try:
            self._unsent = self._unsent[os.write(self._to_vault, self._unsent) :]
        except BrokenPipeError:
            return False
        return True

    def _read_input(self, fd: int) -> None:
        data = os.read(fd, MAX_DATA)
        self._unsent += encode_data(fd, data)
        if not data:
            self._inputs.remove(fd)
