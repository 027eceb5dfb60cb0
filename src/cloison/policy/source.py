"""The policy as the daemon sees it: always the files of this moment, read again only when one changed.

In: the directories. Out: PolicySet or BrokenPolicy, verdicts; never an exception. May import: loader, files, ruleset,
evaluate, errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cloison.policy.errors import PolicyError
from cloison.policy.evaluate import Request, evaluate
from cloison.policy.files import Disk
from cloison.policy.loader import load_from
from cloison.policy.ruleset import BrokenPolicy, PolicySet
from cloison.policy.system import SystemInfo
from cloison.policy.verdicts import Verdict


class Judged(NamedTuple):
    """A verdict, and the hash of the set that gave it: the files may be others by the time it is written down."""

    verdict: Verdict
    policy: str


class _Loaded(NamedTuple):
    """Replaced as one: threads ask too, and a new look at the files with an old policy would be a stale verdict."""

    policy: PolicySet | BrokenPolicy
    disk: Disk | None
    is_settled: bool


class PolicySource:
    """Watches by stat at each call (some tens of microseconds): a change counts from the next call on."""

    def __init__(self, policy: Path, runtime: Path | None = None, *, legacy: Path | None = None) -> None:
        self.policy = policy
        self.runtime = runtime
        self.legacy = legacy
        self._loaded = _Loaded(BrokenPolicy(PolicyError("not read yet", file=str(policy))), None, is_settled=False)

    def current(self) -> PolicySet | BrokenPolicy:
        """The policy as the files are now."""
        # Files that had changed just before they were read may change again and look the same: read them until they
        # have rested for a moment.
        loaded = self._loaded
        if loaded.disk is None or not loaded.is_settled or not loaded.disk.is_unchanged():
            loaded = self._loaded = self._read()
        return loaded.policy

    @property
    def digest(self) -> str:
        """Of the policy that was read last."""
        return self._loaded.policy.digest

    def evaluate(self, system: SystemInfo, request: Request) -> Verdict:
        return evaluate(self.current(), system, request)

    def judge(self, system: SystemInfo, request: Request) -> Judged:
        """For the record."""
        policy = self.current()
        return Judged(evaluate(policy, system, request), policy.digest)

    def _read(self) -> _Loaded:
        disk = Disk()
        try:
            current: PolicySet | BrokenPolicy = load_from(disk, self.policy, self.runtime, legacy=self.legacy)
        except PolicyError as error:
            current = BrokenPolicy(error)
        is_settled = disk.is_settled()
        before = self._loaded.policy
        if isinstance(current, PolicySet) and isinstance(before, PolicySet) and current.digest == before.digest:
            current = before  # keep what was worked out for the same policy
        return _Loaded(current, disk, is_settled)
