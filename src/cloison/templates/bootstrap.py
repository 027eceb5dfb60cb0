"""Run mmdebstrap as root of a namespace of its own, and tell how far it is.

In: sources, packages, a staging directory with ``assemble`` and ``guest.tar``. Out: files in the staging directory.
May import: errors, this package's recipe.

The build runs in a new mount and pid namespace, for an ordinary user also in a user namespace in which the user is
root and the further ids come from /etc/subuid. So one code path serves both, all files belong to the user or to his
sub-ids, a mount of the build is never seen outside, and killing one process ends the whole build.
"""

from __future__ import annotations

import asyncio
import errno
import getpass
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from cloison.errors import BackendFailed
from cloison.templates import recipe

Progress = Callable[[str, float | None], None]
SILENCE_TIMEOUT_S = 600.0
"""A build that says nothing for so long is stuck (a mirror that never answers gives up sooner by itself)."""
_LOG_LINES_KEPT = 200
_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "zstd": "zstd",
}


_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}


class BuildProgress:
    """Turns mmdebstrap's verbose output into (what, fraction of the whole build).

    Packages come in two rounds, the essential ones and the rest. Within a round downloading is weighed by bytes,
    installing by packages: each is unpacked once and set up once.
    """

    _ROUND = re.compile(r"^I: (downloading packages with apt|installing remaining packages)")
    _PLANNED = re.compile(r"^\d+ upgraded, (\d+) newly installed")
    _SIZE = re.compile(r"^Need to get ([\d.,]+) ([kMG]?)B")
    _GOT = re.compile(r"^Get:\d+ .*\[([\d.,]+) ([kMG]?)B\]$")
    _STEP = re.compile(r"^(Unpacking|Setting up) (\S+)")
    LISTS, ASSEMBLE = 0.02, 0.88
    ROUNDS = ((0.10, 0.15, 0.48), (0.48, 0.53, 0.88))
    """Where downloading begins, installing begins, and the round ends (measured: two cores, a near mirror)."""

    def __init__(self) -> None:
        self.what = "reading package lists"
        self.fraction = self.LISTS
        self._round = -1
        self._begin()

    def _begin(self) -> None:
        self._packages = 1
        self._needed_bytes = 1.0
        self._got_bytes = 0.0
        self._steps = 0

    def feed(self, line: str) -> bool:
        """Take one line of output; True when there is something new to show."""
        if self._ROUND.match(line):
            self._round = min(self._round + 1, len(self.ROUNDS) - 1)
            self._begin()
        elif line.startswith("I: unpacking the packages"):
            return self._at("unpacking packages", 0.10)
        elif line.startswith("I: running --customize-hook"):
            return self._at("setting the guest up", self.ASSEMBLE)
        elif line.startswith("I: making the file system"):
            return self._at("making the file system", self.ASSEMBLE + 0.03)
        return self._round >= 0 and self._feed_packages(line, *self.ROUNDS[self._round])

    def _feed_packages(self, line: str, download: float, install: float, end: float) -> bool:
        if found := self._PLANNED.match(line):
            self._packages = max(self._packages, int(found[1]))
        elif found := self._SIZE.match(line):
            self._needed_bytes = max(self._needed_bytes, self._bytes(found))
            return self._at("downloading packages", download)
        elif found := self._GOT.match(line):
            self._got_bytes += self._bytes(found)
            part = min(1.0, self._got_bytes / self._needed_bytes)
            return self._at("downloading packages", download + part * (install - download))
        elif found := self._STEP.match(line):
            self._steps += 1
            part = min(1.0, self._steps / (2 * self._packages))
            return self._at(f"installing {found[2].split(':')[0]}", install + part * (end - install))
        return False

    def _at(self, what: str, fraction: float) -> bool:
        self.what, self.fraction = what, max(self.fraction, fraction)
        return True

    def _bytes(self, found: re.Match[str]) -> float:
        return float(found[1].replace(",", "")) * _UNITS[found[2]]


def build_root_command(*, is_root: bool | None = None) -> list[str]:
    """What to put before a command so that it is root of a build's namespaces, and dies with this process."""
    is_root = os.getuid() == 0 if is_root is None else is_root
    identity = [] if is_root else ["--user", "--map-root-user", "--map-auto"]
    return ["setpriv", "--pdeathsig=KILL", "unshare", *identity, "--mount", "--pid", "--fork", "--kill-child=KILL"]


def plan_bootstrap(
    *, suite: str, sources: Sequence[str], packages: Sequence[str], apt_options: Sequence[str]
) -> list[str]:
    """The mmdebstrap command line."""
    return [
        "mmdebstrap",
        "--mode=root",
        "--verbose",
        "--variant=minbase",
        "--format=null",
        "--skip=cleanup/apt,cleanup/mmdebstrap",
        f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in apt_options),
        *(f"--dpkgopt={option}" for option in recipe.DPKG_OPTIONS),
        '--customize-hook=sh "$CLOISON_STAGING/keep-base" "$1"',
        '--customize-hook=sh "$CLOISON_STAGING/assemble" "$1"',
        suite,
        "/dev/null",
        *sources,
    ]


async def run_bootstrap(
    *,
    suite: str,
    sources: Sequence[str],
    packages: Sequence[str],
    apt_options: Sequence[str],
    size_bytes: int,
    staging: Path,
    progress: Progress,
) -> None:
    """Fill ``staging`` with root.raw, vmlinuz, initrd, packages and base.tar.zst (what ``run_from_base`` begins with).

    OSError(ENOSPC) when the disk is full; BackendFailed otherwise.
    """
    command = plan_bootstrap(suite=suite, sources=sources, packages=packages, apt_options=apt_options)
    (staging / "keep-base").write_text(recipe.KEEP_BASE_SCRIPT)
    await _run_build(command, size_bytes=size_bytes, staging=staging, progress=progress)


async def run_from_base(base: Path, *, size_bytes: int, staging: Path, progress: Progress) -> None:
    """As ``run_bootstrap``, with the packages out of the archive that an earlier one left; raises the same."""
    script = staging / "from-base"
    script.write_text(recipe.FROM_BASE_SCRIPT)
    await _run_build(["sh", str(script), str(base)], size_bytes=size_bytes, staging=staging, progress=progress)


async def _run_build(command: Sequence[str], *, size_bytes: int, staging: Path, progress: Progress) -> None:
    check_build_tools()
    (staging / "tmp").mkdir()
    (staging / "assemble").write_text(recipe.ASSEMBLE_SCRIPT)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "INITRD": "No",
        "TMPDIR": str(staging / "tmp"),
        "CLOISON_STAGING": str(staging),
        "CLOISON_SIZE": str(size_bytes),
    } | {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    process = await asyncio.create_subprocess_exec(
        *build_root_command(),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        cwd="/",
    )
    try:
        log = await _follow(process, progress)
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise explain(log, status)


async def _follow(process: asyncio.subprocess.Process, progress: Progress) -> deque[str]:
    """Read all output; the last lines are returned."""
    assert process.stdout is not None
    log: deque[str] = deque(maxlen=_LOG_LINES_KEPT)
    state = BuildProgress()
    progress(state.what, state.fraction)
    while True:
        try:
            async with asyncio.timeout(SILENCE_TIMEOUT_S):  # wait_for of Python 3.11 can lose a cancellation
                raw = await process.stdout.readline()
        except TimeoutError as error:
            raise BackendFailed(
                f"the template build said nothing for {SILENCE_TIMEOUT_S:.0f} s; last: {log[-1] if log else 'nothing'}",
                hint="is the package mirror reachable?",
            ) from error
        except ValueError:  # a line beyond the stream's limit: nothing we look for
            continue
        if not raw:
            return log
        line = raw.decode(errors="replace").rstrip()
        log.append(line)
        if state.feed(line):
            progress(state.what, state.fraction)


def explain(log: Sequence[str], status: int) -> Exception:
    """The error that the last words of a failed build amount to."""
    if any("No space left on device" in line for line in log):
        return OSError(errno.ENOSPC, "disk full")
    if any(re.search(r"unshare: .*(Operation not permitted|write failed|uid_map)", line) for line in log):
        return BackendFailed(
            "cannot build a template as an ordinary user: the kernel refuses user namespaces",
            hint="allow them (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0), or build as root",
        )
    if any(re.search(r"newuidmap|newgidmap", line) for line in log):
        return BackendFailed("cannot build a template as an ordinary user: id mapping failed", hint=_subid_hint())
    wrong = [line for line in log if line.startswith(("E: ", "Err:", "W: GPG", "mke2fs", "dpkg: error"))]
    network = any("Could not resolve" in line or "Could not connect" in line for line in wrong)
    lines = wrong or list(log)
    said = "; ".join(lines[-4:])[:600] or "nothing"
    return BackendFailed(
        f"the template build failed (its programs ended with status {status}): {said}",
        hint="the package mirror cannot be reached; check the network or name another with --mirror" if network else "",
    )


def check_build_tools() -> None:
    """BackendFailed when a program or the id range that a build needs is missing, saying how to get it."""
    search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool, path=search) is None})
    if os.getuid() != 0 and shutil.which("newuidmap", path=search) is None:
        missing.append("uidmap")
    if missing:
        raise BackendFailed(
            f"cannot build a template: programs are missing from this host ({', '.join(missing)})",
            hint=f"sudo apt install {' '.join(missing)}",
        )
    if os.getuid() != 0 and not all(has_sub_ids(Path(name).read_text()) for name in _SUB_ID_FILES if _exists(name)):
        raise BackendFailed("cannot build a template: this user has no range of sub-ids", hint=_subid_hint())


_SUB_ID_FILES = ("/etc/subuid", "/etc/subgid")
_MIN_SUB_IDS = 65535


def has_sub_ids(text: str, *, user: str | None = None, uid: int | None = None) -> bool:
    """Whether an /etc/subuid text grants this user enough ids for a distribution's users."""
    names = {user or getpass.getuser(), str(os.getuid() if uid is None else uid)}
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in names and fields[2].isdigit() and int(fields[2]) >= _MIN_SUB_IDS:
            return True
    return False


def _exists(name: str) -> bool:
    return Path(name).exists()


def _subid_hint() -> str:
    return f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {getpass.getuser()}"


async def run_as_build_root(*command: str) -> None:
    """Run a command in the namespaces of a build (to remove what only its sub-ids may); its failure is ignored."""
    process = await asyncio.create_subprocess_exec(
        *build_root_command(), *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    await process.wait()
