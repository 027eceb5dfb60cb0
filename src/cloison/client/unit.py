"""The daemon as the user's own systemd service.

In: nothing but this user's environment. Out: an installed unit, or none. May import: errors.

A daemon that was moved with ``CLOISON_ROOT`` is never a service: there may be many of those, and tests make them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cloison.errors import BackendFailed

UNIT = "cloisond.service"
SYSTEMCTL_TIMEOUT_S = 30.0
"""A manager answers in milliseconds; starting a unit of Type=simple does not wait for it either."""
_TEXT = """\
[Unit]
Description=Cloison: this user's qubes

[Service]
ExecStart="{python}" -m cloison.daemon
# Qubes outlive the daemon: the next one finds them again.
KillMode=process
Restart=on-failure

[Install]
WantedBy=default.target
"""


def has_manager() -> bool:
    """A systemd user manager runs for us, and this system is the one it may serve."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return not os.environ.get("CLOISON_ROOT") and bool(runtime) and Path(runtime, "systemd", "private").exists()


def unit_path() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "systemd/user", UNIT)


def is_installed() -> bool:
    return has_manager() and unit_path().exists()


def install() -> bool:
    """Make the daemon start with the user's session. False: it was so already. Raises BackendFailed."""
    text = _TEXT.format(python=sys.executable.replace("%", "%%").replace('"', '\\"'))
    path = unit_path()
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    run_systemctl("daemon-reload")
    run_systemctl("enable", UNIT)
    return True


def uninstall() -> bool:
    """Undo ``install``; a running daemon goes on. False: there was no unit. Raises BackendFailed."""
    path = unit_path()
    if not path.exists():
        return False
    run_systemctl("disable", UNIT)
    path.unlink(missing_ok=True)
    run_systemctl("daemon-reload")
    return True


def run_systemctl(*arguments: str) -> None:
    """``systemctl --user``; BackendFailed with what it said."""
    tried = f"systemctl --user {' '.join(arguments)}"
    try:
        done = subprocess.run(
            ["systemctl", "--user", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SYSTEMCTL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendFailed(f"`{tried}` failed: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise BackendFailed(f"`{tried}` failed: {said[-1] if said else f'exit code {done.returncode}'}")
