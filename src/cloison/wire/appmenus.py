"""The programs of a qube, as qubes.GetAppmenus answers and qubes.SyncAppMenus pushes them.

In: untrusted lines ``FILE.desktop:KEY=VALUE``. Out: programs, or RemoteProtocolError. May import: the standard library
and this package. A program's command never leaves the qube: it is started by its name (qubes.StartApp).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from cloison.wire.errors import RemoteProtocolError

MAX_BYTES: Final = 1 << 20
MAX_APPS: Final = 1000
MAX_TEXT: Final = 256
"""Characters of a name, a comment, a list of categories: what a menu can show."""
_FILE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+@:-]{0,127})\.desktop", re.ASCII)
_ICON = re.compile(r"[A-Za-z0-9_.+-]{1,128}", re.ASCII)
_CATEGORIES = re.compile(r"[A-Za-z0-9 ;._-]*", re.ASCII)


class App(NamedTuple):
    """``id`` is the argument of qubes.StartApp. The texts are the qube's own words, without control characters."""

    id: str
    name: str
    comment: str = ""
    categories: str = ""
    icon: str = ""


def parse_menu(untrusted_lines: bytes) -> tuple[App, ...]:
    """Programs by name. What a menu cannot use is left out; what no honest qube would send is an error."""
    if len(untrusted_lines) > MAX_BYTES:
        raise RemoteProtocolError(f"a list of programs of more than {MAX_BYTES} bytes")
    found: dict[str, dict[str, str]] = {}
    for line in untrusted_lines.decode("utf-8", "replace").split("\n"):
        if not line:
            continue
        file, colon, assignment = line.partition(".desktop:")
        match = _FILE.fullmatch(f"{file}.desktop") if colon else None
        if match is None:
            raise RemoteProtocolError(f"{line[:60]!a} names no .desktop file")
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RemoteProtocolError(f"{line[:60]!a} is no KEY=VALUE")
        found.setdefault(match[1], {})[key] = value
        if len(found) > MAX_APPS:
            raise RemoteProtocolError(f"more than {MAX_APPS} programs")
    apps = (_app(name, values) for name, values in found.items())
    return tuple(sorted((app for app in apps if app is not None), key=lambda app: (app.name.casefold(), app.id)))


def _app(name: str, values: dict[str, str]) -> App | None:
    if not values.get("Exec") or values.get("NoDisplay", "").lower() == "true":
        return None
    icon, categories = values.get("Icon", ""), values.get("Categories", "")[:MAX_TEXT]
    return App(
        name,
        _shown(values.get("Name", "")) or name,
        _shown(values.get("Comment", "")),
        categories if _CATEGORIES.fullmatch(categories) else "",
        icon if _ICON.fullmatch(icon) else "",
    )


def _shown(untrusted_text: str) -> str:
    return "".join(c for c in untrusted_text if c.isprintable())[:MAX_TEXT].strip()


def dump_apps(apps: Sequence[App]) -> str:
    """As one line of ASCII, fit for a feature."""
    return json.dumps([app._asdict() for app in apps], separators=(",", ":"))


def load_apps(text: str) -> tuple[App, ...]:
    """The opposite; RemoteProtocolError for anything else."""
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError
        return tuple(App(**{key: str(row[key]) for key in App._fields}) for row in rows)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RemoteProtocolError("this is no list of programs") from None
