"""Making a person's answer a rule: the exact line, and where it has to stand to count. Pure.

In: Ask, Request, PolicySet. Out: lines and places. May import: evaluate, explain, rules, ruleset, store, verdicts.

The line says no more than what was answered: this source, this argument, the target that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloison.policy.errors import PolicyError
from cloison.policy.evaluate import Request, evaluate
from cloison.policy.explain import USER_FILE, user_position
from cloison.policy.ruleset import PolicySet
from cloison.policy.source import PolicySource
from cloison.policy.store import PolicyStore, StoreError
from cloison.policy.system import SystemInfo
from cloison.policy.verdicts import Allow, Ask, Deny

USER_NAME = USER_FILE.removesuffix(".policy")
MAX_LINE = 200
"""What an agent shows whole in three rows of 80 columns: a rule is remembered only if it was seen to its end."""
_TRANSIENT = "DispVM"


class CannotRemember(StoreError):
    """The answer stands, but no rule was written."""


@dataclass(frozen=True)
class Offer:
    """What could be written: by target, and for no. ``why_not`` is said instead if nothing can."""

    file: str
    allow: dict[str, str]
    deny: str
    why_not: str = ""


def rule_line(ask: Ask, request: Request, chosen: str | None) -> str:
    """The rule that gives this answer without asking; ``chosen`` None: no."""
    asked_for = ask.shape.targets.get(request.target, "@default")
    words = [request.service, request.argument or "+", ask.source, asked_for]
    if chosen is None:
        return " ".join([*words, "deny"])
    words.append("allow")
    if chosen != asked_for:
        words.append(f"target={chosen}")
    if ask.user is not None:
        words.append(f"user={ask.user}")
    if ask.notify:
        words.append("notify=yes")
    if not ask.autostart:
        words.append("autostart=no")
    return " ".join(words)


def find_line(policy: PolicySet, ask: Ask, file: str) -> int | None:
    """The line of the user's file above which a new rule goes, None for its end; CannotRemember if neither counts."""
    if ask.rule.file == file:
        return ask.rule.line
    position = next((i for i, rule in enumerate(policy.rules) if rule.place == ask.rule), None)
    if position is None or position < user_position(policy):
        raise CannotRemember(f"{ask.rule} is read before a new line in {file} would be")
    return None


@dataclass(frozen=True)
class Memory:
    """Writes answers into the user's policy file. ``write`` waits for locks and disks: call it in a thread."""

    store: PolicyStore
    policy: PolicySource

    @property
    def file(self) -> str:
        return str(self.store.path_of(USER_NAME))

    def offer(self, ask: Ask, request: Request) -> Offer:
        """The lines that an agent may show; each is written only as it was shown."""
        allow = {target: rule_line(ask, request, target) for target in ask.targets}
        deny = rule_line(ask, request, None)
        too_long = max(map(len, (deny, *allow.values()))) > MAX_LINE
        why_not = (
            f"a rule of more than {MAX_LINE} characters is not read to its end" if too_long else self._why_not(ask)
        )
        return Offer(self.file, allow, deny, why_not)

    def _why_not(self, ask: Ask) -> str:
        source = ask.shape.qubes.get(ask.source)
        if source is None or source.klass == _TRANSIENT:
            return f"{ask.source} is a disposable: its name may be another's tomorrow"
        current = self.policy.current()
        try:
            if isinstance(current, PolicySet):
                find_line(current, ask, self.file)
                return ""
        except CannotRemember as error:
            return error.message
        return "the policy is broken"

    def write(self, system: SystemInfo, ask: Ask, request: Request, chosen: str | None, line: str) -> None:
        """Add the line. Raises StoreError, and nothing was changed, if it would not decide this call as answered."""
        if line != rule_line(ask, request, chosen) or len(line) > MAX_LINE:
            raise CannotRemember("the line is not the one that was shown")
        if why_not := self._why_not(ask):
            raise CannotRemember(why_not)

        def place(policy: PolicySet) -> int | None:
            now = evaluate(policy, system, request)
            return find_line(policy, now if isinstance(now, Ask) else ask, self.file)

        def check(policy: PolicySet) -> None:
            verdict = evaluate(policy, system, request)
            wanted = isinstance(verdict, Deny) if chosen is None else isinstance(verdict, Allow)
            if not wanted or verdict.rule is None or verdict.rule.file != self.file:
                raise CannotRemember(f"the line would not decide this call: {verdict.reason}")

        try:
            self.store.insert_line(USER_NAME, line, place=place, check=check)
        except (PolicyError, OSError) as error:
            raise CannotRemember(f"{self.file} cannot be changed: {error}") from error
