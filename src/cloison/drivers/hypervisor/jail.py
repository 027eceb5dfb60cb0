"""The jail around a machine's process: bubblewrap with every namespace unshared.

In: an argument vector. Out: the argument vector that runs it jailed. May import: errors, the contract.

Inside: /usr read-only (programs and libraries), the few files that the plan names, no network, no capabilities, an
empty environment, and whatever descriptors it inherits. There is no /proc: through it a process could open its
read-only descriptors again for writing. It does not die with its parent.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from cloison.drivers.hypervisor.base import Accelerator
from cloison.errors import BackendFailed

BUBBLEWRAP = "bwrap"
USER_NAMESPACES_HINT = (
    "allow unprivileged user namespaces: `sysctl kernel.unprivileged_userns_clone=1`, on Ubuntu 24.04 also "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0` or an AppArmor profile for bwrap; in a container "
    "start it with `--security-opt seccomp=unconfined`"
)
CHECK_TIMEOUT_S = 10


@dataclass(frozen=True)
class JailedFile:
    """One file of the host that the process sees, at ``place``."""

    place: str
    source: Path | int
    """A path, or a descriptor whose bytes are copied into a file in memory."""
    writable: bool = False

    def plan(self) -> list[str]:
        if isinstance(self.source, int):
            return ["--perms", "0400", "--ro-bind-data", str(self.source), self.place]
        return ["--bind" if self.writable else "--ro-bind", str(self.source), self.place]


@dataclass(frozen=True)
class JailedPci:
    """One handed-over device that the process sees: a directory of ours in place of the host's, with the one link that
    QEMU reads, and the device files of its group. Nothing of the host's /sys is shown."""

    place: str
    group: int

    def plan(self) -> list[str]:
        return [
            *["--dir", self.place, "--symlink", f"/groups/{self.group}", f"{self.place}/iommu_group"],
            *[word for name in ("vfio", str(self.group)) for word in ("--dev-bind", *(f"/dev/vfio/{name}",) * 2)],
        ]


def plan_jail(
    command: list[str],
    *,
    accelerator: Accelerator,
    files: tuple[JailedFile, ...] = (),
    devices: tuple[JailedPci, ...] = (),
    info_fd: int | None = None,
    seccomp_fd: int | None = None,
    outlives_parent: bool = True,
) -> list[str]:
    """``command`` inside the jail.

    ``info_fd``: bubblewrap writes the id of the process there (JSON, ``child-pid``). ``seccomp_fd``: a filter to load.
    """
    device = ["--dev-bind", "/dev/kvm", "/dev/kvm"] if accelerator is Accelerator.KVM else []
    return [
        BUBBLEWRAP,
        *["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"],
        *["--uid", "65534", "--gid", "65534", "--hostname", "jail"],
        *["--cap-drop", "ALL", "--new-session", "--clearenv", "--as-pid-1"],
        *["--ro-bind", "/usr", "/usr"],
        *["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"],
        *device,
        *[argument for file in files for argument in file.plan()],
        *[argument for given in devices for argument in given.plan()],
        *["--remount-ro", "/", "--chdir", "/"],
        *([] if outlives_parent else ["--die-with-parent"]),
        *(["--seccomp", str(seccomp_fd)] if seccomp_fd is not None else []),
        *(["--info-fd", str(info_fd)] if info_fd is not None else []),
        "--",
        f"/usr/bin/{command[0]}",
        *command[1:],
    ]


def check_jail() -> None:
    """Raises BackendFailed with the way to mend it when this host cannot make the jail."""
    command = plan_jail(["true"], accelerator=Accelerator.EMULATION, outlives_parent=False)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise BackendFailed("bubblewrap is not installed", hint="apt install bubblewrap") from None
    except subprocess.TimeoutExpired:
        raise BackendFailed(f"bubblewrap did not answer within {CHECK_TIMEOUT_S} s") from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise BackendFailed(f"cannot make a jail: {reason}", hint=USER_NAMESPACES_HINT)
