"""Converters and split services between real guests: poppler, Pillow, gpg and ssh are the template's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "email"))
CLIENT, VAULT = "split-client", "split-vault"
POLICY = f"""
qubes.Gpg           *  {CLIENT}  @default  allow  target={VAULT}
qubes.GpgImportKey  *  {CLIENT}  {VAULT}   allow
qubes.SshAgent      +work  {CLIENT}  {VAULT}   allow
qubes.Gpg2          *  {CLIENT}  {VAULT}   allow
cloison.Consent     +qubes.GpgImportKey+{CLIENT}  {VAULT}  @adminvm  allow
cloison.Consent     *  {VAULT}  @adminvm  deny
"""


@pytest.fixture(scope="module", autouse=True)
def pair(system: LiveSystem) -> Iterator[None]:
    """A vault and a qube that may use its keys."""
    rules = system.layout.policy / "30-user.policy"
    before = rules.read_text()
    rules.write_text(before + POLICY)
    for name in (CLIENT, VAULT):
        system.cloison("create", "--template", "debian-13", "--label", "black", name)
    system.cloison("features", CLIENT, "service.split-ssh", "1")
    system.cloison("start", CLIENT, VAULT)
    yield
    rules.write_text(before)
    for name in (CLIENT, VAULT):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


def lines(system: LiveSystem, qube: str, script: str, *, stdin: bytes = b"") -> list[str]:
    """What a shell script prints in that qube, both its streams."""
    done = system.run(qube, "sh", "-c", f"exec 2>&1; cd; {script}", stdin=stdin, expect=None)
    return done.stdout.decode().splitlines()


def test_a_document_and_a_picture_come_back_as_pixels(system: LiveSystem) -> None:
    from make_pdf import make_pdf

    report = make_pdf("Title", ["a line"], [("one", 3), ("two", 5)])
    said = lines(
        system,
        CLIENT,
        """cat > report.pdf; qvm-convert-pdf --resolution 50 report.pdf; echo $?
        pdfinfo report.trusted.pdf | grep -E '^(Pages|Page size)'; pdftotext report.trusted.pdf - | tr -d '\\f' | wc -c
        pdftoppm -r 50 report.pdf | md5sum; pdfimages report.trusted.pdf page; md5sum - < page-000.ppm
        python3 -c '
import sys
sys.path.insert(0, "/usr/lib/cloison/tools")
from cloison_tools.pdfwriter import PdfWriter
with open("two.pdf", "wb") as file:
    writer = PdfWriter(file.write, 72)
    for side in (30, 60):
        writer.add_page(side, 2 * side, [bytes([side]) * (6 * side * side)])
    writer.finish()'
        qvm-convert-pdf --quiet -r 72 two.pdf; pdfimages two.trusted.pdf two; head -qn 2 two-00?.ppm | tr '\\n' ' '
        echo; tail -c 1 two-001.ppm; echo; rm two*
        echo nonsense > broken.pdf; qvm-convert-pdf broken.pdf | tail -1; ls *.pdf .*part 2> /dev/null
        python3 -c 'from PIL import Image; Image.new("RGB", (40, 30), (255, 0, 0)).save("in.bmp")'
        qvm-convert-img in.bmp out.png; file out.png
        python3 -c 'from PIL import Image; print(Image.open("out.png").getpixel((39, 29)))'""",
        stdin=report,
    )
    assert said[:2] == ["qvm-convert-pdf: report.pdf -> report.trusted.pdf (1 pages)", "0"], said
    assert said[2].split() == ["Pages:", "1"] and "596.16 x 842.4" in said[3] and said[4] == "0", said
    assert said[5] == said[6], "the pixels of the trusted document are not those of the untrusted one"
    assert said[7:9] == ["P6 30 60 P6 60 120 ", "<"], said  # 60 is "<"
    rest = said[9:]
    assert "  it says: this is no PDF document that can be read" in rest
    names = [word for word in rest if word.endswith(".pdf") and ":" not in word]
    assert names == ["broken.pdf", "report.pdf", "report.trusted.pdf"], said
    assert rest[-3:] == [
        "qvm-convert-img: in.bmp -> out.png (40 x 30)",
        "out.png: PNG image data, 40 x 30, 8-bit/color RGBA, non-interlaced",
        "(255, 0, 0, 255)",
    ]


def test_a_vault_signs_and_keeps_its_keys(system: LiveSystem) -> None:
    lines(system, VAULT, "gpg --batch --passphrase '' --quick-gen-key me@example.org ed25519 sign")
    said = lines(
        system,
        CLIENT,
        """gpg=qubes-gpg-client-wrapper; echo contract > contract
        $gpg --status-fd=2 -bsau me@example.org < contract > signature; echo $?
        $gpg --keyid-format=long --status-fd=1 --verify signature - < contract; echo $?
        echo forged | $gpg --verify signature -; echo $?
        $gpg --export-secret-keys; echo $?
        $gpg --armor --export | head -1; ls ~/.gnupg""",
    )
    text = "\n".join(said)
    assert "[GNUPG:] SIG_CREATED D" in text and "[GNUPG:] GOODSIG" in text and "BAD signature" in text, text
    assert [line for line in said if line.isdecimal()] == ["0", "0", "1", "2"], text
    assert "gpg: option --export-secret-keys is not allowed in split GPG" in said
    assert said[-2] == "-----BEGIN PGP PUBLIC KEY BLOCK-----" and "cannot access" in said[-1]
    conf = "echo 'consent = call' | sudo tee /rw/config/split-gpg.conf"
    lines(system, VAULT, conf)
    asked = lines(
        system,
        CLIENT,
        f"""gpg=qubes-gpg-client-wrapper; $gpg --armor --export; echo $?
        echo x | QUBES_GPG_DOMAIN={VAULT} qubes-gpg-import-key; echo $?""",
    )
    assert asked[:2] == ["gpg (split): the user did not agree", "2"]
    assert asked[-2:] == ["qubes.GpgImportKey: this is no public key", "1"], asked
    assert lines(system, VAULT, "ls /run/user/1000/cloison-split-gpg; sudo rm /rw/config/split-gpg.conf") == [
        f"qubes.Gpg+{CLIENT}",
        f"qubes.GpgImportKey+{CLIENT}",
    ]


def test_the_second_split_gpg_is_a_link_to_the_agents_restricted_socket(system: LiveSystem) -> None:
    ask = f"printf 'GETINFO version\\nGENKEY\\nBYE\\n' | qrexec-client-vm {VAULT} qubes.Gpg2; echo $?"
    assert lines(system, CLIENT, ask) == ["qubes.Gpg2: no such service in this qube", "127"]
    set_up = """gpgconf --launch gpg-agent; sudo mkdir -p /usr/local/etc/qubes-rpc
        sudo ln -s $(gpgconf --list-dirs agent-extra-socket) /usr/local/etc/qubes-rpc/qubes.Gpg2"""
    lines(system, VAULT, set_up)
    said = lines(system, CLIENT, ask)
    assert said[0].startswith("OK ") and said[1].startswith("D 2.") and said[2] == "OK", said
    assert said[3].startswith("ERR ") and "Forbidden" in said[3] and said[-1] == "0", said


def test_the_agent_of_a_vault_signs_for_ssh(system: LiveSystem) -> None:
    key = "~/.ssh/split-ssh/work/id_ed25519"
    public = lines(
        system, VAULT, f"mkdir -p ~/.ssh/split-ssh/work; ssh-keygen -q -t ed25519 -N '' -f {key}; cat {key}.pub"
    )
    said = lines(
        system,
        CLIENT,
        f"""echo "{VAULT} work" | sudo tee /rw/config/split-ssh; echo $SSH_AUTH_SOCK
        ssh-add -l; echo '{public[-1]}' > key.pub
        echo text | ssh-keygen -q -Y sign -n file -f key.pub > text.sig; echo $?
        echo text | ssh-keygen -Y check-novalidate -n file -s text.sig
        ssh-add -D; echo $?; ssh-add -l | wc -l""",
    )
    assert said[1] == "/run/cloison-split-ssh", said
    assert "(ED25519)" in said[2] and said[3] == "0" and said[4].startswith("Good "), said
    assert said[-1] == "1" and said[-2] != "0", said
