"""The one step of Cloison's that takes root: a device goes from the host to a user's qubes, and back.

In: a PCI address and a user. Out: a changed host, or an error and the host as it was. May import: errors.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from cloison.drivers.pci.host import HANDING_DRIVER, SYSTEM, Device, device_directory, group_file, read_device
from cloison.drivers.pci.ready import check_separable
from cloison.errors import BackendFailed, BadRequest, NotNow, Refused

MODPROBE = ("modprobe", HANDING_DRIVER)
APPEARS_WITHIN_S = 10.0
"""The kernel makes the group's device file while the driver takes the device; udev may then set its mode once more."""
MODPROBE_TIMEOUT_S = 30


def give_device(address: str, user: str) -> Device:
    """The host lets go of a network card; ``user``'s qubes may have it from now on until the host is booted again."""
    _check_root(f"pci give {address} --to {user}")
    owner = _find_user(user)
    device = read_device(address)
    if not device.is_network_card:
        raise BadRequest(
            f"PCI device {address} is no network card (class {device.kind})", hint="`cloison pci list` shows those"
        )
    group = check_separable(device)
    if device.active:
        names = " and ".join(device.active)
        raise NotNow(
            f"PCI device {address} is in use by the host: {names} is up",
            hint=f"`ip link set {device.active[0]} down`, and let no network manager of the host raise it again",
        )
    with ExitStack() as undo:
        if not device.is_handed:
            undo.callback(_put_back, address)
            _load_driver()
            _bind(device, HANDING_DRIVER)
        _open_to(group_file(group), owner)
        undo.pop_all()
    return read_device(address)


def take_device_back(address: str) -> Device:
    """The host has its card again. NotNow while a qube has it."""
    _check_root(f"pci take-back {address}")
    device = read_device(address)
    if not device.is_handed:
        raise NotNow(f"PCI device {address} is not handed over", hint="`cloison pci list` says who has it")
    if device.group is not None and _is_open(group_file(device.group)):
        raise NotNow(f"PCI device {address} is in a running qube", hint="shut that qube down first")
    _bind(device, "")
    return read_device(address)


def _check_root(command: str) -> None:
    if os.geteuid() != 0:
        raise Refused("only root may take a device from the host or give it back", hint=f"sudo cloison {command}")


def _find_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise BadRequest(f"this host has no user {name[:40]!a}") from None


def _load_driver() -> None:
    if _driver_directory(HANDING_DRIVER).is_dir():
        return
    try:
        done = subprocess.run(MODPROBE, capture_output=True, text=True, timeout=MODPROBE_TIMEOUT_S, check=False)
        why = done.stderr.strip()[-200:] or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if not _driver_directory(HANDING_DRIVER).is_dir():
        raise BackendFailed(f"the host's kernel has no driver {HANDING_DRIVER}: {why}")


def _bind(device: Device, driver: str) -> None:
    """Make ``driver`` (empty: whichever is made for it) the device's."""
    directory = device_directory(device.address)
    _write(directory / "driver_override", driver or "\n")
    if device.driver:
        _write(_driver_directory(device.driver) / "unbind", device.address)
    _write(SYSTEM / "sys/bus/pci/drivers_probe", device.address)
    if driver and (now := read_device(device.address).driver) != driver:
        raise BackendFailed(f"{driver} did not take PCI device {device.address}; {now or 'nobody'} has it now")


def _put_back(address: str) -> None:
    """After a failure: the host's own driver, if it was taken away."""
    with contextlib.suppress(OSError, BackendFailed, BadRequest):
        _bind(read_device(address), "")


def _open_to(file: Path, owner: pwd.struct_passwd) -> None:
    deadline = time.monotonic() + APPEARS_WITHIN_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise BackendFailed(f"the kernel did not make {file} within {APPEARS_WITHIN_S:.0f} s")
        time.sleep(0.05)
    try:
        os.chown(file, owner.pw_uid, owner.pw_gid)
        file.chmod(0o600)
    except OSError as error:
        raise BackendFailed(f"{file} cannot be given to {owner.pw_name}: {error.strerror}") from error


def _is_open(file: Path) -> bool:
    """Whether a process uses the group: a second one may not even open it."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return file.exists()
    return False


def _driver_directory(driver: str) -> Path:
    return SYSTEM / "sys/bus/pci/drivers" / driver


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise BackendFailed(f"cannot write {path}: {error.strerror}") from error
