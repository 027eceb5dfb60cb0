"""qubes.OpenInVM and qubes.OpenURL, the serving side: show what another qube sent; give an edited file back."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time

NAME_BYTES = 256
VIEW_ONLY = b"view-only-"
MAX_NAME = 255
"""Of a file system; the end says more of a file than the beginning."""
MAX_URL_BYTES = 65536
SPARE_BYTES = 16 << 20
_OPENER = "/usr/bin/qubes-open"
_UNSAFE = re.compile(rb"[^A-Za-z0-9._+-]")


def serve_open(_: str) -> int:
    """stdin: 256 bytes of name, then the content. stdout: the new content if it was changed."""
    name = _read_exactly(NAME_BYTES).rstrip(b"\0")
    view_only = name.startswith(VIEW_ONLY)
    safe = _UNSAFE.sub(b"_", name.removeprefix(VIEW_ONLY))[-MAX_NAME:] or b"file"
    if safe.startswith(b"."):
        safe = b"_" + safe[1:]
    source = re.sub(r"[^A-Za-z0-9._-]", "_", os.environ.get("QREXEC_REMOTE_DOMAIN", "")) or "unknown"
    directory = os.fsencode(tempfile.mkdtemp(prefix=f"{source}-"))
    path = os.path.join(directory, safe)
    try:
        _store(path)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        print(f"the file cannot be kept here: {error.strerror}", file=sys.stderr)
        return 1
    os.chmod(path, 0o400 if view_only else 0o600)
    os.utime(path, (time.time() - 60, time.time() - 60))  # so that a change in the next moment is one
    before = os.stat(path).st_mtime_ns
    with open(os.devnull, "rb") as nothing:
        code = subprocess.run([_OPENER, path], stdin=nothing, stdout=2, check=False).returncode
    if not view_only and _was_changed(path, before):
        _send_file(path)
    return code


def _store(path: bytes) -> None:
    """The rest of stdin as a file. It may be without end: some space stays free for the owner of this qube."""
    with open(path, "xb") as file:
        disk = os.fstatvfs(file.fileno())
        left = disk.f_bavail * disk.f_frsize - SPARE_BYTES
        while data := os.read(0, 1 << 17):
            left -= len(data)
            if left < 0:
                raise OSError(errno.ENOSPC, "it is larger than the space that is left")
            file.write(data)


def _was_changed(path: bytes, before_ns: int) -> bool:
    """Editors replace files as well as write into them: the name counts."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime_ns != before_ns


def serve_url(_: str) -> int:
    """stdin: one line, a web or ftp address."""
    line = sys.stdin.buffer.readline(MAX_URL_BYTES + 1)
    if len(line) > MAX_URL_BYTES or not re.fullmatch(rb"(?:https?|ftp)://[\x21-\x7e]+\s*", line):
        print("only http, https and ftp addresses are opened", file=sys.stderr)
        return 1
    return subprocess.run([_OPENER, line.strip()], stdin=subprocess.DEVNULL, stdout=2, check=False).returncode


def _read_exactly(size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        piece = os.read(0, size_bytes - len(data))
        if not piece:
            break
        data += piece
    return data


def _send_file(path: bytes) -> None:
    with open(path, "rb") as file:
        while data := file.read(1 << 17):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]
