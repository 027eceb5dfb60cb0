"""Where one Cloison system keeps its things.

In: the process environment. Out: absolute paths. May import: nothing of ours.

``CLOISON_ROOT`` puts a whole system (state, sockets, configuration, policy) under one directory so that several
systems live side by side. ``CLOISON_CACHE`` moves the cache (built images and fork points), which systems may share
because everything in it is keyed by what it was made from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The directories of one system; nothing is created by making a Layout."""

    data: Path
    runtime: Path
    config: Path
    cache: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, uid: int | None = None) -> Layout:
        """The layout that the environment asks for: CLOISON_ROOT, else root's system paths, else XDG."""
        env = os.environ if environ is None else environ
        uid = os.getuid() if uid is None else uid
        home = Path(env.get("HOME") or "~").expanduser()
        if uid == 0:
            data, config, runtime, cache = (
                Path("/var/lib/cloison"),
                Path("/etc/cloison"),
                Path("/run/cloison"),
                Path("/var/cache/cloison"),
            )
        else:
            data = Path(env.get("XDG_DATA_HOME") or home / ".local/share") / "cloison"
            config = Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "cloison"
            cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "cloison"
            fallback = Path(f"/tmp/cloison-{uid}")
            runtime = Path(env["XDG_RUNTIME_DIR"]) / "cloison" if env.get("XDG_RUNTIME_DIR") else fallback
        if root := env.get("CLOISON_ROOT"):
            base = Path(root).absolute()
            data, runtime, config = base / "data", base / "run", base / "config"
        if moved := env.get("CLOISON_CACHE"):
            cache = Path(moved).absolute()
        return cls(data, runtime, config, cache)

    @property
    def database(self) -> Path:
        return self.data / "cloison.sqlite"

    @property
    def policy(self) -> Path:
        return self.config / "policy.d"

    @property
    def runtime_policy(self) -> Path:
        return self.runtime / "policy.d"

    @property
    def legacy_policy(self) -> Path:
        """Old-syntax policy files, one per service, for policies that say ``!compat-4.0``."""
        return self.config / "rpc-policy"

    @property
    def limits(self) -> Path:
        """How much qubes may ask for: ``*.limits`` files; the directory may be missing."""
        return self.config / "limits.d"

    @property
    def services(self) -> Path:
        """Executables that serve calls to dom0."""
        return self.config / "rpc"

    @property
    def admin_socket(self) -> Path:
        return self.runtime / "qubesd.sock"

    @property
    def qrexec_socket(self) -> Path:
        return self.runtime / "qrexec.sock"

    @property
    def lock(self) -> Path:
        return self.runtime / "cloisond.lock"

    @property
    def log(self) -> Path:
        return self.data / "log" / "cloisond.log"

    @property
    def audit(self) -> Path:
        """The directory of the audit log and its keys."""
        return self.data / "audit"

    @property
    def pools(self) -> Path:
        return self.data / "pools"

    @property
    def exposed(self) -> Path:
        """Links to the host's files that qubes may be given as disks."""
        return self.data / "exposed"

    @property
    def images(self) -> Path:
        """Built template images, each in a directory named by the key of its inputs."""
        return self.cache / "images"

    @property
    def forkpoints(self) -> Path:
        return self.cache / "forkpoints"

    @property
    def machines_runtime(self) -> Path:
        """Where the running qubes' directories are."""
        return self.runtime / "q"

    def qube_runtime(self, uuid: str) -> Path:
        """Sockets and the console log of one running qube (short name: socket paths end at 107 bytes)."""
        return self.machines_runtime / uuid[:13]
