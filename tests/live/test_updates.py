"""A template without a network gets packages of a small archive through the updates proxy, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.live.conftest import wait_until

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

TEMPLATE, COPY, DOOR, PACKAGE = "debian-13", "updated", "updates-door", "cloison-trial"
HOST = "10.139.2.1"
LIMIT_S = 240.0
ASK = (
    "import socket; s = socket.create_connection(('127.0.0.1', 8082), 30); "
    "s.sendall(b'GET http://%s/ HTTP/1.1\\r\\n\\r\\n'); print(s.makefile('rb').readline())"
)


class Archive:
    """Debian packages in a directory, served on the host's loopback."""

    def __init__(self, top: Path) -> None:
        self.top = top
        handler = functools.partial(_Files, directory=str(top))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port: int = self._server.server_address[1]

    def publish(self, version: str, *, never_ends: bool = False) -> None:
        """The only package in a new version. ``never_ends``: it is unpacked, but setting it up takes for ever."""
        tree = self.top / "tree"
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        control = (
            f"Package: {PACKAGE}\nVersion: {version}\nArchitecture: all\nMaintainer: a test\nDescription: a test\n"
        )
        (tree / "DEBIAN/control").write_text(control)
        (tree / "trial-version").write_text(version)
        script = tree / "DEBIAN/postinst"
        script.write_text(f"#!/bin/sh\nexec sleep {3600 if never_ends else 0}\n")
        script.chmod(0o755)
        file = self.top / f"{PACKAGE}_{version}_all.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(file)], check=True,
                       capture_output=True)  # fmt: skip
        content = file.read_bytes()
        index = (
            f"{control}Filename: ./{file.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
        (self.top / "Packages").write_text(index)
        digest = hashlib.sha256(index.encode()).hexdigest()
        (self.top / "Release").write_text(f"SHA256:\n {digest} {len(index)} Packages\n")

    def close(self) -> None:
        self._server.shutdown()


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def archive(system: LiveSystem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    served = Archive(tmp_path_factory.mktemp("archive"))
    served.publish("1.0")
    rules = system.layout.policy / "20-updates.policy"
    rules.write_text(f"qubes.UpdatesProxy * {COPY} @default allow target={DOOR}\n")
    system.cloison("clone", TEMPLATE, COPY)
    system.cloison("create", "--template", TEMPLATE, "--label", "red", "--prop", "netvm=", "--prop",
                   "provides_network=True", DOOR)  # fmt: skip
    system.cloison("features", DOOR, "uplink-host-ports", str(served.port))
    system.run(DOOR, "sh", "-c", "mkdir -p /rw/config/updates-proxy.d; "
               f"echo {HOST}:{served.port} > /rw/config/updates-proxy.d/trial", user="root")  # fmt: skip
    yield served
    served.close()
    rules.unlink()
    for name in (COPY, DOOR):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


def update(system: LiveSystem, *options: str) -> Any:
    return json.loads(system.cloison("update", "--json", *options, COPY, timeout_s=LIMIT_S).stdout)["qubes"]


def test_a_template_is_updated_without_a_network(system: LiveSystem, archive: Archive) -> None:
    source = f"deb [trusted=yes] http://{HOST}:{archive.port}/ ./"
    script = (
        f"rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; echo '{source}' > /etc/apt/sources.list; "
        f"ls /sys/class/net; apt-get -q update && apt-get -q -y install {PACKAGE}"
    )
    said = system.run(COPY, "sh", "-c", script, user="root", timeout_s=LIMIT_S).stdout
    assert said.split()[0] == b"lo" and b"eth0" not in said
    archive.publish("2.0")
    (checked,) = update(system, "--check")
    assert checked["state"] == "waiting" and checked["waiting"] == 1
    (updated,) = update(system)
    assert updated["packages"] == [[PACKAGE, "1.0", "2.0"]] and updated["state"] == "updated"
    assert system.run(COPY, "cat", "/trial-version").stdout == b"2.0"
    for host, answer in (("deb.debian.example", b"403"), (f"{HOST}:22", b"403"), ("localhost:8082", b"403")):
        assert answer in system.run(COPY, "python3", "-c", ASK % host).stdout, host


def is_running(system: LiveSystem) -> bool:
    rows = json.loads(system.cloison("list", "--json").stdout)
    return any(row["name"] == COPY and row["state"] != "Halted" for row in rows)


def unpacked(system: LiveSystem) -> bytes:
    """What the running template shows; nothing while it does not run (asking must not start it)."""
    if not is_running(system):
        return b""
    return system.cloison("run", "--no-autostart", COPY, "--", "cat", "/trial-version", expect=None).stdout


def test_an_update_whose_client_is_killed_is_gone(system: LiveSystem, archive: Archive) -> None:
    """Half of a package is installed then: nobody may ever start from that."""
    assert system.run(COPY, "cat", "/trial-version").stdout == b"2.0"
    system.cloison("shutdown", "--wait", COPY)
    revisions = system.cloison("volume", "revisions", f"{COPY}:root", expect=None).stdout
    archive.publish("3.0", never_ends=True)
    client = system.start("update", COPY)
    try:
        wait_until(lambda: unpacked(system) == b"3.0", LIMIT_S, "the new version to be unpacked")
    finally:
        client.kill()
        client.wait()
    wait_until(lambda: not is_running(system), LIMIT_S, "the killed update to be taken back")
    assert system.cloison("volume", "revisions", f"{COPY}:root", expect=None).stdout == revisions
    assert system.run(COPY, "cat", "/trial-version").stdout == b"2.0"
