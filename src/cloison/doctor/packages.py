"""Can templates be built here?

In: the host's programs and package configuration. Out: findings. May import: templates' sources and recipe.
"""

from __future__ import annotations

import asyncio
import shutil

from cloison.doctor.result import Finding, Ground, Status
from cloison.errors import CloisonError
from cloison.templates.recipe import DISTRIBUTIONS
from cloison.templates.sources import find_host_targets, plan_sources

TEMPLATE_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "newuidmap": "uidmap",
    "mke2fs": "e2fsprogs",
}
"""Program -> Debian package."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_template_tools(ground: Ground) -> Finding:
    missing = sorted(
        {package for program, package in TEMPLATE_TOOLS.items() if shutil.which(program, path=SYSTEM_PATH) is None}
    )
    if missing:
        return Finding(Status.FAILED, f"missing: {' '.join(missing)}", f"as root: apt-get install {' '.join(missing)}")
    return Finding(Status.OK, f"{', '.join(TEMPLATE_TOOLS)} are there")


def find_package_sources(ground: Ground) -> Finding:
    """The default template's distribution must be reachable through the host's own package configuration."""
    debian = DISTRIBUTIONS["debian"]
    try:
        targets = asyncio.run(find_host_targets())
        sources = plan_sources(targets, debian.default_suite, origin=debian.origin, keyring=debian.keyring)
    except CloisonError as error:
        return Finding(Status.WARNING, f"templates cannot be built yet: {error.message}", error.hint)
    return Finding(Status.OK, f"{debian.name} {debian.default_suite} from {len(sources)} configured sources")
