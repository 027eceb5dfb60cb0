"""Services qubes.Gpg and qubes.GpgImportKey: the keys stay here, other qubes have them used.

In: frames from an untrusted qube. Out: frames with what ``gpg`` answered. May import: the standard library.

The policy decides whether this program runs at all. Who wants to be asked less often than at each call lets the policy
allow the calls and sets ``consent = call`` here: then this qube asks dom0 (cloison.Consent, whose policy is to ask)
once per client and period.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import time

from cloison_tools.client import CallRefused, RemoteCall, write_all
from cloison_tools.gpgframes import COMMAND_SIZE, FrameReader, FramingError, encode_data, encode_exit, parse_command
from cloison_tools.gpgoptions import NotAllowed, Plan, plan_command

SETTINGS = "/rw/config/split-gpg.conf"
DEFAULT_PERIOD_S = 300
REFUSAL_HOLDS_S = 30
"""A client that asks again and again must not tire the user into a yes."""
MAX_KEY_BYTES = 1 << 20
IMPORT_LIMIT_S = 120
READ_BYTES = 1 << 16
_MAX_HELD = 1 << 18
"""Bytes for one of gpg's inputs that wait because it reads another first."""
_LINGER_S = 2.0
"""How long outputs may stay open after gpg has ended."""
_FIRST_PRIVATE_FD = 300
_REFUSED = 2


class Refused(Exception):
    """The call is not carried out; the text is for its caller."""


def serve(arguments: list[str]) -> int:
    source = os.environ.get("QREXEC_REMOTE_DOMAIN", "")
    try:
        plan = plan_command(parse_command(_read_exactly(0, COMMAND_SIZE)))
        get_consent("qubes.Gpg", source)
        status = _Run(plan).finish()
    except (NotAllowed, Refused) as error:
        write_all(1, encode_data(2, f"gpg (split): {error}\n".encode()) + encode_data(2, b"") + encode_exit(_REFUSED))
        return 0
    except (FramingError, OSError) as error:
        print(f"qubes.Gpg: {error}", file=sys.stderr)
        return 1
    write_all(1, encode_exit(status))
    return 0


def serve_import(arguments: list[str]) -> int:
    """qubes.GpgImportKey: public keys only; a secret key in the vault comes from the vault."""
    try:
        get_consent("qubes.GpgImportKey", os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
        untrusted_key = sys.stdin.buffer.read(MAX_KEY_BYTES + 1)
        if not 0 < len(untrusted_key) <= MAX_KEY_BYTES:
            raise Refused(f"a key has 1 to {MAX_KEY_BYTES} bytes")
        shown = _gpg("--with-colons", "--import-options", "show-only", "--import", key=untrusted_key, quiet=True)
        kinds = {line.partition(b":")[0] for line in shown.stdout.splitlines()}
        if kinds & {b"sec", b"ssb"}:
            raise Refused("there is a secret key in it (hint: secret keys are put into the vault by hand)")
        if b"pub" not in kinds:
            raise Refused("this is no public key")
        return _gpg("--import-options", "import-minimal", "--import", key=untrusted_key).returncode
    except (Refused, OSError, subprocess.TimeoutExpired) as error:
        print(f"qubes.GpgImportKey: {error}", file=sys.stderr)
        return 1


def _gpg(*words: str, key: bytes, quiet: bool = False) -> subprocess.CompletedProcess[bytes]:
    command = ["gpg", "--batch", "--no-tty", "--disable-dirmngr", "--no-auto-key-retrieve", *words]
    output = subprocess.PIPE if quiet else None
    return subprocess.run(command, input=key, stdout=output, timeout=IMPORT_LIMIT_S)


def get_consent(service: str, source: str) -> None:
    """Return if the user agrees that this qube's keys are used for ``source``; raises Refused.

    ``consent = policy`` (the default): that the call came here is the consent. ``consent = call``: ask through
    ``cloison.Consent``, unless that was done less than ``period_s`` ago for this service and client.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", source, re.ASCII):
        raise Refused("the caller has no name")
    settings = read_settings(SETTINGS)
    if settings.get("consent", "policy") == "policy":
        return
    period_s = int(settings.get("period_s") or os.environ.get("QUBES_GPG_AUTOACCEPT") or DEFAULT_PERIOD_S)
    directory = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache"), "cloison-split-gpg")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(os.path.join(directory, f"{service}+{source}"), "a+", encoding="ascii") as stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)  # two calls at once are one question
        stamp.seek(0)
        answer, _, when = stamp.read(32).partition(" ")
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(when) if when.isdecimal() else -1
        if answer == "yes" and 0 <= age_s < period_s:
            return
        if answer == "no" and 0 <= age_s < REFUSAL_HOLDS_S:
            raise Refused("the user did not agree a moment ago")
        answer = "yes" if _ask_dom0(f"{service}+{source}") else "no"
        stamp.truncate(0)
        stamp.write(f"{answer} {int(time.clock_gettime(time.CLOCK_BOOTTIME))}")
    if answer == "no":
        raise Refused("the user did not agree")


def read_settings(path: str) -> dict[str, str]:
    """Lines ``key = value``; an unknown key or value is an error, so that a slip of the pen does not open the vault."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.partition("#")[0].strip() for line in file.read(65536).splitlines()]
    except FileNotFoundError:
        return {}
    settings = {}
    for line in filter(None, lines):
        key, _, value = (part.strip() for part in line.partition("="))
        if not ((key == "consent" and value in ("policy", "call")) or (key == "period_s" and value.isdecimal())):
            raise Refused(f"{path} has a line that cannot be read: {line[:60]}")
        settings[key] = value
    return settings


def _ask_dom0(argument: str) -> bool:
    try:
        call = RemoteCall("dom0", f"cloison.Consent+{argument}")
        call.connect()
        nothing = os.open(os.devnull, os.O_RDWR)
        return call.pump(nothing, nothing, nothing) == 0
    except CallRefused:
        return False


def _read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := os.read(fd, count - len(data))):
        data += piece
    return data


class _Run:
    """One gpg: its descriptors on one side, frames on our standard streams on the other."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._frames = FrameReader()
        self._listening = True
        """The client may still send."""
        self._held: dict[int, bytearray] = {}
        self._ended: set[int] = set()
        """Inputs whose end the client has sent: they end here when what is held for them is written."""
        self._to_gpg: dict[int, int] = {}
        self._from_gpg: dict[int, int] = {}
        self._pid = self._start()
        self._pidfd = os.pidfd_open(self._pid)

    def _start(self) -> int:
        ours: list[tuple[int, int]] = []
        for fd in sorted(self._plan.inputs | self._plan.outputs):
            read_end, write_end = (_high(end) for end in os.pipe())
            if fd in self._plan.inputs:
                self._to_gpg[fd], self._held[fd] = write_end, bytearray()
                os.set_blocking(write_end, False)
                ours.append((read_end, fd))
            else:
                self._from_gpg[read_end] = fd
                ours.append((write_end, fd))
        pid = os.fork()
        if pid == 0:
            try:
                for end, fd in ours:
                    os.dup2(end, fd)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                os.execvp("gpg", [b"gpg", *self._plan.gpg_arguments()])
            except OSError as error:
                os.write(2, f"gpg: {error.strerror}\n".encode())
            finally:
                os._exit(_REFUSED)
        for end, _ in ours:
            os.close(end)
        return pid

    def finish(self) -> int:
        """Carry data until gpg has ended and said everything; its exit status."""
        ended_at: float | None = None
        try:
            while self._from_gpg and (ended_at is None or time.monotonic() - ended_at < _LINGER_S):
                for fd in self._wait(has_ended=ended_at is not None):
                    if fd == self._pidfd:
                        ended_at = time.monotonic()
                    else:
                        self._handle(fd)
        except BaseException:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            raise
        return _exit_code(os.waitpid(self._pid, 0)[1])

    def _wait(self, *, has_ended: bool) -> list[int]:
        """Descriptors with something to do. After gpg's end, only what it left in its outputs counts."""
        poll = select.poll()
        for fd in self._from_gpg:
            poll.register(fd, select.POLLIN)
        if not has_ended:
            poll.register(self._pidfd, select.POLLIN)
            for fd, held in self._held.items():
                if held and fd in self._to_gpg:
                    poll.register(self._to_gpg[fd], select.POLLOUT)
            if self._listening and max(map(len, self._held.values()), default=0) < _MAX_HELD:
                poll.register(0, select.POLLIN)
        return [fd for fd, _ in poll.poll(200 if has_ended else None)]

    def _handle(self, fd: int) -> None:
        if fd == 0:
            self._receive()
        elif fd in self._from_gpg:
            data = os.read(fd, READ_BYTES)
            write_all(1, encode_data(self._from_gpg[fd], data))
            if not data:
                os.close(fd)
                del self._from_gpg[fd]
        else:
            for number, end in list(self._to_gpg.items()):
                if end == fd:
                    self._feed(number)

    def _receive(self) -> None:
        untrusted = os.read(0, READ_BYTES)
        if not untrusted:
            self._listening = False
            if self._plan.reads_data and self._to_gpg.keys() - self._ended:
                raise FramingError("the client ended in the middle of its data")  # and gpg must not sign a part
            return
        for fd, data in self._frames.receive(untrusted):
            if fd not in self._held or fd in self._ended:
                raise FramingError("data for a descriptor that is not open")
            if data:
                self._held[fd] += data
            else:
                self._ended.add(fd)
            self._feed(fd)

    def _feed(self, number: int) -> None:
        """Write what is held for one of gpg's inputs; close it at its end."""
        held = self._held[number]
        end = self._to_gpg.get(number)
        if end is None:
            held.clear()
            return
        is_wanted = True
        try:
            if held:
                del held[: os.write(end, held)]
        except BlockingIOError:
            return
        except BrokenPipeError:
            held.clear()
            is_wanted = False
        if not held and (number in self._ended or not is_wanted):
            os.close(end)
            del self._to_gpg[number]


def _high(fd: int) -> int:
    """The same pipe under a number that no descriptor of gpg's has."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_PRIVATE_FD)
    finally:
        os.close(fd)


def _exit_code(raw: int) -> int:
    code = os.waitstatus_to_exitcode(raw)
    return code if 0 <= code <= 255 else 128 + min(-code, 127)
