"""Files of the host into a qube: our sender against the guest's real receiver."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.client import filecopy
from cloison.client.streams import MemorySink

ROOT = Path(__file__).resolve().parents[3]
Cloison = Callable[..., Any]
RECEIVER = f"""#!/bin/sh
export QREXEC_REMOTE_DOMAIN=dom0 PYTHONPATH={ROOT / "guest"}:{ROOT / "src"}
exec {sys.executable} -c "
from cloison_agent.builtins import run_service
import sys; sys.exit(run_service('qubes.Filecopy', '$1'))"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A qube's home; the fake broker runs our receiver as the service."""
    for name, argument in (("qubes.Filecopy", ""), ("qubes.Filecopy+allow-all-names", "allow-all-names")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(RECEIVER.replace("$1", argument))
        script.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    return home


def test_a_tree_of_the_host_arrives_whole(cloison: Cloison, broker: Any, home: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "big").write_bytes(os.urandom(3 << 20))
    (tree / "sub" / "note").write_text("hello")
    os.symlink("../big", tree / "sub" / "link")
    done = cloison("copy", str(tree), "work")
    assert (done.code, done.err) == (0, "")
    there = home / "QubesIncoming" / "dom0" / "tree"
    assert (there / "big").read_bytes() == (tree / "big").read_bytes()
    assert os.readlink(there / "sub" / "link") == "../big"
    assert (broker.calls[0].target, broker.calls[0].service) == ("work", "qubes.Filecopy")
    again = cloison("copy", str(tree / "big"), str(tree), "work")
    assert again.code == 1 and "has it already" in again.err
    assert tree.exists()


def test_moving_removes_what_arrived_and_odd_names_are_announced(
    cloison: Cloison, broker: Any, home: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a \x1b[31m"
    odd.write_text("odd")
    assert cloison("copy", "--move", str(odd), "work").code == 0
    assert not odd.exists()
    assert (home / "QubesIncoming" / "dom0" / odd.name).read_text() == "odd"
    assert broker.calls[0].service == "qubes.Filecopy+allow-all-names"
    os.mkfifo(tmp_path / "fifo")
    refused = cloison("copy", "--move", str(tmp_path / "fifo"), "work")
    assert refused.code == 1 and (tmp_path / "fifo").exists()


def test_a_refusal_is_told_and_nothing_is_removed(cloison: Cloison, broker: Any, tmp_path: Path) -> None:
    broker.refuse = "refused by policy"
    note = tmp_path / "note"
    note.write_text("x")
    done = cloison("copy", "--move", str(note), "work")
    assert done.code == 126 and "refused by policy" in done.err
    assert note.exists()
    assert cloison("copy", str(tmp_path / "absent"), "work").code == 2


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "no answer"),
        ("printf x", "no answer"),
        ("head -c 16 /dev/zero", "damaged"),
        ("printf '\\157\\216\\337\\1\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0'", "could not store"),
        ("yes", "more than any"),
    ],
)
def test_a_lying_receiver_is_not_believed(
    cloison: Cloison, broker: Any, home: Path, tmp_path: Path, script: str, why: str
) -> None:
    service = tmp_path / "bin" / "qubes.Filecopy"
    service.write_text(f"#!/bin/sh\n{script}\n")
    note = tmp_path / "note"
    note.write_text("x")
    done = cloison("copy", "--move", str(note), "work")
    assert done.code != 0 and why in done.err
    assert note.exists()


def test_a_receiver_that_is_content_before_it_has_all_is_not_believed(
    cloison: Cloison, broker: Any, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin" / "qubes.Filecopy").write_text("#!/bin/sh\nhead -c 16 /dev/zero; exec cat > /dev/null\n")
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 34)
    done = cloison("copy", "--move", str(big), "work")
    assert done.code == 1 and "damaged" in done.err
    assert big.exists()


def test_a_file_that_shrinks_ends_the_stream_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(1 << 20))
    source = filecopy.StreamSource([path], MemorySink(), lambda _: None)
    source.read(100)
    path.write_bytes(b"")
    while source.read(1 << 16):
        pass
    assert source.failure is not None and "shorter" in str(source.failure)
    source.close()
