"""What services do, in plain words, for questions to people.

In: a service's name. Out: a phrase with "{}" where the target stands. May import: nothing of ours.
"""

from __future__ import annotations

WORDS = {
    "qubes.Filecopy": "copy files to {}",
    "qubes.OpenInVM": "open a file in {}",
    "qubes.OpenURL": "open a link in {}",
    "qubes.StartApp": "start a program in {}",
    "qubes.VMShell": "run any command in {}",
    "qubes.VMExec": "run any command in {}",
    "qubes.VMExecGUI": "run any command in {}",
    "qubes.VMRootShell": "run any command as root in {}",
    "qubes.VMRootExec": "run any command as root in {}",
    "qubes.ClipboardPaste": "paste its clipboard into {}",
    "qubes.Gpg": "use the secret GPG keys in {}",
    "qubes.Gpg2": "use the secret GPG keys in {}",
    "qubes.GpgImportKey": "import a public GPG key into {}",
    "qubes.SshAgent": "use the SSH keys in {}",
    "qubes.PdfConvert": "make a PDF safe in {}",
    "qubes.ImageConvert": "make a picture safe in {}",
    "qubes.GetImageRGBA": "get a picture as pixels from {}",
    "cloison.Preview": "show a document from {}",
    "cloison.Consent": "have your consent, for what the argument says",
    "qubes.ConnectTCP": "connect to a TCP port of {}",
    "qubes.UpdatesProxy": "reach package servers through {}",
    "qubes.InputMouse": "send mouse movements to {}",
    "qubes.InputKeyboard": "send key presses to {}",
    "qubes.InputTablet": "send touches to {}",
    "qubes.USB": "use a USB device of {}",
    "qubes.GetDate": "ask {} for the time",
    "qubes.SelectFile": "let you choose a file in {}",
    "qubes.SelectDirectory": "let you choose a directory in {}",
    "qubes.FeaturesRequest": "tell {} what it can do",
    "qubes.NotifyUpdates": "tell {} how many updates there are",
    "qubes.Backup": "store a backup in {}",
    "qubes.Restore": "read a backup from {}",
    "policy.Replace": "change the policy in {}",
    "policy.Remove": "remove a policy file in {}",
}


def words_for(service: str) -> str:
    """The phrase after "QUBE wants to"; services that are not known are called by their name."""
    if service in WORDS:
        return WORDS[service]
    if service.startswith("admin."):
        return f"administer {{}} ({service})"
    return f"call {service} in {{}}"
