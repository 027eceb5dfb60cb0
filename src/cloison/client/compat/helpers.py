"""Small programs of a Qubes host that the library and the windows of Qubes OS run by name.

In: the program's name and its arguments. Out: an exit code.

``qvm-appmenus`` is run by a clone to carry over which programs are in a qube's menu. Here that is the feature
``menu-items``; menus themselves are made from features when they are opened, so there is nothing to make or remove.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cloison.client import Client, calls
from cloison.client.failures import QubesFeatureNotFoundError
from cloison.errors import CloisonError

LISTS = {"whitelist": "menu-items", "default-whitelist": "default-menu-items"}
WITHOUT_EFFECT = frozenset({"--init", "--create", "--remove", "--update", "--force", "--all", "--quiet", "-q",
                            "--verbose", "-v"})  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    program, *rest = sys.argv[1:] if words is None else words
    try:
        match program:
            case "qvm-appmenus":
                return appmenus(Client(start_daemon=False), rest)
            case "qvm-sync-appmenus":
                return _ours("apps", "refresh", *[word for word in rest if not word.startswith("-")][:1])
            case _:
                return _ours("console", *[word for word in rest if not word.startswith("-")])
    except CloisonError as error:
        print(f"{program}: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _ours(*words: str) -> int:
    return subprocess.call([sys.executable, "-I", "-m", "cloison.cli", *words])


def appmenus(client: Client, words: Sequence[str]) -> int:
    """Read or replace the chosen programs of a qube; everything else is done already."""
    rest = [word for word in words if word not in WITHOUT_EFFECT]
    for name, feature in LISTS.items():
        if f"--get-{name}" in rest:
            rest.remove(f"--get-{name}")
            for qube in rest:
                _print(_chosen(client, qube, feature))
            return 0
        if f"--set-{name}" in rest:
            at = rest.index(f"--set-{name}")
            source, rest = rest[at + 1], rest[:at] + rest[at + 2 :]
            text = sys.stdin.read() if source == "-" else Path(source).read_text()
            for qube in rest:
                client.do(calls.feature_set(qube, feature, " ".join(text.split())))
            return 0
    return 0


def _chosen(client: Client, qube: str, feature: str) -> list[str]:
    try:
        return client.do(calls.feature_get(qube, feature, through_template=True)).split()
    except QubesFeatureNotFoundError:
        return []


def _print(names: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{name}\n" for name in names))


if __name__ == "__main__":
    sys.exit(main())
