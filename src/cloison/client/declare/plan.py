"""What has to be done so that a system becomes what a document says.

In: two documents, the present one and the wanted one. Out: a ``Plan``: steps in an order in which each finds what it
needs, and the problems that no step can solve. Pure. May import: client.calls, errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from cloison.client import calls, devicecalls
from cloison.client.calls import Call
from cloison.client.declare.assignments import parse_assignment
from cloison.client.declare.document import Document, QubeWish, Texts, is_announced
from cloison.client.declare.text import size_text

FIRST = ("provides_network", "template_for_dispvms")
"""Properties that make a qube fit to be named by others: switched on before anything else, switched off last."""
SHOWN = 60
USUAL_POOL = "default"
POOL_SETTINGS = {"revisions_to_keep": "1", "ephemeral_volatile": "False"}
"""What can be changed of a pool, and what a new one has."""


class Effect(Enum):
    """The value is the sign in front of the step."""

    ADD = "+"
    CHANGE = "~"
    DESTROY = "-"


@dataclass(frozen=True)
class PolicyChange:
    """A policy file's new content (None: it goes)."""

    name: str
    content: str | None


@dataclass(frozen=True)
class Step:
    effect: Effect
    about: str
    """``qube work``, ``system``, ``policy 30-user``."""
    text: str
    """For people: ``label: red -> blue``."""
    act: Call[Any] | PolicyChange
    is_long: bool = False


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...]
    problems: tuple[str, ...]
    """What the document wants and no step can bring about. Nothing is applied while there are any."""
    unnamed: tuple[str, ...]
    """Qubes that are there and that the document does not name."""

    @property
    def destroys(self) -> bool:
        return any(step.effect is Effect.DESTROY for step in self.steps)


def plan_changes(present: Document, wanted: Document, *, prune: bool = False) -> Plan:
    """``prune``: qubes that ``wanted`` does not name are removed."""
    problems: list[str] = []
    new = [wish for wish in wanted.qubes.values() if wish.name not in present.qubes]
    pairs = [(present.qubes[name], wish) for name, wish in wanted.qubes.items() if name in present.qubes]
    pairs += [(_as_created(wish), wish) for wish in new]
    unnamed = [qube for qube in present.qubes.values() if qube.name not in wanted.qubes and qube.klass != "AdminVM"]
    steps = [
        *_labels(present.labels, wanted.labels, problems),
        *_pools(present.pools, wanted.pools, problems),
        *_creations(new, present, problems),
        *_each(pairs, _fit_to_be_named),
        *_system(present.system or {}, wanted.system),
        *_each(pairs, lambda old, wish: _settings(old, wish, problems)),
        *_each(pairs, _unfit),
        *_policy(present.policy or {}, wanted.policy),
        *(_removals(unnamed) if prune else ()),
        *(_unnamed_pools(present, wanted) if prune else ()),
    ]
    return Plan(tuple(steps), tuple(problems), () if prune else tuple(qube.name for qube in unnamed))


def _each(pairs: Iterable[tuple[QubeWish, QubeWish]], steps_of: Any) -> Iterator[Step]:
    for old, wish in pairs:
        yield from steps_of(old, wish)


def _as_created(wish: QubeWish) -> QubeWish:
    """What a qube is right after its creation, as far as documents tell."""
    made = QubeWish(wish.name, wish.klass, wish.label, wish.template, features={}, tags=frozenset(), devices=(),
                    firewall=("action=accept",), volumes={})  # fmt: skip
    return replace(made, pool=wish.pool)


def _labels(present: Texts, wanted: Texts, problems: list[str]) -> Iterator[Step]:
    for label, colour in wanted.items():
        if label not in present:
            act = calls.label_create(label, colour)
            yield Step(Effect.ADD, f"label {label}", f"colour {colour}", act)
        elif present[label].lower() != colour.lower():
            problems.append(f"label {label} has the colour {present[label]}: a label's colour is for ever")


def _pools(present: Mapping[str, Texts], wanted: Mapping[str, Texts], problems: list[str]) -> Iterator[Step]:
    for name, wish in wanted.items():
        old, about = present.get(name), f"pool {name}"
        fixed = {key: value for key, value in wish.items() if key not in (*POOL_SETTINGS, "driver")}
        if old is None:
            act = devicecalls.pool_add(name, wish["driver"], fixed)
            yield Step(Effect.ADD, about, f"add ({wish['driver']})", act)
        elif wrong := [key for key, value in {**fixed, "driver": wish["driver"]}.items() if old.get(key) != value]:
            problems.append(f"pool {name} has another {', '.join(wrong)}: that cannot be changed")
            continue
        for key in POOL_SETTINGS:
            now = (old or POOL_SETTINGS).get(key)
            if key in wish and not _same(now, wish[key]):
                text = f"{key}: {_shown(now)} -> {_shown(wish[key])}"
                yield Step(Effect.CHANGE, about, text, devicecalls.pool_set(name, key, wish[key]))


def _unnamed_pools(present: Document, wanted: Document) -> Iterator[Step]:
    """Only of a document that speaks of pools. One that is used stays: the step fails and says by whom."""
    if wanted.pools:
        for name in present.pools:
            if name not in wanted.pools and name != USUAL_POOL:
                yield Step(Effect.DESTROY, f"pool {name}", "remove", devicecalls.pool_remove(name))


def _creations(new: Iterable[QubeWish], present: Document, problems: list[str]) -> Iterator[Step]:
    """Templates before what is based on them."""
    there = set(present.qubes)
    waiting = {wish.name: wish for wish in new}
    while waiting:
        ready = [wish for wish in waiting.values() if not wish.template or wish.template in there]
        if not ready:
            for wish in waiting.values():
                problems.append(f"qube {wish.name} cannot be made: there is no template {wish.template}")
            return
        for wish in ready:
            del waiting[wish.name]
            there.add(wish.name)
            yield from _creation(wish, problems)


def _creation(wish: QubeWish, problems: list[str]) -> Iterator[Step]:
    about, on = f"qube {wish.name}", f" on {wish.template}" if wish.template else ""
    text = f"create ({wish.klass}, {wish.label}{on})"
    if wish.klass == "TemplateVM":
        if wish.build is None:
            problems.append(f"qube {wish.name} cannot be made: a template needs a build table (or `cloison template`)")
            return
        options = {**wish.build, "label": wish.label}
        yield Step(Effect.ADD, about, text, calls.template_build(wish.name, options), is_long=True)
        return
    if wish.klass == "StandaloneVM" and wish.template:
        act: Call[Any] = calls.clone(
            wish.template, wish.name, klass=wish.klass, label=wish.label, pool=wish.pool or None
        )
        yield Step(Effect.ADD, about, f"create (StandaloneVM, {wish.label}, a copy of {wish.template})", act, True)
        return
    template = wish.template if wish.klass in ("AppVM", "DispVM") else ""
    act = calls.create(wish.klass, wish.name, wish.label, template=template, pool=wish.pool)
    yield Step(Effect.ADD, about, text, act)
    if wish.properties.get("template_for_dispvms", "").lower() in ("true", "1", "yes", "on"):
        act = calls.property_set(wish.name, "template_for_dispvms", "True")  # disposables may be made of it next
        yield Step(Effect.CHANGE, about, "template_for_dispvms: (default) -> True", act)


def _same(one: str | None, other: str | None) -> bool:
    """The Admin API spells truth with a capital letter; people need not."""
    return one == other or (one or "").lower() == (other or "").lower() in ("true", "false")


def _set(dest: str | None, about: str, name: str, old: str | None, new: str) -> Step:
    text = f"{name}: {_shown(old)} -> {_shown(new)}"
    return Step(Effect.CHANGE, about, text, calls.property_set(dest, name, new))


def _is_on(wish: QubeWish, name: str) -> bool:
    return wish.properties.get(name, "").lower() == "true"


def _fit_to_be_named(old: QubeWish, wish: QubeWish) -> Iterator[Step]:
    for name in FIRST:
        made = name == "template_for_dispvms" and old == _as_created(wish)
        if _is_on(wish, name) and not _is_on(old, name) and not made:
            yield _set(wish.name, f"qube {wish.name}", name, old.properties.get(name), "True")


def _unfit(old: QubeWish, wish: QubeWish) -> Iterator[Step]:
    for name in FIRST:
        if _is_on(old, name) and not _is_on(wish, name):
            yield _reset(wish.name, f"qube {wish.name}", name, old.properties[name])


def _reset(dest: str | None, about: str, name: str, old: str) -> Step:
    text = f"{name}: {_shown(old)} -> (default)"
    return Step(Effect.CHANGE, about, text, calls.property_reset(dest, name))


def _properties(dest: str | None, about: str, old: Texts, new: Texts, *, but: Iterable[str] = ()) -> Iterator[Step]:
    for name, value in new.items():
        if name not in but and (name not in old or not _same(old[name], value)):
            yield _set(dest, about, name, old.get(name), value)
    for name in old:
        if name not in new and name not in but:
            yield _reset(dest, about, name, old[name])


def _system(old: Texts, new: Texts | None) -> Iterator[Step]:
    if new is not None:
        yield from _properties(None, "system", old, new)


def _settings(old: QubeWish, wish: QubeWish, problems: list[str]) -> Iterator[Step]:
    about = f"qube {wish.name}"
    if old.klass != wish.klass:
        problems.append(f"qube {wish.name} is a {old.klass}, not a {wish.klass}: rename or remove it first")
        return
    if wish.pool and old.pool != wish.pool:
        problems.append(f"qube {wish.name} lives in pool {old.pool or 'default'}: volumes do not move")
    if wish.label and old.label != wish.label:
        yield _set(wish.name, about, "label", old.label, wish.label)
    if wish.klass in ("AppVM", "DispVM") and wish.template and old.template != wish.template:
        yield _set(wish.name, about, "template", old.template, wish.template)
    yield from _properties(wish.name, about, old.properties, wish.properties, but=FIRST)
    yield from _volumes(old, wish, problems)
    yield from _features(old, wish)
    yield from _tags(old, wish)
    yield from _devices(old, wish)
    if wish.firewall is not None and wish.firewall != old.firewall:
        text = f"firewall: {len(old.firewall or ())} -> {len(wish.firewall)} rules"
        yield Step(Effect.CHANGE, about, text, calls.firewall_set(wish.name, wish.firewall))
    if wish.notes is not None and wish.notes != (old.notes or ""):
        yield Step(Effect.CHANGE, about, "notes", calls.notes_set(wish.name, wish.notes))


def _volumes(old: QubeWish, wish: QubeWish, problems: list[str]) -> Iterator[Step]:
    for volume, size in (wish.volumes or {}).items():
        now = (old.volumes or {}).get(volume)
        if now is not None and size < now:
            problems.append(
                f"volume {volume} of {wish.name} has {size_text(now)}: it cannot shrink to {size_text(size)}"
            )
        elif size != now:
            text = f"volume {volume}: {size_text(now) if now else '(default)'} -> {size_text(size)}"
            yield Step(Effect.CHANGE, f"qube {wish.name}", text, calls.volume_resize(wish.name, volume, size))


def _features(old: QubeWish, wish: QubeWish) -> Iterator[Step]:
    if wish.features is None:
        return
    about, before = f"qube {wish.name}", old.features or {}
    for name, value in wish.features.items():
        if before.get(name) != value:
            text = f"feature {name}: {_shown(before.get(name))} -> {_shown(value)}"
            yield Step(Effect.CHANGE, about, text, calls.feature_set(wish.name, name, value))
    for name in before:
        if name not in wish.features and not is_announced(name):
            text = f"feature {name}: {_shown(before[name])} -> (none)"
            yield Step(Effect.CHANGE, about, text, calls.feature_remove(wish.name, name))


def _tags(old: QubeWish, wish: QubeWish) -> Iterator[Step]:
    if wish.tags is None:
        return
    about, before = f"qube {wish.name}", old.tags or frozenset()
    for tag in sorted(wish.tags - before):
        yield Step(Effect.CHANGE, about, f"tag {tag}", calls.tag_set(wish.name, tag))
    for tag in sorted(before - wish.tags):
        yield Step(Effect.CHANGE, about, f"no tag {tag}", calls.tag_remove(wish.name, tag))


def _devices(old: QubeWish, wish: QubeWish) -> Iterator[Step]:
    if wish.devices is None:
        return
    name, about = wish.name, f"qube {wish.name}"
    before = dict(parse_assignment(line, about) for line in old.devices or ())
    after = dict(parse_assignment(line, about) for line in wish.devices)
    for key, was in before.items():
        if key not in after:
            act = devicecalls.device_take("Unassign", name, key[0], was.device)
            yield Step(Effect.CHANGE, about, f"{key[0]} device {was.device.name}: no longer assigned", act)
    for key, (device, mode, options) in after.items():
        now, devclass = before.get(key), key[0]
        text = f"{devclass} device {device.name}: {' '.join([mode, *(f'{k}={v}' for k, v in options.items())])}"
        if now is not None and now.options != options:
            yield Step(Effect.CHANGE, about, f"{devclass} device {device.name}: assigned anew",
                       devicecalls.device_take("Unassign", name, devclass, device))  # fmt: skip
            now = None
        if now is None:
            act = devicecalls.device_give("Assign", name, devclass, device, mode=mode, options=options)
            yield Step(Effect.CHANGE, about, text, act)
        elif now.mode != mode:
            yield Step(Effect.CHANGE, about, text, devicecalls.assignment_mode(name, devclass, device, mode))


def _policy(old: Texts, new: Texts | None) -> Iterator[Step]:
    if new is None:
        return
    for name, content in sorted(new.items(), key=lambda item: not item[0].startswith("include/")):
        if old.get(name) != content:
            effect = Effect.CHANGE if name in old else Effect.ADD
            yield Step(
                effect, f"policy {name}", _lines_changed(old.get(name, ""), content), PolicyChange(name, content)
            )
    for name in sorted(old.keys() - new.keys(), key=lambda name: name.startswith("include/")):
        yield Step(Effect.DESTROY, f"policy {name}", "remove the file", PolicyChange(name, None))


def _lines_changed(old: str, new: str) -> str:
    before, after = old.splitlines(), new.splitlines()
    added = sum(line not in before for line in after)
    gone = sum(line not in after for line in before)
    return f"{added} lines added, {gone} lines gone" if before != after else "ends of lines"


def _removals(unnamed: Iterable[QubeWish]) -> Iterator[Step]:
    """Qubes before the templates they are based on."""
    rest = {qube.name: qube for qube in unnamed}
    while rest:
        needed = {name for qube in rest.values() for name in _names_in(qube) if name != qube.name}
        free = [name for name in rest if name not in needed] or list(rest)
        for name in free:
            qube = rest.pop(name)
            text = f"remove ({qube.klass}, {qube.label}) with all its data"
            yield Step(Effect.DESTROY, f"qube {name}", text, calls.remove(name))


def _names_in(qube: QubeWish) -> Iterable[str]:
    return (qube.template, *qube.properties.values())


def _shown(value: str | None) -> str:
    if value is None:
        return "(default)"
    return (value if len(value) <= SHOWN else f"{value[:SHOWN]}…") or "(empty)"


def describe(plan: Plan) -> list[Mapping[str, str]]:
    """The plan for programs."""
    return [{"effect": step.effect.name.lower(), "about": step.about, "text": step.text} for step in plan.steps]
