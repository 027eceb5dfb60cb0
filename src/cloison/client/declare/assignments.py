"""Assigned devices as lines of a document: ``block dom0:disk.img required read-only=yes``.

In: lines, the Admin API's devices. Out: each other. May import: client, errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from cloison.client.devicecalls import ANY, MODES, Device, parse_device
from cloison.errors import BadRequest

_WORD = re.compile(r"[a-z]{1,32}")
_OPTION = re.compile(r"([a-zA-Z0-9_.-]+)=([\x21-\x7e]*)")


class Wanted(NamedTuple):
    device: Device
    mode: str
    options: Mapping[str, str]


def parse_assignment(line: str, where: str) -> tuple[tuple[str, str], Wanted]:
    """What it is about (class, device) and what is wanted of it. Raises BadRequest."""
    words = line.split()
    try:
        devclass, name, mode, *rest = words
        device = parse_device(name)
        options = {found[1]: found[2] for found in (_OPTION.fullmatch(word) for word in rest) if found}
        if not _WORD.fullmatch(devclass) or mode not in MODES or len(options) != len(rest):
            raise ValueError
    except ValueError:
        form = f"CLASS BACKEND:DEVICE {'|'.join(MODES)} [OPTION=VALUE...]"
        raise BadRequest(f"{where}: {line!a} is not {form}") from None
    return (devclass, f"{device.name}:{device.identity}"), Wanted(device, mode, options)


def format_assignment(devclass: str, device: Device) -> str:
    """One that the Admin API listed."""
    identity = "" if device.identity == ANY else f":{device.identity}"
    options = [f"{key}={value}" for key, value in sorted(device.options.items())]
    return " ".join([devclass, f"{device.name}{identity}", device.mode, *options])
