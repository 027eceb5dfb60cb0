"""Package sources are read from what apt itself says; nothing is made up."""

from __future__ import annotations

import pytest

from cloison.errors import BackendFailed, BadRequest
from cloison.templates.sources import parse_acquire_options, parse_index_targets, plan_sources, source_line

KEYRING = "/usr/share/keyrings/k.gpg"
DEBIAN = """\
Debian|Debian|bookworm|bookworm|http://mirror.example/debian/|main
Debian|Debian|bookworm|bookworm|http://mirror.example/debian/|contrib
Debian|Debian|bookworm-updates|bookworm-updates|http://mirror.example/debian/|main
Debian|Debian-Security|bookworm-security|bookworm-security|http://security.example/debian-security/|main
Example|Example|bookworm|bookworm|https://other.example/apt/|main
"""
OLD_STYLE = """\
Debian|Debian|bullseye|stable|http://mirror.example/debian/|main
Debian|Debian-Security|bullseye|stable/updates|http://security.example/|updates/main
"""
UBUNTU = """\
Ubuntu|Ubuntu|noble|noble|http://mirror.example/ubuntu/|main
Ubuntu|Ubuntu|noble|noble-security|http://security.example/ubuntu/|main
"""
NEVER_UPDATED = "||||http://mirror.example/debian/|main\n"


def plan(text: str, suite: str = "trixie") -> tuple[str, ...]:
    return plan_sources(parse_index_targets(text), suite, origin="Debian", keyring=KEYRING)


@pytest.mark.parametrize(
    ("text", "suite", "lines"),
    [
        (DEBIAN, "trixie", [
            "http://mirror.example/debian/ trixie main",
            "http://mirror.example/debian/ trixie-updates main",
            "http://security.example/debian-security/ trixie-security main",
        ]),
        (DEBIAN, "sid", ["http://mirror.example/debian/ sid main"]),
        (OLD_STYLE, "trixie", [
            "http://mirror.example/debian/ trixie main", "http://security.example/ trixie-security main",
        ]),
    ],
)  # fmt: skip
def test_the_hosts_mirrors_serve_the_guests_suite(text: str, suite: str, lines: list[str]) -> None:
    assert list(plan(text, suite)) == [f"deb [signed-by={KEYRING}] {line}" for line in lines]


def test_another_distributions_host_is_told_to_name_a_mirror() -> None:
    with pytest.raises(BackendFailed, match=r"found: Ubuntu.*--mirror URI.*debian-archive-keyring"):
        plan(UBUNTU)


def test_a_host_without_package_lists_is_told_to_fetch_them() -> None:
    with pytest.raises(BackendFailed, match="apt-get update"):
        plan(NEVER_UPDATED)


def test_a_host_without_sources_is_told_so() -> None:
    with pytest.raises(BackendFailed, match="found: none"):
        plan("")


@pytest.mark.parametrize(
    "uri", ["", "mirror.example", "http://a b/", "http://x/ [trusted=yes]", "http://x/\ndeb evil", "http://x/'$(id)'"]
)
def test_a_mirror_that_says_more_than_a_mirror_is_refused(uri: str) -> None:
    with pytest.raises(BadRequest):
        source_line(uri, "trixie", KEYRING)


@pytest.mark.parametrize("suite", ["", "-x", "a b", "a\nb", "$(id)", "trixie;main"])
def test_a_suite_that_says_more_than_a_suite_is_refused(suite: str) -> None:
    with pytest.raises(BadRequest):
        source_line("http://mirror.example/", suite, KEYRING)


CONFIG = """\
APT "";
APT::Architecture "amd64";
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128/";
Acquire::https::Proxy::mirror.example "DIRECT";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "none";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
Acquire::http::Proxy-Auto-Detect "";
Dir::Etc "etc/apt";
DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb || true";
"""


def test_only_the_hosts_network_settings_are_passed_on() -> None:
    assert parse_acquire_options(CONFIG) == (
        'Acquire::http::Proxy "http://proxy.example:3128/"',
        'Acquire::https::Proxy::mirror.example "DIRECT"',
        'Acquire::Retries "3"',
        'Acquire::Check-Valid-Until "false"',
    )
