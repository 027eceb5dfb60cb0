"""The peer of ``qvm-copy`` must pack as much as we copy: a directory that could not be filled is no peer."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path

import pytest
from benchmarks.bench import SMALL_BYTES, make_files
from benchmarks.plain import pack


def test_the_files_that_are_copied_are_as_many_and_as_large_as_the_row_says(tmp_path: Path) -> None:
    subprocess.run(["sh", "-c", make_files(str(tmp_path), 2, 700)], check=True)
    assert [path.stat().st_size for path in (tmp_path / "large").iterdir()] == [2 << 20]
    assert [path.stat().st_size for path in (tmp_path / "small").iterdir()] == [SMALL_BYTES] * 700


def test_making_them_fails_where_there_is_no_room(tmp_path: Path) -> None:
    made = subprocess.run(["sh", "-c", f"ulimit -f 100; {make_files(str(tmp_path), 2, 700)}"], capture_output=True)
    assert made.returncode != 0


@pytest.mark.parametrize(("sent", "is_good"), [(b"x" * 5000, True), (b"x" * 900, False), (b"", False)])
def test_a_tar_that_is_smaller_than_its_files_is_not_measured(sent: bytes, is_good: bool) -> None:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        theirs.recv(4096)
        theirs.sendall(sent + b"done\n")

    thread = threading.Thread(target=serve)
    thread.start()
    with ours, theirs:
        if is_good:
            assert pack(ours, "/var/tmp/bench/small", 4096) > 0
        else:
            with pytest.raises(RuntimeError, match="its files have 4096"):
                pack(ours, "/var/tmp/bench/small", 4096)
        thread.join()
