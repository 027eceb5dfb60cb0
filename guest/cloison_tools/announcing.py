"""What this qube tells dom0 of itself: features, programs for menus, updates that wait.

In: command lines, .desktop files, package lists. Out: calls of qubes.FeaturesRequest, SyncAppMenus, NotifyUpdates.
May import: the standard library. dom0 decides what it believes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from cloison_tools import desktop
from cloison_tools.client import LOST, REFUSED, TROUBLE, CallRefused, RemoteCall, complain

REQUESTS = "/run/qubes/features-request"
"""One file per feature, until they are sent; only root may write here."""
SERVICE_DIRECTORIES = ("/etc/qubes-rpc", "/usr/local/etc/qubes-rpc")
UNIT_DIRECTORIES = ("/usr/lib/systemd/system", "/etc/systemd/system")
OS_RELEASE = "/etc/os-release"
MAX_ANSWER_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}", re.ASCII)
_VALUE = re.compile(r"[A-Za-z0-9.,_= -]*", re.ASCII)
_CONDITION = re.compile(r"^ConditionPathExists=\|?/(?:var/)?run/qubes-service/([A-Za-z0-9_.-]{1,48})$", re.MULTILINE)


def call_dom0(service: str, payload: bytes) -> int:
    """Exit code of the call, 0 = taken."""
    try:
        call = RemoteCall("dom0", service)
        call.connect()
        code, _ = call.feed(iter([payload]), MAX_ANSWER_BYTES)
    except CallRefused:
        complain(f"{service}: request refused")
        return REFUSED
    except OSError as error:
        complain(f"cannot call {service}: {error}")
        return TROUBLE
    return TROUBLE if code == LOST else code


def request_features(arguments: list[str]) -> int:
    """qvm-features-request [--commit] [FEATURE=VALUE...]"""
    is_commit = "--commit" in arguments
    wishes = [word.partition("=") for word in arguments if word != "--commit"]
    for name, sign, value in wishes:
        if not sign or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            complain("usage: qvm-features-request [--commit] [FEATURE=VALUE...]")
            return 1
    try:
        os.makedirs(REQUESTS, 0o755, exist_ok=True)
        for name, _, value in wishes:
            with open(f"{REQUESTS}/{name}", "w") as file:
                file.write(value)
        return commit_features() if is_commit else 0
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}")
        return 1


def commit_features() -> int:
    lines = []
    for name in sorted(os.listdir(REQUESTS)):
        with open(f"{REQUESTS}/{name}", errors="replace") as file:
            lines.append(f"{name}={file.read(4096)}\n")
    return call_dom0("qubes.FeaturesRequest", "".join(lines).encode("ascii", "replace"))


def announce(arguments: list[str]) -> int:
    """What every Linux guest with our agent can do; the last step of /etc/qubes/post-install.d."""
    found = known_features(OS_RELEASE, SERVICE_DIRECTORIES, UNIT_DIRECTORIES)
    return request_features([f"{name}={value}" for name, value in found.items()])


def known_features(os_release: str, services: tuple[str, ...], units: tuple[str, ...]) -> dict[str, str]:
    """Features by what is installed: the system's name, services to be called, services to be switched."""
    found = {"qrexec": "1", "os": "Linux", "vmexec": "1", "qubes-agent-version": "4.3"}
    names = {"ID": "os-distribution", "ID_LIKE": "os-distribution-like", "VERSION_ID": "os-version",
             "SUPPORT_END": "os-eol"}  # fmt: skip
    for key, value in _assignments(os_release):
        if key in names and value and _VALUE.fullmatch(value):
            found[names[key]] = value
    for directory in services:
        for name in _names_in(directory):
            if _NAME.fullmatch(name) and "+" not in name:
                found[f"supported-rpc.{name}"] = "1"
    for directory in units:
        for name in _names_in(directory):
            path = f"{directory}/{name}"
            if name.endswith((".service", ".socket", ".timer", ".path")) and os.path.isfile(path):
                with open(path, errors="replace") as file:
                    for service in _CONDITION.findall(file.read(65536)):
                        found[f"supported-service.{service}"] = "1"
    return found


def _names_in(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def _assignments(path: str) -> list[tuple[str, str]]:
    try:
        with open(path, errors="replace") as file:
            pairs = [line.strip().partition("=") for line in file]
    except OSError:
        return []
    return [(key, value.strip("\"'")) for key, sign, value in pairs if sign]


def sync_apps(arguments: list[str]) -> int:
    """qubes-sync-appmenus: the list of programs, sent to dom0."""
    lines = "".join(desktop.menu_lines(desktop.application_directories())).encode("utf-8", "replace")
    return call_dom0("qubes.SyncAppMenus", lines)


def notify_updates(arguments: list[str]) -> int:
    """upgrades-status-notify: how many packages could be upgraded, as far as the lists here say."""
    simulate = ["apt-get", "--simulate", "-o", "Debug::NoLocking=true", "-o", "APT::Get::Show-User-Simulation-Note=0"]
    try:
        done = subprocess.run([*simulate, "upgrade"], capture_output=True, text=True, check=True,
                              env={**os.environ, "LC_ALL": "C"})  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        complain(f"cannot ask the package manager: {error}")
        return 1
    count = sum(line.startswith("Inst ") for line in done.stdout.splitlines())
    return call_dom0("qubes.NotifyUpdates", f"{count}\n".encode())


def after_packages(arguments: list[str]) -> int:
    """Packages came or went: say what is there now. Quiet where there is no dom0 to tell (while an image is built)."""
    if not os.path.exists("/run/qubes/qrexec-agent") or not os.access("/run/cloison/told", os.R_OK):
        return 0
    sys.stderr.flush()
    if "--lists" not in arguments:
        announce(["--commit"])
        commit_features()
        sync_apps([])
    notify_updates([])
    return 0
