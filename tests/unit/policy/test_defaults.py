"""The policy a new system begins with."""

from __future__ import annotations

import pytest

from cloison.policy import Allow, Ask, Deny, Request, SystemInfo, evaluate
from cloison.policy.lint import find_hints
from cloison.policy.store import default_policy

POLICY = default_policy()

ONLY_DOM0 = (
    "qubes.WaitForSession",
    "qubes.WaitForRunningSystem",
    "qubes.GetAppmenus",
    "qubes.PostInstall",
    "qubes.InstallUpdatesGUI",
    "qubes.SetDateTime",
    "qubes.SyncNtpClock",
    "qubes.SuspendPre",
    "qubes.SuspendPost",
    "qubes.SuspendPreAll",
    "qubes.SuspendPostAll",
    "qubes.ResizeDisk",
    "qubes.DetachPciDevice",
    "qubes.SetMonitorLayout",
    "qubes.SetGuiMode",
    "qubes.SelectFile",
    "qubes.SelectDirectory",
    "qubes.InputKeyboard",
    "qubes.InputTablet",
    "qubes.Backup",
    "qubes.Restore",
    "qubes.RestoreById",
    "qubes.ReceiveUpdates",
    "qubes.VMRootExec",
)
"""Services that no qube may call by default."""


def answer(system: SystemInfo, source: str, target: str, service: str) -> str:
    verdict = evaluate(POLICY, system, Request(source, target, service, "+"))
    match verdict:
        case Allow():
            return f"allow {verdict.target}"
        case Ask():
            return "ask"
        case Deny():
            return "deny"


@pytest.mark.parametrize(
    ("service", "to_disposable", "to_qube", "to_default", "to_dom0"),
    [
        ("qubes.Filecopy", "ask", "ask", "ask", "deny"),
        ("qubes.OpenInVM", "allow @dispvm:dvm", "ask", "ask", "deny"),
        ("qubes.OpenURL", "allow @dispvm:dvm", "ask", "ask", "deny"),
        ("qubes.StartApp", "allow @dispvm:dvm", "ask", "ask", "deny"),
        ("qubes.VMShell", "allow @dispvm:dvm", "deny", "deny", "deny"),
        ("qubes.VMExec", "allow @dispvm:dvm", "deny", "deny", "deny"),
        ("qubes.VMExecGUI", "allow @dispvm:dvm", "deny", "deny", "deny"),
        ("qubes.VMRootShell", "deny", "deny", "deny", "deny"),
        ("qubes.PdfConvert", "allow @dispvm:dvm", "deny", "deny", "deny"),
        ("cloison.Preview", "allow @dispvm:dvm", "deny", "deny", "deny"),
        ("qubes.GetDate", "allow dom0", "allow dom0", "allow dom0", "deny"),
        ("qubes.FeaturesRequest", "deny", "deny", "deny", "allow dom0"),
        ("qubes.ImageConvert", "allow @dispvm:dvm", "deny", "deny", "deny"),
        ("qubes.GetImageRGBA", "allow @dispvm:dvm", "ask", "ask", "deny"),
        ("qubes.Gpg", "ask", "ask", "ask", "deny"),
        ("qubes.GpgImportKey", "ask", "ask", "ask", "deny"),
        ("qubes.Gpg2", "deny", "deny", "deny", "deny"),
        ("qubes.SshAgent", "deny", "deny", "deny", "deny"),
        ("cloison.Consent", "deny", "deny", "deny", "ask"),
        ("qubes.ClipboardPaste", "ask", "ask", "ask", "deny"),
        ("qubes.ConnectTCP", "deny", "deny", "deny", "deny"),
        ("qubes.UpdatesProxy", "deny", "deny", "deny", "deny"),
        ("qubes.InputMouse", "deny", "deny", "deny", "deny"),
        ("qubes.NotifyUpdates", "deny", "deny", "deny", "allow dom0"),
        ("qubes.NotifyTools", "deny", "deny", "deny", "allow dom0"),
        ("qubes.SyncAppMenus", "deny", "deny", "deny", "allow dom0"),
        ("qubes.GetRandomizedTime", "deny", "deny", "deny", "allow dom0"),
        *((name, "deny", "deny", "deny", "deny") for name in ONLY_DOM0),
        ("admin.vm.List", "deny", "deny", "deny", "deny"),
        ("admin.vm.CreateDisposable", "deny", "deny", "deny", "deny"),
        ("admin.vm.property.GetAll", "deny", "deny", "deny", "deny"),
        ("policy.Replace", "deny", "deny", "deny", "deny"),
        ("something.Else", "deny", "deny", "deny", "deny"),
    ],
)
def test_what_an_app_qube_may_do(
    system: SystemInfo, service: str, to_disposable: str, to_qube: str, to_default: str, to_dom0: str
):
    targets = {"@dispvm": to_disposable, "vault": to_qube, "@default": to_default, "dom0": to_dom0}
    assert {target: answer(system, "work", target, service) for target in targets} == targets


def test_no_rule_allows_a_qube_to_call_another_unasked(system: SystemInfo):
    services = {rule.service for rule in POLICY.rules} | {"other"}
    for service in services:
        for source in ("work", "debian", "far"):
            for target in ("vault", "personal", "relay", "hidden"):
                assert answer(system, source, target, service) in ("ask", "deny", "allow dom0"), service


def test_templates_update_through_sys_net():
    system = SystemInfo.parse({"domains": {"debian": {"type": "TemplateVM"}, "sys-net": {"type": "AppVM"}, "work": {}}})
    assert answer(system, "debian", "@default", "qubes.UpdatesProxy") == "allow sys-net"
    assert answer(system, "debian", "work", "qubes.UpdatesProxy") == "deny"
    assert answer(system, "work", "@default", "qubes.UpdatesProxy") == "deny"


def test_the_defaults_have_nothing_to_complain_about():
    assert [str(finding) for finding in find_hints(POLICY)] == []
