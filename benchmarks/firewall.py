"""How fast firewall rules are made and loaded. Run: ``python benchmarks/firewall.py [--json]``; needs no guest.

The kernel is the host's own, in a network namespace of an ordinary user; in an emulated guest everything takes some ten
times longer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from cloison.wire.firewall import parse_rules
from cloison.wire.network import Downlink, Downlinks
from cloison.wire.nftables import link_text, whole_text

CLIENTS = 50
REPEAT = 15
USUAL = parse_rules("action=accept specialtarget=dns\naction=accept proto=icmp\n" + "".join(
    f"action=accept proto=tcp dst4=192.0.2.{n}/32 dstports=443\n" for n in range(7)) + "action=drop\n")  # fmt: skip
MANY = parse_rules("".join(f"action=accept proto=tcp dst4=198.51.{n // 250}.{n % 250}/32\n" for n in range(10_000)))
INSIDE = "CLOISON_BENCHMARK_INSIDE"


def link(number: int) -> Downlink:
    address = f"10.137.0.{number}"
    mac, far = f"fe:ff:ff:00:00:{number:02x}", f"00:16:3e:5e:6c:{number:02x}"
    return Downlink(f"vif{number}", mac, "client", address, "", far, address, "", 1500)


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def nft_each(texts: Iterable[str]) -> None:
    for text in texts:
        nft(text)


def median_ms(act: Callable[[], object], repeat: int = REPEAT) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def measure() -> dict[str, float]:
    """Milliseconds by what was done, nft's own start included."""
    links = [link(number) for number in range(1, CLIENTS + 1)]
    for each in links:
        subprocess.run(["ip", "link", "add", "name", each.interface, "type", "veth", "peer", f"far{each.mac[-2:]}"],
                       check=True)  # fmt: skip
    downlinks = Downlinks("10.137.0.250", "", ("192.0.2.53",), tuple(links))
    base = whole_text(downlinks, ())
    units = [link_text(each, downlinks.gateway, "", USUAL, {}, n + 1) for n, each in enumerate(links)]
    whole = base + "".join(units)
    return {
        f"make the text of {CLIENTS} qubes, 10 rules each": median_ms(
            lambda: [link_text(each, downlinks.gateway, "", USUAL, {}, 1) for each in links]
        ),
        f"load the rules of {CLIENTS} qubes at once": median_ms(lambda: nft(whole)),
        f"load them one qube after the other ({CLIENTS} times nft)": median_ms(
            lambda: nft_each((base, *units)), 3
        ),
        "change the rules of one of them": median_ms(lambda: nft(units[7])),
        "nft itself, doing nothing": median_ms(lambda: nft("")),
        **({"load 10000 rules of one qube": median_ms(
            lambda: nft(link_text(links[0], downlinks.gateway, "", MANY, {}, 1)), 3)} if is_true_root() else {}),
    }  # fmt: skip


def is_true_root() -> bool:
    """An ordinary user's buffers towards the kernel are too small for that many rules at once."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if INSIDE not in os.environ:
        way = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        os.execvpe(way[0], [*way, sys.executable, *sys.argv], {**os.environ, INSIDE: "1", "PATH": path})
    found = measure()
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for what, milliseconds in found.items():
            print(f"{what:60} {milliseconds:9.1f} ms")


if __name__ == "__main__":
    main()
