"""Is this user's own Cloison system in order?

In: a layout. Out: findings. May import: layout, policy's loader, whether the daemon listens.
"""

from __future__ import annotations

import os
from pathlib import Path

from cloison.client.spawn import is_listening
from cloison.doctor.result import Finding, Ground, Status
from cloison.policy import PolicyError, load_policy
from cloison.policy.limits import BUILT_IN, LimitSource

MAX_SOCKET_PATH = 107
"""Linux's limit for the path of a unix socket, in bytes."""


def find_directories(ground: Ground) -> Finding:
    """They belong to this user alone, and sockets in them have paths short enough for the kernel."""
    layout = ground.layout
    longest = len(os.fsencode(layout.qube_runtime("x" * 36) / "console.sock"))
    if longest > MAX_SOCKET_PATH:
        return Finding(
            Status.FAILED,
            f"sockets under {layout.runtime} would have paths of {longest} bytes, {MAX_SOCKET_PATH} are allowed",
            "choose a shorter CLOISON_ROOT or XDG_RUNTIME_DIR",
        )
    for directory in (layout.data, layout.runtime, layout.config, layout.cache):
        if problem := _problem_with(directory):
            return Finding(
                Status.FAILED, problem, "mend its owner and mode, or set CLOISON_ROOT to a directory of your own"
            )
    return Finding(Status.OK, f"data {layout.data}, sockets {layout.runtime}, settings {layout.config}")


def _problem_with(directory: Path) -> str:
    try:
        found = directory.lstat()
    except FileNotFoundError:
        parent = next(parent for parent in directory.parents if parent.exists())
        return "" if os.access(parent, os.W_OK) else f"{directory} cannot be made: {parent} is not writable"
    except OSError as error:
        return f"{directory} cannot be read: {error.strerror}"
    return "" if found.st_uid == os.getuid() else f"{directory} belongs to another user"


def find_daemon(ground: Ground) -> Finding:
    if is_listening(ground.layout.admin_socket):
        return Finding(Status.OK, f"runs, and listens on {ground.layout.admin_socket}")
    return Finding(Status.OK, "does not run; the first command starts it")


def find_policy(ground: Ground) -> Finding:
    layout = ground.layout
    if not layout.policy.is_dir():
        return Finding(Status.OK, "none yet; the daemon's first start writes the default rules")
    runtime = layout.runtime_policy if layout.runtime_policy.is_dir() else None
    try:
        rules = load_policy(layout.policy, runtime, legacy=layout.legacy_policy).rules
    except PolicyError as error:
        return Finding(
            Status.FAILED, f"every call is denied, the policy is broken: {error.message}", "mend the line named here"
        )
    return Finding(Status.OK, f"{len(rules)} rules in {layout.policy}")


def find_limits(ground: Ground) -> Finding:
    try:
        rules = LimitSource(ground.layout.limits).current().rules
    except PolicyError as error:
        return Finding(
            Status.FAILED, f"every call is denied, the limits are broken: {error.message}", "mend the line named here"
        )
    own = len(rules) - len(BUILT_IN)
    return Finding(Status.OK, f"{own} limits of calls in {ground.layout.limits}" if own else "the built-in ones")
