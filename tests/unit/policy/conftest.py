"""A policy directory that tests write into, and a small system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.policy import SystemInfo

WORK_UUID = "11111111-1111-4111-8111-111111111111"

DOMAINS: dict[str, dict[str, Any]] = {
    "dom0": {"type": "AdminVM", "tags": ["admin"], "power_state": "Running",
             "uuid": "00000000-0000-0000-0000-000000000000"},
    "work": {"type": "AppVM", "tags": ["office"], "default_dispvm": "dvm", "power_state": "Running", "uuid": WORK_UUID,
             "label": "blue", "icon": "appvm-blue"},
    "personal": {"type": "AppVM", "tags": ["home"], "default_dispvm": "fedora-dvm", "power_state": "Halted",
                 "label": "yellow"},
    "vault": {"type": "AppVM", "tags": [], "default_dispvm": None, "power_state": "Paused", "label": "black"},
    "lost": {"type": "AppVM", "default_dispvm": "gone"},
    "debian": {"type": "TemplateVM", "default_dispvm": "dvm"},
    "dvm": {"type": "AppVM", "template_for_dispvms": True, "default_dispvm": "dvm", "tags": ["net"]},
    "fedora-dvm": {"type": "AppVM", "template_for_dispvms": True, "default_dispvm": "dvm"},
    "hidden": {"type": "AppVM", "internal": True, "template_for_dispvms": True},
    "relay": {"type": "AppVM", "power_state": "Running"},
    "far": {"type": "RemoteVM", "relayvm": "relay", "transport_rpc": "air.Call", "power_state": "Running"},
    "farther": {"type": "RemoteVM", "relayvm": "relay", "transport_rpc": "air.Call", "remote_name": "their-name"},
    "cut-off": {"type": "RemoteVM", "relayvm": None, "transport_rpc": "air.Call"},
    "mute": {"type": "RemoteVM", "relayvm": "relay", "transport_rpc": ""},
    "orphan": {"type": "RemoteVM", "relayvm": "nobody", "transport_rpc": "air.Call"},
}  # fmt: skip


@pytest.fixture
def system() -> SystemInfo:
    return SystemInfo.parse({"domains": DOMAINS})


@pytest.fixture
def policy_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "policy.d"
    directory.mkdir()
    return directory


Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("policy.d/10-x.policy", text)`` below the temporary directory."""

    def write_text(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_text
