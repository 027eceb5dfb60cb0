"""The life of a template: changed, committed, shared, reverted; and the fork points that follow it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

FORK_POINT_LIMIT_S = 420.0
COPY, USER = "tpl-copy", "tpl-user"


@pytest.fixture(scope="module")
def template(system: LiveSystem) -> Iterator[str]:
    """A copy of the template (data shared) with one app qube on it, running."""
    system.cloison("clone", "debian-13", COPY)
    system.cloison("create", "--label", "green", "--template", COPY, USER)
    system.cloison("start", USER, timeout_s=FORK_POINT_LIMIT_S)
    yield COPY
    system.cloison("remove", "--yes", "--kill", USER, expect=None)
    system.cloison("remove", "--yes", "--kill", COPY, expect=None)


def row(system: LiveSystem, qube: str) -> dict[str, Any]:
    (found,) = system.json("list", qube)
    return dict(found)


def marker(system: LiveSystem) -> bytes:
    return system.run(USER, "cat", "/etc/marker", expect=None).stdout.strip()


def wait_for_fork_point(system: LiveSystem, template: str) -> None:
    """Made in the background, and the only one of this template."""
    deadline = time.monotonic() + FORK_POINT_LIMIT_S
    while [p["state"] for p in system.json("forkpoint", "list") if p["template"] == template] != ["ready"]:
        assert time.monotonic() < deadline, f"no fork point of {template}: {system.json('forkpoint', 'list')}"
        time.sleep(0.5)


def revision(system: LiveSystem, template: str) -> str:
    return next(str(t["revision"]) for t in system.json("template", "list") if t["name"] == template)


@pytest.fixture(scope="module")
def changed(system: LiveSystem, template: str) -> str:
    """The revision before the change; the template has been started, changed and shut down."""
    before = revision(system, template)
    system.run(template, "sh", "-c", "echo changed > /etc/marker", user="root", timeout_s=FORK_POINT_LIMIT_S)
    system.cloison("shutdown", template)
    return before


def test_a_change_becomes_a_revision_and_running_qubes_are_outdated(
    system: LiveSystem, template: str, changed: str
) -> None:
    assert revision(system, template) != changed
    assert row(system, USER)["outdated"] is True
    assert marker(system) == b"", "a running qube keeps the root it started with"


def test_after_a_restart_the_change_is_there_by_fork(system: LiveSystem, template: str, changed: str) -> None:
    wait_for_fork_point(system, template)
    system.cloison("restart", USER)
    assert row(system, USER)["outdated"] is False
    assert marker(system) == b"changed"
    assert USER in next(p["users"] for p in system.json("forkpoint", "list") if p["template"] == template)


def test_a_reverted_template_is_as_it_was_and_its_fork_points_follow(
    system: LiveSystem, template: str, changed: str
) -> None:
    system.cloison("template", "revert", "--yes", template, changed)
    assert revision(system, template) == changed
    assert row(system, USER)["outdated"] is True
    wait_for_fork_point(system, template)
    system.cloison("restart", USER)
    assert row(system, USER)["outdated"] is False
    assert marker(system) == b""


def test_a_template_in_use_is_not_removed(system: LiveSystem, template: str) -> None:
    done = system.cloison("template", "remove", "--yes", template, expect=6)
    assert USER in done.stderr.decode()
