"""The netvm's nftables: what its clients may send, and nothing before their rules are in.

In: links and rules of clients. Out: one table in the kernel, changed in one step, or OSError.
"""

from __future__ import annotations

import subprocess

from cloison.wire.network import Downlink, Downlinks

NFT = "/usr/sbin/nft"
_TABLE = """\
table inet cloison {{}}
delete table inet cloison
table inet cloison {{
  set own {{ type ifname . ipv4_addr; elements = {{ {own} }} }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "vif*" oifname "vif*" drop
    iifname . ip saddr @own jump links
  }}
  chain links {{
{jumps}  }}
{chains}  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established,related accept
    iifname "vif*" icmp type echo-request accept
  }}
  chain redirect {{
    type nat hook prerouting priority -100;
{resolvers}  }}
  chain outward {{
    type nat hook postrouting priority 100;
    oifname != "vif*" oifname != "lo" masquerade
  }}
}}
"""
_links = Downlinks("", "", (), ())
_open: set[str] = set()


def apply_links(downlinks: Downlinks) -> None:
    """These links and no others; those that are new are closed."""
    global _links
    _open.intersection_update(link.interface for link in downlinks.links)
    _links = downlinks
    _load()


def load_rules(link: Downlink, rules: str) -> None:
    """The rules of one link; one that cannot be kept is refused, and the link is closed."""
    wanted = rules.split("\n")
    if any(line and line != "action=accept" for line in wanted):
        _open.discard(link.interface)
        _load()
        raise OSError(95, "this netvm's agent knows no rule but action=accept", link.interface)
    _open.add(link.interface)
    _load()


def _load() -> None:
    elements = [f'"{link.interface}" . {link.visible_ip or link.ip}' for link in _links.links if link.ip]
    if not elements:
        elements = ['"none" . 0.0.0.0']
    table = _TABLE.format(
        own=", ".join(elements),
        jumps="".join(f'    iifname "{link.interface}" jump {link.interface}\n' for link in _links.links),
        chains="".join(
            f"  chain {link.interface} {{ {'accept' if link.interface in _open else 'drop'}; }}\n"
            for link in _links.links
        ),
        resolvers="".join(
            f"    ip daddr 10.139.1.{1 + number} {proto} dport 53 dnat ip to {server}\n"
            for number, server in enumerate(([s for s in _links.resolvers if "." in s] * 2)[:2])
            for proto in ("udp", "tcp")
        ),
    )
    done = subprocess.run([NFT, "-f", "-"], input=table.encode(), capture_output=True, check=False)
    if done.returncode:
        raise OSError(5, done.stderr.decode(errors="replace").strip()[:200], NFT)
