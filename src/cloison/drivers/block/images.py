"""Image files and block devices of this host, as an ordinary user may open them.

In: a directory of links, the kernel's list of loop devices. Out: the contract's ``Images``. May import: the contract,
errors.

What the user exposes is a link below ``rw`` or ``ro`` of the directory: no list that could differ from what is there.
Loop devices that have a file and that the user may open are there by themselves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from cloison.drivers.block.base import Image, OpenedImage
from cloison.errors import BadRequest, DeviceInUse, DeviceNotFound, Refused

SECTOR_BYTES = 512
PORT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}", re.ASCII)
_LOOP = re.compile(r"loop[0-9]+", re.ASCII)
_QCOW2 = b"QFI\xfb"
WRITABLE, READ_ONLY = "rw", "ro"


class HostImages:
    def __init__(self, directory: Path, private: Path, *, block: Path = Path("/sys/block"),
                 devices: Path = Path("/dev")) -> None:  # fmt: skip
        """``directory``: where the links are. ``private``: below it nothing may be exposed (the system's own data)."""
        self._directory = directory
        self._private = private
        self._block = block
        self._devices = devices

    def images(self) -> Sequence[Image]:
        found: dict[str, Image] = {}
        for port, path, read_only in self._known():
            try:
                found.setdefault(port, self._look(port, path, read_only=read_only))
            except BadRequest:
                continue  # gone, or of no use now: ``trouble`` says why
        return list(found.values())

    def trouble(self, port: str) -> str:
        known = self._find(port)
        if known is None:
            return f"dom0 exposes no block device {port}"
        try:
            self._look(port, known[0], read_only=known[1])
        except BadRequest as error:
            return error.message
        return ""

    def expose(self, path: Path, port: str, *, read_only: bool) -> Image:
        path = self._check_path(path)
        port = port or _port_of(path)
        if not PORT.fullmatch(port) or _LOOP.fullmatch(port):
            raise BadRequest(f"{port[:80]!a} is no name for a device: letters, digits, '.', '_' and '-', and not loopN")
        image = self._look(port, path, read_only=read_only)
        _check_format(path)
        if (known := self._find(port)) is not None:
            if known == (path, read_only):
                return image
            raise BadRequest(f"{port} is {known[0]} already", hint="choose another --name, or hide that one first")
        link = self._directory / (READ_ONLY if read_only else WRITABLE) / port
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
        return image

    def hide(self, port: str) -> None:
        found = False
        for kind in (READ_ONLY, WRITABLE):
            link = self._directory / kind / port
            if PORT.fullmatch(port) and link.is_symlink():
                link.unlink()
                found = True
        if not found:
            loop = "it is there for as long as its loop device is" if _LOOP.fullmatch(port) else ""
            raise DeviceNotFound(f"no file is exposed as {port[:80]!a}", hint=loop)

    def open(self, port: str, *, read_only: bool) -> OpenedImage:
        known = self._find(port)
        if known is None or (why := self.trouble(port)):
            raise DeviceNotFound(why if known else f"dom0 exposes no block device {port}")
        path, only_read = known
        if only_read and not read_only:
            raise Refused(f"{port} may only be read", hint="attach it with --ro")
        flags = os.O_RDONLY if read_only else os.O_RDWR
        if not read_only and path.is_block_device():
            flags |= os.O_EXCL  # the kernel itself says no while it is mounted
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError:
            raise Refused(f"{path} may not be written by this user", hint="attach it with --ro") from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceInUse(f"{path} is in use by this host", hint="is it mounted?") from None
            raise DeviceNotFound(f"cannot open {path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return OpenedImage(fd, read_only, stat.S_ISBLK(os.fstat(fd).st_mode))
        except OSError:
            os.close(fd)
            raise DeviceInUse(
                f"{path} is in use" if not read_only else f"{path} is in use for writing",
                hint="a qube or another program has locked it",
            ) from None

    def _known(self) -> Iterator[tuple[str, Path, bool]]:
        """Port, path, and whether it may only be read. (Exposed both ways by hand: only to be read.)"""
        for kind in (READ_ONLY, WRITABLE):
            for link in sorted(_listed(self._directory / kind)):
                if PORT.fullmatch(link.name) and link.is_symlink():
                    yield link.name, link.readlink(), kind == READ_ONLY
        for entry in sorted(_listed(self._block)):
            if _LOOP.fullmatch(entry.name) and (entry / "loop/backing_file").exists():
                yield entry.name, self._devices / entry.name, _reads_one(entry / "ro")

    def _find(self, port: str) -> tuple[Path, bool] | None:
        return next(((path, read_only) for name, path, read_only in self._known() if name == port), None)

    def _look(self, port: str, path: Path, *, read_only: bool) -> Image:
        """BadRequest saying why the file cannot be a disk now."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BadRequest(f"cannot open {path}: {error.strerror}") from None
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise BadRequest(f"{path} is neither a file nor a block device")
            size = os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
        if size < SECTOR_BYTES or size % SECTOR_BYTES:
            raise BadRequest(f"{path} has {size} bytes, which is no disk: whole sectors of {SECTOR_BYTES} bytes are")
        backing = _first_line(self._block / port / "loop/backing_file") if _LOOP.fullmatch(port) else ""
        identity = ":None" if stat.S_ISBLK(mode) and _LOOP.fullmatch(port) else f"image:{port}"
        return Image(port, identity, _printable(backing or str(path)), size, read_only or not os.access(path, os.W_OK))

    def _check_path(self, path: Path) -> Path:
        if not path.is_absolute() or "\0" in str(path):
            raise BadRequest(f"{str(path)[:200]!a} is no absolute path")
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise BadRequest(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from None
        if real.is_relative_to(self._private.resolve()):
            raise BadRequest(f"{path} belongs to this system itself", hint="volumes are reached by `cloison volume`")
        return real


def _check_format(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_QCOW2)) == _QCOW2:
            raise BadRequest(
                f"{path} is a qcow2 image, and a qube would see its raw bytes",
                hint=f"`qemu-img convert -O raw {path.name} disk.img` makes a disk of it",
            )


def _port_of(path: Path) -> str:
    return re.sub(r"[^a-zA-Z0-9._-]+", "-", path.name, flags=re.ASCII).strip("-._")[:62]


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _reads_one(path: Path) -> bool:
    return _first_line(path) == "1"


def _printable(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
