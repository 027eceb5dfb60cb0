"""What goes into a guest image: packages, our system settings, and the script that fits them together.

In: nothing. Out: plain values. May import: errors.

Three things rule the choices here: an idle guest must not wake (a fork point freezes it, and ten idle forks share two
cores), a cold boot must be short even under emulation, and a user must find the usual small tools.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloison.errors import BadRequest

RECIPE_VERSION = 1
"""Raise it when the image changes though no input of the key does (the key covers this package's data anyway)."""

GuestTree = Mapping[str, tuple[int, bytes]]
"""Absolute path in the guest -> (permission bits, content)."""


@dataclass(frozen=True)
class Distribution:
    """What differs between the distributions we can build."""

    name: str
    origin: str
    """The Origin field of its archive's Release files."""
    keyring: str
    default_suite: str
    kernels: Mapping[str, str]
    """Debian architecture -> kernel package."""
    packages: tuple[str, ...]


_BASE_PACKAGES = """
    systemd systemd-sysv dbus udev kmod python3 busybox-static bash coreutils util-linux login passwd procps psmisc
    iproute2 iputils-ping nftables openssh-client file less nano poppler-utils xz-utils zip unzip bzip2 tzdata
    gpg gpg-agent python3-pil tinyproxy-bin wireguard-tools
"""

DISTRIBUTIONS = {
    "debian": Distribution(
        name="debian",
        origin="Debian",
        keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
        default_suite="trixie",
        kernels={"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"},
        packages=tuple(_BASE_PACKAGES.split()),
    ),
}


def parse_distribution(untrusted_name: str) -> Distribution:
    """The distribution of that name, or BadRequest naming the ones there are."""
    try:
        return DISTRIBUTIONS[untrusted_name]
    except KeyError:
        known = ", ".join(sorted(DISTRIBUTIONS))
        raise BadRequest(f"distribution {untrusted_name[:40]!a} is not known (known: {known})") from None


# These stay in the template. Documentation and translations are left out, of packages installed later as well. dpkg
# need not sync each file, because a template becomes a revision only after a clean shutdown.
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*/LC_MESSAGES/*",
    "path-exclude=/usr/share/lintian/*",
)

# Each of these delays the boot, wakes an idle guest, or does what dom0 does here.
_MASKED = """
    # periodic work
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    logrotate.timer man-db.timer systemd-tmpfiles-clean.timer
    # consoles that nobody sees
    getty-static.service getty@tty1.service console-getty.service systemd-vconsole-setup.service
    systemd-ask-password-console.path systemd-ask-password-wall.path
    # identity, clock, random state and disks are dom0's business
    systemd-firstboot.service systemd-machine-id-commit.service systemd-boot-random-seed.service
    systemd-random-seed.service systemd-timesyncd.service systemd-growfs-root.service systemd-repart.service
    systemd-fsck-root.service systemd-remount-fs.service systemd-hibernate-resume.service systemd-pstore.service
    systemd-pcrmachine.service systemd-pcrphase.service systemd-pcrphase-sysinit.service
    systemd-tpm2-setup.service systemd-tpm2-setup-early.service tpm2.target
    # network is set up by the agent
    systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service
    systemd-network-generator.service systemd-resolved.service networking.service nftables.service
    # rarely used mounts and caches; mounted by hand where needed
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount proc-sys-fs-binfmt_misc.automount
    sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-binfmt.service
    ldconfig.service systemd-hwdb-update.service systemd-journal-catalog-update.service
    systemd-update-done.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
    systemd-modules-load.service
    systemd-journal-flush.service systemd-rfkill.service systemd-rfkill.socket systemd-backlight@.service
    rc-local.service
"""
MASKED_UNITS = tuple(unit for line in _MASKED.splitlines() if "#" not in line for unit in line.split())


_NO_WATCHDOG = b"[Service]\nWatchdogSec=0\n"

SYSTEM_FILES: GuestTree = {
    "/etc/fstab": (0o644, b"# The root disk is made, checked and grown by dom0.\n/dev/vda / ext4 rw,noatime 0 0\n"),
    "/etc/hostname": (0o644, b"cloison\n"),
    "/etc/hosts": (0o644, b"127.0.0.1 localhost cloison\n::1 localhost ip6-localhost ip6-loopback\n"),
    "/etc/machine-id": (0o444, b""),
    "/etc/default/locale": (0o644, b"LANG=C.UTF-8\n"),
    "/etc/resolv.conf": (0o644, b""),
    "/etc/systemd/journald.conf.d/50-cloison.conf": (
        0o644,
        b"# Logs die with the run; nothing is synced to disk in an idle guest.\n"
        b"[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\nForwardToSyslog=no\nForwardToWall=no\nAudit=no\n",
    ),
    "/etc/systemd/system.conf.d/50-cloison.conf": (
        0o644,
        b"[Manager]\nDefaultTimeoutStartSec=300\nDefaultTimeoutStopSec=15\nDefaultTimerAccuracySec=1h\n"
        b"StatusUnitFormat=name\nShowStatus=no\nDefaultMemoryAccounting=no\nDefaultTasksAccounting=yes\n",
    ),
    "/etc/systemd/logind.conf.d/50-cloison.conf": (
        0o644,
        b"[Login]\nNAutoVTs=0\nReserveVT=0\nKillUserProcesses=no\nHandlePowerKey=poweroff\n",
    ),
    "/etc/systemd/system/systemd-journald.service.d/50-cloison.conf": (0o644, _NO_WATCHDOG),
    "/etc/systemd/system/systemd-udevd.service.d/50-cloison.conf": (0o644, _NO_WATCHDOG),
    "/etc/systemd/system/systemd-logind.service.d/50-cloison.conf": (0o644, _NO_WATCHDOG),
    # Whoever holds the console socket is dom0, so it needs no password.
    "/etc/systemd/system/serial-getty@ttyS0.service.d/50-cloison.conf": (
        0o644,
        b"# The shell starts at the first key press: nothing waits in an idle guest.\n[Service]\nExecStart=\n"
        b"ExecStart=-/sbin/agetty --autologin root --login-pause --noclear --keep-baud 115200 %I linux\n",
    ),
    "/etc/sysctl.d/50-cloison.conf": (
        0o644,
        b"# No periodic lock-up checks: a frozen and forked guest looks stalled to them.\n"
        b"kernel.watchdog = 0\nkernel.hung_task_timeout_secs = 0\n"
        b"vm.stat_interval = 60\nvm.dirty_writeback_centisecs = 1500\n"
        b"kernel.panic = -1\nkernel.kptr_restrict = 2\nkernel.dmesg_restrict = 1\n"
        b"kernel.unprivileged_bpf_disabled = 1\n",
    ),
    # q35's disk controller has no disk here; probing its six empty ports costs an emulated boot seconds.
    "/etc/modprobe.d/50-cloison.conf": (0o644, b"blacklist ahci\nblacklist serio_raw\nblacklist psmouse\n"),
    "/etc/apt/apt.conf.d/50-cloison": (
        0o644,
        b'APT::Periodic::Enable "0";\nAPT::Install-Recommends "false";\nAcquire::Languages "none";\n',
    ),
    "/etc/profile.d/50-cloison.sh": (0o644, b'[ "$PS1" ] && PS1="\\u@\\h:\\w\\\\$ "\n'),
}

# Runs inside the new root (chroot, as its root) after all packages and files are in place.
CONFIGURE_SCRIPT = r"""#!/bin/sh
set -eu
export DEBIAN_FRONTEND=noninteractive

getent group qubes >/dev/null || groupadd --system qubes
id user >/dev/null 2>&1 || useradd --uid 1000 --user-group --groups qubes --create-home --shell /bin/bash user
mkdir -p /rw /rw/config
chmod 0755 /rw

for unit in @MASKED@; do
    mkdir -p /etc/systemd/system
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
ln -sf /lib/systemd/system/multi-user.target /etc/systemd/system/default.target
for unit in @ENABLED@; do
    systemctl enable "$unit"
done
@COMMANDS@

# Compiled by the Python that will run it.
[ ! -e /usr/lib/cloison/agent.pyz ] || python3 -IS /usr/lib/cloison/agent.pyz precompile

# dom0 boots the kernel with our own small initrd; the distribution's would only cost time at each kernel upgrade.
rm -f /etc/kernel/postinst.d/initramfs-tools /etc/kernel/postrm.d/initramfs-tools
rm -f /boot/initrd.img-*
for image in /boot/vmlinuz-*; do
    /etc/kernel/postinst.d/zz-cloison-initrd "${image#/boot/vmlinuz-}" "$image"
done

rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old
rm -rf /var/log/*.log /var/log/apt
rm -f /etc/apt/apt.conf.d/??mmdebstrap /var/lib/systemd/random-seed /etc/.pwd.lock /var/lib/dbus/machine-id
: > /etc/machine-id
dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' > /.cloison-build/packages
"""

# Both run on the host's side of the build (namespaces of the build); they write into $CLOISON_STAGING.

# $1 = the new root, with all packages and nothing of ours. /proc, /sys and /dev are mounted in it, and left out.
KEEP_BASE_SCRIPT = r"""#!/bin/sh
set -eu
echo "I: keeping the packages" >&2
mkdir "$CLOISON_STAGING/base"
mount --bind "$1" "$CLOISON_STAGING/base"
tar -C "$CLOISON_STAGING/base" --numeric-owner --xattrs --xattrs-include='*' --one-file-system --sparse \
    --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' \
    -I 'zstd -q -3 -T0' -cf "$CLOISON_STAGING/base.tar.zst" .
umount "$CLOISON_STAGING/base"
"""

# Stands in for the bootstrap when the packages are in the cache: $1 = their archive.
FROM_BASE_SCRIPT = r"""#!/bin/sh
set -eu
umask 022  # the daemon's own is 077, and directories are made here
root=$CLOISON_STAGING/root
mkdir "$root"
echo "I: unpacking the packages" >&2
tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -I 'zstd -q' -xf "$1"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
echo "I: running --customize-hook" >&2
exec sh "$CLOISON_STAGING/assemble" "$root"
"""

# $1 = the new root. mke2fs copies from a bind mount because $1 itself has /proc, /sys and /dev mounted in it.
ASSEMBLE_SCRIPT = r"""#!/bin/sh
set -eu
umask 022  # the daemon's own is 077, and directories are made here
root=$1
tar -C "$root" --numeric-owner -xf "$CLOISON_STAGING/guest.tar"
chroot "$root" /bin/sh /.cloison-build/configure
mv "$root/.cloison-build/packages" "$CLOISON_STAGING/packages"
rm -rf "$root/.cloison-build" "$root/usr/sbin/policy-rc.d"
[ ! -e "$root/sbin/start-stop-daemon.REAL" ] || mv "$root/sbin/start-stop-daemon.REAL" "$root/sbin/start-stop-daemon"
cp -L "$root"/boot/vmlinuz-* "$CLOISON_STAGING/vmlinuz"
cp -L "$root"/boot/initrd.img-* "$CLOISON_STAGING/initrd"
mkdir "$CLOISON_STAGING/tree"
mount --bind "$root" "$CLOISON_STAGING/tree"
echo "I: making the file system" >&2
truncate -s "$CLOISON_SIZE" "$CLOISON_STAGING/root.raw"
mke2fs -q -t ext4 -m 0 -J size=16 -L cloison-root -E assume_storage_prezeroed=1,root_owner=0:0 \
    -d "$CLOISON_STAGING/tree" "$CLOISON_STAGING/root.raw"
umount "$CLOISON_STAGING/tree"
"""

INITRD_HOOK = """#!/bin/sh
# Called by the kernel package with its version; makes the initrd that dom0 boots it with.
set -e
exec /usr/lib/cloison/make-initrd "$1" "/boot/initrd.img-$1"
"""


def initrd_files() -> GuestTree:
    """The initrd maker (our module ``initrd``, run as a script in the guest) and the hook that calls it."""
    return {
        "/usr/lib/cloison/make-initrd": (0o755, (Path(__file__).parent / "initrd.py").read_bytes()),
        "/etc/kernel/postinst.d/zz-cloison-initrd": (0o755, INITRD_HOOK.encode()),
    }


def configure_script(enabled_units: tuple[str, ...], commands: tuple[tuple[str, ...], ...]) -> str:
    """The script that runs inside the new root; ``commands`` are the guest tree's own finishing touches."""
    masked = " ".join(unit for unit in MASKED_UNITS if unit not in enabled_units)
    return (
        CONFIGURE_SCRIPT.replace("@MASKED@", masked)
        .replace("@ENABLED@", " ".join(enabled_units))
        .replace("@COMMANDS@", "\n".join(shlex.join(command) for command in commands))
    )
