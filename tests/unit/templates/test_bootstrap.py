"""The command that builds, the progress it shows and the errors it explains."""

from __future__ import annotations

import errno

import pytest

from cloison.errors import BackendFailed
from cloison.templates.bootstrap import BuildProgress, build_root_command, explain, has_sub_ids, plan_bootstrap

OUTPUT = """\
I: automatically chosen mode: root
I: running apt-get update...
Get:1 http://mirror.example trixie InRelease [140 kB]
Get:2 http://mirror.example trixie/main amd64 Packages [9,670 kB]
I: downloading packages with apt...
0 upgraded, 10 newly installed, 0 to remove and 0 not upgraded.
Need to get 4,000 kB of archives.
Get:1 http://mirror.example trixie/main amd64 gcc-14-base amd64 14.2.0-19 [2,000 kB]
Get:2 http://mirror.example trixie/main amd64 libc6 amd64 2.41-12 [2,000 kB]
I: installing essential packages...
Unpacking libc6:amd64 (2.41-12) ...
Setting up libc6:amd64 (2.41-12) ...
I: installing remaining packages inside the chroot...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Need to get 1,000 kB of archives.
Get:1 http://mirror.example trixie/main amd64 file amd64 5.46 [500 kB]
Unpacking file (1:5.46-5) ...
Setting up file (1:5.46-5) ...
I: running --customize-hook in shell: sh -c 'sh assemble' exec /x/mmdebstrap.x
I: making the file system
I: success in 27.2 seconds
"""


def test_progress_never_goes_back_and_ends_near_the_end() -> None:
    progress = BuildProgress()
    seen = [(progress.fraction, progress.what)]
    for line in OUTPUT.splitlines():
        if progress.feed(line):
            seen.append((progress.fraction, progress.what))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and 0.88 <= fractions[-1] < 1
    assert len(set(fractions)) > 8
    assert {"downloading packages", "installing libc6", "installing file", "making the file system"} <= {
        what for _, what in seen
    }


def test_an_ordinary_user_builds_in_a_user_namespace_and_root_does_not() -> None:
    assert "--map-auto" in build_root_command(is_root=False)
    assert "--user" not in build_root_command(is_root=True)
    assert {"--mount", "--pid", "--kill-child=KILL"} <= set(build_root_command(is_root=True))


def test_the_command_line() -> None:
    command = plan_bootstrap(
        suite="trixie",
        sources=("deb [signed-by=/k] http://m/ trixie main",),
        packages=("a", "b"),
        apt_options=('X "1"',),
    )
    assert command[:2] == ["mmdebstrap", "--mode=root"]
    assert "--include=a,b" in command and '--aptopt=X "1"' in command
    assert command[-3:] == ["trixie", "/dev/null", "deb [signed-by=/k] http://m/ trixie main"]


@pytest.mark.parametrize(
    ("text", "granted"),
    [
        ("ann:100000:65536\n", True),
        ("1234:100000:65536\n", True),
        ("bob:100000:65536\n", False),
        ("ann:100000:1000\n", False),
        ("", False),
        ("ann:x:y\nann\n::\n", False),
        ("bob:100000:65536\n# c\nann:200000:100000\n", True),
    ],
)
def test_who_has_sub_ids(text: str, granted: bool) -> None:
    assert has_sub_ids(text, user="ann", uid=1234) is granted


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (["E: Unable to locate package nonsense"], "Unable to locate package nonsense"),
        (["unshare: write failed /proc/self/uid_map: Operation not permitted"], "user namespaces"),
        (["newuidmap: uid range [1-2) -> [1-2) not allowed"], "add-subuids"),
        (["Err:1 http://m trixie InRelease", "E: Could not resolve 'm'"], "mirror cannot be reached"),
        ([], "status 7"),
    ],
)
def test_a_failed_build_is_explained(log: list[str], said: str) -> None:
    error = explain(log, 7)
    assert isinstance(error, BackendFailed) and said in str(error)


def test_a_full_disk_is_seen_in_the_log() -> None:
    error = explain(["dpkg: error: No space left on device"], 25)
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC
