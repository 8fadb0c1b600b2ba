"""The far end, "the internet": web servers, TCP echo, a proxy, DNS and image registry in the network `far` of the machine, for the hosts that tests choose.

Every host has an address of its own, so that a TCP host can be told apart and a host can refuse alone. To be run on the machine, but for
`queries`, `requests` and `hosts`, which only read.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import ipaddress
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

from . import pki
from .layout import ENTRY, FAR_NETS, LINK_FAR, MANIFESTS, REGISTRY_PORT, MeshError, Run, manifest
from .machine import Component, signal_component, stop_component, wait_for

DEFAULT_HOSTS = {
    "edition.cnn.com": "203.0.113.10",
    "httpbin.org": "203.0.113.11",
    "www.google.com": "203.0.113.12",
    "other.example.com": "203.0.113.13",
    "en.wikipedia.org": "203.0.113.14",
    "de.wikipedia.org": "203.0.113.15",
    "www.wikipedia.org": "203.0.113.16",
    "www.cnn.com": "203.0.113.17",
    "proxy.example.com": "203.0.113.18",
}
DEFAULT_FAULTS = {"edition.cnn.com": {"redirect": "/politics"}}
FAULTS = ("delay", "status", "redirect", "reset", "refuse", "drop")
ECHO_PORTS = (9000, 5432)
PROXY_HOST, PROXY_PORT = "proxy.example.com", 3128
FIRST_FREE = "203.0.113.20"
HOSTS_PER_CERTIFICATE = 50  # a certificate with hundreds of names makes every handshake slow
_HOST = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")


def start(run: Run) -> list[Component]:
    for folder in (run.far, run.far / "certs", run.far / "faults", run.far / "tmp"):
        folder.mkdir()
    _certify(run, "nobody", ["nobody.invalid"])
    _certify(run, "default", list(DEFAULT_HOSTS))
    _write_hosts(run, {host: [address] for host, address in DEFAULT_HOSTS.items()})
    for host, fault in DEFAULT_FAULTS.items():
        _write_fault(run, host, fault)
    values = {
        "FAR": run.far,
        "LOG": run.log,
        "MANIFESTS": MANIFESTS,
        "REGISTRY": f"{LINK_FAR}:{REGISTRY_PORT}",
        "IMAGES": run.cache.registry,
        "DEFAULT_HOSTS": " ".join(DEFAULT_HOSTS),
    }
    (run.far / "nginx.conf").write_text(manifest("farend.nginx.conf", values))
    parts = [
        Component(run, "farend-web", "nginx", "-p", run.far, "-e", run.log / "farend-error.log", "-c", run.far / "nginx.conf", far=True),
        _start_dns(run),
        Component(run, "farend-echo", sys.executable, ENTRY, "--name", run.name, "on-machine", "echo", far=True),
        _start_proxy(run),
    ]
    wait_for("the far end's DNS", lambda: "started" in _dns_log(run), parts)
    return parts


def _start_dns(run: Run) -> Component:
    return Component(
        run,
        "farend-dns",
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        f"--pid-file={run.far}/dns.pid",
        f"--listen-address={LINK_FAR}",
        "--bind-interfaces",
        "--local-ttl=5",
        "--log-queries",
        f"--log-facility={run.log}/farend-dns.log",
        f"--conf-file={run.far}/zones.conf",
        f"--addn-hosts={run.far}/hosts",
        far=True,
    )


def _start_proxy(run: Run) -> Component:
    """An HTTP proxy (CONNECT and plain), whose requests come from the address of its host. It looks names up with the far end's DNS."""
    options = {"Port": PROXY_PORT, "Bind": DEFAULT_HOSTS[PROXY_HOST], "Timeout": 600, "MaxClients": 1000, "LogFile": f'"{run.log}/farend-proxy.log"'}
    (run.far / "resolv.conf").write_text(f"nameserver {LINK_FAR}\n")
    (run.far / "proxy.conf").write_text("".join(f"{key} {value}\n" for key, value in options.items()))
    script = f"mount --bind {run.far}/resolv.conf /etc/resolv.conf && exec tinyproxy -d -c {run.far}/proxy.conf"
    return Component(run, "farend-proxy", "unshare", "--mount", "sh", "-c", script, far=True)


def change(run: Run, wanted: dict) -> None:
    """Carry out {"do": "add" | "remove", "words"} or {"do": "set", "host", "fault"}."""
    if wanted["do"] == "add":
        add_hosts(run, wanted["words"])
    elif wanted["do"] == "remove":
        remove_hosts(run, wanted["words"])
    else:
        set_fault(run, wanted["host"] and wanted["host"].lower(), wanted["fault"])


# ---- hosts -----------------------------------------------------------------------------------------------------------------------------


def hosts(run: Run) -> dict[str, list[str]]:
    """Each host, or '*.ZONE', with its addresses."""
    return json.loads((run.far / "hosts.json").read_text())


def faults(run: Run) -> dict[str, dict]:
    """Each host that does something wrong on purpose, with what."""
    return {f.name: json.loads(f.read_text()) for f in sorted((run.far / "faults").iterdir()) if not f.name.startswith(".")}


def add_hosts(run: Run, words: Iterable[str]) -> None:
    """Words as `with_hosts` takes them; returns when DNS, certificates and servers know them."""
    known = hosts(run)
    _change_hosts(run, known, with_hosts(known, words))


def with_hosts(known: dict[str, list[str]], words: Iterable[str]) -> dict[str, list[str]]:
    """The table with HOST, *.ZONE or HOST=ADDRESS[,ADDRESS] added; what is there keeps its address unless one is given."""
    table = dict(known)
    taken = {a for addresses in known.values() for a in addresses}
    free = (a for a in _addresses() if a not in taken)
    for word in words:
        host, _equals, given = word.lower().partition("=")
        if not _HOST.fullmatch(host):
            raise MeshError(f"{host!r} is not a host name or *.zone: nothing was added")
        addresses = given.split(",") if given else table.get(host) or [next(free)]
        for address in addresses:
            if not _is_far(address):
                raise MeshError(f"{host}: {address!r} is not an address of the far end ({', '.join(FAR_NETS)}): nothing was added")
        taken.update(addresses)
        table[host] = addresses
    return table


def _is_far(address: str) -> bool:
    try:
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(net) for net in FAR_NETS)
    except ValueError:
        return False


def remove_hosts(run: Run, words: list[str]) -> None:
    known = hosts(run)
    unknown = [w for w in words if w.lower() not in known]
    if unknown:
        raise MeshError(f"the far end has no host {', '.join(unknown)}: see mesh farend hosts")
    gone = {w.lower() for w in words}
    for host in gone:
        (run.far / "faults" / host).unlink(missing_ok=True)
    _change_hosts(run, known, {h: a for h, a in known.items() if h not in gone})
    _refuse(run)


def _addresses() -> Iterator[str]:
    nets = [ipaddress.ip_network(net).hosts() for net in FAR_NETS]
    first = ipaddress.ip_address(FIRST_FREE)
    return (str(a) for a in itertools.chain(*nets) if a not in ipaddress.ip_network(FAR_NETS[0]) or a >= first)


def _change_hosts(run: Run, before: dict, after: dict) -> None:
    if after == before:
        return
    _write_hosts(run, after)
    seen = len(_dns_log(run))

    def zones(table: dict) -> dict:
        return {h: a for h, a in table.items() if h.startswith("*")}

    if zones(before) == zones(after):
        signal_component(run, "farend-dns", signal.SIGHUP)
        wait_for("the far end's DNS", lambda: f"read {run.far}/hosts" in _dns_log(run)[seen:], [], 20)
    else:  # dnsmasq reads wildcards at its start only; it is gone for milliseconds, and resolvers ask again
        stop_component(run, "farend-dns")
        _start_dns(run)
        wait_for("the far end's DNS", lambda: f"read {run.far}/hosts" in _dns_log(run)[seen:], [], 20)


def _write_hosts(run: Run, table: dict[str, list[str]]) -> None:
    certified = {p.name for p in (run.far / "certs").iterdir()}
    new = [h for h in table if _certificate_file(h) not in certified]
    groups = [new[i : i + HOSTS_PER_CERTIFICATE] for i in range(0, len(new), HOSTS_PER_CERTIFICATE)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda group: _certify(run, hashlib.sha256(" ".join(group).encode()).hexdigest()[:16], group), groups))
    names = [f"{a} {h}\n" for h, addresses in table.items() if not h.startswith("*") for a in addresses]
    zones = [f"address=/{h[2:]}/{a}\n" for h, addresses in table.items() if h.startswith("*") for a in addresses]
    (run.far / "hosts").write_text("".join(names))
    (run.far / "zones.conf").write_text("".join(["address=/#/\n", *zones]))  # what is not listed does not exist
    (run.far / "hosts.json").write_text(json.dumps(table))


def _certificate_file(host: str) -> str:
    return ("_" + host[1:] if host.startswith("*") else host) + ".crt"


def _certify(run: Run, name: str, group: list[str]) -> None:
    """One certificate for a group of hosts, under the name of each."""
    certs = run.far / "certs"
    pki.leaf(certs / f"{name}.pem", certs / "far.key", "/CN=far end", (run.cache.far_ca, run.cache.far_ca_key), [f"DNS:{h}" for h in group])
    for host in group:
        (certs / _certificate_file(host)).symlink_to(f"{name}.pem")


# ---- faults ----------------------------------------------------------------------------------------------------------------------------


def set_fault(run: Run, host: str | None, fault: dict) -> None:
    """What `host` (None: every host) does wrong from now on, replacing what it did: {} or any of FAULTS; edition.cnn.com goes on redirecting."""
    if host and (host not in hosts(run) or host.startswith("*")):
        raise MeshError(f"the far end has no host {host}: mesh farend hosts add {host}")
    for each in [host] if host else faults(run):
        _write_fault(run, each, DEFAULT_FAULTS.get(each, {}) | fault)
    _refuse(run)


def _write_fault(run: Run, host: str, fault: dict) -> None:
    file = run.far / "faults" / host
    if not fault:
        file.unlink(missing_ok=True)
        return
    new = file.with_name("." + host)
    new.write_text(json.dumps(fault))
    new.rename(file)


def _refuse(run: Run) -> None:
    """Make the packet filter of `far` refuse or drop what comes for the hosts whose faults ask for it."""
    table, rules = hosts(run), []
    for host, fault in faults(run).items():
        for address in table.get(host, []):
            if fault.get("refuse"):
                rules.append(f"-A INPUT -d {address} -p tcp -j REJECT --reject-with tcp-reset")
            elif fault.get("drop"):
                rules.append(f"-A INPUT -d {address} -p tcp -j DROP")
    text = "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *rules, "COMMIT", ""])
    subprocess.run(["nsenter", "--net=/run/netns/far", "--", "iptables-restore"], input=text, text=True, check=True)


# ---- what it saw -----------------------------------------------------------------------------------------------------------------------


def _dns_log(run: Run) -> str:
    try:
        return (run.log / "farend-dns.log").read_text(errors="replace")
    except OSError:
        return ""


def queries(run: Run, since: float) -> Iterator[str]:
    """The DNS questions of the last `since` seconds, one line each: time, who asked, type, name."""
    now = time.time()
    for line in _dns_log(run).splitlines():
        match = re.match(r"(\w{3} +\d+ [\d:]{8}) dnsmasq\[\d+\]: query\[(\w+)\] (\S+) from (\S+)", line)
        if match:
            year = time.localtime(now).tm_year  # which dnsmasq leaves out
            when = time.mktime(time.strptime(f"{year} {match[1]}", "%Y %b %d %H:%M:%S"))
            if when > now + 86400:
                when = time.mktime(time.strptime(f"{year - 1} {match[1]}", "%Y %b %d %H:%M:%S"))
            if when >= now - since - 1:
                yield f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(when))} {match[4]} {match[2]} {match[3]}"


def requests(run: Run, since: float) -> Iterator[str]:
    """The requests of the last `since` seconds that reached the web servers, a JSON object a line."""
    now = time.time()
    with (run.log / "farend-requests.log").open(errors="replace") as log:
        for line in log:
            if line.endswith("}\n") and json.loads(line)["time"] >= now - since:
                yield line.rstrip()


# ---- TCP echo --------------------------------------------------------------------------------------------------------------------------


def echo() -> None:
    """On each of ECHO_PORTS: one line of JSON with the client's address and our own, then every byte back, until killed."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (peer, _port), (address, port) = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        try:
            writer.write(json.dumps({"client": peer, "address": address, "port": port}).encode() + b"\n")
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()
        except OSError:
            writer.transport.abort()

    async def serve() -> None:
        await asyncio.gather(*[asyncio.start_server(client, sock=socket.create_server(("0.0.0.0", port), backlog=4096)) for port in ECHO_PORTS])
        await asyncio.get_running_loop().create_future()

    asyncio.run(serve())
