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


class PolicySource:
    """Watches by stat at each call (some tens of microseconds): a change counts from the next call on."""

    def __init__(self, policy: Path, runtime: Path | None = None, *, legacy: Path | None = None) -> None:
        self.policy = policy
        self.runtime = runtime
        self.legacy = legacy
        self._disk: Disk | None = None
        self._settled = False
        self._current: PolicySet | BrokenPolicy = BrokenPolicy(PolicyError("not read yet", file=str(policy)))

    def current(self) -> PolicySet | BrokenPolicy:
        """The policy as the files are now."""
        # Files that had changed just before they were read may change again and look the same: read them until they
        # have rested for a moment.
        if self._disk is None or not self._settled or not self._disk.is_unchanged():
            self._read()
        return self._current

    @property
    def digest(self) -> str:
        """Of the policy that was read last."""
        return self._current.digest

    def evaluate(self, system: SystemInfo, request: Request) -> Verdict:
        return evaluate(self.current(), system, request)

    def judge(self, system: SystemInfo, request: Request) -> Judged:
        """For the record."""
        policy = self.current()
        return Judged(evaluate(policy, system, request), policy.digest)

    def _read(self) -> None:
        disk = Disk()
        try:
            current: PolicySet | BrokenPolicy = load_from(disk, self.policy, self.runtime, legacy=self.legacy)
        except PolicyError as error:
            current = BrokenPolicy(error)
        self._disk = disk
        self._settled = disk.is_settled()
        unchanged = isinstance(current, PolicySet) and isinstance(self._current, PolicySet)
        if not (unchanged and current.digest == self._current.digest):  # keep what was worked out for the same policy
            self._current = current
