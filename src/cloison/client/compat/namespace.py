"""A private view of the host in which the fixed paths exist: no root, and nothing is written on the host.

In: pieces. Out: the command line of bubblewrap, with its descriptors. May import: client.compat, errors.

Directories that get something new (``/etc``, ``/run``, ``/usr/lib``) are put together anew in memory: every entry that
the host has is bound to its place (links stay links), ours are added, and the result is read-only. Everything else is
the host as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloison.client.compat.fixedpaths import GROUP_FILE, Owner, Piece, pieces, services_of, with_group
from cloison.errors import BackendFailed

HELPERS_AT = "/usr/lib/qubes/helpers"
FRONT = "/usr/lib/qubes/front"
"""Programs that go before the host's own: there is no root to become in here, so ``sudo`` is one of ours."""
ROOM_FOR_ARGUMENTS = 64


@dataclass
class View:
    """What bubblewrap gets: its arguments, and open descriptors that they name."""

    arguments: list[str] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def add(self, *words: str) -> None:
        self.arguments += words

    def add_file(self, piece: Piece) -> None:
        descriptor = _memory_file(piece.content)
        self.descriptors.append(descriptor)
        self.add("--perms", f"{piece.mode:04o}", "--file", str(descriptor), piece.path)


def plan_view(owner: Owner, *, host: Path = Path("/")) -> View:
    """The view for the programs that ``owner`` starts. ``host``: where the host's directories are looked up."""
    ours = [*pieces(owner, HELPERS_AT), *services_of(owner.layout), *_sudo()]
    group = host / GROUP_FILE[1:]
    ours.append(Piece(GROUP_FILE, with_group(group.read_text() if group.exists() else "", owner.name).encode()))
    view = View()
    view.add("--dev-bind", "/", "/")
    rebuilt = find_rebuilt((piece.path for piece in ours), host)
    taken = {piece.path for piece in ours} | {str(Path(piece.path).parent) for piece in ours} - rebuilt
    for directory in sorted(rebuilt):
        _rebuild(view, directory, host, taken | rebuilt)
    made: set[str] = set()
    for piece in ours:
        _add_parents(view, Path(piece.path).parent, rebuilt, made)
        if piece.target:
            view.add("--symlink", piece.target, piece.path)
        else:
            view.add_file(piece)
    for directory in sorted(rebuilt, reverse=True):
        view.add("--remount-ro", directory)
    path = f"{FRONT}:{os.environ.get('PATH', '/usr/local/bin:/usr/bin:/bin')}:{HELPERS_AT}"
    view.add("--setenv", "PATH", path)
    return view


def find_rebuilt(paths: Iterable[str], host: Path) -> set[str]:
    """The deepest directory that the host has above each path; a directory of ours that it has too is rebuilt whole."""
    found: set[str] = set()
    for path in paths:
        above = Path(path).parent
        while not (host / str(above)[1:]).is_dir():
            above = above.parent
        if str(above) == "/":
            raise BackendFailed(f"{path} would need a new directory in /, which cannot be had without root")
        found.add(str(above))
    return found


def _rebuild(view: View, directory: str, host: Path, taken: set[str]) -> None:
    view.add("--perms", "0755", "--tmpfs", directory)
    for entry in sorted((host / directory[1:]).iterdir()):
        place = f"{directory}/{entry.name}"
        if place in taken:
            continue
        if entry.is_symlink():
            view.add("--symlink", str(entry.readlink()), place)
        else:
            view.add("--dev-bind-try", place, place)


def _add_parents(view: View, directory: Path, rebuilt: set[str], made: set[str]) -> None:
    missing: list[str] = []
    while str(directory) not in rebuilt | made:
        missing.append(str(directory))
        directory = directory.parent
    for name in reversed(missing):
        view.add("--perms", "0755", "--dir", name)
        made.add(name)


def _sudo() -> list[Piece]:
    """Without root there is nobody to become; what the library runs with ``sudo`` are programs of ours."""
    if os.geteuid() == 0:
        return []
    return [Piece(f"{FRONT}/sudo", SUDO.encode(), mode=0o755)]


SUDO = """#!/bin/sh
# The view of `cloison compat run` has no root: commands for root or for you run as you, others are refused.
while [ $# -gt 0 ]; do
    case $1 in
        -u) user=$2; shift 2 ;;
        --user=*) user=${1#--user=}; shift ;;
        -n|-E|-H|-i|-k|-S|--non-interactive|--preserve-env) shift ;;
        --) shift; break ;;
        -*) echo "sudo: option $1 has no meaning inside \\`cloison compat run\\`" >&2; exit 1 ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || { echo "sudo: which command?" >&2; exit 1; }
case ${user:-root} in
    root|"$(id -un)") exec env -- "$@" ;;
esac
echo "sudo: nobody can become $user inside \\`cloison compat run\\`" >&2
exit 1
"""


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("cloison-compat", 0)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def enter(view: View, program: str, command: Sequence[str]) -> None:
    """Become ``command`` in that view. Returns only by raising OSError."""
    words = b"".join(word.encode() + b"\0" for word in view.arguments)
    arguments = _memory_file(words)
    os.execv(program, [program, "--args", str(arguments), "--", *command])
