"""What an evaluation answers: Allow, Ask or Deny, each with its reason and the rule it came from.

In: nothing. Out: frozen values. May import: rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cloison.policy.rules import Rule, RulePlace

if TYPE_CHECKING:
    from cloison.policy.system import Shape


class Cause(Enum):
    """Why a call is refused."""

    BROKEN_POLICY = "broken-policy"
    BAD_REQUEST = "bad-request"
    NO_RULE = "no-rule"
    RULE = "rule"
    NO_TARGET = "no-target"
    LOOPBACK = "loopback"
    NOT_RUNNING = "not-running"
    BAD_REMOTE = "bad-remote"
    USER = "user"


class Relay(NamedTuple):
    """How a call to a RemoteVM really goes: to ``qube``, which carries it on under ``transport_rpc``."""

    qube: str
    transport_rpc: str
    remote_name: str

    def service_for(self, service: str, argument: str) -> str:
        """The service (with its argument) to call on the relay; ``argument`` starts with "+"."""
        return f"{self.transport_rpc}+{self.remote_name}+{service}{argument}"


@dataclass(frozen=True, slots=True)
class Allow:
    """``target``: "dom0", a qube's name or "@dispvm:NAME". ``user`` None: the target's default user."""

    target: str
    user: str | None
    autostart: bool
    notify: bool
    reason: str
    rule: RulePlace
    relay: Relay | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Only one of ``targets`` may be chosen, see ``resolve_ask``. ``warning``: something in the rule has no effect."""

    targets: tuple[str, ...]
    default_target: str | None
    user: str | None
    autostart: bool
    notify: bool
    reason: str
    rule: RulePlace
    warning: str
    source: str
    origin: Rule = field(repr=False)
    shape: Shape = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Deny:
    """``notify``: whether the user should be told. ``rule`` is None where no rule was reached."""

    reason: str
    notify: bool
    rule: RulePlace | None
    cause: Cause


Verdict = Allow | Ask | Deny
