"""The walls around the fork server: which files it may see, and nothing else.

In: where Python and our package lie. Out: a bubblewrap command line. May import: errors.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cloison
from cloison.errors import BackendFailed

_CODE = "/app"
_VISIBLE = ("__init__.py", "wire", "qrexec")
_START = f"import sys; sys.path.insert(0, {_CODE!r}); from cloison.qrexec.zygote import main; main(int(sys.argv[1]))"


def plan_jail(socket_fd: int, *, bwrap: str, python: Path, python_prefix: Path, package: Path) -> list[str]:
    """The command that starts the fork server in namespaces of its own, with ``socket_fd`` as its only way out.

    It sees /usr, Python's library and the two rooms it runs, all read-only, until it has imported them; then it moves
    into an empty directory (that is what CAP_SYS_CHROOT, within its own user namespace, is for) and drops even that.
    """
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "qrexec"]
    command += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--cap-add", "CAP_SYS_CHROOT"]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64"):
        command += ["--symlink", f"usr/{name}", f"/{name}"]
    if not python_prefix.is_relative_to("/usr"):
        command += ["--ro-bind", str(python_prefix), str(python_prefix)]
    for name in _VISIBLE:
        command += ["--ro-bind", str(package / name), f"{_CODE}/cloison/{name}"]
    command += ["--dir", "/empty", "--remount-ro", "/", "--chdir", "/"]
    return [*command, "--", str(python), "-I", "-S", "-B", "-c", _START, str(socket_fd)]


def find_jail(socket_fd: int) -> list[str]:
    """``plan_jail`` for this very interpreter and package; raises BackendFailed if bubblewrap is missing."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise BackendFailed("cannot start the qrexec jail: bwrap was not found", hint="install the package bubblewrap")
    return plan_jail(
        socket_fd,
        bwrap=bwrap,
        python=Path(sys.executable).resolve(),
        python_prefix=Path(sys.base_prefix).resolve(),
        package=Path(cloison.__file__).parent,
    )
