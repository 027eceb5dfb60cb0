"""Every call the command line makes, as a value: what to send and how to read the answer.

In: plain arguments. Out: ``Call`` objects for ``Client.do`` and ``AsyncClient.do``. May import: client.failures.
Formats: Admin API notes, section 4. Answers of ``cloison.*`` methods are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cloison.client.failures import OutcomeUnknown

T_co = TypeVar("T_co", covariant=True)
Json = dict[str, Any]


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One request. ``parse`` turns the OK data into the result."""

    method: str
    dest: str
    arg: str = ""
    payload: bytes = b""
    parse: Callable[[bytes], T_co] = lambda data: None  # type: ignore[assignment, return-value]

    def read(self, data: bytes) -> T_co:
        """The result in the OK data; OutcomeUnknown if it makes no sense (another version of the daemon)."""
        try:
            return self.parse(data)
        except (ValueError, LookupError) as error:
            hint = "is the daemon of another version? `cloison daemon restart`"
            raise OutcomeUnknown(f"{self.what}: the answer cannot be read ({error})", hint=hint) from None

    @property
    def what(self) -> str:
        """For messages: the method and what it is about."""
        return f"{self.method}{'+' + self.arg if self.arg else ''} {self.dest}"


@dataclass(frozen=True)
class Property:
    """A property's value as text (None: it has none) and whether it is the default."""

    name: str
    kind: str
    value: str | None
    is_default: bool


@dataclass(frozen=True)
class QubeState:
    """One line of ``admin.vm.List``."""

    name: str
    klass: str
    state: str
    uuid: str


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _lines(data: bytes) -> list[str]:
    return _text(data).splitlines()


def _object(data: bytes) -> Json:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _rows(data: bytes) -> list[Json]:
    found = json.loads(data)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("no list of JSON objects")
    return found


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _pairs(data: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in _lines(data) if "=" in line)


def _property(name: str, text: str) -> Property:
    default, kind, *value = text.split(" ", 2)
    shown = value[0] if value else ""
    kind = kind.removeprefix("type=")
    missing = not shown and kind != "str"
    return Property(name, kind, None if missing else shown, default == "default=True")


def _all_properties(data: bytes) -> dict[str, Property]:
    found = {}
    for line in _lines(data):
        name, text = line.split(" ", 1)
        unescaped = text.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
        found[name] = _property(name, unescaped)
    return found


def _states(data: bytes) -> list[QubeState]:
    found = []
    for line in _lines(data):
        name, *rest = line.split(" ")
        fields = dict(item.split("=", 1) for item in rest if "=" in item)
        found.append(QubeState(name, fields.get("class", ""), fields.get("state", ""), fields.get("uuid", "")))
    return found


# --- qubes ---


def list_states() -> Call[list[QubeState]]:
    return Call("admin.vm.List", "dom0", parse=_states)


def state_of(qube: str) -> Call[QubeState]:
    return Call("admin.vm.List", qube, parse=lambda data: _states(data)[0])


def list_qubes(properties: Sequence[str] = ()) -> Call[list[Json]]:
    """Everything a listing shows, in one call; ``properties`` beside the usual ones."""
    return Call("cloison.qube.List", "dom0", payload=_dump({"properties": list(properties)}), parse=_rows)


def list_classes() -> Call[list[str]]:
    return Call("admin.vmclass.List", "dom0", parse=_lines)


def create(klass: str, name: str, label: str, *, template: str = "", pool: str = "",
           pools: Mapping[str, str] | None = None) -> Call[None]:  # fmt: skip
    """``pool``: where all volumes live; ``pools``: where single ones do, by the volume's name."""
    payload = f"name={name} label={label}"
    chosen = [f" pool={pool}"] if pool else [f" pool:{volume}={place}" for volume, place in (pools or {}).items()]
    if chosen:
        return Call(f"admin.vm.CreateInPool.{klass}", "dom0", template, f"{payload}{''.join(chosen)}".encode())
    return Call(f"admin.vm.Create.{klass}", "dom0", template, payload.encode())


def create_disposable(template: str = "dom0") -> Call[str]:
    return Call("admin.vm.CreateDisposable", template, parse=_text)


def clone(source: str, name: str, *, klass: str | None = None, label: str | None = None,
          pool: str | None = None) -> Call[None]:  # fmt: skip
    asked = {"name": name, "klass": klass, "label": label, "pool": pool}
    return Call("cloison.qube.Clone", source, payload=_dump({k: v for k, v in asked.items() if v is not None}))


def rename(qube: str, new_name: str) -> Call[None]:
    return Call("cloison.qube.Rename", qube, payload=_dump({"name": new_name}))


def console_log(qube: str) -> Call[Json]:
    return Call("cloison.qube.ConsoleLog", qube, parse=_object)


def remove(qube: str) -> Call[None]:
    return Call("admin.vm.Remove", qube)


def power(verb: str, qube: str) -> Call[None]:
    """``verb``: Start, Kill, Pause, Unpause, Suspend, Resume."""
    return Call(f"admin.vm.{verb}", qube)


def host_sleep(when: str) -> Call[None]:
    """``when``: pre, post."""
    return Call(f"internal.Suspend{when.title()}", "dom0")


def shutdown(qube: str, *, force: bool = False, wait: bool = False) -> Call[None]:
    flags = [name for name, wanted in (("force", force), ("wait", wait)) if wanted]
    return Call("admin.vm.Shutdown", qube, "+".join(flags))


def current_state(qube: str) -> Call[dict[str, str]]:
    return Call(
        "admin.vm.CurrentState", qube, parse=lambda data: dict(i.split("=", 1) for i in _text(data).split(" ") if i)
    )


def console(qube: str) -> Call[str]:
    """Path of the serial console: a unix socket or a terminal device."""
    return Call("admin.vm.Console", qube, parse=lambda data: _text(data).strip())


# --- properties, features, tags, notes (of a qube; properties also of the system: dest None) ---


def _property_method(verb: str, dest: str | None) -> tuple[str, str]:
    return (f"admin.property.{verb}", "dom0") if dest is None else (f"admin.vm.property.{verb}", dest)


def property_list(dest: str | None) -> Call[list[str]]:
    return Call(*_property_method("List", dest), parse=_lines)


def property_get(dest: str | None, name: str) -> Call[Property]:
    return Call(*_property_method("Get", dest), name, parse=lambda data: _property(name, _text(data)))


def property_get_all(dest: str | None) -> Call[dict[str, Property]]:
    return Call(*_property_method("GetAll", dest), parse=_all_properties)


def property_get_default(dest: str | None, name: str) -> Call[str | None]:
    def parse(data: bytes) -> str | None:
        return _text(data).partition(" ")[2] if data else None

    return Call(*_property_method("GetDefault", dest), name, parse=parse)


def property_help(dest: str | None, name: str) -> Call[str]:
    return Call(*_property_method("Help", dest), name, parse=_text)


def property_set(dest: str | None, name: str, value: str) -> Call[None]:
    return Call(*_property_method("Set", dest), name, value.encode())


def property_reset(dest: str | None, name: str) -> Call[None]:
    return Call(*_property_method("Reset", dest), name)


def feature_list(qube: str) -> Call[list[str]]:
    return Call("admin.vm.feature.List", qube, parse=_lines)


def feature_get(qube: str, name: str, *, through_template: bool = False) -> Call[str]:
    verb = "CheckWithTemplate" if through_template else "Get"
    return Call(f"admin.vm.feature.{verb}", qube, name, parse=_text)


def feature_set(qube: str, name: str, value: str) -> Call[None]:
    return Call("admin.vm.feature.Set", qube, name, value.encode())


def feature_remove(qube: str, name: str) -> Call[None]:
    return Call("admin.vm.feature.Remove", qube, name)


def tag_list(qube: str) -> Call[list[str]]:
    return Call("admin.vm.tag.List", qube, parse=_lines)


def tag_get(qube: str, tag: str) -> Call[bool]:
    return Call("admin.vm.tag.Get", qube, tag, parse=lambda data: data.strip() == b"1")


def tag_set(qube: str, tag: str) -> Call[None]:
    return Call("admin.vm.tag.Set", qube, tag)


def tag_remove(qube: str, tag: str) -> Call[None]:
    return Call("admin.vm.tag.Remove", qube, tag)


def notes_get(qube: str) -> Call[str]:
    return Call("admin.vm.notes.Get", qube, parse=_text)


def notes_set(qube: str, text: str) -> Call[None]:
    return Call("admin.vm.notes.Set", qube, payload=text.encode())


# --- labels, pools, volumes ---


def firewall_get(qube: str) -> Call[list[str]]:
    """Rules in the format of the Admin API, in order."""
    return Call("admin.vm.firewall.Get", qube, parse=_lines)


def firewall_set(qube: str, rules: Sequence[str]) -> Call[None]:
    return Call("admin.vm.firewall.Set", qube, payload="".join(f"{rule}\n" for rule in rules).encode())


def firewall_reload(qube: str) -> Call[None]:
    return Call("admin.vm.firewall.Reload", qube)


def firewall_counters(qube: str) -> Call[Json]:
    return Call("cloison.firewall.Counters", qube, parse=_object)


def firewall_table(qube: str, rules: Sequence[str]) -> Call[str]:
    """What the netvm would load for these rules."""
    return Call("cloison.firewall.Table", qube, payload="".join(f"{rule}\n" for rule in rules).encode(), parse=_text)


def label_list() -> Call[list[str]]:
    return Call("admin.label.List", "dom0", parse=_lines)


def label_colour(label: str) -> Call[str]:
    return Call("admin.label.Get", "dom0", label, parse=_text)


def label_index(label: str) -> Call[int]:
    return Call("admin.label.Index", "dom0", label, parse=int)


def label_create(label: str, colour: str) -> Call[None]:
    return Call("admin.label.Create", "dom0", label, colour.encode())


def label_remove(label: str) -> Call[None]:
    return Call("admin.label.Remove", "dom0", label)


def pool_list() -> Call[list[str]]:
    return Call("admin.pool.List", "dom0", parse=_lines)


def pool_info(pool: str) -> Call[dict[str, str]]:
    return Call("admin.pool.Info", "dom0", pool, parse=_pairs)


def volume_list(qube: str) -> Call[list[str]]:
    return Call("admin.vm.volume.List", qube, parse=_lines)


def volume_info(qube: str, volume: str) -> Call[dict[str, str]]:
    return Call("admin.vm.volume.Info", qube, volume, parse=_pairs)


def volume_revisions(qube: str, volume: str) -> Call[list[str]]:
    return Call("admin.vm.volume.ListSnapshots", qube, volume, parse=_lines)


def volume_revert(qube: str, volume: str, revision: str) -> Call[None]:
    return Call("admin.vm.volume.Revert", qube, volume, revision.encode())


def volume_resize(qube: str, volume: str, size_bytes: int) -> Call[None]:
    return Call("admin.vm.volume.Resize", qube, volume, str(size_bytes).encode())


def volume_clear(qube: str, volume: str) -> Call[None]:
    return Call("admin.vm.volume.Clear", qube, volume)


def volume_clone_from(qube: str, volume: str) -> Call[str]:
    """A token for one ``volume_clone_to``."""
    return Call("admin.vm.volume.CloneFrom", qube, volume, parse=_text)


def volume_clone_to(qube: str, volume: str, token: str) -> Call[None]:
    return Call("admin.vm.volume.CloneTo", qube, volume, token.encode())


def volume_set(qube: str, volume: str, option: str, value: str) -> Call[None]:
    return Call(f"admin.vm.volume.Set.{option}", qube, volume, value.encode())


# --- templates, fork points, imports, the daemon (Cloison's own methods) ---


def template_build(name: str, options: Json) -> Call[Json]:
    """``options``: distribution, suite, include, size_bytes, force; all optional."""
    return Call("cloison.template.Build", "dom0", name, _dump(options), parse=_object)


def template_commit(template: str) -> Call[Json]:
    return Call("cloison.template.Commit", template, parse=_object)


def template_list() -> Call[list[Json]]:
    return Call("cloison.template.List", "dom0", parse=_rows)


def standalone_import(name: str, options: Json) -> Call[Json]:
    """``options``: image (absolute path), format, label, memory_mib, size_bytes."""
    return Call("cloison.standalone.Import", "dom0", name, _dump(options), parse=_object)


def forkpoint_list() -> Call[list[Json]]:
    return Call("cloison.forkpoint.List", "dom0", parse=_rows)


def trial_hold(qube: str) -> Call[Json]:
    """Answers when the trial is settled or over; an event says when it has begun. Its connection is what holds it."""
    return Call("cloison.trial.Hold", qube, parse=_object)


def trial_settle(qube: str) -> Call[Json]:
    return Call("cloison.trial.Settle", qube, parse=_object)


def forkpoint_make(qube: str) -> Call[Json]:
    return Call("cloison.forkpoint.Make", qube, parse=_object)


def forkpoint_drop(**which: str) -> Call[Json]:
    """``key=`` or ``template=``; nothing: all."""
    return Call("cloison.forkpoint.Drop", "dom0", payload=_dump(which), parse=_object)


def policy_changed(what: str) -> Call[Json]:
    """For the record: which file was replaced or removed."""
    return Call("cloison.policy.Changed", "dom0", payload=what.encode(), parse=_object)


def audit_erase(qube: str) -> Call[Json]:
    return Call("cloison.audit.Erase", "dom0", qube, parse=_object)


def daemon_status() -> Call[Json]:
    return Call("cloison.daemon.Status", "dom0", parse=_object)


def daemon_stop(*, kill_qubes: bool = False) -> Call[Json]:
    return Call("cloison.daemon.Stop", "dom0", payload=_dump({"kill_qubes": kill_qubes}), parse=_object)


# --- the door: running calls, questions ---


def call_list() -> Call[list[Json]]:
    return Call("cloison.call.List", "dom0", parse=_rows)


def call_follow() -> Call[bytes]:
    """A stream: events whose field ``json`` is the call."""
    return Call("cloison.call.Follow", "dom0", parse=bytes)


def call_kill(number: int) -> Call[Json]:
    return Call("cloison.call.Kill", "dom0", payload=_dump({"id": number}), parse=_object)


def policy_apply(*, dry_run: bool) -> Call[list[Json]]:
    """The calls that end (or would)."""
    return Call("cloison.policy.Apply", "dom0", payload=_dump({"dry_run": dry_run}), parse=_rows)


def ask_listen() -> Call[bytes]:
    """A stream: events ``prompt``, ``gone``, ``notice`` and ``ready``, whose field ``json`` tells more."""
    return Call("cloison.ask.Listen", "dom0", parse=bytes)


def ask_answer(prompt_id: str, chosen: str | None, *, by: str, line: str | None = None) -> Call[Json]:
    wish = {"id": prompt_id, "allow": chosen, "by": by, "remember": line}
    wish = {key: value for key, value in wish.items() if value is not None}
    return Call("cloison.ask.Answer", "dom0", payload=_dump(wish), parse=_object)
