"""Where packages come from: the host's own package configuration, never a mirror written down here.

In: the output of ``apt-get indextargets`` and ``apt-config dump``. Out: sources.list lines and apt options.
May import: errors.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloison.errors import BackendFailed, BadRequest

INDEX_FORMAT = "$(ORIGIN)|$(LABEL)|$(CODENAME)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)"
ROLLING_SUITES = frozenset({"sid", "unstable", "testing", "experimental"})
_POCKET = re.compile(r"-(updates|security|proposed-updates|backports(-sloppy)?)$|/updates$")
_CONFIG_LINE = re.compile(r'^(?P<name>[A-Za-z0-9:._/+-]+) "(?P<value>[^"]*)";$')
# Network settings only: the rest of Acquire is about the host's own indexes.
_PASSED_ON = re.compile(
    r"^Acquire::(http|https|ftp|tor|Retries|ForceIPv4|ForceIPv6|Check-Valid-Until|Check-Date|Max-ValidTime|By-Hash"
    r"|Queue-Mode|AllowRedirect)(::|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class IndexTarget:
    """One package index the host is configured to use."""

    origin: str
    label: str
    codename: str
    release: str
    uri: str
    component: str

    @property
    def pocket(self) -> str:
        """``updates``, ``security``... or ``""`` for the release itself."""
        found = _POCKET.search(self.release) or _POCKET.search(self.codename)
        if found is None:
            return ""
        return found.group(1) or "security"


def parse_index_targets(text: str) -> tuple[IndexTarget, ...]:
    """The lines of ``apt-get indextargets --format INDEX_FORMAT``; lines of another shape are skipped."""
    rows = (line.split("|") for line in text.splitlines())
    return tuple(dict.fromkeys(IndexTarget(*row) for row in rows if len(row) == 6))


def parse_acquire_options(text: str) -> tuple[str, ...]:
    """The network settings in ``apt-config dump`` output as apt options (proxies, time-outs, date checks)."""
    found = (_CONFIG_LINE.match(line) for line in text.splitlines())
    return tuple(f'{m["name"]} "{m["value"]}"' for m in found if m and m["value"] != "" and _PASSED_ON.match(m["name"]))


def plan_sources(targets: Sequence[IndexTarget], suite: str, *, origin: str, keyring: str) -> tuple[str, ...]:
    """sources.list lines for ``suite`` from the mirrors the host uses for ``origin``.

    Stable suites also get the security and updates pockets which the host has.
    """
    ours = [target for target in targets if target.origin == origin]
    base = [target for target in ours if target.pocket == "" and "main" in target.component.split("/")]
    if not base:
        others = ", ".join(sorted({target.origin for target in targets if target.origin})) or "none"
        unread = bool(targets) and others == "none"
        raise BackendFailed(
            f"cannot find a {origin} package source in this host's apt configuration (found: {others})",
            hint="run `apt-get update` as root first"
            if unread
            else f"name one: --mirror URI (any {origin} mirror), and install {origin.lower()}-archive-keyring",
        )
    lines = [source_line(base[0].uri, suite, keyring)]
    if suite not in ROLLING_SUITES:
        for pocket in ("updates", "security"):
            lines += [source_line(t.uri, f"{suite}-{pocket}", keyring) for t in ours if t.pocket == pocket][:1]
    return tuple(lines)


def source_line(uri: str, release: str, keyring: str, components: Iterable[str] = ("main",)) -> str:
    """One sources.list line; BadRequest when ``uri`` or ``release`` could say more than it should."""
    if not re.fullmatch(r"[a-z+]+:/{0,2}[^\s\[\]|\"'\\]+", uri):
        raise BadRequest(f"mirror {uri[:80]!a} is not a URI", hint="write it as scheme://host/path")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", release):
        raise BadRequest(f"suite {release[:40]!a} has characters that no suite has")
    return f"deb [signed-by={keyring}] {uri} {release} {' '.join(components)}"


async def find_host_targets() -> tuple[IndexTarget, ...]:
    """The package indexes that this host's apt is configured with."""
    return parse_index_targets(
        await _ask_apt("apt-get", "indextargets", "--format", INDEX_FORMAT, "Created-By: Packages")
    )


async def find_host_acquire_options() -> tuple[str, ...]:
    """The host's apt network settings."""
    return parse_acquire_options(await _ask_apt("apt-config", "dump"))


async def _ask_apt(*command: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise BackendFailed(
            f"cannot ask apt for package sources: {command[0]} is missing",
            hint="templates are built on Debian or Ubuntu hosts",
        ) from error
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except TimeoutError as error:
        process.kill()
        raise BackendFailed(f"{command[0]} did not answer within 60 s") from error
    if process.returncode != 0:
        raise BackendFailed(f"{' '.join(command[:2])} failed: {err.decode(errors='replace').strip()[-300:]}")
    return out.decode(errors="replace")
