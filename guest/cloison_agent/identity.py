"""Telling a qube who it is: ``configure``, after a boot or a fork.

Everything is done by system calls of this process, in the order in which others may need it; only a blank private disk
needs a program. Runs as root; the host is trusted.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from cloison_agent import disks, syscalls, users
from cloison_agent.told import told

RW = "/rw"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
RC_LOCAL = "/rw/config/rc.local"
PAPERS = "/run/cloison"
SERVICES = "/run/qubes-service"
BIND_DIRS_CONFIG = ("/usr/lib/qubes-bind-dirs.d", "/etc/qubes-bind-dirs.d", "/rw/config/qubes-bind-dirs.d")
KEEPS_ROOT = frozenset({"TemplateVM", "StandaloneVM"})
"""Classes whose root volume is kept: /usr/local, bind-dirs and the files that say who we are stay on it."""


class Papers:
    """The small files that say who this machine is, kept in memory and bound over their places.

    A fork fills them in by one write each to a descriptor that was open before the freeze: creating, opening or
    writing files on the disk costs a fresh fork several times more, since none of that code is warm in an emulator.
    """

    PLACES: ClassVar[Mapping[str, str]] = {
        "hostname": "/etc/hostname",
        "hosts": "/etc/hosts",
        "machine-id": "/etc/machine-id",
        "boot_id": BOOT_ID,
    }

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._random: int | None = None
        self._prepared = False

    def prepare(self) -> None:
        """Make and bind the files, with what is in their places now. Once."""
        if self._prepared:
            return
        self._prepared = True
        os.makedirs(PAPERS, exist_ok=True)
        for name, place in self.PLACES.items():
            self._open[name] = _make_paper(f"{PAPERS}/{name}", place)
        if self._random is None:
            self._random = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        told.prepare()
        _remove_host_keys()
        os.makedirs(SERVICES, exist_ok=True)
        os.makedirs(f"{RW}/config", exist_ok=True)
        if user := users.find_user(users.DEFAULT_USER):
            _make_runtime_directory(user.uid, user.gid)

    def give_up(self) -> None:
        """Take the files away again: this qube keeps its root."""
        for name in list(self._open):
            if name != "boot_id":
                os.close(self._open.pop(name))
                with contextlib.suppress(OSError):
                    syscalls.unmount(self.PLACES[name], syscalls.MNT_DETACH)

    def has(self, name: str) -> bool:
        return name in self._open

    def fill(self, name: str, text: str) -> None:
        content = text.encode()
        if name in self._open:
            fd = self._open[name]
            os.pwrite(fd, content, 0)
            os.ftruncate(fd, len(content))
        else:
            _put(self.PLACES[name], text)

    def mix_random(self, seed: bytes) -> None:
        if self._random is None:
            self._random = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        syscalls.add_entropy(self._random, seed)


papers = Papers()


def _make_paper(path: str, place: str) -> int:
    try:
        with open(place, "rb") as file:
            content = file.read(65536)
    except FileNotFoundError:
        content = b""
        _put(place, "")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    os.fchmod(fd, 0o444 if place.endswith("id") else 0o644)
    os.write(fd, content)
    syscalls.bind(path, place)
    return fd


def apply_identity(fields: Mapping[str, Any]) -> dict[str, int]:
    """Make this machine the qube that the fields describe; returns how long the steps took, in microseconds."""
    timings: dict[str, int] = {}
    last = time.perf_counter()

    def done(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        timings[f"us_{step}"] = round((now - last) * 1e6)
        last = now

    klass = str(fields.get("klass", "AppVM"))
    refresh_identity(fields)
    done("entropy_and_clock")
    if klass in KEEPS_ROOT:
        papers.give_up()
    else:
        papers.prepare()
    done("papers")
    _apply_names(fields)
    done("names")
    told.remember(fields)
    apply_services(fields.get("services") or {})
    if fields.get("timezone"):
        _apply_timezone(str(fields["timezone"]))
    done("services")
    if fields.get("private") or fields.get("volatile"):
        disks.bind_disks() if fields.get("volatile") else disks.bind_private()
        done("bind_disks")
    if fields.get("private"):
        _mount_rw()
        done("mount")
    _bind_rw(klass, bool(fields.get("private")))
    if fields.get("volatile") and (device := disks.find_disk("volatile")):
        with contextlib.suppress(OSError):
            disks.use_as_swap(device)
    start_rc_local()
    done("rest")
    return timings


def refresh_identity(fields: Mapping[str, Any]) -> None:
    """What grows stale while a machine waits: its randomness (by the host's entropy) and its clock."""
    if "entropy" in fields:
        papers.mix_random(base64.b64decode(fields["entropy"], validate=True))
    if "clock_ns" in fields:
        time.clock_settime_ns(time.CLOCK_REALTIME, int(fields["clock_ns"]))


def _apply_names(fields: Mapping[str, Any]) -> None:
    hostname = str(fields.get("hostname") or fields.get("name") or "")
    if hostname:
        socket.sethostname(hostname)
        papers.fill("hostname", f"{hostname}\n")
        papers.fill("hosts", f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n")
    if fields.get("machine_id"):
        papers.fill("machine-id", f"{fields['machine_id']}\n")
    if papers.has("boot_id"):
        papers.fill("boot_id", f"{uuid.uuid4()}\n")


def _remove_host_keys() -> None:
    """Forks must not share the keys of an ssh server; each makes its own when it starts one."""
    for name in os.listdir("/etc/ssh") if os.path.isdir("/etc/ssh") else ():
        if name.startswith("ssh_host_"):
            os.unlink(f"/etc/ssh/{name}")


def apply_services(services: Mapping[str, Any]) -> None:
    """A file for each service that is switched on, and none for one that is off; others' files are left alone."""
    if services:
        os.makedirs(SERVICES, exist_ok=True)
    for name, wanted in services.items():
        if "/" in name or name.startswith("."):
            continue
        if wanted:
            _put(f"{SERVICES}/{name}", "")
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{SERVICES}/{name}")


def _apply_timezone(name: str) -> None:
    zone = f"/usr/share/zoneinfo/{name}"
    try:
        if os.readlink("/etc/localtime").endswith(f"zoneinfo/{name}"):
            return
    except OSError:
        pass
    if ".." in name or not os.path.isfile(zone):
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink("/etc/localtime")
    os.symlink(zone, "/etc/localtime")


def _mount_rw() -> None:
    device = disks.find_private()
    if device is None:
        raise OSError("the private disk is not there")
    os.makedirs(RW, exist_ok=True)
    if not os.path.ismount(RW):
        disks.mount_private(device, RW)


def _bind_rw(klass: str, private: bool) -> None:
    """Populate /rw and put its parts in their places; without a private disk all stays as it is."""
    if not private:
        return
    os.makedirs(f"{RW}/config", exist_ok=True)
    _bind_with_skeleton(f"{RW}/home", "/home")
    if klass not in KEEPS_ROOT:
        _bind_with_skeleton(f"{RW}/usrlocal", "/usr/local")
        for path in bind_dirs():
            _bind_one(path)


def _bind_with_skeleton(kept: str, place: str) -> None:
    if os.path.ismount(place):
        return
    if not os.path.isdir(kept):
        unfinished = f"{kept}.new"
        disks.copy_tree(place, unfinished)
        os.rename(unfinished, kept)
    syscalls.bind(kept, place)


def bind_dirs() -> list[str]:
    """Paths that the configuration wants kept: lines ``binds+=( '/path' ... )``; ``binds=()`` forgets the earlier."""
    wanted: list[str] = []
    for directory in BIND_DIRS_CONFIG:
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if name.endswith(".conf"):
                with contextlib.suppress(OSError, ValueError), open(f"{directory}/{name}", encoding="utf-8") as file:
                    parse_binds(file.read(65536), wanted)
    return [path for path in dict.fromkeys(wanted) if path.startswith("/") and ".." not in path.split("/")]


def parse_binds(text: str, wanted: list[str]) -> None:
    for sign, inside in re.findall(r"^[ \t]*binds(\+?)=\(([^)]*)\)", text, re.MULTILINE):
        if not sign:
            wanted.clear()
        wanted += shlex.split(inside, comments=True)


def _bind_one(path: str) -> None:
    kept = f"{RW}/bind-dirs{path}"
    with contextlib.suppress(OSError):
        if not os.path.lexists(kept):
            if not os.path.lexists(path):
                return
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            if os.path.isdir(path):
                disks.copy_tree(path, kept)
            else:
                disks.copy_file(path, kept)
        if not os.path.lexists(path):
            if os.path.isdir(kept):
                os.makedirs(path)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                _put(path, "")
        syscalls.bind(kept, path)


def _make_runtime_directory(uid: int, gid: int) -> None:
    path = f"/run/user/{uid}"
    with contextlib.suppress(FileExistsError):
        os.makedirs(path, 0o700)
        os.chown(path, uid, gid)


def start_rc_local() -> None:
    """The user's own start-up script, beside the first calls."""
    if os.access(RC_LOCAL, os.X_OK):
        subprocess.Popen([RC_LOCAL], stdin=subprocess.DEVNULL, start_new_session=True)


def _put(path: str, text: str, *, mode: int = 0o644) -> None:
    """Write a small file; the directory is made if needed."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
