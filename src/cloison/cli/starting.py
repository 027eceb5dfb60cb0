"""Starting a qube with a disc or a disk for this once: the options of ``cloison start`` and ``qvm-start``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import click

from cloison.cli.session import Session
from cloison.client import calls, devicecalls
from cloison.client.devicecalls import Device, parse_device

BLOCK = "block"


@dataclass(frozen=True)
class ForOnce:
    """What a qube has until it stops. ``path``: a file of dom0, exposed first."""

    path: str
    device: Device | None
    options: dict[str, str]


CDROM = click.option("--cdrom", metavar="DEVICE", help="Start with this disc: BACKEND:DEVICE or dom0:/PATH; a qube "
                     "without a kernel of its own boots from it.")  # fmt: skip
HDDISK = click.option("--hddisk", metavar="DEVICE", help="Start with this disk.")
DRIVE = click.option("--drive", metavar="DEVICE", help="Either of these: [hd:|cdrom:]DEVICE.")


def drive_options(function: Callable[..., None]) -> Callable[..., None]:
    """``--cdrom``, ``--hddisk`` and ``--drive``, given to the command as ``for_once``."""

    def command(session: Session, cdrom: str | None, hddisk: str | None, drive: str | None, **rest: object) -> None:
        given = [(kind, text) for kind, text in (("cdrom", cdrom), ("disk", hddisk), ("", drive)) if text is not None]
        if len(given) > 1:
            raise click.UsageError("give one of --cdrom, --hddisk and --drive")
        function(session, for_once=_read(*given[0]) if given else None, **rest)

    command.__doc__ = function.__doc__
    return CDROM(HDDISK(DRIVE(command)))


def _read(kind: str, text: str) -> ForOnce:
    if not kind:
        kind, colon, rest = text.partition(":")
        kind, text = {"hd": ("disk", rest), "cdrom": ("cdrom", rest)}.get(kind if colon else "", ("cdrom", text))
    backend, _, path = text.partition(":")
    if path.startswith("/"):
        if backend != "dom0":
            raise click.UsageError(f"only files of dom0 can be given by path, and not of {backend}")
        return ForOnce(path, None, {"devtype": kind})
    try:
        return ForOnce("", parse_device(text), {"devtype": kind})
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _exposed(session: Session, for_once: ForOnce) -> Device:
    """The device that a file of dom0 is, or becomes."""
    path = os.path.realpath(for_once.path)
    for device in session.do(devicecalls.device_list("Available", "dom0", BLOCK)):
        if device.fields.get("name") == path:
            return Device(device.backend, device.port)
    read_only = for_once.options["devtype"] == "cdrom"
    return parse_device(session.do(devicecalls.block_expose(path, "", read_only=read_only)))


def start_qube(session: Session, qube: str, for_once: ForOnce | None, start: Callable[[], None]) -> None:
    """Call ``start`` with the drive assigned meanwhile; the assignment is taken back whatever happens."""
    if for_once is None:
        start()
        return
    if session.do(calls.state_of(qube)).state not in ("Halted", "Crashed"):
        raise click.UsageError(f"{qube} is running: `cloison device attach` gives it a device now")
    device = for_once.device or _exposed(session, for_once)
    give = devicecalls.device_give("Assign", qube, BLOCK, device, mode="required", options=for_once.options)
    session.do(give)
    try:
        start()
    finally:
        session.do(devicecalls.device_take("Unassign", qube, BLOCK, device))
