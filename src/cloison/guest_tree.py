"""What we put into a guest: every file of the agent, its tools, services and units, as one tree.

In: the sources under ``guest/`` and ``cloison.wire``. Out: guest paths with mode and content, and the commands that
finish the work inside the guest's root directory. May import: the standard library.

The agent is one archive (``zipapp``): ``cloison_agent`` and the part of ``cloison`` that it needs. The tools, which
start anew for each call, are plain files: running an archive costs as much as all that they do.
"""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from pathlib import Path

GuestTree = dict[str, tuple[int, bytes]]
"""Absolute guest path -> (mode with type bits, content; a symlink's content is its target). All owned by root."""

ARCHIVE = "/usr/lib/cloison/agent.pyz"
GUEST_PACKAGES = ("python3", "e2fsprogs", "util-linux", "systemd", "dbus", "sudo", "udev")
"""Debian packages that the tree relies on."""

SHEBANG = b"#!/usr/bin/python3 -IS\n"
_MAIN = b"import sys\n\nfrom cloison_agent.main import main\n\nsys.exit(main())\n"
TOOLS = "/usr/lib/cloison/tools"
_TOOLS = {
    "/usr/bin/qrexec-client-vm": "client:main",
    "/usr/bin/qvm-connect-tcp": "connecting:connect_tcp",
    "/usr/bin/qvm-copy": "sending:copy",
    "/usr/bin/qvm-copy-to-vm": "sending:copy_to",
    "/usr/bin/qvm-move": "sending:move",
    "/usr/bin/qvm-move-to-vm": "sending:move_to",
    "/usr/bin/qvm-open-in-dvm": "asking:open_in_disposable",
    "/usr/bin/qvm-open-in-vm": "asking:open_in_vm",
    "/usr/bin/qvm-run-vm": "asking:run_in_vm",
    "/usr/bin/qvm-features-request": "announcing:request_features",
    "/usr/bin/qvm-sync-clock": "clock:sync_clock",
    "/usr/bin/qubes-open": "opening:qubes_open",
    "/usr/bin/qubes-desktop-run": "desktop:desktop_run",
    "/usr/bin/qubesdb-list": "database:list_paths",
    "/usr/bin/qubesdb-multiread": "database:multiread",
    "/usr/bin/qubesdb-read": "database:read",
    "/usr/bin/qubesdb-rm": "database:remove",
    "/usr/bin/qubesdb-write": "database:write",
    "/usr/lib/qubes/qubes-sync-appmenus": "announcing:sync_apps",
    "/usr/lib/qubes/upgrades-status-notify": "announcing:notify_updates",
    "/usr/lib/cloison/after-packages": "announcing:after_packages",
    "/etc/qubes/post-install.d/50-cloison.sh": "announcing:announce",
    "/etc/qubes-rpc/qubes.GetAppmenus": "desktop:list_apps",
    "/etc/qubes-rpc/qubes.StartApp": "desktop:start_app",
    "/usr/bin/qubes-gpg-client": "gpgclient:main",
    "/usr/bin/qubes-gpg-client-wrapper": "gpgclient:wrapper",
    "/usr/bin/qubes-gpg-import-key": "gpgclient:import_key",
    "/usr/bin/cloison-ssh-agent": "sshagent:tell",
    "/usr/bin/qvm-convert-img": "convertimg:main",
    "/usr/bin/qvm-convert-pdf": "convertpdf:main",
    "/usr/lib/cloison/split-ssh-relay": "sshagent:relay",
    "/etc/qubes-rpc/qubes.Gpg": "gpgserver:serve",
    "/etc/qubes-rpc/qubes.GpgImportKey": "gpgserver:serve_import",
    "/etc/qubes-rpc/qubes.PdfConvert": "rendering:serve",
    "/etc/qubes-rpc/qubes.SshAgent": "sshagent:serve",
    "/etc/qubes-rpc/qubes.UpdatesProxy": "updatesproxy:serve",
    "/usr/lib/cloison/update": "updating:update",
}
_TOOL_SCRIPT = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, "{directory}")
from cloison_tools.{module} import {function}
sys.exit({function}(sys.argv[1:]))
"""
_BUILT_IN_SERVICES = (
    "qubes.Filecopy",
    "qubes.GetDate",
    "qubes.OpenInVM",
    "qubes.OpenURL",
    "qubes.SetDateTime",
    "qubes.VMExec",
    "qubes.VMExecGUI",
    "qubes.VMRootExec",
    "qubes.VMRootShell",
    "qubes.VMShell",
)
_LINKS = {
    "/usr/lib/qubes/qrexec-client-vm": "/usr/bin/qrexec-client-vm",
    "/etc/qubes-rpc/qubes.ConnectTCP": "/dev/tcp/127.0.0.1",
    "/etc/qubes-rpc/qubes.ImageConvert": "qubes.GetImageRGBA",
    **{f"/etc/qubes-rpc/{service}": ARCHIVE for service in _BUILT_IN_SERVICES},
    "/usr/lib/systemd/system/multi-user.target.wants/cloison-agent.service": "../cloison-agent.service",
    "/usr/lib/systemd/system/sockets.target.wants/cloison-split-ssh.socket": "../cloison-split-ssh.socket",
    "/usr/lib/systemd/system/sockets.target.wants/cloison-updates-proxy.socket": "../cloison-updates-proxy.socket",
}
_PROJECT = Path(__file__).resolve().parent
_EPOCH = (1980, 1, 1, 0, 0, 0)


def guest_tree() -> GuestTree:
    """All files; the same sources give the same bytes."""
    tree: GuestTree = {ARCHIVE: (stat.S_IFREG | 0o755, build_archive())}
    files = guest_directory() / "files"
    for path in sorted(files.rglob("*")):
        if path.is_file():
            tree[f"/{path.relative_to(files)}"] = (stat.S_IFREG | _mode(path), path.read_bytes())
    for path in sorted((guest_directory() / "cloison_tools").glob("*.py")):
        tree[f"{TOOLS}/cloison_tools/{path.name}"] = (stat.S_IFREG | 0o644, path.read_bytes())
    for tool, entry in _TOOLS.items():
        module, _, function = entry.partition(":")
        script = _TOOL_SCRIPT.format(directory=TOOLS, module=module, function=function)
        tree[tool] = (stat.S_IFREG | 0o755, script.encode())
    for path_text, target in _LINKS.items():
        tree[path_text] = (stat.S_IFLNK | 0o777, target.encode())
    return tree


def guest_services() -> tuple[str, ...]:
    """Names of the services that the tree brings."""
    directory = "/etc/qubes-rpc/"
    return tuple(sorted(path.removeprefix(directory) for path in guest_tree() if path.startswith(directory)))


def guest_commands() -> tuple[tuple[str, ...], ...]:
    """To be run inside the guest's root directory, as root, after the tree was copied; each must end with 0."""
    return (("/usr/bin/python3", "-IS", ARCHIVE, "precompile"),)


def guest_digest() -> str:
    """Changes whenever anything of the tree does; part of a template image's key."""
    digest = hashlib.sha256()
    for path, (mode, content) in sorted(guest_tree().items()):
        digest.update(f"{path}\0{mode:o}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def guest_directory() -> Path:
    """Where the guest's sources are: beside this module in an installed package, else in the source tree."""
    for place in (_PROJECT / "_guest", _PROJECT.parent.parent / "guest"):
        if (place / "cloison_agent").is_dir():
            return place
    raise FileNotFoundError("the guest's sources (guest/cloison_agent) are not installed")


def build_agent(out: Path) -> None:
    """Write the archive to a file that can be run."""
    out.write_bytes(build_archive())
    out.chmod(0o755)


def build_archive() -> bytes:
    """The agent's archive, as bytes."""
    sources = {"__main__.py": _MAIN, "cloison/__init__.py": b""}
    for root, package in ((guest_directory(), "cloison_agent"), (_PROJECT.parent, "cloison/wire")):
        for path in sorted((root / package).glob("*.py")):
            sources[f"{package}/{path.name}"] = path.read_bytes()
    buffer = io.BytesIO(SHEBANG)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sorted(sources.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), source)
    return buffer.getvalue()


def _mode(path: Path) -> int:
    """Modes as version control keeps them (only the executable bit), secrets of sudo aside."""
    if path.parent.name == "sudoers.d":
        return 0o440
    return 0o755 if path.stat().st_mode & 0o100 else 0o644
