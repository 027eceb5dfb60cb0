"""A system on a small disk: whatever runs out of room says so in one line and leaves nothing half made.

The disk is a tmpfs in a mount namespace that an ordinary user may make; the whole system (daemon, machines, commands)
lives in that namespace.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.live.conftest import LiveSystem, wait_until

from cloison.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATE = "small-template"
"""Not the big system's: a new revision drops its name's fork points in the cache, which both use."""
DISK_MIB = 640
"""Room for one template (copied: the cache is on another file system) and what a few qubes write."""
LIMIT_S = 300.0
WRITTEN_BYTES = 60 << 20


@dataclass
class SmallSystem(LiveSystem):
    """Every command is run in the namespace of ``holder``."""

    holder: int = 0

    def inside(self, command: Sequence[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        entered = ["nsenter", "--user", "--mount", "--preserve-credentials", f"--target={self.holder}", "--", *command]
        return subprocess.run(entered, env=self.environment, **options)  # type: ignore[call-overload,no-any-return]

    def cloison(
        self, *arguments: str, stdin: bytes = b"", timeout_s: float = LIMIT_S, expect: int | None = 0
    ) -> subprocess.CompletedProcess[bytes]:
        from tests.live.conftest import CLOISON

        done = self.inside([CLOISON, *arguments], input=stdin, capture_output=True, timeout=timeout_s)
        if expect is not None and done.returncode != expect:
            raise AssertionError(f"cloison {' '.join(arguments)}: {done.returncode}: {(done.stdout + done.stderr)!r}")
        return done

    def seen(self, path: Path) -> Path:
        """A path of the namespace, as seen from outside."""
        return Path(f"/proc/{self.holder}/root{path}")

    def free_mib(self) -> int:
        return shutil.disk_usage(self.seen(self.root)).free >> 20

    def fill(self, leave_mib: int) -> None:
        """Fill the disk up to so much room."""
        self.make_room()
        filler = self.seen(self.root) / "filler"
        wanted = max(self.free_mib() - leave_mib, 0)
        self.inside(["fallocate", "-l", f"{wanted}M", str(self.root / "filler")], check=True) if wanted else None
        assert not wanted or filler.exists()

    def make_room(self) -> None:
        self.inside(["rm", "-f", str(self.root / "filler")], check=True)

    def files(self) -> set[str]:
        """All files below the data directory but logs and the database's own."""
        top = self.seen(self.layout.data)
        found = (path.relative_to(top) for path in top.rglob("*") if path.is_file())
        return {str(path) for path in found if path.parts[0] != "log" and not path.name.startswith("cloison.sqlite")}


def refused(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line of a command that failed for want of room; it says how much is needed."""
    text = done.stderr.decode()
    (line,) = [line for line in text.splitlines() if "cloison:" in line]
    assert done.returncode != 0
    assert "Traceback" not in text
    assert "MiB" in line and ("full" in line or "needed" in line), line
    return line


@pytest.fixture(scope="module")
def small(system: LiveSystem) -> Iterator[SmallSystem]:
    """A system of its own on the small disk; images and fork points are those of the cache (``system`` made them)."""
    root = Path(system.root).with_name(f"{system.root.name}s")
    root.mkdir(mode=0o700)
    mount = f"mount -t tmpfs -o size={DISK_MIB}m,mode=700 tmpfs {root} && echo ready && exec sleep 100000"
    own = [f"--map-user={os.getuid()}", f"--map-group={os.getgid()}", "--keep-caps"]
    holder = subprocess.Popen(["unshare", "--user", *own, "--mount", "sh", "-c", mount], stdout=subprocess.PIPE)
    environment = {**system.environment, "CLOISON_ROOT": str(root)}
    made = SmallSystem(root, environment, Layout.from_environment(environment), holder=holder.pid)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            pytest.skip("an ordinary user may not mount here")
        made.cloison("daemon", "start")
        yield made
        made.cloison("daemon", "stop", "--kill", expect=None)
    finally:
        holder.kill()
        holder.wait()
        root.rmdir()


@pytest.fixture(autouse=True)
def room_again(small: SmallSystem) -> Iterator[None]:
    yield
    small.make_room()


def test_a_template_that_does_not_fit_is_refused_and_nothing_of_it_stays(small: SmallSystem) -> None:
    small.fill(leave_mib=100)
    before = small.files()
    line = refused(small.cloison("template", "build", TEMPLATE, expect=None))
    assert small.json("template", "list") == []
    assert small.files() <= before, line
    assert small.free_mib() >= 95


@pytest.fixture(scope="module")
def qube(small: SmallSystem) -> str:
    """An app qube on the template of the small system, which by now fits."""
    small.make_room()
    small.cloison("template", "build", TEMPLATE)
    small.cloison("create", "--template", TEMPLATE, "--label", "red", "small-qube")
    return "small-qube"


def test_a_qube_that_has_no_room_to_run_is_not_started(small: SmallSystem, qube: str) -> None:
    small.fill(leave_mib=1)
    before = small.files()
    refused(small.cloison("start", qube, expect=None))
    assert small.json("list", qube)[0]["state"] == "Halted"
    refused(small.cloison("run", qube, "true", expect=None))
    assert small.files() <= before
    small.make_room()
    assert small.run(qube, "echo", "up").stdout == b"up\n"


def test_a_qube_and_a_clone_that_do_not_fit_are_not_made(small: SmallSystem, qube: str) -> None:
    small.fill(leave_mib=0)
    before = small.files(), [row["name"] for row in small.json("list")]
    for command in (("create", "--template", TEMPLATE, "one-more"), ("clone", TEMPLATE, "another")):
        said = small.cloison(*command, expect=None)
        if said.returncode:
            assert b"Traceback" not in said.stderr
            assert len([line for line in said.stderr.splitlines() if b"cloison:" in line]) == 1
        else:  # it needed no room worth the name: then it must be whole
            small.make_room()
            small.cloison("remove", "--yes", command[-1])
    small.make_room()
    assert (small.files(), [row["name"] for row in small.json("list")]) == before
    small.cloison("create", "--template", TEMPLATE, "one-more")
    small.cloison("remove", "--yes", "one-more")


def test_a_running_qube_waits_for_room_and_loses_nothing(small: SmallSystem, qube: str) -> None:
    small.run(qube, "true")
    small.fill(leave_mib=20)
    writing = f"head -c {WRITTEN_BYTES} /dev/zero | tr '\\0' x > ~/big && sync && sha256sum < ~/big"
    from tests.live.conftest import CLOISON

    entered = ["nsenter", "--user", "--mount", "--preserve-credentials", f"--target={small.holder}", "--", CLOISON]
    writer = subprocess.Popen([*entered, "run", qube, writing], env=small.environment, stdout=subprocess.PIPE)
    wait_until(lambda: small.free_mib() <= 1, 120, "the disk to be full")
    log = small.seen(small.layout.log)
    wait_until(lambda: "stands still" in log.read_text(), 60, "the log to say so")
    assert b"stands still" in small.cloison("list").stdout, "the system itself goes on, and says so"
    small.make_room()
    out, _ = writer.communicate(timeout=120)
    assert writer.returncode == 0
    assert out.split()[0].decode() == hashlib.sha256(b"x" * WRITTEN_BYTES).hexdigest()
    assert small.run(qube, "sh", "-c", "tr -d x < ~/big | wc -c; wc -c < ~/big").stdout.split() == [
        b"0",
        b"%d" % WRITTEN_BYTES,
    ]
    small.run(qube, "sh", "-c", "rm ~/big; sync")


def test_without_room_for_its_record_no_call_is_made(small: SmallSystem, qube: str) -> None:
    small.run(qube, "true")
    rest = small.layout.data / "rest"
    small.inside(
        ["sh", "-c", f"dd if=/dev/zero of={rest} bs=4k status=none; true"], check=True, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(40):  # the last block of the log has room for some more
            done = small.cloison("run", qube, "echo", "done", expect=None)
            if done.returncode:
                break
        assert b"audit log cannot be written" in done.stderr and b"done" not in done.stdout
        assert small.cloison("list").returncode == 0, "the system itself goes on"
        assert b"every call is denied" in small.cloison("doctor", expect=None).stdout
        assert "No space" in small.json("daemon", "status")["audit"]
    finally:
        small.inside(["rm", "-f", str(rest)], check=True)
    assert small.run(qube, "echo", "again").stdout == b"again\n"
    small.cloison("audit", "verify")
    assert small.json("audit", "--kind", "audit", "-n", "1")[0]["event"] == "resumed"


def test_a_fork_point_that_does_not_fit_is_not_made(small: SmallSystem, qube: str) -> None:
    """The cache of another daemon on the same system lies on the small disk, but for the images."""
    small.cloison("kill", qube, expect=None)
    small.cloison("daemon", "stop", "--kill")
    cache = small.root / "cache"
    real = small.layout.cache
    small.inside(["mkdir", "-m", "700", str(cache)], check=True)
    for name in ("images", "probe.json"):
        small.inside(["ln", "-s", str(real / name), str(cache / name)], check=True)
    small.environment["CLOISON_CACHE"] = str(cache)
    try:
        line = refused(small.cloison("forkpoint", "make", qube, expect=None))
        assert "fork point" in line
        assert [p for p in (small.seen(cache) / "forkpoints").rglob("*") if not p.name.endswith(".lock")] == []
        small.cloison("prefs", qube, "start_mode", "fork")
        assert "fork point" in refused(small.cloison("start", qube, expect=None))
        small.cloison("prefs", qube, "--default", "start_mode")
    finally:
        small.cloison("daemon", "stop", "--kill")
        del small.environment["CLOISON_CACHE"]


def test_a_template_that_cannot_write_its_last_changes_waits_for_room_too(small: SmallSystem) -> None:
    small.run(TEMPLATE, "sh", "-c", "echo changed > /etc/marker", user="root", timeout_s=LIMIT_S)
    small.fill(leave_mib=0)
    before = small.json("template", "list")[0]["revision"]
    small.cloison("shutdown", "--no-wait", TEMPLATE)

    def is_off() -> bool:
        return bool(small.json("list", TEMPLATE)[0]["state"] == "Halted")

    log = small.seen(small.layout.log)
    wait_until(lambda: is_off() or f"{TEMPLATE} stands still" in log.read_text(), 60, "the template to need room")
    small.make_room()
    wait_until(is_off, 120, "the template to be off")
    assert small.json("template", "list")[0]["revision"] != before
