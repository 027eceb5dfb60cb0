"""qvm-open-in-vm, qvm-open-in-dvm and qvm-run-vm: have another qube open or run something."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence

from cloison_agent.client import REFUSED, TROUBLE, CallRefused, RemoteCall

NAME_BYTES = 256


def open_in_disposable(arguments: Sequence[str]) -> int:
    return _open("@dispvm", arguments, "qvm-open-in-dvm [--view-only] FILE|URL")


def open_in_vm(arguments: Sequence[str]) -> int:
    usage = "qvm-open-in-vm [--view-only] QUBE FILE|URL"
    options, words = _split(arguments)
    if len(words) < 2:
        sys.stderr.write(f"usage: {usage}\n")
        return 1
    return _open(words[0].replace("$", "@"), [*options, *words[1:]], usage)


def run_in_vm(arguments: Sequence[str]) -> int:
    """qvm-run-vm: a shell command, through qubes.VMShell."""
    options, words = _split(arguments)
    if "--dispvm" in options:
        words = ["@dispvm", *words]
    if len(words) < 2:
        sys.stderr.write("usage: qvm-run-vm QUBE COMMAND [ARGUMENTS...]\n")
        return 1
    command = " ".join(words[1:])
    prefix = f"exec bash -c {shlex.quote(command)} || exit 127\n"
    return _call(words[0].replace("$", "@"), "qubes.VMShell", 0, 1, os.fsencode(prefix), filtered=True)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    options = []
    while words and words[0].startswith("-") and words[0] != "-":
        option = words.pop(0)
        if option == "--":
            break
        options.append(option)
    return options, words


def _call(target: str, service: str, stdin: int, stdout: int, prefix: bytes = b"", *, filtered: bool = False) -> int:
    try:
        call = RemoteCall(target, service)
        call.connect()
        filters = (filtered and os.isatty(stdout), os.isatty(2))
        return call.pump(stdin, stdout, 2, prefix=prefix, filters=filters)
    except CallRefused:
        sys.stderr.write("Request refused\n")
        return REFUSED
    except OSError as error:
        sys.stderr.write(f"cannot call {service}: {error}\n")
        return TROUBLE


def _open(target: str, arguments: Sequence[str], usage: str) -> int:
    options, words = _split(arguments)
    if len(words) != 1 or set(options) - {"--view-only"}:
        sys.stderr.write(f"usage: {usage}\n")
        return 1
    if re.match(r"(?:https?|ftp)://", words[0]):
        with open(os.devnull, "rb") as nothing:
            return _call(target, "qubes.OpenURL", nothing.fileno(), 1, os.fsencode(words[0]) + b"\n", filtered=True)
    return _open_file(target, words[0], view_only="--view-only" in options)


def _open_file(target: str, path: str, *, view_only: bool) -> int:
    """Send the file; if an edited one comes back, it takes the file's place."""
    name = os.fsencode(os.path.basename(path))[-NAME_BYTES + 12 :]
    if view_only:
        name = b"view-only-" + name
    try:
        with open(path, "rb") as file, tempfile.TemporaryFile() as changed:
            code = _call(target, "qubes.OpenInVM", file.fileno(), changed.fileno(), name.ljust(NAME_BYTES, b"\0"))
            size_bytes = changed.seek(0, os.SEEK_END)
            if code == 0 and size_bytes and not view_only:
                changed.seek(0)
                _replace(path, changed.fileno())
            return code
    except OSError as error:
        sys.stderr.write(f"{path}: {error.strerror}\n")
        return 1


def _replace(path: str, changed: int) -> None:
    directory = os.path.dirname(os.path.abspath(path))
    try:
        fd, unfinished = tempfile.mkstemp(dir=directory)
    except OSError:
        fd, unfinished = tempfile.mkstemp(prefix="edited-", suffix=f"-{os.path.basename(path)}")
        sys.stderr.write(f"{directory} cannot be written; the edited file is {unfinished}\n")
        path = unfinished
    with os.fdopen(fd, "wb") as file:
        while data := os.read(changed, 1 << 17):
            file.write(data)
        os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
    os.replace(unfinished, path)
