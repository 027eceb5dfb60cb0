"""Everything that can be done through the Admin API has a command: each method with the words that reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.admin.dispatch import METHODS

Run = Callable[..., Any]
WORDS = {
    "admin.Events": "events --until connection-established",
    "admin.vm.Stats": "events --stats --until connection-established",
    "admin.vm.List": "shutdown --all",
    "admin.vm.Create.AppVM": "create new --label red",
    "admin.vm.Create.TemplateVM": "create new --label red --class TemplateVM",
    "admin.vm.Create.StandaloneVM": "create new --label red --class StandaloneVM",
    "admin.vm.Create.DispVM": "create new --label red --class DispVM",
    "admin.vm.Create.RemoteVM": "create new --label red --class RemoteVM",
    "admin.vm.CreateInPool.AppVM": "create new --label red --pool main",
    "admin.vm.Remove": "remove --yes vault",
    "admin.vm.Start": "start vault",
    "admin.vm.Shutdown": "shutdown work",
    "admin.vm.Kill": "kill work",
    "admin.vm.Pause": "pause work",
    "admin.vm.Suspend": "pause --suspend work",
    "admin.vm.Unpause": "unpause work",
    "admin.vm.Resume": "unpause work",
    "admin.vm.Console": "console work",
    "admin.vm.property.Get": "prefs work memory",
    "admin.vm.property.GetAll": "prefs work",
    "admin.vm.property.Set": "prefs work memory 500",
    "admin.vm.property.Reset": "prefs work memory --default",
    "admin.property.Get": "system-prefs default_netvm",
    "admin.property.GetAll": "system-prefs",
    "admin.property.Set": "system-prefs default_netvm sys-net",
    "admin.property.Reset": "system-prefs default_netvm --default",
    "admin.vm.feature.List": "features work",
    "admin.vm.feature.Get": "features work f",
    "admin.vm.feature.Set": "features work f 1",
    "admin.vm.feature.Remove": "features work f --unset",
    "admin.vm.tag.List": "tags list work",
    "admin.vm.tag.Get": "tags has work t",
    "admin.vm.tag.Set": "tags add work t",
    "admin.vm.tag.Remove": "tags del work t",
    "admin.vm.notes.Get": "notes work",
    "admin.vm.notes.Set": "notes --set hello work",
    "admin.vm.firewall.Get": "firewall list work",
    "admin.vm.firewall.Set": "firewall reset work",
    "admin.vm.firewall.Reload": "firewall reload work",
    "admin.vm.volume.List": "volume list work",
    "admin.vm.volume.Info": "volume info work:private",
    "admin.vm.volume.ListSnapshots": "volume revisions work:private",
    "admin.vm.volume.Revert": "volume revert --yes work:private r1",
    "admin.vm.volume.Resize": "volume resize work:private 8G",
    "admin.vm.volume.CloneFrom": "volume clone --yes work:private vault:private",
    "admin.vm.volume.CloneTo": "volume clone --yes work:private vault:private",
    "admin.vm.volume.Clear": "volume clear --yes work:private",
    "admin.vm.volume.Set.revisions_to_keep": "volume config work:private revisions_to_keep 3",
    "admin.vm.volume.Set.rw": "volume config work:root rw False",
    "admin.vm.volume.Set.ephemeral": "volume config work:volatile ephemeral True",
    "admin.vm.volume.Import": "volume import --yes --keep-size work:private FILE",
    "admin.vm.volume.ImportWithSize": "volume import --yes work:private FILE",
    "admin.label.List": "label list",
    "admin.label.Get": "label list",
    "admin.label.Index": "label list",
    "admin.label.Create": "label create pink 0xff00ff",
    "admin.label.Remove": "label remove pink",
    "admin.pool.List": "pool list",
    "admin.pool.ListDrivers": "pool drivers",
    "admin.pool.Info": "pool info main",
    "admin.pool.Add": "pool add -o dir_path=/x big qcow2",
    "admin.pool.Remove": "pool remove big",
    "admin.pool.Set.revisions_to_keep": "pool set -o revisions_to_keep=3 main",
    "admin.pool.Set.ephemeral_volatile": "pool set -o ephemeral_volatile=True main",
    "internal.SuspendPre": "suspend-hooks pre",
    "internal.SuspendPost": "suspend-hooks post",
}
OTHERWISE = {
    **{f"admin.vm.CreateInPool.{klass}": "as Create, with --pool"
       for klass in ("TemplateVM", "StandaloneVM", "DispVM", "RemoteVM")},
    "admin.vm.Create.AdminVM": "there is one dom0", "admin.vm.CreateInPool.AdminVM": "there is one dom0",
    "admin.vm.CreateDisposable": "cloison run --dispvm, by the broker",
    "admin.vm.CurrentState": "cloison list, by cloison.qube.List",
    "admin.vm.property.List": "cloison prefs", "admin.property.List": "cloison system-prefs",
    "admin.vm.property.Help": "cloison help PROPERTY", "admin.property.Help": "cloison help PROPERTY",
    "admin.vm.property.GetDefault": "cloison export", "admin.property.GetDefault": "cloison export",
    **{f"admin.vm.feature.CheckWith{what}": "cloison features"
       for what in ("Template", "Netvm", "AdminVM", "TemplateAndAdminVM")},
    "admin.vmclass.List": "qvm-create --help-classes",
    "admin.pool.UsageDetails": "cloison pool info", "admin.pool.volume.List": "cloison volume list",
    "admin.deviceclass.List": "cloison device", "internal.GetSystemInfo": "the policy's own",
    "internal.vm.volume.ImportBegin": "cloison volume import", "internal.vm.volume.ImportEnd": "cloison volume import",
    **{f"admin.backup.{verb}": "not there yet" for verb in ("Info", "Execute", "Cancel")},
}  # fmt: skip
"""Methods whose work another command does by another call."""


def test_every_method_is_reached_or_another_does_its_work() -> None:
    ours = {name for name in METHODS if not name.startswith(("cloison.", "admin.vm.device."))}
    assert set(WORDS) | set(OTHERWISE) == ours and not set(WORDS) & set(OTHERWISE)


@pytest.mark.parametrize("method", WORDS)
def test_a_command_asks_for_the_method(cloison: Run, daemon: Any, tmp_path: Path, method: str) -> None:
    (tmp_path / "data").write_bytes(b"1234")
    state = {"admin.vm.Unpause": "Paused", "admin.vm.Resume": "Suspended"}.get(method)
    if state is not None:
        daemon.rows[-1]["state"] = state
    if method in ("admin.Events", "admin.vm.Stats"):
        daemon.answers(method, daemon.event("", "connection-established"))
    if method.startswith("admin.label."):
        daemon.answers("admin.label.List", daemon.ok("red\n"))
    if method.startswith("admin.vm.volume.Clone"):
        daemon.answers("admin.vm.volume.CloneFrom", daemon.ok("x" * 32))
    cloison(*WORDS[method].replace("FILE", str(tmp_path / "data")).split())
    assert method in {asked for asked, *_ in daemon.asked}
