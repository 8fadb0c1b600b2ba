"""The networks of a machine: its own, where node and pods live, and `far`, the internet. To be run on the machine.

A bridge eth0 with the node's address, and one link to `far`, whose addresses are all of FAR_NETS.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from .layout import FAR_NETS, LINK_BITS, LINK_FAR, LINK_NODE, NODE_IP, NODE_NET, POD_NET


def _ip(*lines: str, far: bool = False) -> None:
    subprocess.run(["ip", *(["-n", "far"] if far else []), "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def make(*, api_only: bool) -> None:
    _ip("link set lo up", "link add eth0 type bridge", f"addr add {NODE_IP}/24 dev eth0", "link set eth0 up")
    if api_only:
        return
    _ip(
        "netns add far",
        "link add far0 type veth peer name node0 netns far",
        f"addr add {LINK_NODE}/{LINK_BITS} dev far0",
        "link set far0 up",
        f"route add default via {LINK_FAR}",
    )
    _ip(
        "link set lo up",
        f"addr add {LINK_FAR}/{LINK_BITS} dev node0",
        "link set node0 up",
        f"route add {POD_NET} via {LINK_NODE}",
        f"route add {NODE_NET} via {LINK_NODE}",
        *(f"route add local {net} dev lo" for net in FAR_NETS),
        far=True,
    )
    for key in ("ip_forward", "conf/all/route_localnet"):
        Path("/proc/sys/net/ipv4", key).write_text("1")
