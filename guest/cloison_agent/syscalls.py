"""System calls that Python 3.11 does not offer, through the C library: a helper program costs a fork and an exec."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOATIME, MS_BIND = 2, 4, 8, 32, 1024, 4096
MNT_DETACH = 2
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_AT_EMPTY_PATH = 0x1000
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        target,
    )


def bind(source: str, target: str) -> None:
    mount(source, target, flags=MS_BIND)


def unmount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), target)


def swap_on(device: str) -> None:
    _check(_libc.swapon(os.fsencode(device), 0), device)


def link_open_file(fd: int, directory: int, name: bytes) -> None:
    """Give an unnamed file (O_TMPFILE) its name; fails with EEXIST rather than replacing anything."""
    _check(_libc.linkat(fd, b"", directory, name, _AT_EMPTY_PATH), os.fsdecode(name))


def add_entropy(random: int, seed: bytes) -> None:
    """Mix the seed into the kernel's pool, credit it, and make every generator start anew from it.

    ``random``: /dev/urandom, open for writing.
    """
    fcntl.ioctl(random, _RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
    fcntl.ioctl(random, _RNDRESEEDCRNG)


def enter_private_root(directory: int) -> None:
    """Namespaces of our own in which the directory (nosuid, nodev, noexec) is all there is; OSError if not allowed."""
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    for path, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{path}", "w") as file:
            file.write(text)
    os.fchdir(directory)
    mount(".", ".", flags=MS_BIND)
    # The working directory is still the one below the new mount; only its name leads to it.
    path = os.readlink(f"/proc/self/fd/{directory}")
    os.chdir(path)
    mount("", ".", flags=MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.chroot(".")
    os.chdir("/")
