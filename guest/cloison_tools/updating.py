"""What `cloison update` runs in a qube, as root: bring its packages up to date, and say what happens in lines.

Out, on standard output: ``step PERCENT TEXT`` while it works, ``changed PACKAGE OLD NEW`` for each package afterwards
(``-`` for none), ``waiting NUMBER`` after a check. All else goes to standard error, where dom0 keeps it as a log.
"""

import os
import subprocess
import sys

APT = ("apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300",
       "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")  # fmt: skip
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8",
               "HOME": "/root", "NEEDRESTART_SUSPEND": "1"}  # fmt: skip


def update(arguments: list[str]) -> int:
    """The program: ``--check`` only looks."""
    if not os.path.exists("/usr/bin/apt-get"):
        say("step 100 no package manager that is known here")
        return 2
    say("step 0 asking the package servers")
    if code := run("update"):
        return code
    if "--check" in arguments:
        planned = subprocess.run([*APT, "-s", "dist-upgrade"], env=ENVIRONMENT, capture_output=True, text=True)
        say(f"waiting {count_planned(planned.stdout)}")
        return planned.returncode
    before = installed()
    if code := run("dist-upgrade", percent=True) or run("clean"):
        return code
    for line in differences(before, installed()):
        say(f"changed {line}")
    return 0


def run(verb: str, *, percent: bool = False) -> int:
    """apt-get; its own progress becomes ours."""
    if not percent:
        return subprocess.run([*APT, verb], env=ENVIRONMENT, stdout=sys.stderr.fileno()).returncode
    read_end, write_end = os.pipe()
    with open(read_end, encoding="utf-8", errors="replace") as status:
        done = subprocess.Popen([*APT, "-o", f"APT::Status-Fd={write_end}", verb], env=ENVIRONMENT,
                                stdout=sys.stderr.fileno(), pass_fds=(write_end,))  # fmt: skip
        os.close(write_end)
        for line in status:
            if step := read_status(line):
                say(step)
    return done.wait()


def read_status(line: str) -> str:
    """``dlstatus:1:20.5:text`` as a step: downloading is the first half, installing the second."""
    parts = line.rstrip().split(":", 3)
    if len(parts) != 4 or parts[0] not in ("dlstatus", "pmstatus"):
        return ""
    try:
        part = float(parts[2]) / 2
    except ValueError:
        return ""
    return f"step {round(part if parts[0] == 'dlstatus' else 50 + part)} {parts[3][:200]}"


def installed() -> dict[str, str]:
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${binary:Package} ${Version} ${db:Status-Status}\n"],
                            env=ENVIRONMENT, capture_output=True, text=True)  # fmt: skip
    rows = (line.split() for line in listed.stdout.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [f"{n} {before.get(n, '-')} {after.get(n, '-')}" for n in names if before.get(n) != after.get(n)]


def count_planned(simulated: str) -> int:
    return sum(line.startswith("Inst ") for line in simulated.splitlines())


def say(line: str) -> None:
    print(line, flush=True)
