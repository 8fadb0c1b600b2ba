"""Random configurations of a mesh's egress, right ones and wrong ones, and the requests to try under each. A seed gives the same one every time.

It knows what Istio accepts, and nothing of what the collection makes of it. Half of the configurations are a working way through a gateway with one or
two things broken; the others are entries thrown together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from cluster.onemachine.farend import DEFAULT_HOSTS

Object = dict[str, Any]

HOSTS = list(DEFAULT_HOSTS)
WILDCARDS = ["*.wikipedia.org", "*.cnn.com", "*.com", "*.org"]
NOWHERE = "nowhere.invalid"
CLIENTS = {
    # name: annotations of its pods; None is a pod without a sidecar
    "client": {},
    "around": {
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": f"{DEFAULT_HOSTS['httpbin.org']}/32,203.0.113.16/29",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "8443",
    },
    "within": {
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8,203.0.113.8/30",
        "traffic.sidecar.istio.io/includeOutboundPorts": "9000",
    },
    "bare": None,
}


@dataclass(frozen=True)
class Cell:
    """Namespaces that belong together: the clients', another team's, and the gateway's."""

    name: str

    @property
    def clients(self) -> str:
        return f"{self.name}-clients"

    @property
    def team(self) -> str:
        return f"{self.name}-team"

    @property
    def gateway(self) -> str:
        return f"{self.name}-gateway"

    @property
    def all(self) -> list[str]:
        """Whom an entry for everybody is exported to: a mesh may be shared, and what is tried here must not reach others."""
        return [self.clients, self.team, self.gateway]

    @property
    def gateway_host(self) -> str:
        return f"gw.{self.gateway}.svc.cluster.local"


@dataclass(frozen=True)
class Try:
    """A request from a client of the cell."""

    client: str
    protocol: str
    host: str
    port: int
    path: str = "/"

    @property
    def url(self) -> str:
        scheme = {"http": "http", "tls": "https", "tcp": "tcp"}[self.protocol]
        usual = {"http": 80, "tls": 443}.get(self.protocol)
        port = "" if usual == self.port else f":{self.port}"
        return f"{scheme}://{self.host}{port}" + ("" if self.protocol == "tcp" else self.path)


@dataclass
class Scenario:
    seed: int
    objects: list[Object] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)


def scenario(seed: int, cell: Cell, tries: int = 10) -> Scenario:
    """The configuration and requests of a seed."""
    return _Maker(seed, cell).make(tries)


def marker(cell: Cell, seed: int, namespace: str) -> Object:
    """An entry that only says that what was written before is there, too."""
    return _object("ServiceEntry", namespace, "zz-marker", hosts=[f"m{seed}.marker.test"], exportTo=["."], resolution="NONE", ports=[_port(7, "TCP")])


def _object(kind: str, namespace: str, name: str, group: str = "networking", **spec: Any) -> Object:
    spec = {key: value for key, value in spec.items() if value is not None}
    return {"apiVersion": f"{group}.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def _port(number: int, protocol: str, target: int | None = None) -> Object:
    return {"number": number, "name": f"{protocol.lower()}-{number}", "protocol": protocol, **({"targetPort": target} if target else {})}


class _Maker:
    def __init__(self, seed: int, cell: Cell) -> None:
        self.random, self.cell, self.scenario, self.count = random.Random(seed), cell, Scenario(seed), 0
        self.used: list[tuple[str, int, str]] = []

    def make(self, tries: int) -> Scenario:
        self.sidecars()
        if self.chance(0.75):
            self.way_through_gateway()
        for _turn in range(self.random.randint(1, 5)):
            self.entry()
        if self.chance(0.3):
            self.virtual_service()
        if self.chance(0.15):
            self.origination()
        for _turn in range(tries):
            self.scenario.tries.append(self.request())
        return self.scenario

    # -- parts ----------------------------------------------------------------------------------------------------------------------

    def sidecars(self) -> None:
        """None, one for the namespace, one for a workload, or both; each with a mode or without, with a narrow view or a wide one."""
        cell, names = self.cell, []
        if self.chance(0.85):
            names.append(("default", None))
        if self.chance(0.2):
            names.append(("own", {"labels": {"app": self.random.choice(["client", "around", "within"])}}))
        for name, selector in names:
            policy = self.random.choices([{"mode": "REGISTRY_ONLY"}, {"mode": "ALLOW_ANY"}, {}, None], [6, 2, 1, 1])[0]
            view = self.random.choices(
                [["*/*"], ["./*", f"{cell.team}/*", f"{cell.gateway}/*"], ["./*"], ["./*", f"{cell.gateway}/*"], self.narrow()], [3, 3, 1, 2, 2]
            )[0]
            seen = [*view, *(() if "*/*" in view or "./*" in view else ("./*.marker.test",))]
            egress = None if policy is not None and self.chance(0.2) else [{"hosts": list(dict.fromkeys(seen))}]
            if policy is None and egress is None:
                egress = [{"hosts": ["*/*"]}]
            self.add(_object("Sidecar", cell.clients, name, workloadSelector=selector, outboundTrafficPolicy=policy, egress=egress))

    def narrow(self) -> list[str]:
        where = self.random.choice([".", "*", self.cell.team])
        return [f"{where}/{host}" for host in self.random.sample([*HOSTS, *WILDCARDS[:2]], 3)] + [f"{self.cell.gateway}/*"]

    def entry(self, namespace: str | None = None, hosts: list[str] | None = None) -> None:
        cell = self.cell
        namespace = namespace or self.random.choices([cell.clients, cell.team, cell.gateway], [5, 3, 1])[0]
        hosts = hosts or self.random.sample(HOSTS + (WILDCARDS if self.chance(0.4) else []), self.random.choices([1, 2, 3], [6, 2, 1])[0])
        wild = any(h.startswith("*") for h in hosts)
        resolution = self.random.choice(["NONE", "DYNAMIC_DNS", "STATIC"] if wild else ["DNS", "DNS", "NONE", "STATIC", "DNS_ROUND_ROBIN"])
        if resolution == "DYNAMIC_DNS" and not all(h.startswith("*") for h in hosts):
            resolution = "NONE"
        choice = [(80, "HTTP"), (443, "TLS"), (443, "HTTPS"), (8080, "HTTP"), (8443, "TLS")]
        if resolution != "DYNAMIC_DNS":
            choice += [(9000, "TCP"), (5432, "TCP"), (443, "TCP"), (80, "TCP")]
        ports: dict[int, Object] = {}
        for number, protocol in self.random.choices(choice, [6, 6, 1, 2, 2, 3, 1, 1, 1][: len(choice)], k=self.random.randint(1, 3)):
            target = {80: 8080, 443: 8443}.get(number) if resolution in ("DNS", "STATIC") and self.chance(0.1) else None
            ports.setdefault(number, _port(number, protocol, target))
        addresses = endpoints = None
        if resolution in ("NONE", "STATIC") and self.chance(0.7 if any(p["protocol"] == "TCP" for p in ports.values()) else 0.3):
            addresses = [self.random.choice([self.address(), self.address(), "203.0.113.8/29"])]
        if resolution == "STATIC":
            endpoints = [{"address": self.address()}]
        if resolution == "DNS" and self.chance(0.15):
            endpoints = [{"address": self.random.choice([*HOSTS, NOWHERE])}]
        export = self.random.choice([cell.all, cell.all, ["."], [cell.clients], [cell.team], [cell.gateway]])
        self.add(
            _object(
                "ServiceEntry", namespace, self.name("entry"), hosts=hosts, ports=list(ports.values()), location="MESH_EXTERNAL",
                resolution=resolution, addresses=addresses, endpoints=endpoints, exportTo=export,
            )
        )  # fmt: skip
        for host in hosts:
            exact = self.random.choice([h for h in HOSTS if h.endswith(host[1:])] or HOSTS) if host.startswith("*") else host
            self.used += [(exact, number, p["protocol"]) for number, p in ports.items()]

    def virtual_service(self) -> None:
        cell, host = self.cell, self.random.choice([self.random.choice(HOSTS), *(u[0] for u in self.used[:3])])
        kind = self.random.choice(["http", "http", "tls", "tcp"])
        port = {"http": 80, "tls": 443, "tcp": 9000}[kind]
        target = {"destination": {"host": self.random.choice([host, host, *HOSTS, "missing.example.com"]), "port": {"number": port}}}
        if self.chance(0.25):
            target["destination"]["subset"] = "missing"
        rules: list[Object] = []
        if kind == "http":
            if self.chance(0.3):
                rules.append({"match": [{"uri": {"prefix": "/a"}}], "redirect": {"uri": "/b"}})
            if self.chance(0.2):
                fault = {"abort": {"httpStatus": 418, "percentage": {"value": 100}}}
                rules.append({"match": [{"uri": {"exact": "/headers"}}], "fault": fault, "route": [target]})
            rules.append({"route": [target], **({"match": [{"uri": {"prefix": "/headers"}}]} if self.chance(0.3) else {})})
        elif kind == "tls":
            rules.append({"match": [{"port": port, "sniHosts": [host]}], "route": [target]})
        else:
            rules.append({"match": [{"port": port}], "route": [target]})
        namespace = self.random.choice([cell.clients, cell.clients, cell.team])
        export = self.random.choice([cell.all, ["."]])
        self.add(_object("VirtualService", namespace, self.name("route"), hosts=[host], gateways=["mesh"], exportTo=export, **{kind: rules}))
        self.used.append((host, port, kind.upper()))

    def way_through_gateway(self) -> None:
        """A host that goes through the gateway, by one of the usual shapes, then perhaps with a piece missing or wrong."""
        cell, host = self.cell, self.random.choice(HOSTS)
        wrong = self.random.choices(["", "piece", "subset", "port", "selector", "export", "host"], [8, 3, 1, 1, 1, 2, 1])[0]
        mutual = self.chance(0.6)
        kind = self.random.choice(["http", "tls", "both"])
        parts: list[Object] = []
        entry = {"hosts": [host], "location": "MESH_EXTERNAL", "ports": [_port(80, "HTTP"), _port(443, "TLS")]}
        shared = self.chance(0.4)
        exported = [cell.gateway] if wrong == "export" else cell.all if self.chance(0.5) else [cell.clients, cell.gateway]
        if shared:
            parts.append(
                _object("ServiceEntry", self.random.choice([cell.clients, cell.gateway]), self.name("host"), **entry, resolution="DNS", exportTo=exported)
            )
        else:
            parts.append(_object("ServiceEntry", cell.gateway, self.name("host"), **entry, resolution="DNS", exportTo=["."]))
            parts.append(_object("ServiceEntry", cell.clients, self.name("known"), **entry, resolution="NONE", exportTo=["."]))
        servers = []
        if kind in ("http", "both"):
            servers.append(
                {"port": {"number": 443, "name": "mutual", "protocol": "HTTPS"}, "hosts": ["*"], "tls": {"mode": "ISTIO_MUTUAL"}}
                if mutual
                else {"port": {"number": 80, "name": "plain", "protocol": "HTTP"}, "hosts": [host if wrong != "host" else "www.cnn.com"]}
            )
        if kind in ("tls", "both"):
            servers.append({"port": {"number": 443, "name": "pass", "protocol": "TLS"}, "hosts": [host], "tls": {"mode": "PASSTHROUGH"}})
        selector = {"istio": "somebody-elses" if wrong == "selector" else f"{cell.name}"}
        parts.append(_object("Gateway", cell.gateway, "out", selector=selector, servers=servers))
        subsets = [{"name": "plain"}, {"name": "mutual", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}]
        parts.append(_object("DestinationRule", cell.clients, "gateway", host=cell.gateway_host, exportTo=["."], subsets=subsets))

        def to(port: int, subset: str) -> list[Object]:
            subset = "missing" if wrong == "subset" else subset
            number = 81 if wrong == "port" else port
            return [{"destination": {"host": cell.gateway_host, "subset": subset, "port": {"number": number}}}]

        client: Object = {"hosts": [host], "gateways": ["mesh"], "exportTo": ["."]}
        gateway: Object = {"hosts": [host], "gateways": ["out"], "exportTo": ["."]}
        if kind in ("http", "both"):
            client["http"] = [{"match": [{"port": 80}], "route": to(443, "mutual") if mutual else to(80, "plain")}]
            gateway["http"] = [{"route": [{"destination": {"host": host, "port": {"number": 80}}}]}]
        if kind in ("tls", "both"):
            client["tls"] = [{"match": [{"port": 443, "sniHosts": [host]}], "route": to(443, "plain")}]
            gateway["tls"] = [{"match": [{"port": 443, "sniHosts": [host]}], "route": [{"destination": {"host": host, "port": {"number": 443}}}]}]
        parts.append(_object("VirtualService", cell.clients, self.name("to-gateway"), **client))
        parts.append(_object("VirtualService", cell.gateway, self.name("from-gateway"), **gateway))
        if wrong == "piece":
            parts.pop(self.random.randrange(len(parts)))
        if self.chance(0.4):
            parts += self.policies(host)
        for part in parts:
            self.add(part)
        self.used += [(host, 80, "HTTP"), (host, 443, "TLS")] * 6

    def policies(self, host: str) -> list[Object]:
        cell = self.cell
        who = f"cluster.local/ns/{cell.clients}/sa/{self.random.choice(['default', 'default', 'somebody'])}"
        names = [self.random.choice([host, host, "www.cnn.com"])]
        rule: Object = {}
        if self.chance(0.6):
            sources = [{"principals": [who]}, {"namespaces": [cell.clients]}, {"notPrincipals": [who]}, {"ipBlocks": ["10.0.0.0/8"]}]
            rule["from"] = [{"source": self.random.choice(sources)}]
        kind = self.random.choice(["hosts", "sni", "paths", ""])
        if kind == "hosts":
            rule["to"] = [{"operation": {"hosts": [*names, *(f"{n}:*" for n in names)]}}]
        elif kind == "paths":
            rule["to"] = [{"operation": {"paths": ["/headers*"], "methods": ["GET"]}}]
        elif kind == "sni":
            rule["when"] = [{"key": "connection.sni", "values": names}]
        action = self.random.choice(["ALLOW", "ALLOW", "DENY"])
        spec = {"action": action, "rules": [rule] if rule or action == "DENY" else [{}], "selector": {"matchLabels": {"app": "gw"}}}
        if action == "ALLOW" and self.chance(0.1):
            spec.pop("rules")
        return [_object("AuthorizationPolicy", cell.gateway, self.name("policy"), "security", **spec)]

    def origination(self) -> None:
        """TLS that the sidecar or the gateway starts, to a host declared as HTTP on 80 and served on 443."""
        cell, host = self.cell, self.random.choice(HOSTS)
        namespace = self.random.choice([cell.clients, cell.gateway])
        ports = [_port(80, "HTTP", 443)]
        self.add(_object("ServiceEntry", namespace, self.name("tls"), hosts=[host], ports=ports, resolution="DNS", location="MESH_EXTERNAL", exportTo=cell.all))
        mode = self.random.choice(["SIMPLE", "SIMPLE", "ISTIO_MUTUAL"])
        tls = {"mode": mode, **({"sni": host} if mode == "SIMPLE" else {})}
        self.add(_object("DestinationRule", namespace, self.name("tls"), host=host, trafficPolicy={"tls": tls}))
        self.used.append((host, 80, "HTTP"))

    def request(self) -> Try:
        client = self.random.choices(list(CLIENTS), [15, 3, 3, 1])[0]
        if self.used and self.chance(0.85):
            host, port = self.random.choice(self.used)[:2]
        else:
            host = self.random.choice([*HOSTS, NOWHERE])
            port = self.random.choice([80, 443, 8080, 8443, 9000, 5432])
        sent = {80: "http", 8080: "http", 443: "tls", 8443: "tls"}.get(port, "tcp")
        if port == 443 and self.chance(0.08):
            sent = "http"
        if self.chance(0.05):
            host = DEFAULT_HOSTS.get(host, host)
        path = self.random.choice(["/", "/", "/headers", "/a/b"]) if sent != "tcp" else "/"
        return Try(client, sent, host, port, path)

    # -- small things ---------------------------------------------------------------------------------------------------------------

    def add(self, obj: Object) -> None:
        self.scenario.objects.append(obj)

    def name(self, purpose: str) -> str:
        self.count += 1
        return f"{self.random.choice('abcdefgh')}-{purpose}-{self.count}"

    def address(self) -> str:
        return DEFAULT_HOSTS[self.random.choice(HOSTS)]

    def chance(self, part: float) -> bool:
        return self.random.random() < part
