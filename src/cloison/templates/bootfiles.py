"""Read kernel and initrd out of a root file system that a guest has written.

In: a raw image of the file system. Out: files, or None when there is no kernel in it. May import: errors.

The file system is the guest's work and e2fsprogs was not made for hostile ones, so the reader runs in a jail that sees
nothing but that image and the host's programs, and what it says is bounded.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from cloison.errors import BackendFailed

MAX_KERNEL_BYTES = 128 << 20
MAX_INITRD_BYTES = 512 << 20
MAX_LISTING_BYTES = 1 << 20
MAX_FOLDER_ENTRIES = 200
TIMEOUT_S = 120.0
_KERNEL = re.compile(r"vmlinuz-([0-9][A-Za-z0-9.+~_-]{0,60})", re.ASCII)


@dataclass(frozen=True)
class BootFiles:
    version: str
    kernel: Path
    initrd: Path


async def read_boot_files(image: Path, directory: Path) -> BootFiles | None:
    """The newest kernel in the image's /boot that has an initrd, as two new files in ``directory``."""
    listing = await _debugfs(image, "ls -p /boot", MAX_LISTING_BYTES)
    if not listing:
        raise BackendFailed("the template's file system cannot be read", hint="is it an ext4 file system with a /boot?")
    version = newest_version(parse_listing(listing.decode(errors="replace")))
    if version is None:
        return None
    found = BootFiles(version, directory / "vmlinuz", directory / "initrd")
    found.kernel.write_bytes(await _debugfs(image, f"cat /boot/vmlinuz-{version}", MAX_KERNEL_BYTES))
    found.initrd.write_bytes(await _debugfs(image, f"cat /boot/initrd.img-{version}", MAX_INITRD_BYTES))
    if not found.kernel.stat().st_size or not found.initrd.stat().st_size:
        raise BackendFailed(
            f"the kernel {version} in the template's /boot is empty", hint="reinstall it in the template"
        )
    return found


def parse_listing(untrusted_text: str) -> list[str]:
    """Names of the regular files in ``debugfs ls -p`` output (/inode/mode/uid/gid/name/size/)."""
    names = []
    for line in untrusted_text.splitlines()[:MAX_FOLDER_ENTRIES]:
        fields = line.split("/")
        if len(fields) >= 7 and fields[2].startswith("100"):
            names.append(fields[5])
    return names


def newest_version(untrusted_names: list[str]) -> str | None:
    """The highest kernel version that has an initrd beside it."""
    matches = (_KERNEL.fullmatch(name) for name in untrusted_names)
    versions = [found[1] for found in matches if found and f"initrd.img-{found[1]}" in untrusted_names]
    return max(versions, key=_version_key, default=None)


def _version_key(version: str) -> list[tuple[int, int, str]]:
    """Numbers by value, words by letters: 6.12.9 before 6.12.10, a release candidate before its release."""
    parts = re.findall(r"\d+|~|[^\d~]+", version)
    return [(2, int(part), "") if part.isdigit() else (0 if part == "~" else 1, 0, part) for part in parts] + [
        (1, 0, "")
    ]


async def _debugfs(image: Path, request: str, limit_bytes: int) -> bytes:
    command = [
        "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
        "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
        "--ro-bind", str(image), "/disk", "/usr/sbin/debugfs", "-R", request, "/disk",
    ]  # fmt: skip
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise BackendFailed("the program bwrap is missing", hint="sudo apt install bubblewrap") from error
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _read_all(process, limit_bytes)
    except TimeoutError as error:
        raise BackendFailed(f"the template's file system could not be read within {TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read_all(process: asyncio.subprocess.Process, limit_bytes: int) -> bytes:
    assert process.stdout is not None
    parts: list[bytes] = []
    left = limit_bytes
    while part := await process.stdout.read(1 << 20):
        left -= len(part)
        if left < 0:
            raise BackendFailed(f"a boot file of the template is larger than {limit_bytes >> 20} MiB")
        parts.append(part)
    if await process.wait() != 0:
        raise BackendFailed("the template's file system cannot be read", hint="is it an ext4 file system?")
    return b"".join(parts)
