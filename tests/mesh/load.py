"""Requests at a steady rate to hosts outside the mesh, sent in a pod's network namespace, so that its sidecar treats them as the workload's own.

Imported it is the driver, `Load`; run as a program (by `Load`, with nsenter) it is the generator. The generator resolves no names and knows nothing
of Kubernetes or Istio: it counts as failed whatever is not the answer of the host that it asked. Both need root, and the pod on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ANSWER_WITHIN = 5.0
"""Seconds for a request, with its connection and handshake where it makes one."""
CONNECTIONS = 5
"""Of a stream with kept connections; they take turns."""
IN_FLIGHT = 20
"""Requests of a stream with new connections that may be under way. On a machine that cannot keep up, later ones wait for a place: what is counted as
failed is then not the generator's own queue, and the rate is lower than was asked for."""
KEPT_FAILURES = 200
"""How many failures of a stream are kept in words; all are counted."""


@dataclass(frozen=True)
class Stream:
    """`rate` requests a second to one host, each on a connection of its own or (`kept`) on a few that stay open."""

    name: str
    host: str
    address: str
    tls: bool
    kept: bool
    rate: int = 50


@dataclass
class Count:
    """What became of the requests of a stream. Times are seconds since the load began."""

    sent: int = 0
    failed: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    reconnects: list[float] = field(default_factory=list)
    """When a kept connection had to be made anew, or would have had to after its last request."""


# -- driver -------------------------------------------------------------------------------------------------------------------------


def process_of(pod_uid: str) -> int | None:
    """A process of the pod on this machine; None where the pod runs on another."""
    wanted = (pod_uid, pod_uid.replace("-", "_"))  # the systemd driver writes underscores
    for cgroup in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):  # processes end while we look
            text = cgroup.read_text()
            if any(uid in text for uid in wanted):
                return int(cgroup.parent.name)
    return None


class Load:
    """A context in which `streams` flow from the pod of process `pid`, for `seconds` at most. `ca` signs what TLS hosts show.

    `mark` says what is being done meanwhile; the report shows failures beside it. `count` brings `counts` up to date, `finish` ends the load first.
    """

    def __init__(self, pid: int, streams: Iterable[Stream], ca: Path, seconds: float) -> None:
        self._streams = list(streams)
        self._pid, self._ca, self._seconds = pid, ca, seconds
        self._marks: list[tuple[float, str]] = []
        self.counts: dict[str, Count] = {}

    def __enter__(self) -> Load:
        command = ["nsenter", f"--net=/proc/{self._pid}/ns/net", "--", sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ask({"seconds": self._seconds, "ca": str(self._ca), "streams": [asdict(s) for s in self._streams]})
        self._start = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def elapsed(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._start

    def mark(self, what: str) -> None:
        self._marks.append((self.elapsed, what))

    def count(self) -> None:
        self._ask("count")

    def finish(self) -> None:
        """Returns when each request that was sent has its answer or its failure."""
        self._ask("finish")
        self._seconds = self.elapsed

    def _ask(self, question: object) -> None:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the load generator died; its own words are above"
        self.counts = {name: Count(**count) for name, count in json.loads(answer).items()}

    @property
    def sent(self) -> int:
        return sum(count.sent for count in self.counts.values())

    @property
    def failed(self) -> int:
        return sum(count.failed for count in self.counts.values())

    def report(self, most: int = 5) -> str:
        """After `finish`: a line per stream, then the first failures and reconnects of each with what was being done."""
        machine = f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"  # one that stands still for 5 s loses requests by itself
        lines = [f"{self.sent} requests in {self._seconds:.0f} s ({self.sent / self._seconds:.0f} a second), {self.failed} failed; {machine}"]
        lines += [f"{'stream':<12}{'sent':>8}{'failed':>8}{'reconnects':>12}"]
        lines += [f"{name:<12}{c.sent:>8}{c.failed:>8}{len(c.reconnects):>12}" for name, c in self.counts.items()]
        for name, count in self.counts.items():
            lines += [f"{at:8.2f} s  {name}: {what}  during: {self._during(at)}" for at, what in count.failures[:most]]
            lines += [f"{at:8.2f} s  {name}: reconnected  during: {self._during(at)}" for at in count.reconnects[:most]]
        return "\n".join(lines)

    def _during(self, at: float) -> str:
        return next((what for since, what in reversed(self._marks) if since <= at), "start")


# -- generator ----------------------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A request that did not bring the answer of the host that was asked."""


class Connection:
    """One connection to the host of a stream; says why in a Failed when a request on it fails."""

    def __init__(self, stream: Stream, trust: ssl.SSLContext) -> None:
        self._stream = stream
        self._trust = trust if stream.tls else None
        self._writer: asyncio.StreamWriter | None = None
        self._reusable = True

    async def open(self) -> None:
        name = self._stream.host if self._trust else None
        try:
            self._reader, self._writer = await asyncio.open_connection(self._stream.address, 443 if self._trust else 80, ssl=self._trust, server_hostname=name)
        except ssl.SSLError as error:
            raise Failed(f"TLS: {error.reason}") from None
        except ConnectionResetError:
            raise Failed("connection reset in the handshake" if self._trust else "connection reset") from None
        except OSError as error:
            raise Failed(f"no connection: {error.strerror or error}") from None

    @property
    def is_open(self) -> bool:
        """Whether the next request can use it: the other side has neither closed it nor announced that."""
        return self._writer is not None and self._reusable and not self._reader.at_eof() and self._reader.exception() is None

    async def request(self) -> None:
        kept = "keep-alive" if self._stream.kept else "close"
        self._writer.write(f"GET / HTTP/1.1\r\nHost: {self._stream.host}\r\nConnection: {kept}\r\n\r\n".encode())
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _colon, value in (line.partition(":") for line in lines)}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        except asyncio.IncompleteReadError as error:
            raise Failed("connection closed " + ("within an answer" if error.partial else "before an answer")) from None
        except (OSError, ssl.SSLError) as error:
            raise Failed(f"connection broken before an answer: {getattr(error, 'strerror', None) or error}") from None
        self._reusable = headers.get("connection", "").lower() != "close"
        code = status.split(" ")[1]
        if code != "200":
            raise Failed(f"status {code} {body[:60].decode('utf-8', 'replace')}".rstrip())
        answered = json.loads(body)["host"]
        if answered != self._stream.host:
            raise Failed(f"{answered} answered")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


async def generate(streams: list[Stream], counts: dict[str, Count], ca: str, seconds: float, ended: asyncio.Event) -> None:
    """Sends each request when it is due, whatever became of those before it, until `seconds` have passed or `ended` is set; keeps `counts`."""
    trust = ssl.create_default_context(cafile=ca)
    start = time.monotonic()

    def now() -> float:
        return round(time.monotonic() - start, 3)

    async def attempt(connection: Connection, count: Count) -> None:
        count.sent += 1
        began = now()
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                if not connection.is_open:
                    await connection.open()
                await connection.request()
        except Failed as error:
            fail(count, began, str(error))
        except TimeoutError:
            fail(count, began, f"no answer in {ANSWER_WITHIN:.0f} s")
            connection.close()
        except (ValueError, LookupError) as error:
            fail(count, began, f"not an answer of HTTP: {error!r}")
            connection.close()

    def fail(count: Count, at: float, what: str) -> None:
        count.failed += 1
        if len(count.failures) < KEPT_FAILURES:
            count.failures.append((at, what))

    async def due(rate: float, first: float = 0.0):
        """Yields at each 1/`rate` seconds; at once where that has passed already."""
        number = 0
        while (at := first + number / rate) < seconds and not ended.is_set():
            if (pause := at - now()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), pause)
                    return
            yield
            number += 1

    async def new(stream: Stream) -> None:
        places = asyncio.Semaphore(IN_FLIGHT)

        async def one() -> None:
            connection = Connection(stream, trust)
            await attempt(connection, counts[stream.name])
            connection.close()
            places.release()

        async with asyncio.TaskGroup() as requests:
            async for _turn in due(stream.rate):
                await places.acquire()
                requests.create_task(one())

    async def kept(stream: Stream, number: int) -> None:
        count = counts[stream.name]
        connection: Connection | None = None
        async for _turn in due(stream.rate / CONNECTIONS, number / stream.rate):
            if connection is None or not connection.is_open:
                if connection:
                    connection.close()
                    count.reconnects.append(now())
                connection = Connection(stream, trust)
            await attempt(connection, count)
        if connection:
            if not connection.is_open:
                count.reconnects.append(now())
            connection.close()

    async with asyncio.TaskGroup() as all_streams:
        for stream in streams:
            for work in [kept(stream, n) for n in range(CONNECTIONS)] if stream.kept else [new(stream)]:
                all_streams.create_task(work)


async def main() -> None:
    """Takes the order as a line on stdin, then ``count`` and ``finish``; answers each line with the counts."""
    questions = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    order: dict[str, Any] = json.loads(await questions.readline())
    streams = [Stream(**s) for s in order["streams"]]
    counts = {stream.name: Count() for stream in streams}
    ended = asyncio.Event()
    load = asyncio.create_task(generate(streams, counts, order["ca"], order["seconds"], ended))
    while True:
        print(json.dumps({name: asdict(count) for name, count in counts.items()}), flush=True)
        question = await questions.readline()
        if not question:  # the driver is gone
            return
        if json.loads(question) == "finish":
            ended.set()
            await load


if __name__ == "__main__":
    asyncio.run(main())
