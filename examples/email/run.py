#!/usr/bin/env python3
"""The e-mail scenario: a hostile attachment is opened in a disposable qube; then each claim of containment is proved.

In: a running Cloison system with the qube ``work`` (and whatever others there are). Out: what happened, each claim with
its check and its time, exit status 1 if one does not hold. May import: cloison.layout; it acts by `cloison` commands.

    .venv/bin/python examples/email/run.py [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cloison.client.spawn import is_locked
from cloison.layout import Layout

HERE = Path(__file__).parent
CLOISON = str(Path(sys.executable).with_name("cloison"))
QUBE = "work"
CLEAN, HOSTILE = 2, 3
"""Numbers of the messages in the example mailbox."""
MARK = hashlib.sha256(b"cloison e-mail scenario").hexdigest().encode()
"""What harm.py leaves wherever it can write; not found in the mailbox itself."""
KEPT_READY = "preload-dispvm-max"
GONE_LIMIT_S = 60
MAKING_LIMIT_S = 300.0
COMMAND_LIMIT_S = 300
RULE = "drop comment=documents-need-no-network"
SECRET = "the combination of the museum's safe is 4812"


class Broken(Exception):
    """The scenario cannot go on: a step that is no claim failed."""


@dataclass
class Claim:
    text: str
    holds: bool
    evidence: str
    duration_s: float


@dataclass
class Scenario:
    layout: Layout
    quiet: bool = False
    claims: list[Claim] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    # --- talking ---------------------------------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        if not self.quiet:
            print(text, flush=True)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.timings[what] = time.monotonic() - started
        self.say(f"  ({what}: {self.timings[what]:.2f} s)")

    def claim(self, text: str, check: Callable[[], tuple[bool, str]]) -> None:
        """Check a claim, print it with its evidence, and remember it."""
        started = time.monotonic()
        try:
            holds, evidence = check()
        except Broken as error:
            holds, evidence = False, str(error)
        found = Claim(text, holds, evidence, time.monotonic() - started)
        self.claims.append(found)
        self.say(f"  {'holds ' if holds else 'BROKEN'}  {text}  [{found.duration_s:.2f} s]")
        self.say(f"          {evidence}")

    # --- acting ----------------------------------------------------------------------------------------------------

    def cloison(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = [CLOISON, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=COMMAND_LIMIT_S)
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip()
            raise Broken(f"`cloison {' '.join(arguments)}` ended with {done.returncode}: {reason}")
        return done.stdout

    def in_work(self, command: str, *, user: str = "user", stdin: bytes = b"") -> str:
        return self.cloison("run", "--user", user, QUBE, "--", "sh", "-c", command, stdin=stdin).decode(
            errors="replace"
        )

    def qubes(self) -> list[dict[str, Any]]:
        found = json.loads(self.cloison("list", "--all", "--json"))
        assert isinstance(found, list)
        return found

    # --- what the host's files say ---------------------------------------------------------------------------------

    def files(self) -> dict[Path, os.stat_result]:
        """Every file of the system: data, sockets, cache. Logs are meant to grow and are left out."""
        found = {}
        for top in (self.layout.data, self.layout.runtime, self.layout.cache):
            for directory, _, names in os.walk(top):
                if Path(directory) == self.layout.log.parent:
                    continue
                for name in names:
                    path = Path(directory, name)
                    try:
                        found[path] = path.lstat()
                    except FileNotFoundError:
                        continue
        return found


def digest_of(paths: list[Path]) -> str:
    """One SHA-256 over the contents of the files."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            whole.update(f"{path}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def size_of(paths: list[Path]) -> str:
    return f"{sum(path.stat().st_blocks * 512 for path in paths) / 1e6:.0f} MB in {len(paths)} files"


HOME_DIGEST = r"cd && find . -xdev -type f ! -path './Previews/*' -print0 | sort -z | xargs -0 sha256sum | sha256sum"
CHANGED_SYSTEM_FILES = "find /etc /usr /rw/config -xdev -newer /run/scenario-start -type f | head"


def prepare(scenario: Scenario) -> None:
    """Give ``work`` its mailbox, its mail reader and something worth stealing."""
    with scenario.timed(f"start {QUBE}"):
        scenario.cloison("start", QUBE)
    scenario.in_work("mkdir -p mail bin && cat > mail/inbox.mbox", stdin=(HERE / "inbox.mbox").read_bytes())
    scenario.in_work("cat > bin/mailread && chmod +x bin/mailread", stdin=(HERE / "mailread").read_bytes())
    scenario.in_work("cat > safe.secret", stdin=SECRET.encode())


def play(scenario: Scenario) -> None:
    """The person's part: list the mail, open the clean attachment."""
    scenario.say(f"\nThe mailbox in {QUBE}:")
    scenario.say(scenario.in_work("bin/mailread"))
    scenario.say(f"Opening the attachment of message {CLEAN}, a clean PDF, in a disposable:")
    with scenario.timed("open the clean attachment"):
        text = scenario.in_work(f"bin/mailread open {CLEAN}")
    scenario.say(indented(text))
    scenario.claim("the clean document's text and page came back", lambda: check_page(scenario, text))


def indented(text: str) -> str:
    """With one empty line where the page left many."""
    squeezed = re.sub(r"\n(\s*\n){2,}", "\n\n", text.strip())
    return "\n".join(f"    | {line}".rstrip() for line in squeezed.splitlines())


def open_hostile(scenario: Scenario) -> str:
    scenario.say(f"\nOpening the attachment of message {HOSTILE}, which is not what it says, in a disposable:")
    with scenario.timed("open the hostile attachment"):
        text = scenario.in_work(f"bin/mailread open {HOSTILE}")
    scenario.say(indented(text))
    return text


def harm_of(text: str) -> dict[str, str]:
    """What the harm says it managed."""
    return dict(re.findall(r"^harm: (.+?): (.+)$", text, re.MULTILINE))


@contextmanager
def none_kept_ready(scenario: Scenario) -> Iterator[None]:
    """No disposable waits in advance meanwhile: the files of one that is made would be new ones."""
    before = json.loads(scenario.cloison("features", "dom0", "--json")).get(KEPT_READY)
    scenario.cloison("features", "dom0", KEPT_READY, "0")
    try:
        yield
    finally:
        scenario.cloison("features", "dom0", *(["--unset", KEPT_READY] if before is None else [KEPT_READY, before]))


@contextmanager
def fenced_in(scenario: Scenario) -> Iterator[str]:
    """Meanwhile documents may reach nobody: a rule of the disposables' template, which they inherit, and which their
    netvm keeps. Answers that netvm; "" if documents have no network anyway."""
    template = scenario.cloison("prefs", QUBE, "default_dispvm").decode().strip()
    netvm = str(json.loads(scenario.cloison("prefs", template, "--json"))["netvm"]["value"] or "")
    if not netvm:
        yield ""
        return
    if next(qube for qube in scenario.qubes() if qube["name"] == netvm)["state"] == "Halted":
        scenario.cloison("start", netvm)  # its disks would be new files
    scenario.say(f"\n(Documents need no network. Until the proof is done: `cloison firewall {template} add {RULE}`)")
    scenario.cloison("firewall", template, "add", *RULE.split(), "--before", "0")
    try:
        yield netvm
    finally:
        scenario.cloison("firewall", template, "remove", "0")


class CounterWatch(threading.Thread):
    """Looks at what the rules of disposables have decided for as long as these live."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(daemon=True)
        self.scenario = scenario
        self.is_over = threading.Event()
        self.seen: dict[str, dict[str, Any]] = {}
        """The last answer about each."""

    def run(self) -> None:
        while not self.is_over.wait(0.1):
            for name in [qube["name"] for qube in self.scenario.qubes() if is_unnamed_disposable(qube)]:
                with suppress(Broken):  # it has no cable yet, or is gone
                    self.seen[name] = json.loads(
                        self.scenario.cloison("firewall", "list", "--counters", "--json", name)
                    )

    def stop(self) -> None:
        self.is_over.set()
        self.join()


def prove(scenario: Scenario) -> None:
    """Take the picture before, let the harm happen, compare."""
    with none_kept_ready(scenario), fenced_in(scenario) as netvm:
        _prove(scenario, netvm)


def _prove(scenario: Scenario, netvm: str) -> None:
    template = next(qube["template"] for qube in scenario.qubes() if qube["name"] == QUBE)
    home_before = scenario.in_work(HOME_DIGEST)
    scenario.in_work("touch /run/scenario-start", user="root")
    wait_for_no_disposable(scenario)
    wait_for_no_making(scenario)
    before = scenario.files()
    kept = kept_files(scenario, before)
    kept_digest = digest_of(kept)
    started = time.time()

    watch = CounterWatch(scenario)
    if netvm:
        watch.start()
    try:
        harm = harm_of(open_hostile(scenario))
    finally:
        if netvm:
            watch.stop()
    disposable = harm.get("host name", "?")

    scenario.say("\nWhat is claimed, and the check:")
    scenario.claim("the harm really happened, in a disposable", lambda: check_harm(harm))
    scenario.claim("it found nothing of others, and no door", lambda: check_nothing_found(harm))
    if netvm:
        scenario.claim(
            f"it called its master, and a rule in {netvm} refused it", lambda: check_refused(harm, watch.seen, netvm)
        )
    else:
        scenario.claim("it found no network", lambda: check_no_network(harm))
    scenario.claim("the disposable is gone", lambda: check_gone(scenario, disposable))
    scenario.claim(
        f"template {template}: root revision unchanged; the other qubes' disks and all fork points unchanged",
        lambda: check_same(kept, kept_digest),
    )
    scenario.claim(
        "nothing of the disposable is left on disk", lambda: check_left(scenario, before, disposable, started)
    )
    scenario.claim(f"{QUBE} is unchanged", lambda: check_work(scenario, home_before))
    scenario.claim(f"{QUBE}'s root is as new after a restart, its home is kept", lambda: check_restart(scenario))


def kept_files(scenario: Scenario, files: dict[Path, os.stat_result]) -> list[Path]:
    """Disk images and frozen states that nothing may change now: all but those that a running qube may write."""
    places = (scenario.layout.pools, scenario.layout.images, scenario.layout.forkpoints)
    written = open_for_writing()
    return sorted(
        path
        for path, status in files.items()
        if stat.S_ISREG(status.st_mode) and path not in written and any(path.is_relative_to(place) for place in places)
    )


def open_for_writing() -> set[Path]:
    """The files that any process of this user has open for writing, as the kernel tells."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(descriptor)
            flags = re.search(
                r"^flags:\s+([0-7]+)", (descriptor.parents[1] / "fdinfo" / descriptor.name).read_text(), re.M
            )
        except OSError:
            continue
        if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
            found.add(Path(target))
    return found


def wait_for_no_disposable(scenario: Scenario) -> bool:
    """The clean-up of a disposable goes on after its caller was answered; wait for its end."""
    deadline = time.monotonic() + GONE_LIMIT_S
    while any(is_unnamed_disposable(qube) for qube in scenario.qubes()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def wait_for_no_making(scenario: Scenario) -> None:
    """A fork point that is being made in the background would be new files, and none of the disposable's."""
    deadline = time.monotonic() + MAKING_LIMIT_S
    while any(is_locked(lock) for lock in scenario.layout.forkpoints.glob(".*.lock")) and time.monotonic() < deadline:
        time.sleep(0.5)


def is_unnamed_disposable(qube: dict[str, Any]) -> bool:
    return qube["class"] == "DispVM" and re.fullmatch(r"disp[0-9]+", qube["name"]) is not None


# --- the checks: each answers whether the claim holds, and by what evidence -------------------------------------------


def check_page(scenario: Scenario, text: str) -> tuple[bool, str]:
    if "4,812 visitors came" not in text:
        return False, "the text is not the document's"
    kind = scenario.in_work("file --brief Previews/report.pdf.png").strip()
    return kind.startswith("PNG image data, 595 x 842"), f"Previews/report.pdf.png: {kind}"


def check_harm(harm: dict[str, str]) -> tuple[bool, str]:
    wanted = ("write to home", "write to /etc", "write to /usr", "leave processes behind", "fill the disk")
    done = [what for what in wanted if harm.get(what, "").startswith("done")]
    in_disposable = re.fullmatch(r"disp[0-9]+", harm.get("host name", "")) is not None
    return done == list(wanted) and in_disposable, f"in {harm.get('host name', '?')}: {', '.join(done)}"


def check_nothing_found(harm: dict[str, str]) -> tuple[bool, str]:
    searches = ("homes of others", "mail and secrets in reach")
    calls = [what for what in harm if " on " in what]
    empty = all(harm.get(what) == "none found" for what in searches)
    refused = len(calls) == 3 and all(harm[what].startswith("failed") for what in calls)
    return empty and refused, f"no other home, no secret; refused: {', '.join(calls)}"


def check_no_network(harm: dict[str, str]) -> tuple[bool, str]:
    interfaces, call_home = harm.get("network interfaces", "?"), harm.get("call home", "done")
    return interfaces == "none found" and call_home.startswith("failed"), (
        f"network interfaces: {interfaces}; calling home {call_home}"
    )


def check_refused(harm: dict[str, str], seen: dict[str, dict[str, Any]], netvm: str) -> tuple[bool, str]:
    """By its own words, and by the count that its netvm keeps of the rule."""
    disposable, call_home = harm.get("host name", "?"), harm.get("call home", "done")
    rules = seen.get(disposable, {}).get("rules", [])
    if not rules:
        return False, f"no count of {disposable}'s rules was seen in {netvm}; calling home {call_home}"
    rule = rules[0]
    refused = rule["action"] == "drop" and rule["packets"] > 0 and all(other["packets"] == 0 for other in rules[1:])
    return refused and call_home.startswith("failed") and harm.get("network interfaces") != "none found", (
        f"calling home {call_home}; `cloison firewall list --counters {disposable}`: rule 0 ({rule['action']}, "
        f"{rule.get('comment', '')}) decided {rule['packets']} packets, {rule['bytes']} bytes"
    )


def check_gone(scenario: Scenario, disposable: str) -> tuple[bool, str]:
    if not wait_for_no_disposable(scenario):
        return False, f"still there after {GONE_LIMIT_S} s"
    return True, f"{disposable} is not in `cloison list`"


def check_same(kept: list[Path], digest_before: str) -> tuple[bool, str]:
    missing = [path for path in kept if not path.exists()]
    if missing:
        return False, f"gone: {missing[0]}"
    digest = digest_of(kept)
    return digest == digest_before, f"sha256 {digest[:16]}... before and after, {size_of(kept)}"


def check_left(
    scenario: Scenario, before: dict[Path, os.stat_result], disposable: str, started: float
) -> tuple[bool, str]:
    """No new file, none with the disposable's name, and in no file that changed what the harm writes everywhere."""
    after = scenario.files()
    new = [path for path in after if path not in before]
    named = [path for path in after if disposable in str(path)]
    changed = [path for path, found in after.items() if found.st_mtime >= started and path.is_file()]
    marked = [path for path in changed if contains(path, MARK)]
    for what, found in (("new", new), ("named after it", named), ("marked by the harm", marked)):
        if found:
            return False, f"{what}: {found[0]}"
    return True, f"of {len(after)} files none is new; {len(changed)} changed since, none holds the harm's mark"


def contains(path: Path, needle: bytes) -> bool:
    with path.open("rb") as file:
        last = b""
        while block := file.read(1 << 20):
            if needle in last + block:
                return True
            last = block[-len(needle) :]
    return False


def check_work(scenario: Scenario, home_before: str) -> tuple[bool, str]:
    changed = scenario.in_work(CHANGED_SYSTEM_FILES, user="root").split()
    if changed:
        return False, f"changed: {' '.join(changed)}"
    home = scenario.in_work(HOME_DIGEST)
    return home == home_before, f"home's sha256 {home[:16]}... before and after; nothing written in /etc and /usr"


def check_restart(scenario: Scenario) -> tuple[bool, str]:
    scenario.in_work(
        "echo owned >> /etc/passwd; echo owned > /usr/bin/whoami; echo kept > /home/user/kept", user="root"
    )
    with scenario.timed(f"restart {QUBE}"):
        scenario.cloison("restart", QUBE)
    left = scenario.in_work("grep -c owned /etc/passwd /usr/bin/whoami; cat kept safe.secret; ls mail")
    is_new = "/etc/passwd:0" in left and "/usr/bin/whoami:0" in left
    is_kept = "kept" in left and SECRET in left and "inbox.mbox" in left
    return is_new and is_kept, "planted lines in /etc/passwd and /usr/bin/whoami are gone; mail and files are there"


def main() -> int:
    parser = argparse.ArgumentParser(description="A hostile attachment in a disposable qube, and the proofs.")
    parser.add_argument("--json", action="store_true", help="print claims and timings as JSON, nothing else")
    options = parser.parse_args()
    scenario = Scenario(Layout.from_environment(), quiet=options.json)
    try:
        prepare(scenario)
        play(scenario)
        prove(scenario)
    except Broken as error:
        print(f"the scenario cannot go on: {error}", file=sys.stderr)
        return 1
    broken = [claim.text for claim in scenario.claims if not claim.holds]
    if options.json:
        print(json.dumps({"claims": [asdict(claim) for claim in scenario.claims], "timings_s": scenario.timings}))
    else:
        print(f"\n{len(broken)} of {len(scenario.claims)} claims are BROKEN" if broken else "\nall claims hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
