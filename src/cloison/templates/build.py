"""Build a template's image once per set of inputs, and keep it in the cache.

In: an ``ImageRequest``. Out: an ``Image``: a directory with the root disk, kernel, initrd and a manifest.
May import: errors, this package.

Layout of the cache: ``images/<key>/{root.qcow2,vmlinuz,initrd,manifest.json}``; ``images/.building-<key>/`` while one
is being made, under the lock ``images/.lock-<key>``. A directory named by a key is complete: it gets its name by one
rename after everything in it was synced. Beside it ``bases/`` holds installed packages (module ``bases``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import stat
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cloison.errors import BackendFailed, BadRequest, DiskFull
from cloison.guest_tree import GUEST_PACKAGES, guest_commands, guest_tree
from cloison.templates import recipe
from cloison.templates.bases import Bases, base_key
from cloison.templates.bootstrap import run_bootstrap, run_from_base
from cloison.templates.recipe import GuestTree
from cloison.templates.sources import find_host_acquire_options, find_host_targets, plan_sources, source_line

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the whole build's fraction done (None: not known)."""

GIB = 1 << 30
DEFAULT_SIZE_BYTES = 10 * GIB
MIN_SIZE_BYTES = 2 * GIB
NEEDED_BYTES = int(2.75 * GIB)
"""Unpacked tree, the file system made of it, the finished image and the packed packages exist side by side."""
BYTES_PER_EXTRA_PACKAGE = 60 << 20
"""A guess for packages beyond ours, in the same three copies, their dependencies included."""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class ImageRequest:
    """What the image shall be; equal requests give the same cached image."""

    distribution: str = "debian"
    suite: str = ""
    """Empty: the distribution's default."""
    include: tuple[str, ...] = ()
    """Packages besides the usual ones."""
    size_bytes: int = DEFAULT_SIZE_BYTES
    mirror: str = ""
    """Empty: the mirrors that the host's own apt is configured with."""
    keyring: str = ""
    """Empty: the distribution's archive keyring package."""


@dataclass(frozen=True)
class Image:
    """A finished image in the cache."""

    directory: Path
    key: str
    size_bytes: int
    built: str
    """UTC, ISO 8601."""

    @property
    def disk(self) -> Path:
        """The root file system (no partition table), qcow2."""
        return self.directory / "root.qcow2"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @classmethod
    def load(cls, directory: Path) -> Image:
        """The image in ``directory``, or BackendFailed naming what is missing there."""
        try:
            manifest = json.loads((directory / "manifest.json").read_text())
            image = cls(directory, manifest["key"], manifest["size_bytes"], manifest["built"])
            missing = [path.name for path in (image.disk, image.kernel, image.initrd) if path.stat().st_size == 0]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendFailed(
                f"template image {directory} is damaged: {error}", hint="remove that directory and build again"
            ) from error
        if missing:
            raise BackendFailed(
                f"template image {directory} is damaged: {missing[0]} is empty",
                hint="remove that directory and build again",
            )
        return image


async def build_image(
    request: ImageRequest, cache_dir: Path, progress: Progress, *, tree: GuestTree | None = None, again: bool = False
) -> Image:
    """The image for ``request``, from the cache or newly built (about a minute; ``again``: even if there is one).

    Atomic: after failure, cancellation or kill -9 no half-made image is seen, and the next call tidies up.
    Raises BadRequest (request), DiskFull (says how much is needed), BackendFailed (tools, network, packages).
    """
    check_request(request)
    guest: GuestTree = guest_tree() if tree is None else tree
    key = image_key(request, guest)
    images = cache_dir / "images"
    final = images / key
    images.mkdir(parents=True, exist_ok=True)
    async with _locked(images / f".lock-{key}", progress):
        if final.exists() and not again:
            return Image.load(final)
        staging = images / f".building-{key}"
        await remove_tree(staging)
        await _sweep(images)
        await _make_room(images, request)
        staging.mkdir(mode=0o700)
        try:
            await _fill(staging, request, guest, Bases(cache_dir / "bases"), progress, again=again)
            await _finish(staging, request, key, progress)
            await remove_tree(final)  # templates made from an earlier one hold its files by links of their own
            staging.rename(final)
            _sync_directory(images)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _disk_full(images, request) from error
            raise BackendFailed(f"cannot build template image in {images}: {error}") from error
        finally:
            await remove_tree(staging)
        progress("template image ready", 1.0)
        return Image.load(final)


async def _fill(
    staging: Path, request: ImageRequest, guest: GuestTree, bases: Bases, progress: Progress, *, again: bool
) -> None:
    """Root disk, kernel, initrd and package list, from packages kept earlier (not ``again``) or from the archives."""
    distribution = recipe.parse_distribution(request.distribution)
    packages = (*_packages(distribution), *sorted(request.include))
    suite = request.suite or distribution.default_suite
    key = base_key(
        distribution=distribution.name,
        suite=suite,
        mirror=request.mirror,
        keyring=request.keyring,
        packages=packages,
        dpkg=recipe.DPKG_OPTIONS,
        script=recipe.KEEP_BASE_SCRIPT,
    )
    if (base := None if again else bases.find(key)) is not None:
        _write_guest_files(staging, guest)
        try:
            return await run_from_base(base, size_bytes=request.size_bytes, staging=staging, progress=progress)
        except BackendFailed:  # a damaged archive, say: begin anew
            bases.drop(key)
            await remove_tree(staging)
            staging.mkdir(mode=0o700)
    progress("looking for package sources", 0.0)
    keyring = request.keyring or distribution.keyring
    _check_keyring(keyring)
    sources = (
        (source_line(request.mirror, suite, keyring),)
        if request.mirror
        else plan_sources(await find_host_targets(), suite, origin=distribution.origin, keyring=keyring)
    )
    _write_guest_files(staging, guest)
    await run_bootstrap(
        suite=suite,
        sources=sources,
        packages=packages,
        apt_options=await find_host_acquire_options(),
        size_bytes=request.size_bytes,
        staging=staging,
        progress=progress,
    )
    bases.publish(key, staging / "base.tar.zst")


def check_request(request: ImageRequest) -> None:
    """BadRequest when a field could not be meant."""
    if request.size_bytes < MIN_SIZE_BYTES:
        raise BadRequest(f"a template needs a root disk of at least {MIN_SIZE_BYTES // GIB} GiB")
    for package in request.include:
        if not package or not package[0].isalnum() or not set(package) <= _PACKAGE_CHARACTERS:
            raise BadRequest(f"{package[:40]!a} is not a package name")


_PACKAGE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+-.:")


def image_key(request: ImageRequest, guest: GuestTree) -> str:
    """Digest of everything the image is made from (the state of the package archive aside)."""
    digest = hashlib.sha256()
    distribution = recipe.parse_distribution(request.distribution)
    inputs = {
        "request": asdict(request) | {"suite": request.suite or distribution.default_suite},
        "version": recipe.RECIPE_VERSION,
        "packages": _packages(distribution),
        "dpkg": recipe.DPKG_OPTIONS,
        "scripts": [_configure_script(guest), recipe.ASSEMBLE_SCRIPT, recipe.KEEP_BASE_SCRIPT],
    }
    digest.update(json.dumps(inputs, sort_keys=True).encode())
    for path, (mode, content) in sorted(_whole_tree(guest).items()):
        digest.update(f"\n{path} {mode:o} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


def enabled_units(guest: GuestTree) -> tuple[str, ...]:
    """The systemd units among our guest files that ask to be enabled."""
    folders = ("/usr/lib/systemd/system/", "/lib/systemd/system/", "/etc/systemd/system/")
    return tuple(
        sorted(
            path.rpartition("/")[2]
            for path, (_, content) in guest.items()
            if path.startswith(folders) and path.count("/") <= 5 and b"[Install]" in content
        )
    )


async def remove_tree(directory: Path) -> None:
    """Remove a build's directory, whoever owns what is in it; nothing happens if it does not exist."""
    if not directory.exists():
        return
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    if directory.exists():
        from cloison.templates.bootstrap import run_as_build_root

        await run_as_build_root("rm", "-rf", "--one-file-system", str(directory))


def _whole_tree(guest: GuestTree) -> GuestTree:
    return {**recipe.SYSTEM_FILES, **recipe.initrd_files(), **guest}


def _kernel_package(distribution: recipe.Distribution) -> str:
    machine = _MACHINES.get(platform.machine(), platform.machine())
    try:
        return distribution.kernels[machine]
    except KeyError:
        raise BadRequest(f"there is no {distribution.name} guest kernel for this machine ({machine})") from None


def _packages(distribution: recipe.Distribution) -> list[str]:
    return sorted({_kernel_package(distribution), *distribution.packages, *GUEST_PACKAGES})


def _configure_script(guest: GuestTree) -> str:
    return recipe.configure_script(enabled_units(guest), guest_commands() if guest else ())


def _check_keyring(keyring: str) -> None:
    if not Path(keyring).is_file():
        raise BackendFailed(
            f"the archive keyring {keyring} is missing", hint="install the package debian-archive-keyring"
        )


async def _sweep(images: Path) -> None:
    """Remove what interrupted builds of other images left (those that still run hold their lock)."""
    for rest in images.glob(".building-*"):
        lock = images / f".lock-{rest.name.removeprefix('.building-')}"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await remove_tree(rest)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


async def _make_room(images: Path, request: ImageRequest) -> None:
    """DiskFull unless a build fits. Old images go first, those excepted whose disk a template shares by a hard link."""
    old = sorted(
        (path for path in images.iterdir() if path.name[0] != "." and _is_unshared(path)),
        key=lambda path: path.stat().st_mtime,
    )
    old += Bases(images.parent / "bases").all()
    while shutil.disk_usage(images).free < needed_bytes(request):
        if not old:
            raise _disk_full(images, request)
        least = old.pop(0)
        await remove_tree(least) if least.is_dir() else least.unlink(missing_ok=True)


def _is_unshared(directory: Path) -> bool:
    disk = directory / "root.qcow2"
    return not disk.exists() or disk.stat().st_nlink == 1


def needed_bytes(request: ImageRequest) -> int:
    """Free space that a build wants at its height."""
    return NEEDED_BYTES + len(request.include) * BYTES_PER_EXTRA_PACKAGE


def _disk_full(images: Path, request: ImageRequest) -> DiskFull:
    needed = needed_bytes(request)
    free = shutil.disk_usage(images).free
    return DiskFull(
        f"cannot build a template image in {images}: about {needed >> 20} MiB are needed, {free >> 20} MiB are free",
        hint="free some space, or move the cache with CLOISON_CACHE",
    )


def _write_guest_files(staging: Path, guest: GuestTree) -> None:
    """The tar archive that the build's last step reads."""
    files = dict(_whole_tree(guest))
    files["/.cloison-build/configure"] = (0o755, _configure_script(guest).encode())
    with tarfile.open(staging / "guest.tar", "w") as tar:
        for path, (mode, content) in sorted(files.items()):
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.mtime = stat.S_IMODE(mode), 0
            if stat.S_ISLNK(mode):
                member.type, member.linkname = tarfile.SYMTYPE, content.decode()
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


async def _finish(staging: Path, request: ImageRequest, key: str, progress: Progress) -> None:
    """Raw file system -> qcow2, manifest, everything synced; only the finished files stay in ``staging``."""
    progress("writing the image", 0.93)
    raw, disk = staging / "root.raw", staging / "root.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "lazy_refcounts=off", str(raw), str(disk)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        if b"No space left" in err:
            raise OSError(errno.ENOSPC, "disk full")
        raise BackendFailed(f"qemu-img convert failed: {err.decode(errors='replace').strip()[-300:]}")
    packages = (staging / "packages").read_text().splitlines()
    manifest = {
        "key": key,
        "size_bytes": request.size_bytes,
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "recipe": recipe.RECIPE_VERSION,
        "inputs": asdict(request),
        "packages": dict(line.split(" ")[:2] for line in packages),
    }
    (staging / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    disk.chmod(0o444)  # from here on it is shared, by hard links too
    keep = {"root.qcow2", "vmlinuz", "initrd", "manifest.json"}
    for path in staging.iterdir():
        if path.name not in keep:
            await remove_tree(path) if path.is_dir() else path.unlink()
    progress("syncing to disk", 0.97)
    for name in keep:
        await asyncio.to_thread(_sync_file, staging / name)
    _sync_directory(staging)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _locked(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold the lock file; one builder per key, other processes included."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    progress("waiting for another build of the same image", None)
                waiting = True
                await asyncio.sleep(0.5)
        yield
    finally:
        os.close(descriptor)
