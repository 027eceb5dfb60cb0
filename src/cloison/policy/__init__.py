"""Who may call what on whom: text to rules to verdict.

In: policy files (Qubes's language, unmodified), the picture of the system, one request. Out: Allow, Ask or Deny, each
with its reason and the file and line of its rule. May import: cloison.errors, cloison.layout; the standard library.

``tokens``, ``rules``, ``verdicts``, ``system``: values · ``grammar``: text to rules · ``files``: the only file that
touches the disk · ``loader``: files to ``ruleset`` · ``evaluate``: the verdict · ``source``: the policy of this
moment · ``explain``, ``lint``, ``graph``, ``output``: for people and scripts · ``store``: changing the files safely ·
``defaults``: the policy a new system begins with.
"""

from cloison.policy.errors import PolicyError, SystemInfoError
from cloison.policy.evaluate import Request, evaluate, refuse_ask, requested_target, resolve_ask
from cloison.policy.loader import load_policy
from cloison.policy.rules import Rule, RulePlace
from cloison.policy.ruleset import BrokenPolicy, PolicySet
from cloison.policy.source import Judged, PolicySource
from cloison.policy.store import install_defaults
from cloison.policy.system import SystemInfo
from cloison.policy.verdicts import Allow, Ask, Cause, Deny, Relay, Verdict

__all__ = [
    "Allow",
    "Ask",
    "BrokenPolicy",
    "Cause",
    "Deny",
    "Judged",
    "PolicyError",
    "PolicySet",
    "PolicySource",
    "Relay",
    "Request",
    "Rule",
    "RulePlace",
    "SystemInfo",
    "SystemInfoError",
    "Verdict",
    "evaluate",
    "install_defaults",
    "load_policy",
    "refuse_ask",
    "requested_target",
    "resolve_ask",
]
