"""The loader: a process of its own that sends prepared requests over many connections and takes the time of each answer.

`python bench/load.py JOB` where JOB is a MessagePack file of a Job; prints one line of JSON (see `run_job`).

As little as can be between two requests (epoll, one recv and one send each), because it shares a CPU with Postgres. Each
connection has one request under way and sends the next one at once (closed loop), or at its appointed time where a `rate` is
given: latency then counts from that time, so that a server that stalls does not get fewer requests to be slow with.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from stats import percentile


class Job(msgspec.Struct):
    """What to send, where, and for how long."""

    port: int
    requests: list[bytes]
    connections: int
    seconds: float = 3600.0
    count: int | None = None  # end after so many requests
    rate: float | None = None  # requests per second, all connections together; None: as fast as the server answers
    expect: str = "200"  # any other status is counted as bad
    drip: bool = False  # send each request a byte at a time, one byte every half second: a slow client


class Loader:
    """Sends the requests in turn."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.left = job.count if job.count is not None else sys.maxsize
        self.next = 0
        self.latencies: list[float] = []
        self.bad: dict[str, int] = {}
        self.broken = 0
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._sent: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        self._due: list[tuple[float, int]] = []

    def run(self) -> dict[str, Any]:
        """Send until the time, or the number of requests, is over."""
        for _ in range(self.job.connections):
            self._connect()
        began = time.perf_counter()
        end = began + self.job.seconds
        for number, fd in enumerate(list(self._sockets)):
            self._appoint(fd, began + (number / self.job.rate if self.job.rate else 0.0))
        while self._sent or self._due:
            now = time.perf_counter()
            if now >= end:
                break
            wait = end - now
            if self._due:
                self._send_due(now)
                wait = min(wait, max(self._due[0][0] - now, 0.0)) if self._due else wait
            for fd, _ in self._poll.poll(wait):
                self._take(fd)
        return self._result(time.perf_counter() - began)

    def _connect(self) -> int:
        one = socket.create_connection(("127.0.0.1", self.job.port), timeout=10)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setblocking(False)
        self._sockets[one.fileno()] = one
        self._poll.register(one.fileno(), select.EPOLLIN)
        return one.fileno()

    def _appoint(self, fd: int, when: float) -> None:
        if self.job.rate is not None:
            heapq.heappush(self._due, (when, fd))
        else:
            self._send(fd, time.perf_counter())

    def _send_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            when, fd = heapq.heappop(self._due)
            self._send(fd, when)

    def _send(self, fd: int, counts_from: float) -> None:
        if self.left <= 0:
            return
        self.left -= 1
        requests = self.job.requests
        self._sockets[fd].send(requests[self.next % len(requests)])
        self.next += 1
        self._sent[fd] = counts_from

    def _take(self, fd: int) -> None:
        """Some bytes have come. An answer that is whole is counted, and the next request goes out."""
        try:
            data = self._partial.pop(fd, b"") + self._sockets[fd].recv(262144)
        except ConnectionError:
            data = b""
        size = _whole(data)
        if size is None and data:
            self._partial[fd] = data
            return
        since = self._sent.pop(fd, None)
        if size is None or size != len(data) or since is None:
            self.broken += 1
            self._poll.unregister(fd)
            self._sockets.pop(fd).close()
            if self.broken < 1000:
                self._appoint(self._connect(), time.perf_counter())
            return
        now = time.perf_counter()
        self.latencies.append(now - since)
        status = data[9:12].decode()
        if status != self.job.expect:
            self.bad[status] = self.bad.get(status, 0) + 1
        rate = self.job.rate
        self._appoint(fd, now if rate is None else since + self.job.connections / rate)

    def _result(self, seconds: float) -> dict[str, Any]:
        for one in self._sockets.values():
            one.close()
        ordered = sorted(self.latencies) or [float("nan")]
        return {
            "requests": len(self.latencies), "seconds": seconds, "p50": percentile(ordered, 0.5), "p99": percentile(ordered, 0.99),
            "bad": self.bad, "broken": self.broken, "cpu": time.process_time(),
        }  # fmt: skip


def _whole(data: bytes) -> int | None:
    """The length of the answer that `data` begins with, once it has come whole."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return None
    at = data.find(b"ontent-Length: ", 0, head)
    length = int(data[at + 15 : data.index(b"\r", at)]) if at > 0 else 0
    return head + 4 + length if len(data) >= head + 4 + length else None


def drip(job: Job) -> dict[str, Any]:
    """Clients that never finish their head. A client that is disconnected connects again."""
    began = time.monotonic()
    end, again = began + job.seconds, 0
    head = job.requests[0]
    clients = [(socket.create_connection(("127.0.0.1", job.port), timeout=10), 0) for _ in range(job.connections)]
    while time.monotonic() < end:
        for number, (one, place) in enumerate(clients):
            try:
                one.send(head[place : place + 1])
                clients[number] = (one, min(place + 1, len(head) - 3))  # the end of the head never comes
            except OSError:
                with contextlib.suppress(OSError):
                    one.close()
                again += 1
                clients[number] = (socket.create_connection(("127.0.0.1", job.port), timeout=10), 0)
        time.sleep(max(0.0, min(0.5, end - time.monotonic())))
    return {"requests": 0, "seconds": time.monotonic() - began, "again": again, "cpu": time.process_time()}


def run_job(job: Job) -> dict[str, Any]:
    """Requests answered, seconds, p50 and p99 in seconds, bad statuses by number, broken connections, own CPU seconds."""
    return drip(job) if job.drip else Loader(job).run()


if __name__ == "__main__":
    print(json.dumps(run_job(msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Job))))
