"""The evaluator as one would write it with the language reference at one's elbow and no thought of speed.

Works on the raw JSON of the system and on the text of rules; shares nothing with the fast one. For differential tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DOM0_WORDS = ("dom0", "@adminvm", "uuid:00000000-0000-0000-0000-000000000000")


@dataclass
class SlowRule:
    service: str
    argument: str
    source: str
    target: str
    action: str
    parameters: dict[str, str] = field(default_factory=dict)
    line: int = 0


def parse(text: str) -> list[SlowRule]:
    rules = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            service, argument, source, target, action, *rest = line.split()
            rules.append(
                SlowRule(service, argument, source, target, action, dict(w.split("=", 1) for w in rest), number)
            )
    return rules


@dataclass
class Slow:
    domains: dict[str, dict[str, Any]]
    rules: list[SlowRule]

    def name_of(self, word: str) -> str | None:
        """The existing qube that a word names."""
        if word in DOM0_WORDS:
            return "dom0"
        if word in self.domains:
            return word
        for name, facts in self.domains.items():
            if word == f"uuid:{facts['uuid']}":
                return name
        return None

    def default_of(self, source: str) -> str | None:
        return self.domains.get(source, {}).get("default_dispvm")

    def is_template(self, word: str) -> bool:
        name = self.name_of(word)
        return name is not None and bool(self.domains[name]["template_for_dispvms"])

    def normal(self, target: str) -> str | None:
        """A requested target in normal form; None if it is refused outright."""
        if target in ("", "@default"):
            return "@default"
        if target == "@dispvm":
            return target
        if target.startswith("@dispvm:"):
            word = target[len("@dispvm:") :]
            return f"@dispvm:{self.name_of(word)}" if self.is_template(word) else None
        if (target.startswith("@") and target != "@adminvm") or target == "*":
            return None
        return self.name_of(target) or "@default"

    def has(self, name: str, token: str) -> bool:
        if name not in self.domains:
            return False
        if token.startswith("@tag:"):
            return token[len("@tag:") :] in self.domains[name]["tags"]
        return bool(self.domains[name]["type"] == token[len("@type:") :])

    def source_matches(self, token: str, source: str) -> bool:
        if token == "*":
            return True
        if token == "@anyvm":
            return source != "dom0"
        if token.startswith(("@tag:", "@type:")):
            return self.has(source, token)
        if token.startswith("@dispvm"):
            return False
        return (self.name_of(token) or token) == source

    def target_matches(self, token: str, source: str, target: str) -> bool:
        if token == "*":
            return True
        if token == "@anyvm":
            return target != "dom0"
        if token in ("@default", "@dispvm"):
            return target == token
        if token.startswith(("@tag:", "@type:")):
            return self.has(target, token)
        if token.startswith("@dispvm:"):
            if target == "@dispvm":
                default = self.default_of(source)
                if default is None:
                    return False
                template = default
            elif target.startswith("@dispvm:"):
                template = target[len("@dispvm:") :]
            else:
                return False
            wanted = token[len("@dispvm:") :]
            if wanted.startswith("@tag:"):
                return self.has(template, wanted) and self.is_template(template)
            return (self.name_of(wanted) or wanted) == template
        return self.name_of(token) == target

    def answer(self, source: str, target: str, service: str, argument: str) -> dict[str, Any]:
        source = self.name_of(source) or source
        wanted = self.normal(target)
        if wanted is None:
            return {"verdict": "deny"}
        for rule in self.rules:
            if not self.is_about(rule, service, argument):
                continue
            if self.source_matches(rule.source, source) and self.target_matches(rule.target, source, wanted):
                return self.carry_out(rule, source, wanted, service, argument)
        return {"verdict": "deny", "line": None, "notify": True}

    def is_about(self, rule: SlowRule, service: str, argument: str) -> bool:
        return rule.service in ("*", service) and rule.argument in ("*", argument)

    def carry_out(self, rule: SlowRule, source: str, target: str, service: str, argument: str) -> dict[str, Any]:
        autostart = rule.parameters.get("autostart", "yes") == "yes"
        result: dict[str, Any] = {
            "line": rule.line,
            "user": rule.parameters.get("user") or None,
            "autostart": autostart,
        }
        if rule.action == "deny":
            return {"verdict": "deny", "line": rule.line, "notify": rule.parameters.get("notify", "yes") == "yes"}
        notify = rule.parameters.get("notify", "no") == "yes"
        if rule.action == "allow":
            return self.allow(rule, source, target, {**result, "notify": notify})
        targets = self.choices(rule, source, service, argument)
        if not autostart:
            targets = {t for t in targets if self.runs(t)}
        if not targets:
            return {"verdict": "deny", "line": rule.line, "notify": True}
        preferred = rule.parameters.get("default_target")
        if preferred == "@dispvm":
            preferred = f"@dispvm:{self.default_of(source)}"
        elif preferred in DOM0_WORDS:
            preferred = "dom0"
        chosen = preferred if preferred in targets else None
        return {**result, "verdict": "ask", "notify": notify, "targets": sorted(targets), "default_target": chosen}

    def runs(self, word: str) -> bool:
        name = self.name_of(word)
        return name == "dom0" or (name is not None and self.domains[name]["power_state"] == "Running")

    def allow(self, rule: SlowRule, source: str, target: str, result: dict[str, Any]) -> dict[str, Any]:
        denied = {"verdict": "deny", "line": rule.line, "notify": True}
        if "target" in rule.parameters:
            redirected = self.normal(rule.parameters["target"])
            if redirected is None:
                return denied
            target = redirected
        if target == "@default":
            return denied
        if target == "@dispvm":
            default = self.default_of(source)
            if default is None or default not in self.domains:
                return denied
            target = f"@dispvm:{default}"
        if not result["autostart"] and not self.runs(target):
            return {**denied, "notify": result["notify"]}
        if target == source:
            return denied
        return {**result, "verdict": "allow", "target": target}

    def choices(self, rule: SlowRule, source: str, service: str, argument: str) -> set[str]:
        default = self.default_of(source)
        usable_default = f"@dispvm:{default}" if default is not None and default in self.domains else None
        if "target" in rule.parameters:
            word = rule.parameters["target"]
            if word in DOM0_WORDS:
                return {"dom0"}
            if word == "@dispvm":
                return {usable_default} if usable_default else set()
            return {word} if self.normal(word) not in (None, "@default") else set()
        chosen: set[str] = set()
        for other in reversed(self.rules):
            if not self.is_about(other, service, argument) or not self.source_matches(other.source, source):
                continue
            expanded = self.expand(other.parameters.get("target", other.target))
            chosen = chosen - expanded if other.action == "deny" else chosen | expanded
        if "@dispvm" in chosen:
            chosen.discard("@dispvm")
            if usable_default:
                chosen.add(usable_default)
        chosen.discard(source)
        return {t for t in chosen if not self.domains.get(t.removeprefix("@dispvm:"), {}).get("internal")}

    def expand(self, token: str) -> set[str]:
        everything = {*self.domains, "dom0", "@dispvm", *(f"@dispvm:{n}" for n in self.domains if self.is_template(n))}
        if token == "*":
            return everything
        if token == "@anyvm":
            return everything - {"dom0"}
        if token == "@default":
            return set()
        if token == "@dispvm":
            return {"@dispvm"}
        if token.startswith(("@tag:", "@type:")):
            return {name for name in self.domains if self.has(name, token)}
        if token.startswith("@dispvm:@tag:"):
            tag = token[len("@dispvm:") :]
            return {f"@dispvm:{name}" for name in self.domains if self.is_template(name) and self.has(name, tag)}
        if token.startswith("@dispvm:"):
            word = token[len("@dispvm:") :]
            return {f"@dispvm:{self.name_of(word)}"} if self.is_template(word) else set()
        name = self.name_of(token)
        return {name} if name else set()
